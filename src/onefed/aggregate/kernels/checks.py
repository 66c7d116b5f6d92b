"""What every kernel demands of its arguments. A wrong call is our own mistake: ``ValueError``.

The compiled kernels check again what the safety of memory rests on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onefed import arrays

WEIGHT_MAX = 2**29 - 1
"""As ``onefed.aggregate.WEIGHT_MAX``, which this package must not import."""
THREADS_MAX = 64
"""Threads that may be asked for."""


def columns(given: Sequence[NDArray[Any]], like: NDArray[Any]) -> None:
    """Demand at least one column, all of the dtype and size of ``like``."""
    _require(len(given) > 0, "there is no column")
    _vector(like)
    for column in given:
        _require(column.dtype == like.dtype, "the arrays have different dtypes")
        _require(column.shape == like.shape, "the arrays have different sizes")
        _contiguous(column)


def result(given: Sequence[NDArray[Any]], out: NDArray[Any]) -> None:
    """Demand what ``columns`` does, and that ``out`` can be written and shares no memory."""
    columns(given, out)
    _require(out.flags.writeable, "the result cannot be written")
    for column in given:
        _apart(column, out)


def weights(given: Sequence[NDArray[Any]], of_columns: Sequence[int]) -> None:
    """Demand one weight between 1 and ``WEIGHT_MAX`` for each column."""
    _require(len(given) == len(of_columns), "there is not one weight for each column")
    _require(all(1 <= weight <= WEIGHT_MAX for weight in of_columns), "a weight is out of range")


def folds(
    totals: Sequence[NDArray[np.float64]], columns: Sequence[NDArray[Any]], weight: int
) -> None:
    """Demand a total for each column, of its size and without shared memory, and a weight."""
    _require(len(totals) == len(columns), "there is not one total for each column")
    weights(columns[:1], [weight] * len(columns[:1]))
    for total, column in zip(totals, columns, strict=True):
        fold(total, column)


def fold(total: NDArray[np.float64], column: NDArray[Any]) -> None:
    """Demand a total of the size of ``column``, and no memory shared with it."""
    _vector(total)
    _vector(column)
    _require(total.dtype == np.float64, "the total is not float64")
    _require(total.flags.writeable, "the total cannot be written")
    _require(column.size == total.size, "the arrays have different sizes")
    _apart(column, total)


def divide(total: NDArray[np.float64], weight_sum: int, out: NDArray[Any]) -> None:
    """Demand a total of the size of ``out`` and a sum of weights that float64 holds exactly."""
    fold(total, out)
    _require(out.flags.writeable, "the result cannot be written")
    _require(1 <= weight_sum <= 2**53, "the sum of weights is out of range")


def ranks(given: Sequence[NDArray[Any]], low: int, high: int) -> None:
    """Demand ranks of the columns, at least one."""
    _require(0 <= low < high <= len(given), "the ranks are not within the columns")


def kept(given: Sequence[NDArray[Any]], keep: int) -> None:
    """Demand a number of values between 1 and the number of columns."""
    _require(1 <= keep <= len(given), "the number of kept values is out of range")


def advance(
    memories: int,
    old: NDArray[Any],
    model: NDArray[Any],
    before: Sequence[NDArray[Any]],
    after: Sequence[NDArray[Any]],
) -> None:
    """Demand so many memories, of the size of ``old`` and the type that its dtype is stored in."""
    result([old], model)
    _require(len(before) == len(after) == memories, "the number of memories is wrong")
    dtype = np.dtype(np.float64 if old.dtype == np.float64 else np.float32)
    for index, (read, written) in enumerate(zip(before, after, strict=True)):
        _require(read.dtype == written.dtype == dtype, "a memory has the wrong dtype")
        _require(read.shape == written.shape == old.shape, "the arrays have different sizes")
        _contiguous(written)
        _require(written.flags.writeable, "the result cannot be written")
        for other in (old, model, *before, *after[:index]):
            _apart(other, written)


def threads(given: int | None, default: int) -> int:
    """How many threads: those given, else the default."""
    count = default if given is None else given
    _require(1 <= count <= THREADS_MAX, "the number of threads is out of range")
    return count


def _vector(array: NDArray[Any]) -> None:
    _require(array.ndim == 1, "an array is not 1-D")
    _require(arrays.is_float(array.dtype), "an array is not of a float dtype")
    _require(array.dtype.isnative, "an array is not in native byte order")
    _contiguous(array)


def _contiguous(array: NDArray[Any]) -> None:
    flags = array.flags
    _require(flags.c_contiguous and flags.aligned, "an array is not contiguous and aligned")


def _apart(one: NDArray[Any], other: NDArray[Any]) -> None:
    # Exact for contiguous arrays, whose bounds are their elements.
    _require(not np.may_share_memory(one, other) or one.size == 0, "arrays overlap")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
