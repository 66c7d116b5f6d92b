"""What is in memory has a bound, and what arrives is of a size that it can have."""

from __future__ import annotations

import pytest
from tests.unit.node.conftest import first_model

from onefed import aggregate
from onefed.node import items
from onefed.node.codec import CodecError
from onefed.node.content import Content
from onefed.node.items import Items
from onefed.node.transport import Chunk
from onefed.peer.messages import Ballot, Blob, Item, Parcel, Piece, Shard, Slice

CONTENT = Content(first_model(), aggregate.rule("FedAvg"))
WHOLE = Slice(1, "node-1", "digest", 0, 1)
SIZE = CONTENT.part_bytes(0, 1)


def test_an_item_in_chunks_arrives_whole() -> None:
    held = Items(CONTENT)
    data = bytes(range(SIZE % 256)) * 2 + bytes(SIZE)
    data = data[:SIZE]

    assert held.arrive("node-1", Chunk(WHOLE, SIZE, 0, data[:50])) is None
    assert held.arrive("node-1", Chunk(WHOLE, SIZE, 50, data[50:])) == data


def test_a_gap_loses_the_item_and_nothing_else() -> None:
    held = Items(CONTENT)

    assert held.arrive("node-1", Chunk(WHOLE, SIZE, 0, bytes(50))) is None
    assert held.arrive("node-1", Chunk(WHOLE, SIZE, 60, bytes(SIZE - 60))) is None
    assert held.arrive("node-1", Chunk(WHOLE, SIZE, 0, bytes(SIZE))) == bytes(SIZE)


@pytest.mark.parametrize(
    ("item", "size"),
    [
        (WHOLE, SIZE + 1),
        (Shard(1, Ballot(1, 1), 0), CONTENT.model_bytes + 1),
        (Piece("root", 0, 3), CONTENT.piece_bytes(0, 3) + 1),
    ],
)
def test_an_item_that_cannot_be_is_refused(item: Item, size: int) -> None:
    held = Items(CONTENT)
    held.want(Piece("root", 0, 3))
    with pytest.raises(CodecError):
        held.arrive("node-1", Chunk(item, size, 0, b"0"))


def test_a_model_that_nobody_asked_for_is_not_taken() -> None:
    held = Items(CONTENT)
    chunk = Chunk(Blob("root"), CONTENT.model_bytes, 0, bytes(CONTENT.model_bytes))

    assert held.arrive("node-1", chunk) is None
    held.want(Blob("root"))
    assert held.arrive("node-1", chunk) is not None


def piece_of(item: Piece) -> Chunk:
    size = CONTENT.piece_bytes(item.index, item.count)
    return Chunk(item, size, 0, bytes(size))


def test_only_pieces_of_a_model_that_was_asked_for_are_taken() -> None:
    held = Items(CONTENT)
    piece = Piece("root", 1, 3)

    assert held.arrive("node-1", piece_of(piece)) is None
    held.want(Piece("root", 0, 3))
    assert held.arrive("node-1", piece_of(piece)) is not None
    for other in (Piece("root", 1, 4), Piece("other", 1, 3)):
        assert held.arrive("node-1", piece_of(other)) is None
    held.has_come(piece)
    assert held.arrive("node-1", piece_of(piece)) is None


def test_what_was_asked_for_has_a_bound() -> None:
    held = Items(CONTENT)
    for number in range(2 * items.WANTED_MAX):
        held.want(Blob(f"root-{number}"))

    wanted = [
        number for number in range(2 * items.WANTED_MAX) if held.is_wanted(Blob(f"root-{number}"))
    ]
    assert wanted == list(range(items.WANTED_MAX, 2 * items.WANTED_MAX))


@pytest.mark.parametrize("count", [2, 3, 7, 159])
def test_pieces_are_the_model(count: int) -> None:
    model = bytes(range(CONTENT.model_bytes))
    pieces = [CONTENT.piece(model, index, count) for index in range(count)]

    assert b"".join(pieces) == model
    assert [len(each) for each in pieces] == [CONTENT.piece_bytes(n, count) for n in range(count)]


def test_memory_has_a_bound() -> None:
    held = Items(CONTENT)
    kept = [
        held.keep(Slice(1, f"node-{number}", "digest", 0, 1), bytes(SIZE))
        for number in range(items.HELD_MODELS_MAX + 5)
    ]

    assert kept == [True] * items.HELD_MODELS_MAX + [False] * 5
    held.release(1)
    assert held.keep(WHOLE, bytes(SIZE))


def test_parts_of_items_have_a_bound() -> None:
    held = Items(CONTENT)
    for number in range(10 * items.HELD_MODELS_MAX):
        item = Slice(1, f"node-{number}", "digest", 0, 1)
        held.arrive("node-1", Chunk(item, SIZE, 0, bytes(SIZE - 1)))

    assert held._parts_bytes <= items.HELD_MODELS_MAX * CONTENT.model_bytes


def test_a_member_has_one_item_under_way_and_no_more() -> None:
    """Each costs memory beside its bytes, so a thousand beginnings of one byte are not kept."""
    held = Items(CONTENT)
    other = Slice(1, "node-1", "digest", 0, 2)
    size = CONTENT.part_bytes(0, 2)

    assert held.arrive("node-1", Chunk(WHOLE, SIZE, 0, bytes(50))) is None
    assert held.arrive("node-1", Chunk(other, size, 0, bytes(50))) is None
    assert held.arrive("node-1", Chunk(WHOLE, SIZE, 50, bytes(SIZE - 50))) is None
    assert held.arrive("node-2", Chunk(WHOLE, SIZE, 0, bytes(SIZE))) == bytes(SIZE)


def test_a_checkpoint_that_is_under_way_lets_the_items_of_a_round_pass() -> None:
    held = Items(CONTENT)
    parcel = Parcel("node-1", 1, "digest", "")

    assert held.arrive("node-1", Chunk(parcel, 100, 0, bytes(50))) is None
    assert held.arrive("node-1", Chunk(WHOLE, SIZE, 0, bytes(50))) is None
    assert held.arrive("node-1", Chunk(parcel, 100, 50, bytes(50))) == bytes(100)
    assert held.arrive("node-1", Chunk(WHOLE, SIZE, 50, bytes(SIZE - 50))) == bytes(SIZE)


def test_an_item_that_came_twice_stays_when_one_of_them_is_dropped() -> None:
    """The machine hears of each by itself: of no use at first, it may be by the second time."""
    held = Items(CONTENT)
    assert held.keep(WHOLE, b"first")
    assert held.keep(WHOLE, b"other")

    held.drop(WHOLE)
    assert held.get(WHOLE) == b"first"
    held.drop(WHOLE)
    assert held.get(WHOLE) is None


def test_an_own_item_replaces_what_came_under_its_name() -> None:
    held = Items(CONTENT)
    shard = Shard(1, Ballot(1, 1), 0)

    assert held.keep(shard, b"another's")
    assert held.keep(shard, b"own", own=True)
    assert held.get(shard) == b"own"
