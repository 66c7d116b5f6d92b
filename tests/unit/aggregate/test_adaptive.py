"""FedAdagrad, FedAdam, FedYogi and FedAvgM against their equations in 60 decimal digits."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Callable
from decimal import Decimal, getcontext, localcontext
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from onefed import aggregate, arrays
from onefed.aggregate import (
    AggregationError,
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedYogi,
    Update,
)
from onefed.aggregate.check import MAGNITUDE_MAX
from onefed.aggregate.kernels import steps
from onefed.arrays import Arrays

QUICK = settings(max_examples=30, deadline=None)

UpdatesOf = Callable[..., list[Update]]

RULES = [
    FedAdam(),
    FedAdam(eta=0.03, beta_1=0.5, beta_2=0.9, tau=1e-3, bias_correction=True),
    FedAdam(beta_1=0.0, beta_2=0.0),
    FedYogi(),
    FedYogi(eta=1.0, beta_1=0.0, beta_2=0.5, tau=1e-9),
    FedAdagrad(),
    FedAdagrad(eta=2.0, tau=0.1),
    FedAvgM(),
    FedAvgM(server_learning_rate=0.3, server_momentum=0.5),
]
EVERY = pytest.mark.parametrize("rule", RULES, ids=repr)
ELEMENTS = st.floats(-100, 100, width=32)
DIGITS = 60


def expected(
    rule: aggregate.Rule, memory: dict[str, Decimal], x: Decimal, mean: Decimal, number: int
) -> tuple[dict[str, Decimal], Decimal]:
    """Algorithm 2 of Reddi et al., and FedAvgM of Hsu et al., for one coordinate.

    Yogi jumps where the squares of r and delta are equal: which side it is on is asked in float64.
    """
    delta = Decimal(float(mean) - float(x))
    if isinstance(rule, FedAvgM):
        m = Decimal(rule.server_momentum) * memory["m"] + delta
        return {"m": m}, x + Decimal(rule.server_learning_rate) * m
    assert isinstance(rule, FedAdam | FedYogi | FedAdagrad)
    beta_1 = Decimal(0) if isinstance(rule, FedAdagrad) else Decimal(rule.beta_1)
    m = beta_1 * memory.get("m", Decimal(0)) + (1 - beta_1) * delta
    eta, v, square = Decimal(rule.eta), memory["r"] * memory["r"], delta * delta
    if isinstance(rule, FedAdagrad):
        v += square
    elif isinstance(rule, FedAdam):
        beta_2 = Decimal(rule.beta_2)
        v = beta_2 * v + (1 - beta_2) * square
        if rule.bias_correction:
            eta *= (1 - beta_2**number).sqrt() / (1 - beta_1**number)
    else:
        ours, theirs = float(memory["r"]) ** 2, float(delta) ** 2
        sign = (ours > theirs) - (ours < theirs)
        v -= (1 - Decimal(rule.beta_2)) * square * sign
    root = v.sqrt()
    after = {"r": root} if isinstance(rule, FedAdagrad) else {"m": m, "r": root}
    return after, x + eta * m / (root + Decimal(rule.tau))


def closeness(value: Decimal, dtype: str, scale: float) -> Decimal:
    """Half a unit in the last place of ``dtype``, and a few roundings of float64 at ``scale``."""
    ulp = float(np.spacing(np.array(float(abs(value)), dtype)))
    return Decimal(0.5001 * ulp) + Decimal(16 * 2.0**-53 * scale)


@EVERY
def test_a_step_takes_the_memory_of_its_results(rule: Any, updates_of: UpdatesOf) -> None:
    """The model and each memory of after, float32; before round 1 the memories take nothing."""
    size = 2**20
    model: Arrays = {"w": np.zeros(size, np.float32)}
    updates = updates_of([np.ones(size), np.zeros(size)])
    rule.step(rule.init(model), model, updates, 1)
    tracemalloc.start()
    try:
        rule.step(rule.init(model), model, updates, 1)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < (1 + len(rule.slots) + 0.5) * 4 * size


@EVERY
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@QUICK
@given(x=ELEMENTS, means=st.lists(ELEMENTS, min_size=1, max_size=4), first=st.integers(1, 50))
@example(x=9.999999717180685e-10, means=[6.751484027086255e-40], first=1)
def test_a_step_is_the_equation_rounded_once(
    rule: Any, dtype: str, x: float, means: list[float], first: int, updates_of: UpdatesOf
) -> None:
    model: Arrays = {"w": np.array([x], dtype)}
    state = rule.init(model)
    with localcontext() as context:
        context.prec = DIGITS
        assert getcontext().prec == DIGITS
        for number, mean in enumerate(means, start=first):
            memory = {slot: Decimal(state[f"{slot}/w"].item()) for slot in rule.slots}
            old = Decimal(model["w"].item())
            wanted, moved = expected(rule, memory, old, Decimal(mean), number)
            state, model = rule.step(state, model, updates_of([[mean]], dtype), number)
            for slot, value in wanted.items():
                scale = float(max(abs(memory[slot]), abs(Decimal(mean) - old)))
                error = abs(Decimal(state[f"{slot}/w"].item()) - value)
                assert error <= closeness(value, dtype, scale)
            scale = float(max(abs(old), abs(moved - old), abs(moved)))
            error = abs(Decimal(model["w"].item()) - moved)
            assert error <= closeness(moved, dtype, scale)


def test_yogi_leaves_v_alone_where_it_has_arrived(updates_of: UpdatesOf) -> None:
    """sign(v - Delta^2) is -1, 0 and 1: v = 4 goes towards 16, stays, goes towards 1 and 0."""
    rule = FedYogi(beta_2=0.5, tau=2.0)
    model: Arrays = {"w": np.zeros(4, np.float32)}
    state, _ = rule.step(rule.init(model), model, updates_of([[4.0, 2.0, 1.0, 0.0]]), 1)
    roots = np.sqrt(np.array([12.0, 4.0, 3.5, 4.0]))
    assert state["r/w"].tolist() == [np.float32(root) for root in roots]


def test_adagrad_is_exact_where_everything_is_rational(updates_of: UpdatesOf) -> None:
    """v = 9 + 16, so that the step is eta * 4 / (5 + 3) = eta / 2."""
    rule = FedAdagrad(eta=0.25, tau=3.0)
    model: Arrays = {"w": np.array([1.0, -1.0], np.float32)}
    state = rule.init(model)
    assert state["r/w"].tolist() == [3.0, 3.0]
    state, after = rule.step(state, model, updates_of([[5.0, -5.0]]), 1)
    assert state["r/w"].tolist() == [5.0, 5.0]
    assert after["w"].tolist() == [1.125, -1.125]


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_memory_is_float32_but_for_float64(
    dtype: str, array_of: Callable[..., NDArray[Any]]
) -> None:
    model = {"w": array_of([[1.0], [2.0]], dtype), "b": array_of(3.0, dtype)}
    state = FedAdam(tau=0.5).init(model)
    assert list(state) == ["m/w", "m/b", "r/w", "r/b"]
    for key, array in state.items():
        assert array.dtype == (np.float64 if dtype == "float64" else np.float32)
        assert array.shape == model[key[2:]].shape
    assert state["r/w"].tolist() == [[0.5], [0.5]]
    assert state["m/b"].item() == 0.0


def test_narrow_models_move_as_float32_does_and_are_rounded_once(
    array_of: Callable[..., NDArray[Any]],
    exact_of: Callable[..., list[Fraction]],
    nearest: Callable[[Fraction, str], Fraction],
) -> None:
    """The move is eta * 4 / (4 + tau) for the second, whatever the width: no middle rounding."""
    rule = FedAdagrad(eta=0.3, tau=1e-12)
    for dtype in ("float16", "bfloat16"):
        model = {"w": array_of([1.0, 2.0, -8.0], dtype)}
        updates = [Update("0", 1, {"w": array_of([1.0, 6.0, -9.0], dtype)})]
        state, after = rule.step(rule.init(model), model, updates, 1)
        assert state["r/w"].tolist() == [np.float32(1e-12), 4.0, 1.0]
        moved = [Fraction(1), Fraction(2.3), Fraction(-8.3)]
        assert exact_of(after["w"]) == [nearest(value, dtype) for value in moved]


@EVERY
def test_where_nothing_has_moved_nothing_moves(rule: Any, updates_of: UpdatesOf) -> None:
    model = {"w": np.array([0.0, 1.0, -3.5], np.float32)}
    _, after = rule.step(rule.init(model), model, updates_of([[0.0, 1.0, -3.5]]), 1)
    assert after["w"].tolist() == model["w"].tolist()


@EVERY
def test_the_first_step_goes_where_the_mean_lies(rule: Any, updates_of: UpdatesOf) -> None:
    model = {"w": np.zeros(4, np.float32)}
    mean = [1.0, -1.0, 1e-6, -1e6]
    _, after = rule.step(rule.init(model), model, updates_of([mean]), 1)
    assert np.sign(after["w"]).tolist() == np.sign(mean).tolist()


def test_momentum_of_nothing_is_the_plain_mean(updates_of: UpdatesOf) -> None:
    rng = np.random.default_rng(23)
    model = {"w": (rng.integers(-99, 99, 500) / 64).astype(np.float32)}
    updates = updates_of(rng.integers(-99, 99, (4, 500)) / 64)
    rule = FedAvgM(server_learning_rate=1.0, server_momentum=0.0)
    _, moved = rule.step(rule.init(model), model, updates, 1)
    _, mean = FedAvg().step({}, model, updates, 1)
    assert moved["w"].tobytes() == mean["w"].tobytes()


def test_momentum_adds_up(updates_of: UpdatesOf) -> None:
    """A constant pull of 1 with beta = 1/2: 1, then 1 + 1/2, then 1 + 1/2 + 1/4."""
    rule = FedAvgM(server_momentum=0.5)
    model: Arrays = {"w": np.zeros(1, np.float32)}
    state = rule.init(model)
    steps = []
    for number in (1, 2, 3):
        before = model["w"].item()
        state, model = rule.step(state, model, updates_of([[before + 1.0]]), number)
        steps.append(model["w"].item() - before)
    assert steps == [1.0, 1.5, 1.75]


def test_bias_correction_follows_the_number_of_the_round() -> None:
    plain, corrected = FedAdam(), FedAdam(bias_correction=True)
    assert [plain.numbers(number).rate for number in (1, 2, 1000)] == [0.1, 0.1, 0.1]
    assert corrected.numbers(1).rate == pytest.approx(0.1 * math.sqrt(0.01) / 0.1)
    assert corrected.numbers(2).rate == pytest.approx(0.1 * math.sqrt(1 - 0.99**2) / (1 - 0.9**2))
    assert corrected.numbers(10_000).rate == pytest.approx(0.1)


@EVERY
def test_counters_take_the_mean_and_have_no_memory(rule: Any) -> None:
    model = {"steps": np.array([5, 5]), "w": np.zeros(1, np.float32)}
    updates = [
        Update("0", 1, {"steps": np.array([10, 8]), "w": np.ones(1, np.float32)}),
        Update("1", 3, {"steps": np.array([20, 8]), "w": np.ones(1, np.float32)}),
    ]
    state, after = rule.step(rule.init(model), model, updates, 1)
    assert after["steps"].tolist() == [18, 8]
    assert set(state) == {f"{slot}/w" for slot in rule.slots}


def test_names_of_arrays_may_look_like_those_of_the_state() -> None:
    model = {name: np.zeros(1, np.float32) for name in ("w", "m/w", "r/w", "m/m/w", "", "/", "é")}
    rule = FedAdam()
    state = rule.init(model)
    assert len(state) == 2 * len(model)
    update = Update("0", 1, {k: np.full(1, i, np.float32) for i, k in enumerate(model)})
    state, _ = rule.step(state, model, [update], 1)
    for index, key in enumerate(model):
        assert state[f"m/{key}"].item() == pytest.approx(0.1 * index)


@EVERY
def test_tiles_do_not_show(rule: Any) -> None:
    size = 2 * steps.TILE_ELEMENTS + 3
    edges = [0, steps.TILE_ELEMENTS - 1, steps.TILE_ELEMENTS, size - 1]
    rng = np.random.default_rng(29)
    model = {"w": rng.standard_normal(size).astype(np.float32)}
    updates = [
        Update(str(n), n + 1, {"w": rng.standard_normal(size).astype(np.float32)}) for n in range(3)
    ]
    few = [Update(u.client, u.weight, {"w": u.arrays["w"][edges]}) for u in updates]
    part = {"w": model["w"][edges]}
    whole, alone = (
        rule.step(rule.init(start), start, given, 1)
        for start, given in ((model, updates), (part, few))
    )
    for big, small in zip(whole, alone, strict=True):
        assert all(big[key][edges].tobytes() == small[key].tobytes() for key in small)


@pytest.mark.parametrize(
    ("rule", "value"),
    [
        (FedAdam(eta=1e300), 1.0),
        (FedAvgM(server_learning_rate=1e39), 1.0),
        (FedYogi(eta=1e300, tau=1e-300), 1.0),
        (FedAdagrad(eta=1e40), 1.0),
    ],
    ids=repr,
)
def test_a_step_out_of_range_is_refused_and_named(
    rule: Any, value: float, updates_of: UpdatesOf
) -> None:
    model = {"w": np.zeros(2, np.float32)}
    state = rule.init(model)
    before = arrays.digest({**state, **model})
    with pytest.raises(AggregationError, match=rf"{rule.name}.* made the array 'w'") as caught:
        rule.step(state, model, updates_of([[0.0, value]]), 1)
    assert "learning rate" in str(caught.value.hint)
    assert arrays.digest({**state, **model}) == before


@EVERY
def test_a_client_that_sends_the_largest_values_does_not_end_the_run(
    rule: Any, updates_of: UpdatesOf
) -> None:
    """The squares of what the check lets through leave float32; what is remembered does not."""
    model: Arrays = {"w": np.zeros(2, np.float32)}
    state = rule.init(model)
    for number in range(1, 5):
        sign = (-1) ** number
        updates = updates_of([[sign * MAGNITUDE_MAX, 1.0]])
        assert aggregate.check(updates, model).accepted
        state, model = rule.step(state, model, updates, number)
    assert all(np.isfinite(array).all() for array in {**state, **model}.values())
