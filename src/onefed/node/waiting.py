"""Items that wait for one connection, and in which order their chunks go."""

from __future__ import annotations

from typing import NamedTuple

from onefed.node.transport import CARRY_QUEUE_MAX, CHUNK_BYTES, can_wait
from onefed.peer.messages import Item


class Part(NamedTuple):
    """Of an item, as ``encode_chunk`` has it."""

    item: Item
    total_bytes: int
    offset: int
    content: memoryview


class Waiting:
    """Items of a round one after the other, before and between the chunks of what can wait.

    An item stays until its last chunk is sent: it is asked for again by who has only waited long,
    and is not sent twice then.
    """

    def __init__(self) -> None:
        self._items: dict[bool, dict[Item, memoryview]] = {False: {}, True: {}}
        """By whether they can wait."""
        self._offsets: dict[bool, int] = {False: 0, True: 0}
        """Of the first ones: where their next chunk begins."""
        self._sending: Part | None = None

    def put(self, item: Item, content: bytes | memoryview) -> bool:
        """Whether it was taken: it is not where it waits already, or where there is no room."""
        there = self._items[can_wait(item)]
        if item in there or sum(map(len, self._items.values())) >= CARRY_QUEUE_MAX:
            return False
        there[item] = memoryview(content)
        return True

    def has_more(self) -> bool:
        """Whether something waits."""
        return any(self._items.values())

    def next_chunk(self) -> Part:
        """What is to be sent next; there is something. It stays until ``sent`` is said of it."""
        waits = not self._items[False]
        item, view = next(iter(self._items[waits].items()))
        offset = self._offsets[waits]
        part = view[offset : offset + CHUNK_BYTES]
        self._sending = Part(item, len(view), offset, part)
        return self._sending

    def sent(self, part: Part) -> None:
        """A chunk has been given to a connection."""
        if part is not self._sending:
            return  # to an older connection, and to the newest as well
        self._sending = None
        waits = can_wait(part.item)
        self._offsets[waits] = part.offset + len(part.content)
        if self._offsets[waits] >= part.total_bytes:
            del self._items[waits][part.item]
            self._offsets[waits] = 0
