"""What each robust rule withstands, and what it does not.

Honest models lie around a truth; f hostile clients collude. Within its bound a rule stays about as
close to the truth as the honest models are; with as many as it takes, every rule is broken.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from onefed import aggregate
from onefed.aggregate import Update

Rows = NDArray[np.float64]
Attack = Callable[[Rows, int], Rows]

DIMENSIONS = 200
CLIENTS = 11

BOUNDS = [
    (aggregate.rule("FedMedian"), 5, 6),
    (aggregate.rule("FedTrimmedAvg", beta=0.3), 3, 4),
    (aggregate.rule("Krum", num_malicious=4), 4, 6),
    (aggregate.rule("MultiKrum", num_malicious=4), 4, 6),
    (aggregate.rule("Bulyan", num_malicious=2), 2, 6),
]
"""Rule, hostile clients among ``CLIENTS`` that it withstands, and that break it. Krum: with 6, each
has the 5 = n - f - 2 neighbours that count; with 5, one of those is honest and ties it down."""


def repeated(row: NDArray[np.float64], count: int) -> Rows:
    return np.tile(row, (count, 1))


ATTACKS: dict[str, Attack] = {
    "sign flip x10": lambda honest, f: repeated(-10 * honest.mean(axis=0), f),
    "same value": lambda honest, f: np.full((f, honest.shape[1]), 100.0),
    "a little is enough": lambda honest, f: repeated(
        honest.mean(axis=0) - 1.5 * honest.std(axis=0), f
    ),
    "inner product": lambda honest, f: repeated(-1.1 * honest.mean(axis=0), f),
    "replacement": lambda honest, f: repeated(len(honest) * (2 - honest.mean(axis=0)), f),
    "gaussian": lambda honest, f: np.random.default_rng(1).normal(0, 30, (f, honest.shape[1])),
    "mimic": lambda honest, f: repeated(honest[0], f),
    "end of the range": lambda honest, f: np.full((f, honest.shape[1]), 3e38),
}


def honest_rows(count: int) -> Rows:
    rng = np.random.default_rng(count)
    truth = rng.standard_normal(DIMENSIONS)
    return truth + 0.5 * rng.standard_normal((count, DIMENSIONS))


def aggregated(rule: aggregate.Rule, rows: Rows, hostile: int) -> NDArray[np.float64]:
    """The hostile are the last rows, claim the most examples and come first in client order."""
    updates = [
        Update(
            f"{'0' if index >= len(rows) - hostile else '1'}{index:03}",
            2**29 - 1 if index >= len(rows) - hostile else 10,
            {"w": row.astype(np.float32)},
        )
        for index, row in enumerate(rows)
    ]
    model = {"w": np.zeros(DIMENSIONS, np.float32)}
    return rule.step({}, model, updates, 1)[1]["w"].astype(np.float64)


def distance(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    return float(np.linalg.norm(one - other))


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize(("rule", "f", "_"), BOUNDS, ids=lambda value: getattr(value, "name", None))
def test_f_hostile_clients_are_withstood(rule: aggregate.Rule, f: int, _: int, attack: str) -> None:
    honest = honest_rows(CLIENTS - f)
    result = aggregated(rule, np.concatenate([honest, ATTACKS[attack](honest, f)]), f)
    centre = honest.mean(axis=0)
    farthest = max(distance(row, centre) for row in honest)
    assert distance(result, centre) <= 1.6 * farthest


@pytest.mark.parametrize("name", ["FedMedian", "FedTrimmedAvg", "Bulyan"])
@pytest.mark.parametrize("attack", ATTACKS)
def test_no_coordinate_leaves_the_range_of_the_honest(name: str, attack: str) -> None:
    rule, f, _ = next(bound for bound in BOUNDS if bound[0].name == name)
    honest = honest_rows(CLIENTS - f).astype(np.float32).astype(np.float64)
    result = aggregated(rule, np.concatenate([honest, ATTACKS[attack](honest, f)]), f)
    assert (honest.min(axis=0) <= result).all()
    assert (result <= honest.max(axis=0)).all()


@pytest.mark.parametrize(("rule", "_", "too_many"), BOUNDS, ids=lambda v: getattr(v, "name", None))
def test_too_many_hostile_clients_break_it(rule: aggregate.Rule, _: int, too_many: int) -> None:
    honest = honest_rows(CLIENTS - too_many)
    rows = np.concatenate([honest, np.full((too_many, DIMENSIONS), 1e6)])
    centre = honest.mean(axis=0)
    farthest = max(distance(row, centre) for row in honest)
    assert distance(aggregated(rule, rows, too_many), centre) > 1000 * farthest


def test_one_more_than_f_can_win_krum_from_further_away() -> None:
    """f + 1 have f of the f + 1 neighbours that count; so the honest one may be far away."""
    f = 4
    for hostile, wins in ((f, False), (f + 1, True)):
        honest = honest_rows(CLIENTS - hostile)
        away = honest[0] - honest[1:].mean(axis=0)
        away *= 1.9 * distance(honest[0], honest[1]) / np.linalg.norm(away)
        rows = np.concatenate([honest, repeated(honest[0] + away, hostile)])
        result = aggregated(aggregate.rule("Krum", num_malicious=f), rows, hostile)
        assert bool(distance(result, rows[-1]) < 1e-3) is wins


@pytest.mark.parametrize("name", ["FedAvg", "FedProx", "FaultTolerantFedAvg", "Krum", "Bulyan"])
def test_without_a_bound_one_hostile_client_is_enough(name: str) -> None:
    """What the remark of Krum and Bulyan with f = 0 warns of: two of a kind, and one of them."""
    hostile = 2 if name == "Krum" else 1
    honest = honest_rows(3 - hostile)
    rows = np.concatenate([honest, np.full((hostile, DIMENSIONS), 1e6)])
    result = aggregated(aggregate.rule(name), rows, hostile)
    assert distance(result, honest[0]) > 1e5
