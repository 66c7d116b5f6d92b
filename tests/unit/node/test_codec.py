"""Bytes of a peer make a message of the protocol, or an error, and nothing else."""

from __future__ import annotations

import json
import typing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onefed import aggregate
from onefed.node import codec
from onefed.node.codec import CodecError
from onefed.node.transport import (
    Chunk,
    decode_chunk,
    encode_chunk,
    header_packer,
    header_unpacker,
)
from onefed.peer import messages
from onefed.peer.messages import (
    Ack,
    Adopt,
    Ballot,
    Blob,
    Contribution,
    Entry,
    Heartbeat,
    Item,
    Member,
    Message,
    Piece,
    Plan,
    Relay,
    Shard,
    Slice,
    Want,
)

ENTRY = Entry(
    3, "ab", 10, Ballot(2, 1), (Member("a", "a:1"),), (Contribution("a", 5, "d", 10),), ("a",)
)
NUMBERS = st.integers(0, codec.NUMBER_MAX)
TEXTS = st.text(max_size=20)

BOUNDED = {
    Contribution: {"weight": st.integers(1, aggregate.WEIGHT_MAX)},
    Slice: {"index": st.integers(0, 2), "count": st.integers(3, codec.SHARDS_MAX)},
    Piece: {"index": st.integers(0, 2), "count": st.integers(3, codec.SHARDS_MAX)},
    Shard: {"index": st.integers(0, codec.SHARDS_MAX - 1)},
}

st.register_type_strategy(Ballot, st.builds(Ballot, NUMBERS, NUMBERS))


def built(kind: type) -> st.SearchStrategy[typing.Any]:
    hints = typing.get_type_hints(kind, vars(messages))
    return st.builds(
        kind, **{name: of(hint) for name, hint in hints.items()} | BOUNDED.get(kind, {})
    )


def of(hint: typing.Any) -> st.SearchStrategy[typing.Any]:
    simple = {int: NUMBERS, str: TEXTS, bool: st.booleans(), type(None): st.none()}
    if hint in simple:
        return simple[hint]
    if hint is Ballot:
        return st.builds(Ballot, NUMBERS, NUMBERS)
    if typing.get_origin(hint) is tuple:
        return st.lists(of(typing.get_args(hint)[0]), max_size=3).map(tuple)
    if options := typing.get_args(hint):
        return st.one_of(*(of(option) for option in options))
    return built(hint)


@given(st.one_of(*(built(kind) for kind in typing.get_args(Message))))
def test_every_message_comes_back_as_it_was(message: Message) -> None:
    try:
        decoded = codec.decode(codec.encode(message))
    except CodecError:
        said = message.message if isinstance(message, Relay) else message
        assert isinstance(said, Heartbeat)  # whose parts have to fit each other
        assert said.proposal is not None
    else:
        assert decoded == message


@given(st.binary(max_size=200))
def test_garbage_is_refused(content: bytes) -> None:
    with pytest.raises(CodecError):
        codec.decode(content)


@given(st.recursive(st.none() | st.integers() | st.text(), st.lists, max_leaves=20))
def test_other_documents_are_refused(document: object) -> None:
    with pytest.raises(CodecError):
        codec.decode(json.dumps(document).encode())


