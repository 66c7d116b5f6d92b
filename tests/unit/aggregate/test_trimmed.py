"""The trimmed mean against its definition in exact fractions, and the count that it drops."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from onefed.aggregate import FedTrimmedAvg, Update

QUICK = settings(max_examples=60, deadline=None)

DYADIC = st.integers(-(2**7), 2**7).map(lambda n: n / 2**3)
ROWS = st.lists(st.lists(DYADIC, min_size=3, max_size=3), min_size=1, max_size=11)
SHARES = st.sampled_from([0.0, 0.1, 0.2, 0.25, 0.3, 0.4, 0.49])


def trimmed(updates: list[Update], beta: float = 0.2) -> NDArray[Any]:
    like = updates[0].arrays["w"]
    _, after = FedTrimmedAvg(beta).step({}, {"w": np.zeros_like(like)}, updates, 1)
    return after["w"]


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16", "int16"])
@QUICK
@given(rows=ROWS, beta=SHARES)
def test_trimmed_mean_is_correctly_rounded(
    dtype: str,
    rows: list[list[float]],
    beta: float,
    updates_of: Callable[..., list[Update]],
    exact_of: Callable[[NDArray[Any]], list[Fraction]],
    nearest: Callable[[Fraction, str], Fraction],
) -> None:
    updates = updates_of(rows, dtype)
    cut = max(k for k in range(len(rows)) if k / len(rows) <= beta)
    expected = []
    for column in zip(*(exact_of(update.arrays["w"]) for update in updates), strict=True):
        kept = sorted(column)[cut : len(rows) - cut]
        mean = sum(kept) / len(kept)
        expected.append(Fraction(round(mean)) if dtype == "int16" else nearest(mean, dtype))
    assert exact_of(trimmed(updates, beta)) == expected


@given(st.integers(1, 5000), st.floats(0, 0.5, exclude_max=True))
def test_the_cut_is_the_largest_share_within_beta(clients: int, beta: float) -> None:
    cut = FedTrimmedAvg(beta).cut(clients)
    assert cut / clients <= beta < (cut + 1) / clients
    assert 2 * cut < clients


@pytest.mark.parametrize(
    ("beta", "clients", "cut"),
    [(0.29, 100, 29), (0.2, 4, 0), (0.2, 5, 1), (0.2, 10, 2), (0.07, 100, 7), (0.49, 3, 1)],
)
def test_a_share_that_is_meant_as_a_whole_number_is_one(
    beta: float, clients: int, cut: int
) -> None:
    """int(0.29 * 100) is 28, since the product is 28.999999999999996."""
    assert FedTrimmedAvg(beta).cut(clients) == cut


def test_a_share_just_below_is_below() -> None:
    """The number before 5 / 12, times 12, is rounded up to 5."""
    beta = math.nextafter(5 / 12, 0.0)
    assert int(beta * 12) == 5
    assert FedTrimmedAvg(beta).cut(12) == 4


def test_too_few_clients_for_a_cut_are_remarked_upon() -> None:
    (remark,) = FedTrimmedAvg().remarks(4)
    assert remark == (
        "FedTrimmedAvg with beta = 0.2 is a plain mean of 4 clients; "
        "from 5 clients on it drops the extremes."
    )
    assert FedTrimmedAvg().remarks(5) == ()
    assert "beta above 0" in FedTrimmedAvg(0.0).remarks(50)[0]


@given(st.floats(1e-12, 0.5, exclude_max=True))
def test_the_number_in_the_remark_is_the_first_that_cuts(beta: float) -> None:
    rule = FedTrimmedAvg(beta)
    needed = int(rule.remarks(1)[0].rsplit("from ", 1)[1].split()[0])
    assert rule.cut(needed) == 1
    assert rule.cut(needed - 1) == 0


def test_claimed_examples_do_not_weigh(updates_of: Callable[..., list[Update]]) -> None:
    rows = [[value] for value in (0.0, 1.0, 2.0, 3.0, 4.0)]
    assert trimmed(updates_of(rows, weights=[1, 1, 1, 2**29 - 1, 1])) == [2.0]


def test_a_huge_value_leaves_no_error_behind(updates_of: Callable[..., list[Update]]) -> None:
    """Dropped before anything is added, not taken out of a sum afterwards."""
    rows = [[1e38], [1e-3], [2e-3], [3e-3], [-1e38]]
    assert trimmed(updates_of(rows)) == [np.float32(2e-3)]
