"""Messages of a stream are told as what is new, and unpack to no more than a message may have."""

from __future__ import annotations

import random
import zlib
from base64 import b64encode

import pytest

from onefed.node import codec, packing
from onefed.node.codec import MESSAGE_BYTES_MAX, CodecError
from onefed.node.packing import Packer, Unpacker
from onefed.peer.messages import (
    PROTOCOL_VERSION,
    Ballot,
    Contribution,
    Entry,
    Heartbeat,
    Hello,
    Member,
    Plan,
)

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


CHANCE = random.Random(3)
DIGESTS = [CHANCE.randbytes(32).hex() for _ in range(16)]
ROSTER = tuple(
    Member(f"node-{number}", f"127.0.0.1:4242 {b64encode(CHANCE.randbytes(390)).decode()}")
    for number in range(8)
)
UPDATES = tuple(
    Contribution(member.node, 5, digest, 10)
    for member, digest in zip(ROSTER, DIGESTS[8:], strict=True)
)
ENTRY = Entry(3, DIGESTS[0], 10, Ballot(2, 1), ROSTER, (), ())
PLAN = Plan(Ballot(2, 2), 4, ENTRY.root, UPDATES, (), ("node-0",), ROSTER, DIGESTS[1])


def test_long_texts_are_said_once_and_digests_take_their_bytes() -> None:
    packer, unpacker = Packer(), Unpacker()
    sizes = []
    for proposal in (None, None, None, PLAN):
        message = codec.encode(Heartbeat(2, ENTRY, proposal))
        sizes.append(len(frame := packer.pack(message)))
        assert unpacker.unpack(frame) == message

    assert sizes[0] > 8 * 390
    assert sizes[2] < 20
    assert sizes[3] < 9 * 32 + 200


def test_more_texts_than_are_remembered_are_told_again() -> None:
    packer, unpacker = Packer(), Unpacker()
    texts = [CHANCE.randbytes(400).hex() for _ in range(2 * packing.TEXTS_MAX)]
    for each in (*texts, *texts[-3:], *texts[:3]):
        message = b'["Leave","%s"]' % each.encode()
        assert unpacker.unpack(packer.pack(message)) == message


def test_a_hello_can_be_read_by_another_version_which_is_to_refuse_it_by_its_number() -> None:
    hello = codec.encode(Hello(PROTOCOL_VERSION, DIGESTS[2], 1, ENTRY))
    inflate = zlib.decompressobj(-packing.WINDOW_BITS)

    fresh = Packer().pack(hello)
    assert inflate.decompress(fresh + packing.FLUSHED) == hello


@pytest.mark.parametrize(
    "folded", [b"\x01\x00" * 2**19, b"\x01\x07", b"\x02" * 33 * 2**14, b"\x02short"]
)
def test_marks_make_no_more_than_a_message_and_name_what_was_said(folded: bytes) -> None:
    """Half a million times a text of 4,000 characters would be two gigabytes."""
    deflate, unpacker = zlib.compressobj(wbits=-packing.WINDOW_BITS), Unpacker()

    def packed(content: bytes) -> bytes:
        return deflate.compress(content) + deflate.flush(zlib.Z_SYNC_FLUSH)

    unpacker.unpack(packed(b'["Leave","%s"]' % (b"x" * 4000)).removesuffix(packing.FLUSHED))
    with pytest.raises(CodecError):
        codec.decode(unpacker.unpack(packed(folded).removesuffix(packing.FLUSHED)))


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
