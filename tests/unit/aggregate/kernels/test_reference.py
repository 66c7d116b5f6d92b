"""The reference against formulas written down a second time, one coordinate at a time."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from onefed.aggregate.kernels import reference
from onefed.arrays import dtype_of, narrowed, widened

QUICK = settings(max_examples=25, deadline=None)
Columns = list[NDArray[Any]]
Make = Callable[..., Columns]

DTYPES = st.sampled_from(["bfloat16", "float16", "float32", "float64"])
CLIENTS = st.integers(1, 12)
SEEDS = st.integers(0, 2**32 - 1)
SIZE = 37


def rounded(values: list[float], dtype: str) -> bytes:
    out = np.empty(len(values), dtype_of(dtype))
    narrowed(np.array(values), out)
    return out.tobytes()


def by_coordinate(columns: Columns) -> list[list[float]]:
    """The values of all clients at each coordinate, in client order."""
    wide = np.array([widened(column).astype(np.float64) for column in columns])
    return wide.T.tolist()


@QUICK
@given(DTYPES, CLIENTS, SEEDS)
def test_weighted_mean_adds_in_client_order_and_rounds_once(
    columns_of: Make, dtype: str, clients: int, seed: int
) -> None:
    columns = columns_of(dtype, clients, SIZE, seed)
    weights = np.random.default_rng(seed).integers(1, 2**29, clients).tolist()
    expected = []
    for values in by_coordinate(columns):
        total = 0.0
        for value, weight in zip(values, weights, strict=True):
            total = total + weight * value
        expected.append(total / float(sum(weights)))
    out = np.empty(SIZE, dtype_of(dtype))
    reference.weighted_mean(columns, weights, out)
    assert out.tobytes() == rounded(expected, dtype)


@QUICK
@given(DTYPES, CLIENTS, SEEDS)
def test_folding_in_client_order_gives_the_bits_of_the_weighted_mean(
    columns_of: Make, dtype: str, clients: int, seed: int
) -> None:
    columns = columns_of(dtype, clients, SIZE, seed)
    weights = np.random.default_rng(seed).integers(1, 2**29, clients).tolist()
    once, folded = np.empty((2, SIZE), dtype_of(dtype))
    reference.weighted_mean(columns, weights, once)
    total = np.zeros(SIZE)
    for column, weight in zip(columns, weights, strict=True):
        reference.fold([total], [column], weight)
    reference.divide(total, sum(weights), folded)
    assert folded.tobytes() == once.tobytes()


@QUICK
@given(st.data(), DTYPES, CLIENTS, SEEDS)
def test_sorted_mean_adds_the_ranks_in_ascending_order(
    columns_of: Make, data: st.DataObject, dtype: str, clients: int, seed: int
) -> None:
    low = data.draw(st.integers(0, clients - 1))
    high = data.draw(st.integers(low + 1, clients))
    columns = columns_of(dtype, clients, SIZE, seed)
    expected = []
    for values in by_coordinate(columns):
        total = 0.0
        for value in sorted(value + 0.0 for value in values)[low:high]:
            total = total + value
        expected.append(total / float(high - low))
    out = np.empty(SIZE, dtype_of(dtype))
    reference.sorted_mean(columns, low, high, out)
    assert out.tobytes() == rounded(expected, dtype)


@QUICK
@given(st.data(), DTYPES, CLIENTS, SEEDS)
def test_middle_mean_is_the_mean_of_the_values_nearest_to_the_median(
    columns_of: Make, data: st.DataObject, dtype: str, clients: int, seed: int
) -> None:
    keep = data.draw(st.integers(1, clients))
    columns = columns_of(dtype, clients, SIZE, seed, power=10)
    expected = []
    for values in by_coordinate(columns):
        ranked = sorted(value + 0.0 for value in values)
        twice_the_median = ranked[(clients - 1) // 2] + ranked[clients // 2]
        q = 0
        while q + keep < clients and twice_the_median > ranked[q] + ranked[q + keep]:
            q += 1
        total = 0.0
        for value in ranked[q : q + keep]:
            total = total + value
        expected.append(total / float(keep))
    out = np.empty(SIZE, dtype_of(dtype))
    reference.middle_mean(columns, keep, out)
    assert out.tobytes() == rounded(expected, dtype)


@QUICK
@given(st.integers(1, 11), st.integers(1, 11), SEEDS)
def test_no_other_values_are_nearer_to_the_median(clients: int, keep: int, seed: int) -> None:
    keep = min(keep, clients)
    values = np.random.default_rng(seed).integers(-50, 50, (clients, SIZE)).astype(np.float64)
    out = np.empty(SIZE)
    reference.middle_mean(list(values), keep, out)
    distances = np.sort(np.abs(values - np.median(values, axis=0)), axis=0)[:keep]
    for coordinate, mean in enumerate(out):
        windows = np.lib.stride_tricks.sliding_window_view(np.sort(values[:, coordinate]), keep)
        nearest = float(distances[:, coordinate].sum())
        median = float(np.median(values[:, coordinate]))
        means = [w.mean() for w in windows if abs(np.abs(w - median).sum() - nearest) < 1e-9]
        assert any(mean == pytest.approx(each) for each in means)


def test_a_huge_value_that_the_window_has_passed_leaves_no_error() -> None:
    columns = [np.array([value]) for value in (-(2.0**400), 1.0, 1.0 + 2.0**-40, 1.0 + 2.0**-39)]
    out = np.empty(1)
    reference.middle_mean(columns, 2, out)
    assert out[0] == 1.0 + 2.0**-41


def test_a_tie_keeps_the_lower_value() -> None:
    columns = [np.array([value], np.float32) for value in (3.0, 1.0, 2.0)]
    out = np.empty(1, np.float32)
    reference.middle_mean(columns, 2, out)
    assert out.tolist() == [1.5]


def test_negative_zero_counts_as_zero() -> None:
    columns = [np.array([-0.0], np.float32)] * 3
    for kernel in (
        lambda out: reference.weighted_mean(columns, [1, 2, 3], out),
        lambda out: reference.sorted_mean(columns, 1, 2, out),
        lambda out: reference.middle_mean(columns, 2, out),
    ):
        out = np.ones(1, np.float32)
        kernel(out)
        assert out.tobytes() == np.zeros(1, np.float32).tobytes()


@pytest.mark.parametrize("size", [0, 1, 3, 128, 300, 65_536 + 130])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_gram_adds_lanes_blocks_and_superblocks_in_their_order(
    columns_of: Make, dtype: str, size: int
) -> None:
    *columns, centre = columns_of(dtype, 3, size, 5, power=4)
    got = reference.gram(columns, centre)
    differences = [(widened(c) - widened(centre)).astype(np.float64).tolist() for c in columns]
    for i, j in ((0, 0), (0, 1), (1, 1)):
        total = 0.0
        for superblock in range(0, size, 65_536):
            sum_of_blocks = 0.0
            for block in range(superblock, min(superblock + 65_536, size), 128):
                lanes = [0.0] * 4
                for index in range(block, min(block + 128, size)):
                    product = differences[i][index] * differences[j][index]
                    lanes[index % 4] = lanes[index % 4] + product
                block_sum = (lanes[0] + lanes[1]) + (lanes[2] + lanes[3])
                sum_of_blocks = sum_of_blocks + block_sum
            total = total + sum_of_blocks
        assert got[i, j] == got[j, i] == total


def test_gram_of_float32_is_within_its_bound_of_the_exact_one() -> None:
    rng = np.random.default_rng(3)
    column, centre = rng.standard_normal((2, 20_000), np.float32)
    exact = sum(Fraction(float(value)) ** 2 for value in column - centre)
    error = abs(Fraction(float(reference.gram([column], centre)[0, 0])) - exact)
    assert error <= exact * (546 + 1) / 2**53


def test_the_order_of_clients_shows_in_no_order_statistic(columns_of: Make) -> None:
    columns = columns_of("float32", 9, 500, 8)
    for kernel in (
        lambda given, out: reference.sorted_mean(given, 2, 7, out),
        lambda given, out: reference.middle_mean(given, 4, out),
    ):
        forwards, backwards = np.empty((2, 500), np.float32)
        kernel(columns, forwards)
        kernel(columns[::-1], backwards)
        assert forwards.tobytes() == backwards.tobytes()


@pytest.mark.parametrize(
    "call",
    [
        lambda a, b, out: reference.weighted_mean([], [], out),
        lambda a, b, out: reference.weighted_mean([a, b], [1], out),
        lambda a, b, out: reference.weighted_mean([a, b], [1, 0], out),
        lambda a, b, out: reference.weighted_mean([a, b], [1, 2**29], out),
        lambda a, b, out: reference.weighted_mean([a, out], [1, 1], out),
        lambda a, b, out: reference.weighted_mean([a, b[:-1]], [1, 1], out),
        lambda a, b, out: reference.weighted_mean([a, b.astype(np.float64)], [1, 1], out),
        lambda a, b, out: reference.weighted_mean([a, b[::2]], [1, 1], out[:5]),
        lambda a, b, out: reference.weighted_mean([a.view(np.int32)], [1], out.view(np.int32)),
        lambda a, b, out: reference.fold([out], [a], 1),
        lambda a, b, out: reference.fold([np.zeros(9)], [a], 1),
        lambda a, b, out: reference.fold([np.zeros(10)], [a, b], 1),
        lambda a, b, out: reference.fold([np.zeros(10)], [a], 0),
        lambda a, b, out: reference.divide(np.zeros(10), 0, out),
        lambda a, b, out: reference.sorted_mean([a, b], 1, 1, out),
        lambda a, b, out: reference.sorted_mean([a, b], 0, 3, out),
        lambda a, b, out: reference.sorted_mean([a, b], -1, 1, out),
        lambda a, b, out: reference.middle_mean([a, b], 0, out),
        lambda a, b, out: reference.middle_mean([a, b], 3, out),
        lambda a, b, out: reference.gram([a, b], out[:-1]),
        lambda a, b, out: reference.gram([], out),
    ],
)
def test_wrong_arguments_are_refused(call: Callable[..., object]) -> None:
    a, b, out = np.zeros((3, 10), np.float32)
    with pytest.raises(ValueError, match=r"."):
        call(a, b, out)


def test_a_result_that_cannot_be_written_is_refused() -> None:
    a, out = np.zeros((2, 10), np.float32)
    out.flags.writeable = False
    with pytest.raises(ValueError, match="cannot be written"):
        reference.sorted_mean([a], 0, 1, out)
