"""Sorting networks: which pairs of rows to compare, in which order, so that rows end up sorted.

Batcher's odd-even merge sort (AFIPS 1968; Knuth, The Art of Computer Programming 3, 5.2.2,
algorithm M) works for every number of rows. A comparator (a, b) with a < b leaves the smaller
value in row a. What a row holds after the network does not depend on how the comparators are run,
so numpy and C, which share this list, agree by construction.
"""

from __future__ import annotations

import functools
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Pair: TypeAlias = tuple[int, int]

CACHED_MAX = 32
"""Networks kept; one of 1,000 rows is about 24,000 comparators, 200 kB."""


@functools.lru_cache(maxsize=CACHED_MAX)
def comparators(rows: int, low: int, high: int) -> NDArray[np.int32]:
    """Comparators that put the ranks low..high-1 of ``rows`` values into the rows low..high-1.

    Shape (number, 2), read-only. The other rows hold the other values, in no known order.
    Comparators that share rows follow each other as far as they can: the compiled kernel runs two
    or four of them on values that it loads and stores once.
    """
    assert 0 <= low < high <= rows, (rows, low, high)
    pairs = np.array(_grouped(_pruned(_batcher(rows), low, high)), np.int32).reshape(-1, 2)
    pairs.flags.writeable = False
    return pairs


def _batcher(rows: int) -> list[Pair]:
    pairs = []
    top = 1 << max(0, (rows - 1).bit_length() - 1)
    p = top
    while p:
        q, r, distance = top, 0, p
        while distance:
            pairs += [(i, i + distance) for i in range(rows - distance) if i & p == r]
            distance, q, r = q - p, q >> 1, p
        p >>= 1
    return pairs


def _pruned(pairs: list[Pair], low: int, high: int) -> list[Pair]:
    """Leave out comparators whose two results nobody reads, from the last one backwards."""
    read = set(range(low, high))
    kept = []
    for a, b in reversed(pairs):
        if a in read or b in read:
            read |= {a, b}
            kept.append((a, b))
    return kept[::-1]


def _grouped(pairs: list[Pair]) -> list[Pair]:
    """The same comparators in another order, which keeps the sequence at each row.

    A comparator is emitted once those before it at both of its rows are. With the first that is
    left, (a, b), go three others if they can: a (c, d), that of a and c, and that of b and d, such
    that a < c; or else one that comes next at a or b.
    """
    before: list[tuple[int, ...]] = []
    after: dict[tuple[int, int], int] = {}
    last: dict[int, int] = {}
    for index, pair in enumerate(pairs):
        before.append(tuple({last[row] for row in pair if row in last}))
        for row in pair:
            if row in last:
                after[last[row], row] = index
            last[row] = index
    order: dict[int, None] = {}

    def possible(index: int, also: int) -> bool:
        return index not in order and all(each in order or each == also for each in before[index])

    for index, (a, b) in enumerate(pairs):
        if index in order:
            continue
        lower, upper = after.get((index, a)), after.get((index, b))
        group = [index]
        if lower is not None and upper is not None and lower != upper:
            for other in before[lower]:
                c, d = pairs[other]
                meet = lower == after.get((other, c)) and upper == after.get((other, d))
                if meet and other != index and possible(other, index):
                    group = [*sorted((index, other), key=pairs.__getitem__), lower, upper]
        if len(group) == 1 and lower != upper:
            follows = (each for each in (lower, upper) if each is not None)
            group += [each for each in follows if possible(each, index)][:1]
        order.update(dict.fromkeys(group))
    return [pairs[index] for index in order]
