"""What a node asks of the network, and how bytes of an item are cut and put together.

Talk is small and may be lost; what is carried are items, in chunks, one item after the other: but
for what can wait, such as checkpoints, between the chunks of which others go. A peer that is lost
is told once.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from typing import Protocol

from onefed.node import codec
from onefed.node.packing import Packer, Unpacker
from onefed.peer.messages import Blob, Item, NodeId, Parcel, Piece

CHUNK_BYTES = 2**20
"""Of an item in one piece: a heartbeat waits for no more than one of them."""

CHUNK_HEADER_BYTES_MAX = 4096
HEADER_WINDOW_BITS = 12
"""What packing remembers of the headers of a stream: 4 KiB, a round's or more."""

TALK_QUEUE_MAX = 256
"""Messages to one peer that wait; the oldest is lost first, since a newer one says more."""

CARRY_QUEUE_MAX = 1024
"""Items to one peer that wait; further ones are lost, and will be asked for."""

_HEADER_LENGTH = struct.Struct("<H")


class Receiver(Protocol):
    """Who takes what arrives."""

    async def on_talk(self, sender: NodeId, content: bytes) -> None:
        """A message, undecoded. Returns when there is room for more."""
        ...

    async def on_chunk(self, sender: NodeId, chunk: Chunk) -> None:
        """A part of an item. Returns when there is room for more."""
        ...

    async def on_lost(self, peer: NodeId) -> None:
        """The connection to a peer broke, and a second one could not be made at once."""
        ...

    def on_refused(self, sender: NodeId | None, reason: str) -> None:
        """A connection was closed for what it sent; None: it was nobody's."""
        ...


class Transport(Protocol):
    """Connections to all members."""

    async def start(self, receiver: Receiver) -> None:
        """Listen, and connect to whoever is known."""
        ...

    def talk(self, to: NodeId, content: bytes) -> None:
        """Send a message, or lose it."""
        ...

    def carry(self, to: NodeId, item: Item, content: bytes | memoryview) -> None:
        """Send an item, or lose it. ``content`` is kept until it is sent."""
        ...

    def renew(self, to: NodeId) -> None:
        """No answer comes from a member: make the connection anew if it has been silent."""
        ...

    async def stop(self) -> None:
        """Close all connections."""
        ...


def can_wait(item: Item) -> bool:
    """Whether an item is no part of the round that all wait for."""
    return isinstance(item, Blob | Piece | Parcel)


@dataclass(frozen=True, slots=True)
class Chunk:
    """A part of an item, on its way."""

    item: Item
    total_bytes: int
    offset: int
    content: bytes


def header_packer() -> Packer:
    """For the headers of one stream of chunks."""
    return Packer(HEADER_WINDOW_BITS)


def header_unpacker() -> Unpacker:
    """For the other end of it."""
    return Unpacker(CHUNK_HEADER_BYTES_MAX, HEADER_WINDOW_BITS)


def encode_chunk(
    headers: Packer, item: Item, total_bytes: int, offset: int, content: memoryview
) -> bytes:
    """Header and bytes: the next frame of a stream of chunks, in this order."""
    document = [codec.encode_item(item), total_bytes, offset]
    header = headers.pack(json.dumps(document, separators=(",", ":")).encode())
    return b"".join((_HEADER_LENGTH.pack(len(header)), header, content))


def decode_chunk(headers: Unpacker, frame: bytes) -> Chunk:
    """The chunk; raises ``CodecError`` where it is none."""
    if len(frame) < _HEADER_LENGTH.size:
        raise codec.CodecError("A chunk without a header.")
    (length,) = _HEADER_LENGTH.unpack_from(frame)
    start = _HEADER_LENGTH.size + length
    if length > CHUNK_HEADER_BYTES_MAX or start > len(frame):
        raise codec.CodecError(f"A chunk with a header of {length} bytes.")
    try:
        item, total_bytes, offset = json.loads(headers.unpack(frame[_HEADER_LENGTH.size : start]))
    except (ValueError, TypeError, RecursionError) as error:
        raise codec.CodecError(f"The header of a chunk cannot be read: {error}.") from error
    content = frame[start:]
    if type(total_bytes) is not int or type(offset) is not int:
        raise codec.CodecError("The header of a chunk has no numbers.")
    if not 0 <= offset <= offset + len(content) <= total_bytes or len(content) > CHUNK_BYTES:
        raise codec.CodecError("A chunk outside of its item.")
    if not content and total_bytes:
        raise codec.CodecError("A chunk of nothing.")
    return Chunk(codec.decode_item(item), total_bytes, offset, content)
