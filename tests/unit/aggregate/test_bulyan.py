"""Bulyan against the paper's definition in exact fractions."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onefed.aggregate import Bulyan, Krum, Update, distances

QUICK = settings(max_examples=60, deadline=None)

UpdatesOf = Callable[..., list[Update]]

SMALL = st.integers(-6, 6).map(lambda n: n / 4)


def choose(rows: list[list[float]], f: int) -> list[int]:
    """El Mhamdi et al., section 4, step 1: every distance is computed again for every choice."""
    left = list(range(len(rows)))
    selected = []
    for _ in range(len(rows) - 2 * f):
        closest = max(1, len(left) - f - 2)

        def score(i: int, closest: int = closest) -> Fraction:
            squares = (
                sum((Fraction(a) - Fraction(b)) ** 2 for a, b in zip(rows[i], rows[j], strict=True))
                for j in left
                if j != i
            )
            return sum(sorted(squares)[:closest], Fraction(0))

        best = min(left, key=lambda i: (score(i), i))
        left.remove(best)
        selected.append(best)
    return sorted(selected)


def middle(values: list[Fraction], keep: int) -> Fraction:
    """Step 2: the mean of those nearest to the median; of two that are equally near, the lower."""
    median = statistics.median(values)
    near = sorted(values, key=lambda value: (abs(value - median), value))[:keep]
    return sum(near) / keep


def step(rule: Bulyan | Krum, updates: list[Update]) -> Any:
    model = {key: np.zeros_like(array) for key, array in updates[0].arrays.items()}
    return rule.step({}, model, updates, 1)[1]["w"]


@QUICK
@given(
    f=st.integers(1, 2),
    more=st.integers(0, 3),
    data=st.data(),
    dtype=st.sampled_from(["float32", "float64", "bfloat16"]),
)
def test_bulyan_is_the_middle_of_what_repeated_krum_chooses(
    f: int,
    more: int,
    data: st.DataObject,
    dtype: str,
    updates_of: UpdatesOf,
    exact_of: Callable[..., list[Fraction]],
    nearest: Callable[[Fraction, str], Fraction],
) -> None:
    count = 4 * f + 3 + more
    row = st.lists(SMALL, min_size=2, max_size=2)
    rows = data.draw(st.lists(row, min_size=count, max_size=count))
    updates = updates_of(rows, dtype)
    selected = choose(rows, f)
    model = {"w": np.zeros_like(updates[0].arrays["w"])}
    assert Bulyan(f).choose(model, updates) == selected
    expected = [
        nearest(middle([Fraction(rows[i][index]) for i in selected], count - 4 * f), dtype)
        for index in range(2)
    ]
    assert exact_of(step(Bulyan(f), updates)) == expected


def test_without_malicious_clients_it_is_the_plain_mean(updates_of: UpdatesOf) -> None:
    rows = [[0.0, 8.0], [1.0, -4.0], [5.0, 2.0]]
    assert step(Bulyan(), updates_of(rows, weights=[1, 1000, 1])).tolist() == [2.0, 2.0]


def test_repetition_chooses_others_than_one_pass_would(updates_of: UpdatesOf) -> None:
    """The pair at 10 is lonely among seven, but wins as soon as the crowd has thinned out."""
    rows = [[0.0], [1.0], [2.0], [3.0], [4.0], [10.0], [10.0]]
    updates, model = updates_of(rows, "float64"), {"w": np.zeros(1)}
    one_pass = distances.Candidates(distances.squared_distances(updates, model), 1).best(5)
    assert one_pass == [0, 1, 2, 3, 4]
    assert Bulyan(1).choose(model, updates) == choose(rows, 1) == [0, 1, 2, 3, 5]


def test_a_single_poisoned_coordinate_of_a_close_update_does_not_get_through(
    updates_of: UpdatesOf,
) -> None:
    """The weakness for which Bulyan was made: in many dimensions Krum may choose such an update."""
    rng = np.random.default_rng(17)
    rows = rng.standard_normal((7, 400))
    rows[0] = rows[1:].mean(axis=0)
    rows[0][5] = 12.0
    updates = updates_of(rows)
    assert step(Krum(1), updates)[5] == 12.0
    honest = rows[1:, 5].astype(np.float32)
    assert honest.min() <= step(Bulyan(1), updates)[5] <= honest.max()


def test_counters_take_the_median_of_all() -> None:
    updates = [
        Update(str(n), 1, {"w": np.array([n / 8.0]), "steps": np.array(count)})
        for n, count in enumerate([3, 1, 2, 9, 10**12, 4, 4])
    ]
    model = {"w": np.zeros(1), "steps": np.array(0)}
    for rule in (Bulyan(), Bulyan(1)):
        assert rule.step({}, model, updates, 1)[1]["steps"] == 4


@pytest.mark.parametrize("count", [23, 40])
def test_many_clients_are_no_trouble(count: int, updates_of: UpdatesOf) -> None:
    rng = np.random.default_rng(count)
    rows = (rng.integers(-8, 9, (count, 3)) / 4.0).tolist()
    f = (count - 3) // 4
    model = {"w": np.zeros(3, np.float32)}
    assert Bulyan(f).choose(model, updates_of(rows)) == choose(rows, f)
