"""Models that are a dozen numbers: real content to mix up, cheap to compute and to compare.

A digest is Python's hash of a tuple of integers, which is the same in every process.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median_low
from typing import TypeAlias

from onefed.peer.messages import Contribution, Digest, NodeId

Content: TypeAlias = tuple[int, ...]
"""A model, an update or a part of one."""

WIDTH = 12
"""Numbers in a model, each counted as a byte; at least as many as there are shards."""
PRIME = 2**31 - 1


def digest(content: Content) -> Digest:
    """The same for equal content, in every process."""
    return f"{hash(content) & (2**64 - 1):016x}"


def first_model(seed: int) -> Content:
    """What all nodes begin with."""
    return tuple((seed * 7919 + index * 104729) % PRIME for index in range(WIDTH))


def update(node: NodeId, base: Content, salt: int) -> Content:
    """What a node makes of a model; ``salt`` differs where training is not repeatable."""
    mark = sum(node.encode()) + 1009 * salt
    return tuple((each * 31 + mark * (index + 7)) % PRIME for index, each in enumerate(base))


def part(content: Content, index: int, count: int) -> Content:
    """One of ``count`` nearly equal ranges."""
    return content[index * WIDTH // count : (index + 1) * WIDTH // count]


def reduce(
    parts: Sequence[Content], contributors: Sequence[Contribution], *, whole: bool
) -> Content:
    """The rule: a weighted mean, or where whole updates are looked at, the lower median.

    Args:
        parts: of the contributors, in their order.
    """
    if whole:
        return tuple(median_low(column) for column in zip(*parts, strict=True))
    weights = [each.weight for each in contributors]
    total = sum(weights)
    return tuple(
        sum(weight * each for weight, each in zip(weights, column, strict=True)) // total
        for column in zip(*parts, strict=True)
    )
