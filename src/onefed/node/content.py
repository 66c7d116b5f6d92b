"""The bytes behind the protocol: models as flat bytes, their ranges, and the rule on a range.

What the nodes agree on is a model *and* what the rule remembers of it: the state of the rule is
part of every committed result, so that any node can own any range of the next round. A rule without
a state, such as FedAvg, adds nothing, and the root is the ``model_sha256`` of the hub engine.

An index over the model's elements, array after array, is cut into nearly equal ranges. A rule whose
elements do not depend on each other gives a range the bits that it would have as part of the whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onefed import aggregate, arrays
from onefed.arrays import Arrays
from onefed.errors import OnefedError
from onefed.peer.messages import Contribution, Digest, NodeId

STATE_PREFIX = "state of the rule/"
"""Before the keys of the rule's state, in the encoding that the root is the digest of."""

ELEMENTWISE = frozenset(
    {
        *("FedAvg", "FedProx", "FedAvgM", "FedAdam", "FedAdagrad", "FedYogi"),
        *("FedMedian", "FedTrimmedAvg", "FaultTolerantFedAvg"),
    }
)
"""Rules whose every element depends on that element of the updates alone. Under any other one,
contributors send whole updates to everybody."""


class ContentError(OnefedError):
    """Bytes that are no model, or no part of one, of this group."""


@dataclass(frozen=True, slots=True)
class _Range:
    """Elements ``start`` to ``stop`` of one flat array."""

    key: str
    start: int
    stop: int


