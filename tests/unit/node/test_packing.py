"""Messages of a stream are told as what is new, and unpack to no more than a message may have."""

from __future__ import annotations

import random
import zlib

import pytest

from onefed.node import packing
from onefed.node.codec import MESSAGE_BYTES_MAX, CodecError
from onefed.node.packing import Packer, Unpacker

CERTIFICATE = random.Random(1).randbytes(600).hex().encode()
MESSAGES = [b"", b"[]", *(b'["Ack",%d,"%s"]' % (number, CERTIFICATE) for number in range(50))]


def test_what_was_packed_unpacks_in_its_order() -> None:
    packer, unpacker = Packer(), Unpacker()

    assert [unpacker.unpack(packer.pack(each)) for each in MESSAGES] == MESSAGES


def test_what_was_said_before_costs_next_to_nothing() -> None:
    packer = Packer()
    first, *later = [len(packer.pack(each)) for each in MESSAGES[2:]]

    assert first > 600
    assert max(later) < 40


def test_a_message_of_the_largest_size_passes_and_no_larger_one() -> None:
    packer, unpacker = Packer(), Unpacker()
    largest = bytes(MESSAGE_BYTES_MAX)

    assert unpacker.unpack(packer.pack(largest)) == largest
    with pytest.raises(CodecError):
        unpacker.unpack(packer.pack(largest + b"0"))


def test_a_frame_that_would_unpack_to_a_gigabyte_makes_no_more_than_a_message() -> None:
    deflate = zlib.compressobj(9, zlib.DEFLATED, -packing.WINDOW_BITS)
    frame = b"".join(deflate.compress(bytes(2**20)) for _ in range(100))
    unpacker = Unpacker()

    with pytest.raises(CodecError):
        unpacker.unpack(frame + deflate.flush(zlib.Z_SYNC_FLUSH))


@pytest.mark.parametrize(
    "frame",
    [
        b"\xff" * 100,
        b'["Shutdown"]',
        zlib.compressobj(6, zlib.DEFLATED, -packing.WINDOW_BITS).flush(),  # the stream ends
    ],
)
def test_what_is_not_packed_is_refused(frame: bytes) -> None:
    with pytest.raises(CodecError):
        Unpacker().unpack(frame)


def test_bytes_by_chance_are_refused_or_small() -> None:
    chance = random.Random(2)
    for _ in range(3000):
        try:
            content = Unpacker().unpack(chance.randbytes(chance.randint(0, 200)))
        except CodecError:
            continue
        assert len(content) <= MESSAGE_BYTES_MAX
