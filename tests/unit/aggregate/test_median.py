"""The median against the statistics module in exact fractions."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from onefed.aggregate import FedMedian, Update

QUICK = settings(max_examples=60, deadline=None)

DYADIC = st.integers(-(2**7), 2**7).map(lambda n: n / 2**3)
"""Values that every float type holds, and so do float64 sums of them."""
ROWS = st.lists(st.lists(DYADIC, min_size=3, max_size=3), min_size=1, max_size=9)


def median(updates: list[Update]) -> NDArray[Any]:
    like = updates[0].arrays["w"]
    _, after = FedMedian().step({}, {"w": np.zeros_like(like)}, updates, 1)
    return after["w"]


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
@QUICK
@given(rows=ROWS)
def test_median_is_correctly_rounded(
    dtype: str,
    rows: list[list[float]],
    updates_of: Callable[..., list[Update]],
    exact_of: Callable[[NDArray[Any]], list[Fraction]],
    nearest: Callable[[Fraction, str], Fraction],
) -> None:
    updates = updates_of(rows, dtype)
    columns = zip(*(exact_of(update.arrays["w"]) for update in updates), strict=True)
    expected = [nearest(statistics.median(column), dtype) for column in columns]
    assert exact_of(median(updates)) == expected


def test_claimed_examples_do_not_weigh(updates_of: Callable[..., list[Update]]) -> None:
    liar = updates_of([[0.0], [1.0], [900.0]], weights=[1, 1, 2**29 - 1])
    assert median(liar) == [1.0]


def test_the_middle_two_do_not_overflow(updates_of: Callable[..., list[Update]]) -> None:
    largest = float(np.finfo(np.float32).max)
    assert median(updates_of([[largest]] * 4)) == [np.float32(largest)]


def test_counters_take_their_own_median_and_flags_the_majority() -> None:
    counters = [Update(str(n), 1, {"w": np.array(n)}) for n in (5, 1, 9, 2)]
    assert median(counters) == 4  # between 2 and 5: half to even
    flags = [Update(str(n), 1, {"w": np.array([n < 2, n < 3])}) for n in range(4)]
    assert median(flags).tolist() == [False, True]
