"""Kernels under the rules: means, order statistics, inner products, steps of server optimizers.

* ``reference``, ``steps``: every kernel in plain numpy: what each does, oracle and fallback
* ``native``: the same compiled, from the sources in ``c/``, in threads
* ``selection``: which of the two this process uses; ``choice``: what the environment asks for
* ``network``: sorting networks; ``pool``: threads; ``checks``: what the arguments must be

The order of operations is normative and written down in docs/numerics.md: all give the same bits.
The first call chooses the kernels, and raises ``KernelsError`` where the environment asks for what
there is not. ``NATIVE`` says whether the chosen ones are compiled.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from onefed.aggregate.kernels.choice import KernelsError
from onefed.aggregate.kernels.reference import Column
from onefed.aggregate.kernels.selection import selected
from onefed.aggregate.kernels.steps import Numbers as StepNumbers

__all__ = [
    "NATIVE",
    "KernelsError",
    "StepNumbers",
    "advance",
    "describe",
    "divide",
    "fold",
    "gram",
    "middle_mean",
    "sorted_mean",
    "weighted_mean",
]

NATIVE: bool


def describe() -> str:
    """Which kernels are in use: ``native (avx2), 2 threads``, or ``reference (numpy): why``."""
    return selected().words


def weighted_mean(
    columns: Sequence[Column], weights: Sequence[int], out: Column, *, threads: int | None = None
) -> None:
    """``out`` becomes the mean of ``columns`` by ``weights``, each 1 to 2**29 - 1."""
    selected().kernels.weighted_mean(columns, weights, out, threads=threads)


def fold(
    totals: Sequence[NDArray[np.float64]],
    columns: Sequence[Column],
    weight: int,
    *,
    threads: int | None = None,
) -> None:
    """Add ``weight`` times each column to its total: one step of the weighted mean."""
    selected().kernels.fold(totals, columns, weight, threads=threads)


def divide(
    total: NDArray[np.float64], weight_sum: int, out: Column, *, threads: int | None = None
) -> None:
    """``out`` becomes ``total / weight_sum``: the last step of the weighted mean."""
    selected().kernels.divide(total, weight_sum, out, threads=threads)


def sorted_mean(
    columns: Sequence[Column], low: int, high: int, out: Column, *, threads: int | None = None
) -> None:
    """``out`` becomes the mean of the ranks low..high-1 at each coordinate."""
    selected().kernels.sorted_mean(columns, low, high, out, threads=threads)


def middle_mean(
    columns: Sequence[Column], keep: int, out: Column, *, threads: int | None = None
) -> None:
    """``out`` becomes the mean of the ``keep`` values nearest to the median at each coordinate."""
    selected().kernels.middle_mean(columns, keep, out, threads=threads)


def gram(
    columns: Sequence[Column], centre: Column, *, threads: int | None = None
) -> NDArray[np.float64]:
    """Inner products of the columns less ``centre``: shape (clients, clients), symmetric."""
    return selected().kernels.gram(columns, centre, threads=threads)


def advance(
    kind: str,
    numbers: StepNumbers,
    old: Column,
    model: Column,
    before: Sequence[Column],
    after: Sequence[Column],
    *,
    threads: int | None = None,
) -> bool:
    """Make the step ``kind`` of a server optimizer; False once a result is not finite.

    ``model`` holds the mean of the updates and becomes the next model; the memories in ``before``
    are read, in any layout, and those in ``after`` written.
    """
    use = selected().kernels
    return use.advance(kind, numbers, old, model, before, after, threads=threads)


def __getattr__(name: str) -> bool:
    if name == "NATIVE":
        return selected().native
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
