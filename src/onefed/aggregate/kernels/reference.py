"""Every kernel in plain numpy: the oracle of the compiled ones, and what runs without them.


The order of operations is in docs/numerics.md; here it can be read off (``advance``: in ``steps``).
Columns are 1-D arrays of
one float dtype and size, one per client in client order, all finite. Work goes by tiles over all
clients, which stay in the cache; tiles do not show in the bits. ``threads`` is accepted and
ignored: numpy in a pool of threads is no faster.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onefed import arrays
from onefed.aggregate.kernels import checks, network
from onefed.aggregate.kernels.steps import advance as advance

LANES = 4
"""Partial sums of a block of the Gram matrix."""
BLOCK = 128
"""Coordinates of a block: 32 products a lane."""
SUPERBLOCK = 65_536
"""Coordinates whose blocks are added up before they meet the total: 512 blocks."""

TILE_BYTES = 2**22
"""Of the rows that a tile holds at once: they fit into a third-level cache, and the calls of numpy,
about a microsecond each, do not show."""
TILE_MAX, TILE_MIN = 2**15, 2**8
"""Coordinates of a tile."""

Column = NDArray[Any]


def weighted_mean(
    columns: Sequence[Column], weights: Sequence[int], out: Column, *, threads: int | None = None
) -> None:
    """Mean of ``columns`` by ``weights`` (1 to 2**29 - 1), one rounding to the dtype of ``out``."""
    checks.result(columns, out)
    checks.weights(columns, weights)
    divisor = float(sum(weights))
    for tile in _tiles(out.size, 3):
        total = np.zeros(tile.stop - tile.start)
        for column, weight in zip(columns, weights, strict=True):
            total += _float64(column[tile]) * weight
        total /= divisor
        arrays.narrowed(total, out[tile])


def fold(
    totals: Sequence[NDArray[np.float64]],
    columns: Sequence[Column],
    weight: int,
    *,
    threads: int | None = None,
) -> None:
    """Add ``weight`` times each column to its total, in place."""
    checks.folds(totals, columns, weight)
    for total, column in zip(totals, columns, strict=True):
        for tile in _tiles(total.size, 3):
            total[tile] += _float64(column[tile]) * weight


def divide(
    total: NDArray[np.float64], weight_sum: int, out: Column, *, threads: int | None = None
) -> None:
    """End a sequence of ``fold``: ``out`` becomes ``total / weight_sum``, rounded once."""
    checks.divide(total, weight_sum, out)
    for tile in _tiles(total.size, 3):
        arrays.narrowed(total[tile] / float(weight_sum), out[tile])


def sorted_mean(
    columns: Sequence[Column], low: int, high: int, out: Column, *, threads: int | None = None
) -> None:
    """Mean of the ranks low..high-1 at each coordinate, added up in ascending order."""
    checks.result(columns, out)
    checks.ranks(columns, low, high)
    for tile in _tiles(out.size, len(columns) + 3):
        rows = _sorted_rows(columns, tile, low, high)
        total = np.zeros(tile.stop - tile.start)
        for row in rows[low:high]:
            total += row
        total /= float(high - low)
        arrays.narrowed(total, out[tile])


def middle_mean(
    columns: Sequence[Column], keep: int, out: Column, *, threads: int | None = None
) -> None:
    """Mean of the ``keep`` values nearest to the median at each coordinate (Bulyan's last step).

    The values of a window of ``keep`` ranks are the nearest ones when moving it up by one would
    lose a value no farther from the median than the one it gained; a tie keeps the lower. What
    the window loses and gains only grows, so its start is the number of moves that pay.
    """
    checks.result(columns, out)
    checks.kept(columns, keep)
    count = len(columns)
    for tile in _tiles(out.size, 2 * count + 3):
        rows = _sorted_rows(columns, tile, 0, count)
        middle = _float64(rows[(count - 1) // 2]) + _float64(rows[count // 2])
        start = np.zeros(tile.stop - tile.start, np.intp)
        for q in range(count - keep):
            start += middle > _float64(rows[q]) + _float64(rows[q + keep])
        ranks, coordinates = np.stack(rows), np.arange(start.size)
        total = np.zeros(start.size)
        for rank in range(keep):
            total += ranks[start + rank, coordinates]
        total /= float(keep)
        arrays.narrowed(total, out[tile])


def gram(
    columns: Sequence[Column], centre: Column, *, threads: int | None = None
) -> NDArray[np.float64]:
    """Inner products of the columns less ``centre``: shape (clients, clients), symmetric."""
    checks.columns(columns, centre)
    total = np.zeros((len(columns), len(columns)))
    for start in range(0, centre.size, SUPERBLOCK):
        total += _superblock(columns, centre, start)
    return mirrored(total)


def mirrored(upper: NDArray[np.float64]) -> NDArray[np.float64]:
    """The symmetric matrix of which ``upper`` has the upper triangle, and zeros below it."""
    return upper + np.triu(upper, 1).T


def _superblock(columns: Sequence[Column], centre: Column, first: int) -> NDArray[np.float64]:
    """Upper triangle of the Gram matrix of the coordinates from ``first``; zeros below it."""
    count, stop = len(columns), min(first + SUPERBLOCK, centre.size)
    total = np.zeros((count, count))
    step = max(1, 2 * TILE_BYTES // (count * 8 * BLOCK)) * BLOCK
    for start in range(first, stop, step):
        tile = slice(start, min(start + step, stop))
        for block in _blocks(columns, centre, tile):
            total += block
    return total


def _blocks(columns: Sequence[Column], centre: Column, tile: slice) -> NDArray[np.float64]:
    """Upper triangles of the Gram matrices of the blocks of ``tile``: shape (blocks, n, n).

    The lanes of all blocks lie beside each other, so that a step is one product and one sum of
    rows: coordinate BLOCK * b + LANES * s + l is element LANES * b + l of the rows of step s.
    Coordinates beyond the tile count as 0.0.
    """
    count, blocks = len(columns), -(-(tile.stop - tile.start) // BLOCK)
    steps = np.empty((BLOCK // LANES, count, blocks * LANES))
    for row, column in enumerate(columns):
        centred = np.zeros(blocks * BLOCK)
        centred[: tile.stop - tile.start] = _working(column[tile]) - _working(centre[tile])
        by_step = centred.reshape(blocks, BLOCK // LANES, LANES).transpose(1, 0, 2)
        steps[:, row] = by_step.reshape(BLOCK // LANES, blocks * LANES)
    sums = np.zeros((blocks, count, count))
    for row in range(count):
        lanes = np.zeros((count - row, blocks * LANES))
        products = np.empty_like(lanes)
        for step in steps:
            np.multiply(step[row], step[row:], out=products)
            lanes += products
        first, second, third, fourth = np.moveaxis(lanes.reshape(-1, blocks, LANES), 2, 0)
        sums[:, row, row:] = ((first + second) + (third + fourth)).T
    return sums


def _sorted_rows(columns: Sequence[Column], tile: slice, low: int, high: int) -> list[NDArray[Any]]:
    """Rows of a tile of which low..high-1 hold those ranks; -0.0 became 0.0."""
    rows = [_working(column[tile]) + 0.0 for column in columns]
    spare = np.empty_like(rows[0])
    for a, b in network.comparators(len(columns), low, high).tolist():
        np.minimum(rows[a], rows[b], out=spare)
        np.maximum(rows[a], rows[b], out=rows[b])
        rows[a], spare = spare, rows[a]
    return rows


def _working(values: Column) -> NDArray[Any]:
    """The values in the type that differences and comparisons use: float32 or float64."""
    return arrays.widened(values)


def _float64(values: Column) -> NDArray[np.float64]:
    return _working(values).astype(np.float64, copy=False)


def _tiles(size: int, rows: int) -> Iterator[slice]:
    """Slices of ``size`` coordinates, of which ``rows`` rows of float64 fill ``TILE_BYTES``."""
    step = min(TILE_MAX, max(TILE_MIN, TILE_BYTES // (8 * rows)))
    return (slice(start, min(start + step, size)) for start in range(0, size, step))
