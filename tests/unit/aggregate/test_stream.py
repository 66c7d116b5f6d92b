"""One update at a time gives the bits of all at once, in bounded memory, whatever the arrival."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from onefed import aggregate, arrays
from onefed.aggregate import WEIGHT_MAX, MeanFold, MeanRule, OrderedFold, Update, client_order
from onefed.aggregate.fedavg import weighted_mean
from onefed.arrays import Arrays

QUICK = settings(max_examples=40, deadline=None)

MEAN_RULES = [
    rule
    for rule in (*(aggregate.rule(n) for n in aggregate.RULES), aggregate.FedAdam(eta=0.01))
    if isinstance(rule, MeanRule)
]
KEYS = ["3", "20", "100", "edge-b", "edge-a", "007", "7"]
DTYPES = ["float32", "float64", "float16", "bfloat16", "int64", "uint8", "bool"]


class Memory:
    """Holds updates in a dict, and says how many there were at most."""

    def __init__(self) -> None:
        self.held: dict[str, Update] = {}
        self.most = 0

    def put(self, update: Update) -> None:
        assert update.client not in self.held
        self.held[update.client] = update
        self.most = max(self.most, len(self.held))

    def take(self, client: str) -> Update:
        return self.held.pop(client)


class Elsewhere(Memory):
    """Holds nothing, as a disk does: an update is made again when it is taken."""

    def __init__(self, remake: Callable[[str], Update]) -> None:
        super().__init__()
        self._remake = remake

    def put(self, update: Update) -> None:
        super().put(Update(update.client, update.weight, {}))

    def take(self, client: str) -> Update:
        super().take(client)
        return self._remake(client)


@pytest.fixture(scope="session")
def round_of(array_of: Callable[..., NDArray[Any]]) -> Callable[[int], tuple[Arrays, list[Update]]]:
    """A seeded model of every kind of element type, and an update of each client."""

    def make(seed: int) -> tuple[Arrays, list[Update]]:
        rng = np.random.default_rng(seed)

        def one() -> Arrays:
            drawn = {dtype: array_of(rng.integers(0, 99, (2, 3)) / 8, dtype) for dtype in DTYPES}
            return {
                **drawn,
                "empty": np.zeros((0, 2), np.float32),
                "scalar": np.array(rng.normal()),
            }

        weights = rng.integers(1, WEIGHT_MAX, len(KEYS), endpoint=True).tolist()
        return one(), [Update(key, w, one()) for key, w in zip(KEYS, weights, strict=True)]

    return make


def in_order(updates: list[Update]) -> list[Update]:
    return sorted(updates, key=lambda update: client_order(update.client))


def bits(model: Arrays) -> dict[str, bytes]:
    return {key: array.tobytes() for key, array in model.items()}


def test_the_mean_family_is_what_it_is() -> None:
    names = "FedAvg FedProx FedAvgM FedAdam FedAdagrad FedYogi FaultTolerantFedAvg FedAdam"
    assert [rule.name for rule in MEAN_RULES] == names.split()


@pytest.mark.parametrize("rule", MEAN_RULES, ids=repr)
@QUICK
@given(seed=st.integers(0, 2**32))
def test_folding_gives_the_bits_of_the_batch(
    rule: Any, seed: int, round_of: Callable[[int], tuple[Arrays, list[Update]]]
) -> None:
    model, updates = round_of(seed)
    state = rule.init(model)
    fold = MeanFold(model)
    for update in in_order(updates):
        fold.add(update)
    assert fold.count == len(updates)
    streamed = rule.step_mean(state, model, fold.result(), 5)
    batch = rule.step(state, model, updates, 5)
    assert [bits(part) for part in streamed] == [bits(part) for part in batch]
    assert list(streamed[1]) == list(model)
    assert arrays.mismatch(streamed[1], model) is None


def test_integers_near_the_end_of_int64_are_folded_exactly() -> None:
    model = {"n": np.zeros(2, np.int64), "u": np.zeros(1, np.uint64)}
    values = [2**63 - 1, -(2**63), 2**62 + 1, 5]
    updates = [
        Update(
            str(n), WEIGHT_MAX - n, {"n": np.array([v, -v - 1]), "u": np.array([abs(v) - 1], "u8")}
        )
        for n, v in enumerate(values)
    ]
    fold = MeanFold(model)
    for update in updates:
        fold.add(update)
    assert bits(fold.result()) == bits(weighted_mean(updates, model))


@pytest.mark.parametrize(("first", "second"), [("10", "2"), ("1", "1"), ("a", "1")])
def test_updates_out_of_order_or_twice_are_our_own_mistake(first: str, second: str) -> None:
    fold = MeanFold({"w": np.zeros(1)})
    fold.add(Update(first, 1, {"w": np.zeros(1)}))
    with pytest.raises(AssertionError, match="in order"):
        fold.add(Update(second, 1, {"w": np.zeros(1)}))


def test_a_mean_of_nothing_is_our_own_mistake() -> None:
    with pytest.raises(AssertionError, match="at least one"):
        MeanFold({"w": np.zeros(1)}).result()


@QUICK
@given(
    seed=st.integers(0, 99),
    arrival=st.permutations(KEYS),
    lost=st.sets(st.sampled_from(KEYS), max_size=len(KEYS) - 1),
)
def test_any_arrival_gives_the_bits_of_the_batch(
    seed: int,
    arrival: list[str],
    lost: set[str],
    round_of: Callable[[int], tuple[Arrays, list[Update]]],
) -> None:
    model, updates = round_of(seed)
    by_key = {update.client: update for update in updates}
    hold = Memory()
    fold = OrderedFold(model, KEYS, hold)
    for settled, key in enumerate(arrival):
        assert fold.waiting == set(arrival[settled:])
        if key in lost:
            fold.lose(key)
        else:
            fold.add(by_key[key])
    assert hold.held == {}
    assert fold.waiting == set()
    assert fold.count == len(KEYS) - len(lost)
    came = [update for update in updates if update.client not in lost]
    assert bits(fold.result()) == bits(weighted_mean(came, model))


def test_what_arrives_in_order_is_never_held(
    round_of: Callable[[int], tuple[Arrays, list[Update]]],
) -> None:
    model, updates = round_of(1)
    hold = Memory()
    fold = OrderedFold(model, KEYS, hold)
    fold.lose("7")
    for update in in_order(updates):
        if update.client != "7":
            fold.add(update)
    assert hold.most == 0
    fold.result()


def test_a_client_that_is_not_waited_for_is_our_own_mistake() -> None:
    update = Update("1", 1, {"w": np.zeros(1)})
    fold = OrderedFold({"w": np.zeros(1)}, ["1", "2"], Memory())
    with pytest.raises(AssertionError, match="still waiting for 2"):
        fold.result()
    fold.add(update)
    for again in (lambda: fold.add(update), lambda: fold.lose("1"), lambda: fold.lose("3")):
        with pytest.raises(AssertionError, match="not waited for"):
            again()


def peak_models(run: Callable[[], object], model_bytes: int) -> float:
    """Largest memory that ``run`` had at a time, in models."""
    tracemalloc.start()
    try:
        run()
        return tracemalloc.get_traced_memory()[1] / model_bytes
    finally:
        tracemalloc.stop()


SIZE = 2**19
CLIENTS = 9


def made(key: str) -> Update:
    return Update(key, 3, {"w": np.full(SIZE, float(key), np.float32)})


def test_folding_takes_three_models_however_many_clients() -> None:
    model = {"w": np.zeros(SIZE, np.float32)}

    def run() -> None:
        fold = MeanFold(model)
        for number in range(CLIENTS):
            fold.add(made(str(number)))
        fold.result()

    assert peak_models(run, 4 * SIZE) < 3.3


def test_folding_in_any_order_takes_three_models_besides_the_hold() -> None:
    """The worst order: all wait for the first client, and then are folded in one go."""
    model = {"w": np.zeros(SIZE, np.float32)}

    def run() -> None:
        fold = OrderedFold(model, [str(n) for n in range(CLIENTS)], Elsewhere(made))
        for number in reversed(range(CLIENTS)):
            fold.add(made(str(number)))
        fold.result()

    assert peak_models(run, 4 * SIZE) < 3.3
