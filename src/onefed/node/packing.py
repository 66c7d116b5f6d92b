"""Messages of one stream, packed: each is told as what is new since those before it.

Nearly all of a message has been said before: a roster with its certificates stands in every
heartbeat and every ack. So the messages of a connection are one deflate stream, flushed after each,
as in RFC 7692 (permessage-deflate). It begins anew with each connection and carries no secrets.
"""

from __future__ import annotations

import zlib

from onefed.node.codec import MESSAGE_BYTES_MAX, CodecError

LEVEL = 6
WINDOW_BITS = 15
"""What is remembered: 32 KiB. A connection costs its sender 256 KiB for that, its receiver 32."""
FLUSHED = b"\x00\x00\xff\xff"
"""What each flush ends with; it is not sent."""


class Packer:
    """Of whoever sends."""

    def __init__(self) -> None:
        self._deflate = zlib.compressobj(LEVEL, zlib.DEFLATED, -WINDOW_BITS)

    def pack(self, content: bytes) -> bytes:
        """The next frame of the stream; it must be sent, in this order."""
        packed = self._deflate.compress(content) + self._deflate.flush(zlib.Z_SYNC_FLUSH)
        return packed.removesuffix(FLUSHED)


class Unpacker:
    """Of whoever receives; whatever comes, it makes no more than a message may have."""

    def __init__(self) -> None:
        self._inflate = zlib.decompressobj(-WINDOW_BITS)

    def unpack(self, frame: bytes) -> bytes:
        """The message in a frame.

        Raises:
            CodecError: it is none; the stream cannot be read any further.
        """
        try:
            content = self._inflate.decompress(frame + FLUSHED, MESSAGE_BYTES_MAX + 1)
        except zlib.error as error:
            raise CodecError(f"This is no packed message: {error}.") from error
        if len(content) > MESSAGE_BYTES_MAX:
            raise CodecError(f"A message that unpacks to more than {MESSAGE_BYTES_MAX} bytes.")
        if self._inflate.eof or self._inflate.unconsumed_tail:
            raise CodecError("A packed message with something behind its end.")
        return content
