"""What waits for one member, of one kind, and the streams that it may go on, of which one is used.

Both sides choose the same one where two have dialled each other at once, and else the newest: a
member that has dialled just now is there, whatever has become of an older connection.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeAlias

from onefed.node.packing import Packer
from onefed.node.transport import TALK_QUEUE_MAX, encode_chunk, header_packer
from onefed.node.waiting import Waiting
from onefed.peer.messages import Item

Write: TypeAlias = Callable[[bytes], Awaitable[None]]
"""Onto a stream; returns when there is room for more."""


@dataclass(frozen=True, slots=True, eq=False)
class _Stream:
    preferred: bool


class Lane(ABC):
    """See the module."""

    def __init__(self) -> None:
        self._waits = asyncio.Event()
        self._streams: list[_Stream] = []
        """The last one is used."""

    async def send(self, write: Write, *, preferred: bool) -> None:
        """Send on a stream, whenever it is the one to use, until this is cancelled or it breaks."""
        stream, packer = _Stream(preferred), self._packer()
        self._streams.append(stream)
        self._streams.sort(key=lambda each: each.preferred)  # of equal ones the newest is the last
        try:
            while True:
                while self._streams[-1] is stream and self._has_more():
                    await self._send_next(write, packer)
                self._waits.clear()
                await self._waits.wait()
        finally:
            self._streams.remove(stream)
            if not self._streams:
                self._none_stands()
            self._waits.set()

    def _wake(self) -> None:
        self._waits.set()

    def _packer(self) -> Packer:
        return Packer()

    @abstractmethod
    def _has_more(self) -> bool: ...

    @abstractmethod
    def _send_next(self, write: Write, packer: Packer) -> Coroutine[Any, Any, None]: ...

    @abstractmethod
    def _none_stands(self) -> None:
        """The last stream is gone."""


class TalkLane(Lane):
    """Messages: they wait for a stream, and the oldest are lost first."""

    def __init__(self) -> None:
        super().__init__()
        self._messages: deque[bytes] = deque(maxlen=TALK_QUEUE_MAX)

    def put(self, content: bytes) -> None:
        self._messages.append(content)
        self._wake()

    def _has_more(self) -> bool:
        return bool(self._messages)

    async def _send_next(self, write: Write, packer: Packer) -> None:
        await write(packer.pack(self._messages.popleft()))

    def _none_stands(self) -> None:
        pass  # they wait for the next one


class ItemLane(Lane):
    """Items: lost where no stream stands, and asked for again."""

    def __init__(self, on_carried: Callable[[int], None]) -> None:
        super().__init__()
        self._items = Waiting()
        self._on_carried = on_carried

    def put(self, item: Item, content: bytes | memoryview) -> None:
        if self._streams and self._items.put(item, content):
            self._wake()

    def _packer(self) -> Packer:
        return header_packer()

    def _has_more(self) -> bool:
        return self._items.has_more()

    async def _send_next(self, write: Write, packer: Packer) -> None:
        items = self._items
        part = items.next_chunk()
        await write(encode_chunk(packer, *part))
        items.sent(part)
        self._on_carried(len(part.content))

    def _none_stands(self) -> None:
        self._items = Waiting()
