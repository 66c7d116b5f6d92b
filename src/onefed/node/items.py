"""Data that is in memory: parts of updates and results, whole or still on their way.

Everything here can be had again from a peer, and all of it has a bound.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from onefed.arrays import Arrays
from onefed.node.codec import CodecError
from onefed.node.content import Content
from onefed.node.transport import Chunk, can_wait
from onefed.peer.messages import Blob, Digest, Item, NodeId, Parcel, Piece, Shard, Slice

HELD_MODELS_MAX = 66
"""Bytes of items in memory, in models: the whole updates of 64 members, and two results."""

WANTED_MAX = 256
"""Models that were asked for and have not come; of more, the oldest is forgotten."""

PARCEL_BYTES_MAX = 2**28
"""What an app may keep for itself that others are to keep, too; and the head of a checkpoint."""


@dataclass(frozen=True, slots=True)
class Update:
    """An update of this node."""

    round_number: int
    model: Arrays


@dataclass(slots=True)
class _Part:
    """Of an item, as far as it has come."""

    item: Item
    content: bytearray = field(default_factory=bytearray)


class Items:
    """What can be sent to peers without looking at the disk."""

    def __init__(self, content: Content) -> None:
        self.updates: dict[Digest, Update] = {}
        """Own ones, of rounds that are not done."""
        self._wanted: dict[tuple[Digest, int], None] = {}
        """Models that were asked for, by the number of their pieces; 1: whole."""
        self._content = content
        self._held: dict[Item, bytes] = {}
        self._held_bytes = 0
        self._copies: Counter[Item] = Counter()
        """So often an item came; the machine says of each time whether it is of use."""
        self._parts: dict[tuple[NodeId, bool], _Part] = {}
        """A member sends one item after the other, and one more that can wait."""
        self._parts_bytes = 0

    def keep(self, item: Item, content: bytes, *, own: bool = False) -> bool:
        """Keep an item; False where there is no room for it. What came first, or is own, stays."""
        limit_bytes = HELD_MODELS_MAX * self._content.model_bytes
        if own and item in self._held:
            self._forget(item)
        if item not in self._held:
            if self._held_bytes + len(content) > limit_bytes:
                return False
            self._held[item] = content
            self._held_bytes += len(content)
        self._copies[item] += 1
        return True

    def drop(self, item: Item) -> None:
        """Forget an item that came once; another time it may have come is told by itself."""
        self._copies[item] -= 1
        if self._copies[item] <= 0:
            self._forget(item)

    def release(self, round_number: int) -> None:
        """Forget everything of rounds up to this one."""
        for item in [
            each
            for each in self._held
            if isinstance(each, Slice | Shard) and each.round_number <= round_number
        ]:
            self._forget(item)
        self.updates = {
            digest: update
            for digest, update in self.updates.items()
            if update.round_number > round_number
        }

    def want(self, item: Blob | Piece) -> None:
        """A model is asked for: others are not taken."""
        self._wanted[_model(item)] = None
        if len(self._wanted) > WANTED_MAX:
            del self._wanted[next(iter(self._wanted))]

    def is_wanted(self, item: Blob | Piece) -> bool:
        """Whether it was asked for, and has not come."""
        return _model(item) in self._wanted

    def has_come(self, item: Blob | Piece) -> None:
        """The model of an item is on disk, or does not come that way."""
        self._wanted.pop(_model(item), None)

    def get(self, item: Slice | Shard | Piece) -> bytes | None:
        """The bytes of an item, own ones among them."""
        if isinstance(item, Slice) and item.digest in self.updates:
            update = self.updates[item.digest]
            return self._content.part(update.model, item.index, item.count)
        return self._held.get(item)

    def arrive(self, sender: NodeId, chunk: Chunk) -> bytes | None:
        """Take a chunk; the bytes of its item, once all have come.

        Chunks of an item come in order, and offset 0 begins it anew.

        Raises:
            CodecError: the item cannot have so many bytes.
        """
        place = sender, can_wait(chunk.item)
        if chunk.offset == 0:
            self._forget_part(place)
        if not self._is_welcome(chunk):
            return None
        if chunk.offset == 0:
            if chunk.total_bytes == len(chunk.content):
                return chunk.content
            self._parts[place] = _Part(chunk.item)
        part = self._parts.get(place)
        limit_bytes = HELD_MODELS_MAX * self._content.model_bytes
        full = self._parts_bytes + len(chunk.content) > limit_bytes
        if part is None or (part.item, len(part.content)) != (chunk.item, chunk.offset) or full:
            self._forget_part(place)  # a chunk was lost with its connection, or there is no room
            return None
        part.content += chunk.content
        self._parts_bytes += len(chunk.content)
        if len(part.content) < chunk.total_bytes:
            return None
        self._forget_part(place)
        return bytes(part.content)

    def forget_parts(self, sender: NodeId) -> None:
        """Of the items that a peer was sending."""
        for waits in (False, True):
            self._forget_part((sender, waits))

    def _forget_part(self, place: tuple[NodeId, bool]) -> None:
        part = self._parts.pop(place, None)
        if part is not None:
            self._parts_bytes -= len(part.content)

    def _is_welcome(self, chunk: Chunk) -> bool:
        """Whether such an item may be of use; CodecError where there is none of that size."""
        size, fits = chunk.total_bytes, False
        match chunk.item:
            case Blob():
                if not self.is_wanted(chunk.item):
                    return False
                fits = size == self._content.model_bytes
            case Piece(_, index, count):
                if not self.is_wanted(chunk.item):
                    return False
                fits = size == self._content.piece_bytes(index, count)
            case Slice(_, _, _, index, count):
                fits = size == self._content.part_bytes(index, count)
            case Shard():
                fits = size <= self._content.model_bytes
            case Parcel():
                fits = size <= self._content.model_bytes + PARCEL_BYTES_MAX
        if not fits:
            raise CodecError(f"{chunk.item} cannot have {size} bytes.")
        return True

    def _forget(self, item: Item) -> None:
        self._held_bytes -= len(self._held.pop(item, b""))
        del self._copies[item]


def _model(item: Blob | Piece) -> tuple[Digest, int]:
    return item.root, item.count if isinstance(item, Piece) else 1
