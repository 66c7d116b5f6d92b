"""Exact arithmetic on integers, however large, against Python's own."""

from __future__ import annotations

import statistics
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from numpy.typing import NDArray

from onefed.aggregate import WEIGHT_MAX, integers

QUICK = settings(max_examples=60, deadline=None)

DTYPES = ["bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]


@st.composite
def columns_of(draw: st.DrawFn) -> list[NDArray[Any]]:
    dtype = draw(st.sampled_from(DTYPES))
    count = draw(st.integers(1, 7))
    return [draw(st_numpy.arrays(dtype, 3)) for _ in range(count)]


def total(columns: list[NDArray[Any]], weights: list[int], divisor: int) -> list[int]:
    fold = integers.ExactSum(columns[0].size)
    for column, weight in zip(columns, weights, strict=True):
        fold.add(column, weight)
    out = np.empty(columns[0].size, np.int64)
    fold.divide(divisor, out)
    return out.tolist()


@QUICK
@given(columns_of(), st.lists(st.integers(1, WEIGHT_MAX), min_size=7, max_size=7))
def test_a_weighted_mean_is_exact_and_rounded_half_to_even(
    columns: list[NDArray[Any]], weights: list[int]
) -> None:
    used = weights[: len(columns)]
    out = np.empty_like(columns[0])
    integers.weighted_mean(columns, used, out)
    for index in range(out.size):
        exact = sum(w * int(c[index]) for w, c in zip(used, columns, strict=True))
        assert out[index] == round(Fraction(exact, sum(used)))


@QUICK
@given(columns_of(), st.data())
def test_a_sorted_mean_is_the_mean_of_the_ranks(
    columns: list[NDArray[Any]], data: st.DataObject
) -> None:
    low = data.draw(st.integers(0, len(columns) - 1))
    high = data.draw(st.integers(low + 1, len(columns)))
    out = np.empty_like(columns[0])
    integers.sorted_mean(columns, low, high, out)
    for index in range(out.size):
        ranked = sorted(int(column[index]) for column in columns)
        assert out[index] == round(Fraction(sum(ranked[low:high]), high - low))


@QUICK
@given(columns_of())
def test_a_median_is_that_of_the_statistics_module(columns: list[NDArray[Any]]) -> None:
    out = np.empty_like(columns[0])
    integers.median(columns, out)
    for index in range(out.size):
        values = [Fraction(int(column[index])) for column in columns]
        assert out[index] == round(statistics.median(values))


@QUICK
@given(
    st.lists(
        st.tuples(st.integers(-(2**63), 2**63 - 1), st.integers(1, WEIGHT_MAX)),
        min_size=1,
        max_size=40,
    )
)
def test_a_sum_that_outgrows_int64_stays_exact(parts: list[tuple[int, int]]) -> None:
    """From one limb to three in the middle of a sum, with carries and borrows."""
    columns = [np.array([value, -1 - value, 7], np.int64) for value, _ in parts]
    weights = [weight for _, weight in parts]
    exact = [
        sum(w * int(c[index]) for w, c in zip(weights, columns, strict=True)) for index in range(3)
    ]
    divisor = sum(weights)
    assert total(columns, weights, divisor) == [round(Fraction(e, divisor)) for e in exact]


def test_limbs_carry_for_a_thousand_of_the_heaviest_clients() -> None:
    column = np.array([2**63 - 1, -(2**63), -1, 0, 1], np.int64)
    fold = integers.ExactSum(column.size)
    for _ in range(1000):
        fold.add(column, WEIGHT_MAX)
    out = np.empty_like(column)
    fold.divide(1000 * WEIGHT_MAX, out)
    assert out.tolist() == column.tolist()


def test_tiles_do_not_show() -> None:
    size = 2 * integers.TILE_ELEMENTS + 3
    rng = np.random.default_rng(7)
    columns = [rng.integers(-(2**62), 2**62, size) for _ in range(3)]
    out = np.empty(size, np.int64)
    edges = [0, integers.TILE_ELEMENTS - 1, integers.TILE_ELEMENTS, size - 1]
    few = np.empty(len(edges), np.int64)
    integers.median(columns, out)
    integers.median([column[edges] for column in columns], few)
    assert out[edges].tolist() == few.tolist()
    integers.weighted_mean(columns, [1, 2, WEIGHT_MAX], out)
    integers.weighted_mean([column[edges] for column in columns], [1, 2, WEIGHT_MAX], few)
    assert out[edges].tolist() == few.tolist()


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_elements_are_no_trouble(dtype: str) -> None:
    empty = np.empty(0, dtype)
    integers.median([empty, empty], empty)
    integers.weighted_mean([empty], [3], empty)
    assert total([empty], [3], 3) == []