@given(st.integers(0, 10_000), st.integers(0, 255))
def test_a_damaged_message_is_refused_or_another_message(place: int, value: int) -> None:
    content = bytearray(codec.encode(Heartbeat(2, ENTRY, None)))
    content[place % len(content)] = value
    try:
        decoded = codec.decode(bytes(content))
    except CodecError:
        return
    assert isinstance(decoded, Heartbeat)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("a term of 2^63", ["Prevote", 2**63, codec._plain(ENTRY)]),
        ("a negative round", ["Want", ["Slice", -2, "a", "d", 0, 1]]),
        ("a fraction", ["Join", ["Member", "a", "b"], 1]),
        ("an unknown class", ["Shutdown"]),
        ("a field too many", ["Want", ["Blob", "ab"], 1]),
        ("a long text", ["Want", ["Blob", "a" * 5000]]),
        ("depth", json.loads("[" * 500 + "]" * 500)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_out_of_bounds_is_refused(what: str, message: object) -> None:
    with pytest.raises(CodecError):
        codec.decode(json.dumps(message).encode())


def test_a_message_that_is_too_long_is_not_even_read() -> None:
    with pytest.raises(CodecError, match="longer"):
        codec.decode(b" " * (codec.MESSAGE_BYTES_MAX + 1))


def test_a_proposal_is_of_the_term_of_its_heartbeat() -> None:
    plan = Plan(Ballot(3, 1), 4, "ab", ENTRY.contributors, ("a",), ("a",), ENTRY.roster, "rule")
    for proposal in (plan, Adopt(Ballot(3, 1), ENTRY, ("a",))):
        assert codec.decode(codec.encode(Heartbeat(3, ENTRY, proposal))).term == 3
        with pytest.raises(CodecError):
            codec.decode(codec.encode(Heartbeat(4, ENTRY, proposal)))


ITEM = Slice(1, "a", "d", 0, 2)


def carried(item: Item, total_bytes: int, offset: int, content: bytes) -> Chunk:
    """A chunk, as it comes out of a connection."""
    frame = encode_chunk(header_packer(), item, total_bytes, offset, memoryview(content))
    return decode_chunk(header_unpacker(), frame)


@pytest.mark.parametrize(
    ("total_bytes", "offset", "content"),
    [(10, 8, b"abc"), (10, -1, b"abc"), (10, 3, b""), (2**60, 0, b"")],
)
def test_a_chunk_outside_of_its_item_is_refused(
    total_bytes: int, offset: int, content: bytes
) -> None:
    with pytest.raises(CodecError):
        carried(ITEM, total_bytes, offset, content)


@pytest.mark.parametrize("frame", [b"", b"\xff\xff\xff\xff", b"\x02\0{}", b"\0\0\0\0"])
def test_a_frame_that_is_none_is_refused(frame: bytes) -> None:
    with pytest.raises(CodecError):
        decode_chunk(header_unpacker(), frame)


def test_a_chunk_comes_back_as_it_was() -> None:
    chunk = carried(Blob("ab"), 10, 4, b"abcdef")

    assert (chunk.item, chunk.total_bytes, chunk.offset, chunk.content) == (
        Blob("ab"),
        10,
        4,
        b"abcdef",
    )


def test_want_is_small() -> None:
    assert len(codec.encode(Want(ITEM, "node-1"))) < 100


@pytest.mark.parametrize(
    "item",
    [
        Slice(1, "a", "d", 0, 0),
        Slice(1, "a", "d", 2, 2),
        Slice(1, "a", "d", -1, 2),
        Slice(1, "a", "d", 0, codec.SHARDS_MAX + 1),
        Piece("r", 2, 2),
        Piece("r", 0, 1),
        Piece("r", 0, codec.SHARDS_MAX + 1),
        Shard(1, Ballot(1, 1), -1),
        Shard(1, Ballot(1, 1), codec.SHARDS_MAX),
    ],
)
def test_a_part_that_there_cannot_be_is_refused_wherever_it_is_named(
    item: Slice | Shard | Piece,
) -> None:
    with pytest.raises(CodecError):
        codec.decode(codec.encode(Want(item, "a")))
    with pytest.raises(CodecError):
        carried(item, 1, 0, b"0")


@pytest.mark.parametrize("weight", [-1, 0, aggregate.WEIGHT_MAX + 1])
def test_an_update_of_a_weight_that_no_rule_takes_is_refused(weight: int) -> None:
    ready = Contribution("a", weight, "d", 10)
    with pytest.raises(CodecError):
        codec.decode(codec.encode(Ack(1, 1, 1, 1, ready, None, 0, ())))


@pytest.mark.parametrize("header", [b"7", b"null", b"true", b"[]", b"[1]", b'{"a":1}', b'"abc"'])
def test_a_header_that_is_no_list_of_three_is_refused(header: bytes) -> None:
    packed = header_packer().pack(header)
    with pytest.raises(CodecError):
        decode_chunk(header_unpacker(), len(packed).to_bytes(2, "little") + packed)
