"""What models are made of in a simulation: a dozen numbers, or real arrays.

Real content is mixed up like real content, so the checkers see it when it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median_low
from typing import Any, Protocol, TypeAlias

from onefed.peer.messages import Contribution, Digest, NodeId

Content: TypeAlias = Any
"""A model, an update or a part of one; only its ``Matter`` looks into it."""

WIDTH = 12
"""Numbers in a model, each counted as a byte; at least as many as there are shards."""
PRIME = 2**31 - 1


class Matter(Protocol):
    """How models are made, divided and put together."""

    def first(self) -> Content:
        """What all nodes begin with."""
        ...

    def digest(self, model: Content) -> Digest:
        """Of a whole model."""
        ...

    def size_bytes(self, content: Content) -> int:
        """Of a model or a part."""
        ...

    def train(
        self, node: NodeId, base: Content, round_number: int, salt: int
    ) -> tuple[Content, int]:
        """Update and weight; ``salt`` differs where training is not repeatable."""
        ...

    def part(self, update: Content, index: int, count: int) -> Content:
        """One of ``count`` nearly equal ranges."""
        ...

    def reduce(
        self, base: Content, parts: Sequence[Content], contributors: Sequence[Contribution]
    ) -> Content:
        """The rule over one range: parts of the contributors' updates, in their order."""
        ...

    def join(self, shards: Sequence[Content]) -> Content:
        """A model from its reduced ranges."""
        ...


class Numbers:
    """A dozen integers. A digest is Python's hash of them, the same in every process."""

    def __init__(self, seed: int, *, whole: bool) -> None:
        self._seed = seed
        self._whole = whole

    def first(self) -> tuple[int, ...]:
        """Depends on the seed."""
        return tuple((self._seed * 7919 + index * 104729) % PRIME for index in range(WIDTH))

    def digest(self, model: tuple[int, ...]) -> Digest:
        """16 hex digits."""
        return f"{hash(model) & (2**64 - 1):016x}"

    def size_bytes(self, content: tuple[int, ...]) -> int:
        """A byte a number."""
        return len(content)

    def train(
        self, node: NodeId, base: tuple[int, ...], round_number: int, salt: int
    ) -> tuple[tuple[int, ...], int]:
        """Another update for every node, base and salt."""
        mark = sum(node.encode())
        noise = mark + 1009 * salt
        update = tuple((each * 31 + noise * (place + 7)) % PRIME for place, each in enumerate(base))
        return update, 1 + mark % 5

    def part(self, update: tuple[int, ...], index: int, count: int) -> tuple[int, ...]:
        """One of ``count`` nearly equal ranges."""
        return update[index * WIDTH // count : (index + 1) * WIDTH // count]

    def reduce(
        self,
        base: tuple[int, ...],
        parts: Sequence[tuple[int, ...]],
        contributors: Sequence[Contribution],
    ) -> tuple[int, ...]:
        """A weighted mean, or where whole updates are looked at, the lower median."""
        if self._whole:
            return tuple(median_low(column) for column in zip(*parts, strict=True))
        weights = [each.weight for each in contributors]
        total = sum(weights)
        return tuple(
            sum(weight * each for weight, each in zip(weights, column, strict=True)) // total
            for column in zip(*parts, strict=True)
        )

    def join(self, shards: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
        """One after the other."""
        return tuple(each for shard in shards for each in shard)
