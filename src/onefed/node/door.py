"""What comes from other members: understood, kept where it belongs, put to the events; or refused.

Whatever a member sends ends its stream at most. A voter is trusted not to lie about votes and what
it holds, but nothing that can be said ends the node that hears it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from onefed.errors import StorageError
from onefed.node import codec
from onefed.node.content import Content
from onefed.node.inbox import Inbox
from onefed.node.items import Items
from onefed.node.learner import Learner
from onefed.node.members import Members
from onefed.node.refusals import Refusals
from onefed.node.store import Store
from onefed.node.transport import Chunk
from onefed.node.work import Work
from onefed.peer.interface import Lost, Progressed, Received
from onefed.peer.messages import Ack, Blob, Data, Join, NodeId, Parcel, Relay, Slice


class Door:
    """What the transport calls. Closed until the node learns: then what is heard goes nowhere."""

    def __init__(
        self,
        members: Members,
        items: Items,
        content: Content,
        inbox: Inbox,
        refusals: Refusals,
        parts: tuple[Store, Work, Learner],
        fail: Callable[[StorageError], None],
        begin: Callable[..., None],
    ) -> None:
        """``begin`` does something beside whoever calls."""
        self.is_open = False
        self._members = members
        self._items = items
        self._content = content
        self._inbox = inbox
        self._refusals = refusals
        self._disk, self._job, self._learner = parts
        self._fail = fail
        self._begin = begin
        self._taking: set[NodeId] = set()
        """Whose parcels are being kept."""

    async def on_talk(self, sender: NodeId, content: bytes) -> None:
        self._members.require(sender)
        message = codec.decode(content)
        said, origin = message, sender
        if isinstance(message, Relay):
            said, origin = message.message, message.origin
            self._members.require(origin, over=True)
        match said:
            case Data():
                raise codec.CodecError("An item without its bytes.")
            case Join(member):
                self._members.require_listed(member)
            case Ack(ready=ready) if ready is not None and ready.node != origin:
                raise codec.CodecError("An update in another's name.")
        for roster in codec.rosters(said):
            self._members.require_usable(roster)
        if self.is_open:
            await self._inbox.put(Received(sender, message))

    async def on_chunk(self, sender: NodeId, chunk: Chunk) -> None:
        self._members.require(sender)
        if not self.is_open:
            return
        came = self._items.arrive(sender, chunk)
        if came is None:
            await self._inbox.put(Progressed())
        elif isinstance(chunk.item, Parcel):
            if sender not in self._taking:  # else it comes again
                self._taking.add(sender)
                self._begin(self._take, sender, chunk.item, came)
        elif await self._keeps(sender, chunk, came):
            await self._inbox.put(Received(sender, Data(chunk.item)))

    async def on_lost(self, peer: NodeId) -> None:
        self._items.forget_parts(peer)
        if self.is_open:
            await self._inbox.put(Lost(peer))

    def on_refused(self, sender: NodeId | None, reason: str) -> None:
        who = "a stranger" if sender is None else sender
        self._refusals.tell(who, f"a connection of {who} was closed: {reason}")

    async def _keeps(self, sender: NodeId, chunk: Chunk, came: bytes) -> bool:
        """Whether an item is where the machine may speak of it."""
        match chunk.item:
            case Blob(root):
                if await asyncio.to_thread(self._content.root, came) != root:
                    raise codec.CodecError("A model that does not have its digest.")
                if not self._items.is_wanted(chunk.item):
                    return False  # another peer was faster
                self._items.has_come(chunk.item)
                try:
                    await asyncio.to_thread(self._disk.write_model, root, came)
                except StorageError as error:
                    self._fail(error)
                    return False
                return True
            case item:
                if isinstance(item, Slice) and item.count == 1:
                    await asyncio.to_thread(self._job.require_digest, item, came)
                return self._items.keep(item, came)

    async def _take(self, sender: NodeId, parcel: Parcel, came: bytes) -> None:
        """Keep a parcel, which takes its time: the items of a round behind it do not wait."""
        try:
            if await self._learner.take(sender, parcel, came):
                await self._inbox.put(Received(sender, Data(parcel)))
        except codec.CodecError as error:
            self._refusals.tell(sender, f"a parcel of {sender} was not kept: {error.message}")
        finally:
            self._taking.discard(sender)
