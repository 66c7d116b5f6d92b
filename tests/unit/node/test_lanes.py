"""What waits for a member goes on one of the streams to it, and is not lost with another."""

from __future__ import annotations

import asyncio

from onefed.node.lanes import ItemLane, TalkLane
from onefed.node.packing import Unpacker
from onefed.node.transport import CHUNK_BYTES, decode_chunk, header_unpacker
from onefed.peer.messages import Slice

ITEM = Slice(1, "node-0", "digest", 0, 1)


class Stream:
    """The other end; it takes nothing while it hangs."""

    def __init__(self, *, hangs: bool = False) -> None:
        self.frames: list[bytes] = []
        self.goes = asyncio.Event()
        if not hangs:
            self.goes.set()

    async def write(self, frame: bytes) -> None:
        self.frames.append(frame)
        await self.goes.wait()

    def said(self) -> list[bytes]:
        unpacker = Unpacker()
        return [unpacker.unpack(frame) for frame in self.frames]


async def settled() -> None:
    """All tasks have gone on as far as they can."""
    for _ in range(20):
        await asyncio.sleep(0)


def test_the_preferred_stream_is_used_and_the_other_one_when_it_has_broken() -> None:
    async def scenario() -> None:
        lane, first, second = TalkLane(), Stream(), Stream()
        preferred = asyncio.create_task(lane.send(first.write, preferred=True))
        other = asyncio.create_task(lane.send(second.write, preferred=False))
        lane.put(b"one")
        await settled()
        preferred.cancel()
        await settled()
        lane.put(b"two")
        await settled()
        other.cancel()

        assert (first.said(), second.said()) == ([b"one"], [b"two"])

    asyncio.run(scenario())


def test_of_equal_streams_the_newest_is_used() -> None:
    async def scenario() -> None:
        lane, old, new = TalkLane(), Stream(), Stream()
        tasks = [asyncio.create_task(lane.send(each.write, preferred=False)) for each in (old, new)]
        await settled()
        lane.put(b"one")
        await settled()
        for task in tasks:
            task.cancel()

        assert (old.said(), new.said()) == ([], [b"one"])

    asyncio.run(scenario())


def test_messages_wait_for_a_stream_and_items_are_lost_without_one() -> None:
    async def scenario() -> None:
        words, items, stream, other = TalkLane(), ItemLane(lambda _: None), Stream(), Stream()
        words.put(b"one")
        items.put(ITEM, b"content")
        tasks = [
            asyncio.create_task(words.send(stream.write, preferred=True)),
            asyncio.create_task(items.send(other.write, preferred=True)),
        ]
        await settled()
        for task in tasks:
            task.cancel()

        assert (stream.said(), other.frames) == ([b"one"], [])

    asyncio.run(scenario())


def test_an_item_goes_on_over_a_newer_stream_where_the_older_one_hangs() -> None:
    async def scenario() -> None:
        carried: list[int] = []
        lane, old, new = ItemLane(carried.append), Stream(hangs=True), Stream()
        tasks = [asyncio.create_task(lane.send(old.write, preferred=True))]
        await settled()
        lane.put(ITEM, bytes(2 * CHUNK_BYTES))
        await settled()
        tasks.append(asyncio.create_task(lane.send(new.write, preferred=True)))
        await settled()
        old.goes.set()
        await settled()
        for task in tasks:
            task.cancel()

        headers = header_unpacker()
        chunks = [decode_chunk(headers, frame) for frame in new.frames]
        assert [chunk.offset for chunk in chunks] == [0, CHUNK_BYTES]
        assert len(old.frames) == 1

    asyncio.run(scenario())
