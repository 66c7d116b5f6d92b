"""Krum and MultiKrum against the paper's definition in exact fractions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onefed import aggregate
from onefed.aggregate import Krum, MultiKrum, Update, distances
from onefed.arrays import Arrays

QUICK = settings(max_examples=80, deadline=None)

UpdatesOf = Callable[..., list[Update]]

SMALL = st.integers(-6, 6).map(lambda n: n / 4)
"""So few values that ties are frequent; every square and sum is exact in float64."""
ROWS = st.lists(st.lists(SMALL, min_size=3, max_size=3), min_size=1, max_size=9)


def squared(one: Sequence[float], other: Sequence[float]) -> Fraction:
    return sum(
        ((Fraction(a) - Fraction(b)) ** 2 for a, b in zip(one, other, strict=True)), Fraction(0)
    )


def scores(rows: list[list[float]], f: int) -> list[Fraction]:
    """Blanchard et al., section 4, with the brackets that it leaves open."""
    closest = max(1, len(rows) - f - 2)
    return [
        sum(sorted(squared(row, other) for j, other in enumerate(rows) if j != i)[:closest])
        for i, row in enumerate(rows)
    ]


def chosen(rows: list[list[float]], f: int, count: int) -> list[int]:
    by_score = scores(rows, f)
    return sorted(range(len(rows)), key=lambda index: (by_score[index], index))[:count]


def step(rule: aggregate.Rule, updates: list[Update], model: Arrays | None = None) -> Any:
    start = {key: np.zeros_like(a) for key, a in updates[0].arrays.items()}
    _, after = rule.step({}, model or start, updates, 1)
    return after["w"]


@QUICK
@given(rows=ROWS, f=st.integers(0, 3))
def test_krum_is_the_update_of_smallest_score(
    rows: list[list[float]], f: int, updates_of: UpdatesOf
) -> None:
    f = min(f, max(0, (len(rows) - 3) // 2))
    (winner,) = chosen(rows, f, 1)
    assert step(Krum(f), updates_of(rows)).tolist() == rows[winner]


def test_the_chosen_model_is_handed_on_bit_by_bit_but_for_its_counters() -> None:
    close = np.array([-0.0, 1.0], np.float32)
    updates = [
        Update("0", 1, {"w": close, "count": np.array(5)}),
        Update("1", 1, {"w": close + np.float32(0.5), "count": np.array(7)}),
        Update("2", 1, {"w": close + np.float32(9.0), "count": np.array(9)}),
    ]
    model = {"count": np.array(0), "w": np.zeros(2, np.float32)}
    _, after = Krum().step({}, model, updates, 1)
    assert list(after) == ["count", "w"]
    assert after["w"].tobytes() == close.tobytes()
    assert after["count"] == 7


@QUICK
@given(rows=ROWS, f=st.integers(0, 3), keep=st.integers(0, 9))
def test_multikrum_is_the_plain_mean_of_the_smallest_scores(
    rows: list[list[float]],
    f: int,
    keep: int,
    updates_of: UpdatesOf,
    nearest: Callable[[Fraction, str], Fraction],
) -> None:
    count = len(rows)
    f = min(f, max(0, (count - 3) // 2))
    keep = min(keep, max(0, count - f - 2)) if f else keep
    winners = chosen(rows, f, keep or max(1, count - f - 2))
    expected = [
        nearest(sum(Fraction(rows[winner][index]) for winner in winners) / len(winners), "float32")
        for index in range(3)
    ]
    weights = [10 ** (index % 8) for index in range(count)]
    assert step(MultiKrum(f, keep), updates_of(rows, weights=weights)).tolist() == expected


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_distances_are_exact_where_float64_holds_the_squares(
    dtype: str, updates_of: UpdatesOf
) -> None:
    rng = np.random.default_rng(11)
    rows = (rng.integers(-64, 64, (6, 500)) / 16.0).tolist()
    updates = updates_of(rows, dtype)
    model = updates_of([rng.integers(-64, 64, 500) / 16.0], dtype)[0].arrays
    found = distances.squared_distances(updates, model)
    assert found.tolist() == [[squared(one, other) for other in rows] for one in rows]


def test_distances_of_small_updates_to_large_weights_are_right() -> None:
    """Weights around 1,000 and updates around 0.001: uncentred float32 would see only noise."""
    rng = np.random.default_rng(13)
    model = {"w": (1000 * rng.standard_normal(4000)).astype(np.float32)}
    updates = [
        Update(
            str(n),
            1,
            {"w": (model["w"] + (n + 1) * 1e-3 * rng.standard_normal(4000)).astype(np.float32)},
        )
        for n in range(5)
    ]
    wide = np.stack([update.arrays["w"].astype(np.float64) for update in updates])
    expected = ((wide[:, None] - wide[None, :]) ** 2).sum(axis=-1)
    found = distances.squared_distances(updates, model)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_distances_run_over_all_float_arrays_and_no_others() -> None:
    model = {"b": np.zeros(2), "steps": np.array(0), "a": np.zeros((1, 2), np.float32)}
    one = {"b": np.ones(2), "steps": np.array(10**9), "a": np.ones((1, 2), np.float32)}
    updates = [Update("0", 1, model), Update("1", 1, one)]
    assert distances.squared_distances(updates, model).tolist() == [[0.0, 4.0], [4.0, 0.0]]


def test_the_order_of_the_arrays_does_not_show_in_the_distances() -> None:
    """A model that was saved and loaded may have another."""
    rng = np.random.default_rng(19)
    model = {key: rng.standard_normal(50) for key in "cabed"}
    updates = [
        Update(str(n), 1, {key: array + rng.standard_normal(50) for key, array in model.items()})
        for n in range(5)
    ]
    other = dict(sorted(model.items(), reverse=True))
    one, two = (distances.squared_distances(updates, start) for start in (model, other))
    assert one.tobytes() == two.tobytes()


@given(st.integers(0, 2**32), st.integers(1, 300))
@settings(max_examples=30, deadline=None)
def test_identical_updates_are_at_distance_zero(seed: int, size: int) -> None:
    rng = np.random.default_rng(seed)
    model = {"w": rng.standard_normal(size).astype(np.float32), "b": rng.standard_normal(3)}
    same = {key: (a + rng.standard_normal(a.shape)).astype(a.dtype) for key, a in model.items()}
    updates = [Update("0", 1, same), Update("1", 1, model), Update("2", 1, dict(same))]
    found = distances.squared_distances(updates, model)
    assert found[0, 2] == found[2, 0] == 0.0
    assert found[0, 1] == found[2, 1]
    assert np.diagonal(found).tolist() == [0.0, 0.0, 0.0]


def test_no_distance_is_negative() -> None:
    """Of updates that differ in one last bit, G_ii + G_jj - 2 * G_ij may be, by rounding."""
    for seed in range(200):
        rng = np.random.default_rng(seed)
        one = (1000 * rng.standard_normal(50)).astype(np.float32)
        other = one.copy()
        other[0] = np.nextafter(other[0], np.float32(np.inf))
        updates = [Update("0", 1, {"w": one}), Update("1", 1, {"w": other})]
        assert distances.squared_distances(updates, {"w": np.zeros_like(one)}).min() >= 0.0


def test_an_update_at_the_end_of_the_range_is_far_from_all(updates_of: UpdatesOf) -> None:
    """Centred, it leaves float32; that costs its client the round, and nobody else."""
    end = float(np.finfo(np.float32).max)
    updates = updates_of([[end, end], [end, -end], [1.0, 1.0], [2.0, 1.0], [1.0, 1.5], [3, 1]])
    model = {"w": np.array([-end, -end], np.float32)}
    found = distances.squared_distances(updates, model)
    assert np.isinf(found[:2, 2:]).all()
    assert not np.isnan(found).any()
    assert step(Krum(1), updates, model).tolist() == [1.0, 1.0]


def test_ties_go_to_the_first_client_in_order(updates_of: UpdatesOf) -> None:
    """At 10 and at 1 the company is equally close; client "9" comes before "11", as numbers."""
    rows = dict(zip(["10", "11", "9", "12"], [[0.0], [1.0], [10.0], [11.0]], strict=True))
    updates = [
        Update(client, 1, update.arrays)
        for client, update in zip(rows, updates_of(list(rows.values())), strict=True)
    ]
    assert step(Krum(), updates).tolist() == [10.0]
    assert step(MultiKrum(num_to_keep=2), updates).tolist() == [5.5]


def test_one_and_two_updates_are_no_trouble(updates_of: UpdatesOf) -> None:
    for rule in (Krum(), MultiKrum()):
        assert step(rule, updates_of([[4.0]])) == [4.0]
        assert step(rule, updates_of([[4.0], [5.0]])) == [4.0]


def test_multikrum_keeps_no_more_than_there_are(updates_of: UpdatesOf) -> None:
    assert MultiKrum(num_to_keep=9).kept(2) == 2
    assert step(MultiKrum(num_to_keep=9), updates_of([[1.0], [2.0]])) == [1.5]


def test_the_chosen_clients_counter_does_not_count() -> None:
    """An integer is no parameter: it decides nothing, and the median of all is taken."""
    rows = [0.0, 0.25, 0.5, 40.0, 0.25]
    counts = [7, 10**15, 9, 8, 7]
    updates = [
        Update(str(n), 1, {"w": np.array([row]), "steps": np.array(count)})
        for n, (row, count) in enumerate(zip(rows, counts, strict=True))
    ]
    model = {"w": np.zeros(1), "steps": np.array(0)}
    for rule in (Krum(1), MultiKrum(1)):
        _, after = rule.step({}, model, updates, 1)
        assert after["steps"] == 8
    assert step(Krum(1), updates, model) == [0.25]  # client 1, whose counter lies
