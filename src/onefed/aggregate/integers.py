"""Exact means of integer and bool arrays, rounded half to even.

An integer in a model is a counter or an index, not a parameter: it gets no optimizer and no part in
distances. Sums are exact for any integers and weights, so that their order cannot show.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

TILE_ELEMENTS = 2**14
"""Elements that are worked on at a time: temporaries stay in the cache, whatever the model."""

_LIMB_BITS = 32
_LIMB_MASK = 2**_LIMB_BITS - 1


class ExactSum:
    """The weighted sum of integer columns, one after the other.

    Takes 8 bytes an element; 24 from the moment on at which a sum might leave 62 bits, which that
    of honest counters never does. Then an element is three limbs of 32 bits, the lower two from 0
    to 2**32 - 1: ``(high * 2**32 + middle) * 2**32 + low``. A column element is below 2**64 and a
    weight below 2**29, so that no intermediate leaves int64.
    """

    def __init__(self, size: int) -> None:
        self._limbs: tuple[NDArray[np.int64], ...] = (np.zeros(size, np.int64),)
        self._bound = 0
        """No element of the sum is larger in absolute value."""

    def add(self, column: NDArray[Any], weight: int) -> None:
        """Add ``weight * column``; a column is 1-D, of an integer dtype or bool."""
        if column.size == 0:
            return
        self._bound += weight * max(-int(column.min()), int(column.max()))
        if self._bound >= 2**62 and len(self._limbs) == 1:
            self._widen()
        for tile in _tiles(column.size):
            if len(self._limbs) == 1:
                self._limbs[0][tile] += column[tile].astype(np.int64) * weight
            else:
                self._add_wide(column[tile], weight, tile)

    def divide(self, divisor: int, out: NDArray[Any]) -> None:
        """Fill ``out`` with the sum over ``divisor``, rounded half to even."""
        for tile in _tiles(out.size):
            total = self._value(tile)
            below, rest = total // divisor, total % divisor
            up = (2 * rest > divisor) | ((2 * rest == divisor) & (below % 2 == 1))
            out[tile] = (below + up.astype(below.dtype)).astype(out.dtype)

    def _widen(self) -> None:
        (total,) = self._limbs
        upper = total >> _LIMB_BITS
        self._limbs = (total & _LIMB_MASK, upper & _LIMB_MASK, upper >> _LIMB_BITS)

    def _add_wide(self, values: NDArray[Any], weight: int, tile: slice) -> None:
        low, middle, high = (limb[tile] for limb in self._limbs)
        if values.dtype != np.uint64:
            values = values.astype(np.int64)
        low += (values & values.dtype.type(_LIMB_MASK)).astype(np.int64) * weight
        middle += (values >> values.dtype.type(_LIMB_BITS)).astype(np.int64) * weight
        middle += low >> _LIMB_BITS
        low &= _LIMB_MASK
        high += middle >> _LIMB_BITS
        middle &= _LIMB_MASK

    def _value(self, tile: slice) -> NDArray[Any]:
        """The sum of a tile, in int64 where that holds it, else in Python integers."""
        if len(self._limbs) == 1:
            return self._limbs[0][tile]
        low, middle, high = (limb[tile].astype(object) for limb in self._limbs)
        wide: NDArray[Any] = (high * 2**_LIMB_BITS + middle) * 2**_LIMB_BITS + low
        return wide


def weighted_mean(
    columns: Sequence[NDArray[Any]], weights: Sequence[int], out: NDArray[Any]
) -> None:
    """The exact mean, rounded half to even. A bool is the majority by weight; a tie is False."""
    for tile in _tiles(out.size):
        total = ExactSum(out[tile].size)
        for column, weight in zip(columns, weights, strict=True):
            total.add(column[tile], weight)
        total.divide(sum(weights), out[tile])


def sorted_mean(columns: Sequence[NDArray[Any]], low: int, high: int, out: NDArray[Any]) -> None:
    """Per element, the exact mean of the ranks ``low`` to ``high - 1``, rounded half to even."""
    for tile in _tiles(out.size):
        ranked = np.sort(np.stack([column[tile] for column in columns]), axis=0)
        total = ExactSum(ranked.shape[1])
        for row in ranked[low:high]:
            total.add(row, 1)
        total.divide(high - low, out[tile])


def median(columns: Sequence[NDArray[Any]], out: NDArray[Any]) -> None:
    """Per element, the middle value; of an even number, the mean of the middle two."""
    count = len(columns)
    sorted_mean(columns, (count - 1) // 2, count // 2 + 1, out)


def _tiles(size: int) -> Iterator[slice]:
    return (
        slice(start, min(start + TILE_ELEMENTS, size)) for start in range(0, size, TILE_ELEMENTS)
    )
