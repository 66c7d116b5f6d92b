"""Data that is in memory: parts of updates and results, whole or still on their way.

Everything here can be had again from a peer, and all of it has a bound.
"""

from __future__ import annotations

from dataclasses import dataclass

from onefed.arrays import Arrays
from onefed.node.codec import CodecError
from onefed.node.content import Content
from onefed.node.transport import Chunk
from onefed.peer.messages import Blob, Digest, Item, NodeId, Parcel, Shard, Slice

HELD_MODELS_MAX = 66
"""Bytes of items in memory, in models: the whole updates of 64 members, and two results."""

PARCEL_BYTES_MAX = 2**28
"""What an app may keep for itself that others are to keep, too; and the head of a checkpoint."""

SHARDS_MAX = 4096
"""Ranges that a model may be cut into."""


@dataclass(frozen=True, slots=True)
class Update:
    """An update of this node."""

    round_number: int
    model: Arrays


class Items:
    """What can be sent to peers without looking at the disk."""

    def __init__(self, content: Content) -> None:
        self.updates: dict[Digest, Update] = {}
        """Own ones, of rounds that are not done."""
        self.wanted: set[Digest] = set()
        """Roots of models that were asked for: others are not taken."""
        self._content = content
        self._held: dict[Item, bytes] = {}
        self._held_bytes = 0
        self._parts: dict[tuple[NodeId, Item], bytearray] = {}
        self._parts_bytes = 0

    def keep(self, item: Item, content: bytes) -> bool:
        """Keep an item; False where there is no room for it."""
        limit_bytes = HELD_MODELS_MAX * self._content.model_bytes
        if item not in self._held and self._held_bytes + len(content) > limit_bytes:
            return False
        self.drop(item)
        self._held[item] = content
        self._held_bytes += len(content)
        return True

    def drop(self, item: Item) -> None:
        """Forget an item; fine if it is not here."""
        self._held_bytes -= len(self._held.pop(item, b""))

    def release(self, round_number: int) -> None:
        """Forget everything of rounds up to this one."""
        for item in [
            each
            for each in self._held
            if not isinstance(each, Blob) and each.round_number <= round_number
        ]:
            self.drop(item)
        self.updates = {
            digest: update
            for digest, update in self.updates.items()
            if update.round_number > round_number
        }

    def get(self, item: Slice | Shard) -> bytes | None:
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
        place = (sender, chunk.item)
        if chunk.offset == 0:
            self._discard(place)
        if not self._is_welcome(chunk):
            return None
        if chunk.offset == 0:
            if chunk.total_bytes == len(chunk.content):
                return chunk.content
            self._parts[place] = bytearray()
        part = self._parts.get(place)
        limit_bytes = HELD_MODELS_MAX * self._content.model_bytes
        full = self._parts_bytes + len(chunk.content) > limit_bytes
        if part is None or len(part) != chunk.offset or full:
            self._discard(place)  # a chunk was lost with its connection, or there is no room
            return None
        part += chunk.content
        self._parts_bytes += len(chunk.content)
        if len(part) < chunk.total_bytes:
            return None
        self._discard(place)
        return bytes(part)

    def forget_parts(self, sender: NodeId) -> None:
        """Of items that a lost peer was sending."""
        for place in [place for place in self._parts if place[0] == sender]:
            self._discard(place)

    def _is_welcome(self, chunk: Chunk) -> bool:
        """Whether such an item may be of use; CodecError where there is none of that size."""
        size, fits = chunk.total_bytes, False
        match chunk.item:
            case Blob(root):
                if root not in self.wanted:
                    return False
                fits = size == self._content.model_bytes
            case Slice(_, _, _, index, count):
                if not 0 <= index < count <= SHARDS_MAX:
                    raise CodecError(f"There is no part {index} of {count} of an update.")
                fits = size == self._content.part_bytes(index, count)
            case Shard():
                fits = size <= self._content.model_bytes
            case Parcel():
                fits = size <= self._content.model_bytes + PARCEL_BYTES_MAX
        if not fits:
            raise CodecError(f"{chunk.item} cannot have {size} bytes.")
        return True

    def _discard(self, place: tuple[NodeId, Item]) -> None:
        self._parts_bytes -= len(self._parts.pop(place, b""))
