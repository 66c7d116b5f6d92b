"""Messages of one stream, packed: each is told as what is new since those before it.

Nearly all of a message has been said before: a roster with its certificates stands in every
heartbeat. What is new in it are mostly digests, which nothing makes shorter than their bytes. So

* a text that is long, such as a contact, is said once on a stream, and then by its number there;
* a digest, 64 characters of a message, goes as its 32 bytes;
* what is left is one deflate stream, flushed after each, as in RFC 7692 (permessage-deflate).

It begins anew with each connection and carries no secrets. A message is JSON in ASCII, so bytes
below a space are free to stand for the first two; a message without them is taken as it is.
"""

from __future__ import annotations

import re
import zlib

from onefed.node.codec import MESSAGE_BYTES_MAX, CodecError

LEVEL = 6
WINDOW_BITS = 15
"""What is remembered: 32 KiB. A connection costs its sender 256 KiB for that, its receiver 32."""
FLUSHED = b"\x00\x00\xff\xff"
"""What each flush ends with; it is not sent."""

TEXTS_MAX = 256
TEXTS_BYTES_MAX = 2**17
"""Long texts of a stream that are remembered, twice those of 64 members; then it begins anew."""

_HELLO = b'["Hello",'
"""Stays readable for other versions of the protocol, which are to refuse it for what it says."""
_LONG = re.compile(rb'"[A-Za-z0-9+/=:. \[\]_-]{200,4096}"')
_SHORTENED = re.compile(_LONG.pattern + rb"|([0-9a-f]{64})")
_TEXT_MARK, _DIGEST_MARK = b"\x01", b"\x02"
_FOLDED = re.compile(rb"\x01(.)|\x02(.{32})", re.DOTALL)


class _Texts:
    """Both sides of a stream learn the same texts in the same order."""

    def __init__(self) -> None:
        self._numbers: dict[bytes, int] = {}
        self._texts: list[bytes] = []
        self._bytes = 0

    def number(self, text: bytes) -> int | None:
        return self._numbers.get(text)

    def text(self, number: int) -> bytes:
        if number >= len(self._texts):
            raise CodecError(f"A packed message names text {number} of {len(self._texts)}.")
        return self._texts[number]

    def learn(self, content: bytes) -> None:
        """Of a message that was sent, or came."""
        for text in _LONG.findall(content):
            if text in self._numbers:
                continue
            if len(self._texts) >= TEXTS_MAX or self._bytes + len(text) > TEXTS_BYTES_MAX:
                self.__init__()  # type: ignore[misc]
            self._numbers[text] = len(self._texts)
            self._texts.append(text)
            self._bytes += len(text)


class Packer:
    """Of whoever sends."""

    def __init__(self, window_bits: int = WINDOW_BITS) -> None:
        self._deflate = zlib.compressobj(LEVEL, zlib.DEFLATED, -window_bits, window_bits - 7)
        self._texts = _Texts()

    def pack(self, content: bytes) -> bytes:
        """The next frame of the stream; it must be sent, in this order."""
        folded = content if content.startswith(_HELLO) else self._fold(content)
        self._texts.learn(content)
        packed = self._deflate.compress(folded) + self._deflate.flush(zlib.Z_SYNC_FLUSH)
        return packed.removesuffix(FLUSHED)

    def _fold(self, content: bytes) -> bytes:
        def short(found: re.Match[bytes]) -> bytes:
            if found[1] is not None:
                return _DIGEST_MARK + bytes.fromhex(found[1].decode())
            number = self._texts.number(found[0])
            return found[0] if number is None else _TEXT_MARK + bytes([number])

        return _SHORTENED.sub(short, content)


class Unpacker:
    """Of whoever receives; whatever comes, it makes no more than a message may have."""

    def __init__(self, bytes_max: int = MESSAGE_BYTES_MAX, window_bits: int = WINDOW_BITS) -> None:
        self._inflate = zlib.decompressobj(-window_bits)
        self._bytes_max = bytes_max
        self._texts = _Texts()

    def unpack(self, frame: bytes) -> bytes:
        """The message in a frame.

        Raises:
            CodecError: it is none; the stream cannot be read any further.
        """
        try:
            folded = self._inflate.decompress(frame + FLUSHED, self._bytes_max + 1)
        except zlib.error as error:
            raise CodecError(f"This is no packed message: {error}.") from error
        self._require_short(len(folded))
        if self._inflate.eof or self._inflate.unconsumed_tail:
            raise CodecError("A packed message with something behind its end.")
        content = self._unfold(folded)
        self._texts.learn(content)
        return content

    def _unfold(self, folded: bytes) -> bytes:
        parts, end, length = [], 0, 0
        for found in _FOLDED.finditer(folded):
            number, digest = found.groups()
            said = digest.hex().encode() if number is None else self._texts.text(number[0])
            parts += [folded[end : found.start()], said]
            end = found.end()
            length += len(parts[-2]) + len(said)
            self._require_short(length)
        self._require_short(length + len(folded) - end)
        return b"".join((*parts, folded[end:]))

    def _require_short(self, length: int) -> None:
        if length > self._bytes_max:
            raise CodecError(f"A message that unpacks to more than {self._bytes_max} bytes.")
