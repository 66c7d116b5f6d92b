"""The events that wait for the machine: bounded for peers, open for what the node has done."""

from __future__ import annotations

import asyncio
from collections import deque

from onefed.peer.interface import Event

PEER_EVENTS_MAX = 1024
"""More make the peers wait: their streams are read no further until there is room."""


class Inbox:
    """One reader, many writers, in one event loop."""

    def __init__(self) -> None:
        self._events: deque[Event] = deque()
        self._filled = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()

    async def put(self, event: Event) -> None:
        """Of a peer; waits for room."""
        while len(self._events) >= PEER_EVENTS_MAX:
            self._room.clear()
            await self._room.wait()
        self.put_own(event)

    def put_own(self, event: Event) -> None:
        """What this node has done; there are no more than it was asked to do."""
        self._events.append(event)
        self._filled.set()

    async def get(self, timeout_s: float) -> Event | None:
        """The oldest event; None when there is none for so long."""
        if not self._events:
            self._filled.clear()
            try:
                async with asyncio.timeout(timeout_s):
                    await self._filled.wait()
            except TimeoutError:
                return None
        event = self._events.popleft()
        self._room.set()
        return event
