"""A network sorts, by the 0-1 principle: it does if it sorts every sequence of zeros and ones."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from onefed.aggregate.kernels import network


def sorted_by(pairs: NDArray[np.int32], values: NDArray[np.int64]) -> NDArray[np.int64]:
    rows = values.copy()
    for a, b in pairs.tolist():
        rows[[a, b]] = np.minimum(rows[a], rows[b]), np.maximum(rows[a], rows[b])
    return rows


@pytest.mark.parametrize("rows", range(1, 13))
def test_every_sequence_of_zeros_and_ones_is_sorted(rows: int) -> None:
    inputs = np.array(list(itertools.product((0, 1), repeat=rows))).T
    for low in range(rows):
        for high in {low + 1, (low + 1 + rows) // 2, rows} - set(range(low + 1)):
            result = sorted_by(network.comparators(rows, low, high), inputs)
            assert (result[low:high] == np.sort(inputs, axis=0)[low:high]).all()


@pytest.mark.parametrize("rows", [20, 50, 127, 1000])
def test_random_values_are_sorted(rows: int) -> None:
    values = np.random.default_rng(rows).integers(0, 50, (rows, 40))
    expected = np.sort(values, axis=0)
    assert (sorted_by(network.comparators(rows, 0, rows), values) == expected).all()
    low, high = (rows - 1) // 2, rows // 2 + 1
    median = sorted_by(network.comparators(rows, low, high), values)
    assert (median[low:high] == expected[low:high]).all()


def test_ranks_that_nobody_reads_cost_less() -> None:
    whole = network.comparators(20, 0, 20)
    assert len(network.comparators(20, 9, 11)) < len(network.comparators(20, 4, 16)) < len(whole)


def test_a_network_is_made_once_and_cannot_be_changed() -> None:
    pairs = network.comparators(7, 0, 7)
    assert network.comparators(7, 0, 7) is pairs
    with pytest.raises(ValueError, match="read-only"):
        pairs[0, 0] = 1
