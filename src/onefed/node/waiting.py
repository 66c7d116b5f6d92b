"""Items that wait for one connection, and in which order their chunks go."""

from __future__ import annotations

from onefed.node.transport import CARRY_QUEUE_MAX, CHUNK_BYTES, can_wait, encode_chunk
from onefed.peer.messages import Item


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
        self._sending: tuple[bool, Item, int] | None = None

    def put(self, item: Item, content: bytes | memoryview) -> bool:
        """Whether it was taken: it is not where it waits already, or where there is no room."""
        there = self._items[can_wait(item)]
        if item in there or sum(map(len, self._items.values())) >= CARRY_QUEUE_MAX:
            return False
        there[item] = memoryview(content)
        return True

    def next_chunk(self) -> bytes | None:
        """What is to be sent next; ``sent`` is said of it before another one is asked for."""
        for waits, items in self._items.items():
            if items:
                item, view = next(iter(items.items()))
                offset = self._offsets[waits]
                part = view[offset : offset + CHUNK_BYTES]
                self._sending = waits, item, offset + len(part)
                return encode_chunk(item, len(view), offset, part)
        return None

    def sent(self) -> int:
        """The chunk has been given to the connection; bytes of its item in it."""
        assert self._sending is not None
        waits, item, end = self._sending
        self._sending = None
        items = self._items[waits]
        content_bytes = end - self._offsets[waits]
        self._offsets[waits] = end
        if end >= len(items[item]):
            del items[item]
            self._offsets[waits] = 0
        return content_bytes
