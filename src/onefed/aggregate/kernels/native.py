"""The compiled kernels for float32 and float64, in threads; other dtypes go to the reference.

``Native`` is bound to one instruction set, so that tests can compare them. Importing this module
fails where the extension was not compiled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from onefed.aggregate.kernels import _native, checks, network, pool, reference, steps
from onefed.aggregate.kernels.reference import SUPERBLOCK, Column

FOLD_COLUMNS = 5
"""A step of ``fold`` moves as much memory as that of so many float32 columns."""
COMPILED = (np.dtype(np.float32), np.dtype(np.float64))


def instruction_sets() -> tuple[str, ...]:
    """Names of those that this processor has, the widest last."""
    return _native.instruction_sets()


class Native:
    """All kernels, with one instruction set and a number of threads unless told otherwise."""

    def __init__(self, instruction_set: str, threads_default: int) -> None:
        self.instruction_set = instruction_set
        self.threads_default = threads_default
        self._kind = instruction_sets().index(instruction_set)

    def weighted_mean(
        self,
        columns: Sequence[Column],
        weights: Sequence[int],
        out: Column,
        *,
        threads: int | None = None,
    ) -> None:
        """As ``reference.weighted_mean``."""
        if out.dtype not in COMPILED:
            reference.weighted_mean(columns, weights, out)
            return
        checks.result(columns, out)
        checks.weights(columns, weights)
        factors, divisor = np.array(weights, np.float64), float(sum(weights))

        def work(piece: slice) -> None:
            _native.weighted_mean(self._kind, _cut(columns, piece), factors, divisor, out[piece])

        self._run(work, out.size, len(columns), threads)

    def fold(
        self,
        totals: Sequence[NDArray[np.float64]],
        columns: Sequence[Column],
        weight: int,
        *,
        threads: int | None = None,
    ) -> None:
        """As ``reference.fold``."""
        checks.folds(totals, columns, weight)
        count = checks.threads(threads, self.threads_default)
        among = sum(column.size for column in columns)

        def work(job: tuple[NDArray[np.float64], Column, slice]) -> None:
            total, column, piece = job
            if column.dtype in COMPILED:
                _native.fold(self._kind, total[piece], column[piece], float(weight))
            else:
                reference.fold([total[piece]], [column[piece]], weight)

        jobs = [
            (total, column, piece)
            for total, column in zip(totals, columns, strict=True)
            for piece in pool.pieces(total.size, FOLD_COLUMNS, count, among)
        ]
        # Handing over the arrays of a small model would cost more than adding them.
        is_small = among * FOLD_COLUMNS < 2 * pool.PIECE_MIN
        for _ in pool.each(work, jobs, 1 if is_small else count):
            pass

    def divide(
        self,
        total: NDArray[np.float64],
        weight_sum: int,
        out: Column,
        *,
        threads: int | None = None,
    ) -> None:
        """As ``reference.divide``."""
        if out.dtype not in COMPILED:
            reference.divide(total, weight_sum, out)
            return
        checks.divide(total, weight_sum, out)

        def work(piece: slice) -> None:
            _native.divide(self._kind, total[piece], float(weight_sum), out[piece])

        self._run(work, total.size, 1, threads)

    def sorted_mean(
        self,
        columns: Sequence[Column],
        low: int,
        high: int,
        out: Column,
        *,
        threads: int | None = None,
    ) -> None:
        """As ``reference.sorted_mean``."""
        if out.dtype not in COMPILED:
            reference.sorted_mean(columns, low, high, out)
            return
        checks.result(columns, out)
        checks.ranks(columns, low, high)
        pairs = network.comparators(len(columns), low, high).reshape(-1)

        def work(piece: slice) -> None:
            _native.sorted_mean(self._kind, _cut(columns, piece), pairs, low, high, out[piece])

        self._run(work, out.size, len(columns), threads)

    def middle_mean(
        self,
        columns: Sequence[Column],
        keep: int,
        out: Column,
        *,
        threads: int | None = None,
    ) -> None:
        """As ``reference.middle_mean``."""
        if out.dtype not in COMPILED:
            reference.middle_mean(columns, keep, out)
            return
        checks.result(columns, out)
        checks.kept(columns, keep)
        pairs = network.comparators(len(columns), 0, len(columns)).reshape(-1)

        def work(piece: slice) -> None:
            _native.middle_mean(self._kind, _cut(columns, piece), pairs, keep, out[piece])

        self._run(work, out.size, len(columns), threads)

    def gram(
        self, columns: Sequence[Column], centre: Column, *, threads: int | None = None
    ) -> NDArray[np.float64]:
        """As ``reference.gram``."""
        if centre.dtype not in COMPILED:
            return reference.gram(columns, centre)
        checks.columns(columns, centre)
        count = len(columns)

        def superblock(start: int) -> NDArray[np.float64]:
            piece = slice(start, start + SUPERBLOCK)
            sums = np.zeros(count * count)
            _native.gram(self._kind, _cut(columns, piece), centre[piece], sums)
            return sums

        upper = np.zeros(count * count)
        starts = range(0, centre.size, SUPERBLOCK)
        for sums in pool.each(superblock, starts, checks.threads(threads, self.threads_default)):
            upper += sums
        return reference.mirrored(upper.reshape(count, count))

    def advance(
        self,
        kind: str,
        numbers: steps.Numbers,
        old: Column,
        model: Column,
        before: Sequence[Column],
        after: Sequence[Column],
        *,
        threads: int | None = None,
    ) -> bool:
        """As ``reference.advance``."""
        if old.dtype not in COMPILED:
            return reference.advance(kind, numbers, old, model, before, after)
        memories = steps.MEMORIES[kind]
        checks.advance(memories, old, model, before, after)
        index, packed = steps.KINDS.index(kind), numbers.packed()

        def work(piece: slice) -> bool:
            finite = True
            for start in range(piece.start, piece.stop, steps.TILE_ELEMENTS):
                tile = slice(start, min(start + steps.TILE_ELEMENTS, piece.stop))
                for source, target in zip(before, after, strict=True):
                    target[tile] = source[tile]  # advanced in place, while it is in the cache
                memory = _cut(after, tile)
                done = _native.advance(self._kind, index, packed, old[tile], model[tile], memory)
                finite = finite and done
            return finite

        count = checks.threads(threads, self.threads_default)
        pieces = pool.pieces(old.size, 2 + 2 * memories, count)
        return all(list(pool.each(work, pieces, count)))

    def _run(
        self, work: Callable[[slice], None], size: int, columns: int, threads: int | None
    ) -> None:
        """Do ``work`` on all coordinates; an error of any piece is raised here."""
        count = checks.threads(threads, self.threads_default)
        for _ in pool.each(work, pool.pieces(size, columns, count), count):
            pass


def _cut(columns: Sequence[Column], piece: slice) -> tuple[Column, ...]:
    return tuple(column[piece] for column in columns)
