"""What holds for every rule: order, purity, shapes, and a state that can be put away."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from onefed import aggregate, arrays
from onefed.aggregate import Update
from onefed.arrays import Arrays

QUICK = settings(max_examples=15, deadline=None)

ArrayOf = Callable[..., NDArray[Any]]

RULES = [
    *(aggregate.rule(name) for name in aggregate.RULES),
    aggregate.rule("FedAdam", bias_correction=True),
    aggregate.rule("FedTrimmedAvg", beta=0.34),
    aggregate.rule("Krum", num_malicious=2),
    aggregate.rule("MultiKrum", num_malicious=2),
    aggregate.rule("MultiKrum", num_to_keep=2),
    aggregate.rule("Bulyan", num_malicious=1),
]
CLIENTS = ["3", "20", "100", "edge-a", "edge-b", "007", "7"]
"""Enough for each of the above; their order is neither that of text nor of arrival."""

KINDS = ["float32", "float64", "float16", "bfloat16", "int32", "bool"]

every_rule = pytest.mark.parametrize("rule", RULES, ids=repr)


@pytest.fixture
def model(array_of: ArrayOf) -> Arrays:
    """Every element type, shapes from none to three dimensions, names with slashes, one empty."""
    rng = np.random.default_rng(5)
    shapes = [(2, 3), (), (4,), (2, 1, 2), (), (3,)]
    built = {
        f"m/{kind}": array_of(rng.integers(-4, 5, shape) / 4.0, kind)
        for kind, shape in zip(KINDS, shapes, strict=True)
    }
    return {"z": np.zeros((0, 3), np.float32), **built, "m/m/float32": array_of([1.0], "float32")}


@pytest.fixture
def round_of(array_of: ArrayOf) -> Callable[..., list[Update]]:
    """The updates of a seeded round: the model and something random."""

    def make(model: Arrays, seed: int) -> list[Update]:
        rng = np.random.default_rng(seed)

        def near(array: NDArray[Any]) -> NDArray[Any]:
            noise = rng.standard_normal(array.shape)
            wide = np.asarray(arrays.widened(array), np.float64)
            return array_of(wide + noise, arrays.dtype_name(array.dtype))

        return [
            Update(client, int(rng.integers(1, 1000)), {key: near(a) for key, a in model.items()})
            for client in CLIENTS
        ]

    return make


def bits(model: Arrays) -> dict[str, bytes]:
    return {key: array.tobytes() for key, array in model.items()}


@every_rule
def test_result_has_keys_order_shapes_and_dtypes_of_the_model(
    rule: aggregate.Rule, model: Arrays, round_of: Callable[..., list[Update]]
) -> None:
    updates = round_of(model, 1)
    shuffled = [Update(u.client, u.weight, dict(reversed(u.arrays.items()))) for u in updates]
    _, after = rule.step(rule.init(model), model, shuffled, 1)
    assert list(after) == list(model)
    assert arrays.mismatch(after, model) is None
    assert arrays.is_finite(after)
    for key, array in after.items():
        owners = sum(np.shares_memory(array, update.arrays[key]) for update in updates)
        assert owners <= (rule.name == "Krum")  # which hands on one client's model
        assert not np.shares_memory(array, model[key])


@every_rule
@QUICK
@given(seed=st.integers(0, 2**32), order=st.permutations(range(len(CLIENTS))))
def test_arrival_order_does_not_show_in_the_bits(
    rule: aggregate.Rule, seed: int, order: list[int]
) -> None:
    rng = np.random.default_rng(seed)
    model = {"w": rng.standard_normal(9).astype(np.float32), "b": rng.standard_normal(2)}
    updates = [
        Update(
            client,
            int(rng.integers(1, 2**29)),
            {k: (a + rng.standard_normal(a.shape)).astype(a.dtype) for k, a in model.items()},
        )
        for client in CLIENTS
    ]
    state = rule.init(model)
    once = rule.step(state, model, updates, 3)
    again = rule.step(state, model, [updates[index] for index in order], 3)
    assert [bits(part) for part in once] == [bits(part) for part in again]


@every_rule
def test_arguments_are_unchanged_and_may_be_read_only(
    rule: aggregate.Rule, model: Arrays, round_of: Callable[..., list[Update]]
) -> None:
    updates, state = round_of(model, 2), rule.init(model)
    before = copy.deepcopy((state, model, [update.arrays for update in updates]))
    for part in (state, model, *(update.arrays for update in updates)):
        for array in part.values():
            array.flags.writeable = False
    first = rule.step(state, model, updates, 1)
    second = rule.step(state, model, updates, 1)
    assert [bits(part) for part in first] == [bits(part) for part in second]
    for old, new in zip(
        [before[0], before[1], *before[2]],
        [state, model, *(update.arrays for update in updates)],
        strict=True,
    ):
        assert bits(old) == bits(new)


@every_rule
def test_memory_layout_does_not_show(
    rule: aggregate.Rule, model: Arrays, round_of: Callable[..., list[Update]]
) -> None:
    updates = round_of(model, 3)
    fortran = [
        Update(u.client, u.weight, {k: np.asfortranarray(a) for k, a in u.arrays.items()})
        for u in updates
    ]
    strided = {key: np.stack([array, array], axis=-1)[..., 0] for key, array in model.items()}
    state = rule.init(model)
    plain = rule.step(state, model, updates, 1)
    other = rule.step(state, strided, fortran, 1)
    assert [bits(part) for part in plain] == [bits(part) for part in other]


@every_rule
def test_an_array_that_says_its_byte_order_is_as_good(
    rule: aggregate.Rule, model: Arrays, round_of: Callable[..., list[Update]]
) -> None:
    """What is read from a file may be little-endian by name, and equal to native by value."""

    def named(arrays: Arrays) -> Arrays:
        order = {"little": "<", "big": ">"}[sys.byteorder]
        return {k: array.view(array.dtype.newbyteorder(order)) for k, array in arrays.items()}

    updates = round_of(model, 4)
    same = [Update(u.client, u.weight, named(u.arrays)) for u in updates]
    assert len(aggregate.check(same, model).accepted) == len(same)
    state = rule.init(model)
    plain = rule.step(state, model, updates, 1)
    other = rule.step(named(state), named(model), same, 1)
    assert [bits(part) for part in plain] == [bits(part) for part in other]
    if isinstance(rule, aggregate.MeanRule):
        fold = aggregate.MeanFold(named(model))
        for update in sorted(same, key=lambda update: aggregate.client_order(update.client)):
            fold.add(update)
        streamed = rule.step_mean(named(state), named(model), fold.result(), 1)
        assert [bits(part) for part in plain] == [bits(part) for part in streamed]


@every_rule
def test_a_run_continued_from_a_saved_state_is_the_same_run(
    rule: aggregate.Rule, model: Arrays, round_of: Callable[..., list[Update]]
) -> None:
    """Saved and restored as named arrays, in another order, under the true round number."""

    def rounds(numbers: range, state: Arrays, current: Arrays) -> tuple[Arrays, Arrays]:
        for number in numbers:
            state, current = rule.step(state, current, round_of(current, number), number)
        return state, current

    whole = rounds(range(1, 7), rule.init(model), model)
    state, half = rounds(range(1, 4), rule.init(model), model)
    restored = {key: state[key].copy() for key in sorted(state, reverse=True)}
    rest = rounds(range(4, 7), restored, {key: array.copy() for key, array in half.items()})
    assert bits(whole[1]) == bits(rest[1])
    assert arrays.digest(whole[0]) == arrays.digest(rest[0])


@every_rule
def test_a_model_of_integers_only_works(rule: aggregate.Rule) -> None:
    model = {"steps": np.array(0, np.int64), "seen": np.zeros(2, bool)}
    updates = [
        Update(client, 1, {"steps": np.array(index), "seen": np.array([True, index == 0])})
        for index, client in enumerate(CLIENTS)
    ]
    state, after = rule.step(rule.init(model), model, updates, 1)
    assert state == {}
    assert (after["steps"].item(), after["seen"].tolist()) == (3, [True, False])


@every_rule
def test_a_model_of_nothing_works(rule: aggregate.Rule) -> None:
    updates = [Update(client, 1, {}) for client in CLIENTS]
    assert rule.step(rule.init({}), {}, updates, 1) == ({}, {})


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16", "int32"])
@pytest.mark.parametrize(
    "rule", [rule for rule in RULES if not rule.init({"w": np.zeros(1)})], ids=repr
)
def test_where_all_agree_the_result_is_what_they_say(
    rule: aggregate.Rule, dtype: str, array_of: ArrayOf
) -> None:
    said = array_of([1.5, -3.0, 0.0, 7.0, 1e-3, 500.0], dtype)
    model = {"w": array_of([9.0, 8.0, 7.0, 6.0, 5.0, 4.0], dtype)}
    updates = [Update(client, 10 + len(client), {"w": said}) for client in CLIENTS]
    _, after = rule.step({}, model, updates, 1)
    assert after["w"].tobytes() == said.tobytes()
