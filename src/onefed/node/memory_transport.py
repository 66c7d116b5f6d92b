"""Connections between nodes of one process: the same bytes, without a network."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable

from onefed.node import codec
from onefed.node.transport import (
    CARRY_QUEUE_MAX,
    CHUNK_BYTES,
    TALK_QUEUE_MAX,
    Receiver,
    decode_chunk,
    encode_chunk,
    header_packer,
    header_unpacker,
)
from onefed.peer.messages import Item, NodeId

Work = Callable[[Receiver], Awaitable[None]]


class MemoryNetwork:
    """Who is there, by name."""

    def __init__(self) -> None:
        self.receivers: dict[NodeId, Receiver] = {}

    def transport(self, name: NodeId) -> MemoryTransport:
        """The connections of one node."""
        return MemoryTransport(name, self)


class MemoryTransport:
    """One queue and one task for each peer and kind, as the real one has streams."""

    def __init__(self, name: NodeId, network: MemoryNetwork) -> None:
        self._name = name
        self._network = network
        self._queues: dict[tuple[NodeId, str], _Queue] = {}

    @property
    def peers(self) -> frozenset[NodeId]:
        """Whom something was sent to."""
        return frozenset(to for to, _ in self._queues)

    async def start(self, receiver: Receiver) -> None:
        self._network.receivers[self._name] = receiver

    def talk(self, to: NodeId, content: bytes) -> None:
        async def work(receiver: Receiver) -> None:
            await receiver.on_talk(self._name, content)

        self._queue(to, "talk", TALK_QUEUE_MAX).put(work)

    def carry(self, to: NodeId, item: Item, content: bytes | memoryview) -> None:
        async def work(receiver: Receiver) -> None:
            view = memoryview(content)
            packer, unpacker = header_packer(), header_unpacker()
            for offset in range(0, len(view) or 1, CHUNK_BYTES):
                part = view[offset : offset + CHUNK_BYTES]
                frame = encode_chunk(packer, item, len(view), offset, part)
                await receiver.on_chunk(self._name, decode_chunk(unpacker, frame))

        self._queue(to, "carry", CARRY_QUEUE_MAX).put(work)

    def renew(self, to: NodeId) -> None:
        del to  # nothing here dies in silence

    async def stop(self) -> None:
        if self._network.receivers.pop(self._name, None) is not None:
            for receiver in list(self._network.receivers.values()):
                await receiver.on_lost(self._name)
        for queue in self._queues.values():
            await queue.stop()
        self._queues.clear()

    def _queue(self, to: NodeId, kind: str, length_max: int) -> _Queue:
        found = self._queues.get((to, kind))
        if found is None:
            found = self._queues[to, kind] = _Queue(
                self._name, lambda: self._network.receivers.get(to), length_max
            )
        return found


class _Queue:
    def __init__(
        self, sender: NodeId, receiver: Callable[[], Receiver | None], length_max: int
    ) -> None:
        self._sender = sender
        self._receiver = receiver
        self._waiting: deque[Work] = deque(maxlen=length_max)
        self._wake = asyncio.Event()
        self._task = asyncio.get_running_loop().create_task(self._run())

    def put(self, work: Work) -> None:
        self._waiting.append(work)
        self._wake.set()

    async def stop(self) -> None:
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    async def _run(self) -> None:
        while True:
            while self._waiting:
                work = self._waiting.popleft()
                receiver = self._receiver()
                if receiver is not None:
                    try:
                        await work(receiver)
                    except codec.CodecError as error:
                        receiver.on_refused(self._sender, error.message)
            self._wake.clear()
            await self._wake.wait()
