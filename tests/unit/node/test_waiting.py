"""In which order chunks of items go over a connection."""

from __future__ import annotations

from onefed.node.transport import CARRY_QUEUE_MAX, CHUNK_BYTES
from onefed.node.waiting import Waiting
from onefed.peer.messages import Item, Parcel, Slice

SLICE = Slice(1, "node-0", "digest", 0, 1)
OTHER = Slice(1, "node-0", "digest", 1, 2)
PARCEL = Parcel("node-0", 1, "digest", "")


def sent(waiting: Waiting, count: int) -> list[tuple[Item, int]]:
    """Item and offset of the next chunks."""
    found = []
    while len(found) < count and waiting.has_more():
        part = waiting.next_chunk()
        found.append((part.item, part.offset))
        waiting.sent(part)
    return found


def test_what_a_round_needs_goes_between_the_chunks_of_what_can_wait() -> None:
    waiting = Waiting()
    assert waiting.put(PARCEL, bytes(2 * CHUNK_BYTES + 1))
    assert sent(waiting, 1) == [(PARCEL, 0)]
    assert waiting.put(SLICE, bytes(CHUNK_BYTES + 1))
    assert waiting.put(OTHER, b"")

    assert sent(waiting, 99) == [
        (SLICE, 0),
        (SLICE, CHUNK_BYTES),
        (OTHER, 0),
        (PARCEL, CHUNK_BYTES),
        (PARCEL, 2 * CHUNK_BYTES),
    ]


def test_an_item_that_is_being_sent_is_not_sent_twice() -> None:
    waiting = Waiting()
    assert waiting.put(SLICE, bytes(CHUNK_BYTES + 1))
    assert sent(waiting, 1)

    assert not waiting.put(SLICE, bytes(CHUNK_BYTES + 1))
    assert sent(waiting, 99) == [(SLICE, CHUNK_BYTES)]
    assert waiting.put(SLICE, b"again")  # it may have been lost by whoever asks anew


def test_a_chunk_that_two_connections_were_given_counts_once() -> None:
    """The older one hangs; what becomes of its chunk is told after the newer one has sent it."""
    waiting = Waiting()
    assert waiting.put(SLICE, bytes(CHUNK_BYTES + 1))
    hanging = waiting.next_chunk()
    assert sent(waiting, 1) == [(SLICE, 0)]
    waiting.sent(hanging)

    assert sent(waiting, 99) == [(SLICE, CHUNK_BYTES)]


def test_what_waits_has_a_bound() -> None:
    waiting = Waiting()
    taken = [
        waiting.put(Slice(1, "node-0", "digest", index, 4096), b"x")
        for index in range(CARRY_QUEUE_MAX + 3)
    ]

    assert taken == [True] * CARRY_QUEUE_MAX + [False] * 3
