"""Threads for kernels that release the interpreter's lock: the same work, in pieces.

A piece is a range of coordinates. Its results do not depend on which thread runs it, nor on how
many there are, and they come back in order.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

PIECE_MIN = 2**18
"""Elements of all columns together that are worth the 50 microseconds of handing a piece over."""
PIECES_PER_THREAD = 4
"""So that a thread which the system slows down leaves work to the others."""
ALIGNED = 1024
"""Coordinates: pieces start at multiples, on cache lines of their own."""

Piece = TypeVar("Piece")
Result = TypeVar("Result")

_lock = threading.Lock()
_pools: dict[int, ThreadPoolExecutor] = {}


def pieces(size: int, columns: int, threads: int, among: int = 0) -> Sequence[slice]:
    """Split ``size`` coordinates of ``columns`` columns for so many threads.

    Where several arrays are one piece of work, ``among`` is the size of them all.
    """
    among = max(among, size)
    if threads == 1 or among * columns < 2 * PIECE_MIN:
        return [slice(0, size)]
    step = max(-(-among // (threads * PIECES_PER_THREAD)), -(-PIECE_MIN // columns))
    step = -(-step // ALIGNED) * ALIGNED
    return [slice(start, min(start + step, size)) for start in range(0, max(size, 1), step)]


def each(
    work: Callable[[Piece], Result], pieces: Iterable[Piece], threads: int
) -> Iterator[Result]:
    """Results of ``work`` on each piece, in order. One piece or one thread needs no pool."""
    listed = list(pieces)
    if threads == 1 or len(listed) <= 1:
        return map(work, listed)
    return _pool(threads).map(work, listed)


def _pool(threads: int) -> ThreadPoolExecutor:
    with _lock:
        if threads not in _pools:
            _pools[threads] = ThreadPoolExecutor(threads, thread_name_prefix="onefed-kernel")
        return _pools[threads]


def _forget() -> None:
    """In the child of a fork: the threads of the pools stayed with the parent."""
    global _lock
    _lock = threading.Lock()
    _pools.clear()


os.register_at_fork(after_in_child=_forget)