class Content:
    """Models of one shape under one rule."""

    def __init__(self, like: Arrays, rule: aggregate.Rule) -> None:
        """``like`` is any model of the group: names, shapes and dtypes count."""
        arrays.require_supported(like)
        self._like = like
        self._rule = rule
        self._state_like = rule.init(like)
        self._elements = sum(array.size for array in like.values())

    @property
    def whole(self) -> bool:
        """Whether contributors send whole updates to everybody."""
        return self._rule.name not in ELEMENTWISE

    @property
    def model_bytes(self) -> int:
        """Of a model and the rule's state."""
        return arrays.nbytes(self._like) + arrays.nbytes(self._state_like)

    def first(self) -> bytes:
        """The content before round 1, of the model that was handed in."""
        return self.pack(self._state_like, self._like)

    def pack(self, state: Arrays, model: Arrays) -> bytes:
        """State and model as the bytes that are sent and stored."""
        return b"".join(
            arrays.raw_bytes(source[key])
            for like, source in ((self._like, model), (self._state_like, state))
            for key in like
        )

    def unpack(self, content: bytes) -> tuple[Arrays, Arrays]:
        """State and model: views of ``content``."""
        if len(content) != self.model_bytes:
            raise ContentError(f"A model has {self.model_bytes} bytes, not {len(content)}.")
        model, used = _read(content, 0, self._like)
        state, _ = _read(content, used, self._state_like)
        return state, model

    def root(self, content: bytes) -> Digest:
        """Digest of model and state."""
        state, model = self.unpack(content)
        return arrays.digest(model | {_state_key(key): each for key, each in state.items()})

    def model_sha256(self, root: Digest, content: bytes) -> Digest:
        """Digest of the model alone: the root, under a rule without a state."""
        return root if not self._state_like else arrays.digest(self.model(content))

    def model(self, content: bytes) -> Arrays:
        """The model alone."""
        return self.unpack(content)[1]

    def part_bytes(self, index: int, count: int) -> int:
        """Of one range of an update."""
        return sum(
            (each.stop - each.start) * self._like[each.key].dtype.itemsize
            for each in self._ranges(index, count)
        )

    def shard_bytes(self, index: int, count: int) -> int:
        """Of one range of a result: of the model and of the state."""
        ranges = self._ranges(index, count)
        state = self._state_ranges(index, count)
        return sum((r.stop - r.start) * self._like[r.key].dtype.itemsize for r in ranges) + sum(
            (r.stop - r.start) * self._state_like[r.key].dtype.itemsize for r in state
        )

    def piece_bytes(self, index: int, count: int) -> int:
        """Of one piece of a model on its way as bytes."""
        return (index + 1) * self.model_bytes // count - index * self.model_bytes // count

    def piece(self, content: bytes | memoryview, index: int, count: int) -> memoryview:
        """One of ``count`` nearly equal ranges of a model's bytes; a view of them."""
        start = index * self.model_bytes // count
        return memoryview(content)[start : start + self.piece_bytes(index, count)]

    def part(self, update: Arrays, index: int, count: int) -> bytes:
        """One of ``count`` nearly equal ranges of an update."""
        return b"".join(
            arrays.raw_bytes(update[each.key].reshape(-1)[each.start : each.stop])
            for each in self._ranges(index, count)
        )

    def update(self, content: bytes) -> Arrays:
        """A whole update, from its one part."""
        return _read(content, 0, self._like)[0]

    def reduce(
        self,
        base: bytes,
        parts: Sequence[bytes],
        contributors: Sequence[Contribution],
        index: int,
        count: int,
        round_number: int,
    ) -> bytes:
        """The rule on one range: the shard.

        Args:
            base: content of the round before.
            parts: the range of each contributor's update, in their order.
        """
        state, model = self.unpack(base)
        whole = count == 1
        like = self._like if whole else _cut(model, self._ranges(index, count))
        before = model if whole else like
        memory = state if whole else _cut(state, self._state_ranges(index, count))
        updates = [
            aggregate.Update(client_key(each.node), each.weight, _read(part, 0, like)[0])
            for each, part in zip(contributors, parts, strict=True)
        ]
        if not before:
            return b""
        after, result = self._rule.step(memory, before, updates, round_number)
        return b"".join(
            arrays.raw_bytes(source[key])
            for order, source in ((before, result), (memory, after))
            for key in order
        )

    def join(self, shards: Sequence[bytes]) -> bytes:
        """Shards in their order as one content."""
        count = len(shards)
        pieces: dict[str, list[memoryview]] = {
            key: [] for key in (*self._like, *map(_state_key, self._state_like))
        }
        for index, shard in enumerate(shards):
            if len(shard) != self.shard_bytes(index, count):
                raise ContentError(f"Shard {index} of {count} has {len(shard)} bytes.")
            view, used = memoryview(shard), 0
            for name, like, ranges in (
                (str, self._like, self._ranges(index, count)),
                (_state_key, self._state_like, self._state_ranges(index, count)),
            ):
                for each in ranges:
                    size = (each.stop - each.start) * like[each.key].dtype.itemsize
                    pieces[name(each.key)].append(view[used : used + size])
                    used += size
        return b"".join(piece for key in pieces for piece in pieces[key])

    def _ranges(self, index: int, count: int) -> list[_Range]:
        first = index * self._elements // count
        last = (index + 1) * self._elements // count
        found, offset = [], 0
        for key, like in self._like.items():
            start, stop = max(first - offset, 0), min(last - offset, like.size)
            if start < stop:
                found.append(_Range(key, start, stop))
            offset += like.size
        return found

    def _state_ranges(self, index: int, count: int) -> list[_Range]:
        """The same elements in the rule's memories, whose keys are ``slot/key``."""
        by_key = {each.key: each for each in self._ranges(index, count)}
        found = []
        for name in self._state_like:
            cut = by_key.get(name.partition("/")[2])
            if cut is not None:
                found.append(_Range(name, cut.start, cut.stop))
        return found


def client_key(node: NodeId) -> str:
    """The key of a member's updates: the digits after its last dash, else its name.

    ``node-3`` is client 3, as the partition id is of a node of the hub engine: so the order in
    which updates are accumulated is the same, and so are the bits.
    """
    digits = node.rpartition("-")[2]
    return digits if digits.isascii() and digits.isdigit() else node


def _state_key(key: str) -> str:
    return f"{STATE_PREFIX}{key}"


def _read(content: bytes, offset: int, like: Arrays) -> tuple[Arrays, int]:
    found: Arrays = {}
    for key, each in like.items():
        size = each.size * each.dtype.itemsize
        if offset + size > len(content):
            raise ContentError(f"The content ends before the array {arrays.shown(key)}.")
        array: NDArray[Any] = np.frombuffer(content, each.dtype, each.size, offset)
        found[key] = array.reshape(each.shape)
        offset += size
    return found, offset


def _cut(source: Arrays, ranges: Sequence[_Range]) -> Arrays:
    return dict(_slices(source, ranges))


def _slices(source: Arrays, ranges: Sequence[_Range]) -> Iterator[tuple[str, NDArray[Any]]]:
    for each in ranges:
        yield each.key, source[each.key].reshape(-1)[each.start : each.stop]
