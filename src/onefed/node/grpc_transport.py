"""Connections over gRPC and mutual TLS, where each member's certificate is pinned.

Two members have one connection, whoever has dialled: on it a stream for talk, and one for items,
whose flow control nothing else waits for, each in both directions. So what one says acknowledges
what the other has said, in the same packets. A connection is the member whose pinned certificate it
shows, whatever its messages say; nobody else finishes a handshake. Where two have dialled each
other at once, both connections stand, and the one of the name that comes first is used.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any

import grpc

from onefed.node import codec
from onefed.node.contact import Contact
from onefed.node.lanes import ItemLane, Lane, TalkLane, Write
from onefed.node.packing import Unpacker
from onefed.node.pins import Pins
from onefed.node.transport import (
    CHUNK_BYTES,
    CHUNK_HEADER_BYTES_MAX,
    Receiver,
    decode_chunk,
    header_unpacker,
)
from onefed.peer.messages import Item, NodeId
from onefed.tls import member_identity
from onefed.tls.errors import TlsError
from onefed.tls.member_identity import MemberIdentity

_LOG = logging.getLogger(__name__)

SERVICE = "onefed.Peer"
TALK, CARRY = "Talk", "Carry"

FRAME_BYTES_MAX = max(codec.MESSAGE_BYTES_MAX, CHUNK_BYTES + CHUNK_HEADER_BYTES_MAX + 64)
"""gRPC ends a connection that announces more, before it makes room for it."""

RECONNECT_S = 0.2
"""A connection that broke is made anew once within this time; then its peer is lost."""
PAUSE_S = 0.05
"""Between two tries. gRPC itself waits longer and longer while an address does not answer."""
REDIAL_FIRST_S, REDIAL_MAX_S = 0.1, 1.0
GIVE_WAY_S = 0.5
"""Of two that begin to dial each other at once, the one whose name comes later waits so long."""
RENEW_S = 3.0
"""A connection on which nothing was heard for so long may be dead, where an answer is due: after an
outage TCP waits about as long as that lasted before it tries again."""
WINDOW_BYTES = 4 * CHUNK_BYTES
"""That may be on their way on a stream. gRPC would find out by probes, one for most items."""
STREAMS_PER_CONNECTION_MAX = 4
CONNECTIONS_MAX = 256
"""Accepted at a time, handshakes among them; more are closed at once. Each of 64 members has one,
and a second one for a moment after the first broke."""
HANDSHAKE_LIMIT_S = 5.0
STOP_LIMIT_S = 0.2

Contacts = Callable[[], Mapping[NodeId, Contact]]
"""Whom the node may talk to now: its roster, and whom the operator has listed."""


BROKEN = (grpc.aio.AioRpcError, asyncio.InvalidStateError, OSError)
"""What a stream raises that has ended with its connection."""


class GrpcTransport:
    """See the module."""

    def __init__(
        self,
        name: NodeId,
        identity: MemberIdentity,
        address: str,
        contacts: Contacts,
        *,
        keepalive_time_s: float = 60.0,
        keepalive_timeout_s: float = 20.0,
    ) -> None:
        """Make it; nothing is opened yet.

        Args:
            keepalive_time_s: silence after which a connection is tried (FL_GRPC_KEEPALIVE_TIME).
            keepalive_timeout_s: wait for the answer to that (FL_GRPC_KEEPALIVE_TIMEOUT).
        """
        self.refused = 0
        """Connections that were closed for what they sent."""
        self.carried_bytes = 0
        """Of items, as they were given to connections."""
        self.name = name
        self._identity = identity
        self._address = address
        self._contacts = contacts
        self._options = [
            ("grpc.keepalive_time_ms", int(keepalive_time_s * 1000)),
            ("grpc.keepalive_timeout_ms", int(keepalive_timeout_s * 1000)),
            # gRPC waits for the answer to a probe as long as for that to any ping: 60 s by itself.
            ("grpc.http2.ping_timeout_ms", int(keepalive_timeout_s * 1000)),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.max_pings_without_data", 0),
            ("grpc.http2.bdp_probe", 0),
            ("grpc.http2.lookahead_bytes", WINDOW_BYTES),
            ("grpc.max_receive_message_length", FRAME_BYTES_MAX),
        ]
        self._links: dict[NodeId, _Link] = {}
        self._server: Any = None
        self._receiver: Receiver | None = None
        self._stopped = False
        """Then nobody is dialled any more, although streams may come until the server has ended."""

    async def start(self, receiver: Receiver) -> None:
        """Listen."""
        self._receiver = receiver
        self._server = grpc.aio.server(
            options=[
                *self._options,
                ("grpc.so_reuseport", 0),
                ("grpc.max_allowed_incoming_connections", CONNECTIONS_MAX),
                ("grpc.max_concurrent_streams", STREAMS_PER_CONNECTION_MAX),
                ("grpc.server_handshake_timeout_ms", int(HANDSHAKE_LIMIT_S * 1000)),
                ("grpc.http2.min_recv_ping_interval_without_data_ms", 500),
            ]
        )
        handlers = {
            TALK: grpc.stream_stream_rpc_method_handler(self._hear),
            CARRY: grpc.stream_stream_rpc_method_handler(self._take),
        }
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(SERVICE, handlers),)
        )
        credentials = Pins(self._identity, self._contacts).credentials()
        self._server.add_secure_port(self._address, credentials)
        await self._server.start()

    def talk(self, to: NodeId, content: bytes) -> None:
        link = self._link(to)
        if link is not None:
            link.talk(content)

    def carry(self, to: NodeId, item: Item, content: bytes | memoryview) -> None:
        link = self._link(to)
        if link is not None:
            link.carry(item, content)

    def renew(self, to: NodeId) -> None:
        link = self._links.get(to)
        if link is not None:
            link.renew()

    async def stop(self) -> None:
        self._stopped = True
        for link in self._links.values():
            await link.stop()
        if self._server is not None:
            await self._server.stop(STOP_LIMIT_S)

    def _link(self, to: NodeId) -> _Link | None:
        """The connection to a member, made when it is first wanted; None: who is that?"""
        contact = self._contacts().get(to)
        link = self._links.get(to)
        if link is not None and link.contact == contact:
            return link
        if link is not None:
            del self._links[to]
            link.abandon()
        if contact is None or self._receiver is None or self._stopped:
            return None
        link = self._links[to] = _Link(self, to, contact)
        return link

    def count(self, content_bytes: int) -> None:
        """Of an item, as they go."""
        self.carried_bytes += content_bytes

    def _sender(self, context: Any) -> NodeId | None:
        """The member whose pinned certificate a connection has shown."""
        shown = context.auth_context().get("x509_pem_cert", [b""])[0]
        with contextlib.suppress(TlsError):
            name = member_identity.name_of(shown)
            contact = self._contacts().get(name)
            if contact is not None and name != self.name:
                pinned = member_identity.to_der(contact.certificate)
                if pinned == member_identity.to_der(shown):
                    return name
        return None

    async def _hear(self, frames: AsyncIterator[bytes], context: Any) -> None:
        await self._listen(frames, context, TALK)

    async def _take(self, frames: AsyncIterator[bytes], context: Any) -> None:
        await self._listen(frames, context, CARRY)

    async def _listen(self, frames: AsyncIterator[bytes], context: Any, kind: str) -> None:
        """Hand on what a member sends, as long as it is one and keeps to the protocol, and send."""
        if self._stopped:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "it ends")
        sender = self._sender(context)
        link = None if sender is None else self._link(sender)
        if sender is None or link is None:
            await self._refuse(context, None, "it is no member's")
            return
        # By itself gRPC sends it with the first message, and again with a refusal that comes while
        # that one is on its way.
        await context.send_initial_metadata(())
        with link.accepted():
            try:
                await link.use(kind, context.write, frames, dialled=False)
            except codec.CodecError as error:
                await self._refuse(context, sender, error.message)

    async def heed(
        self,
        sender: NodeId,
        contact: Contact,
        frames: AsyncIterator[bytes],
        kind: str,
        on_frame: Callable[[], None],
    ) -> None:
        """Hand on what comes on a stream of a member, until it ends.

        Raises:
            CodecError: the member does not keep to the protocol, or is none any more.
        """
        receiver = self._receiver
        assert receiver is not None
        talk, headers = Unpacker(), header_unpacker()
        async for frame in frames:
            on_frame()
            if self._contacts().get(sender) != contact:
                raise codec.CodecError("it is no member any more")
            if kind == TALK:
                await receiver.on_talk(sender, talk.unpack(frame))
            else:
                await receiver.on_chunk(sender, decode_chunk(headers, frame))

    async def lose(self, peer: NodeId) -> None:
        """Tell that a connection broke."""
        assert self._receiver is not None
        await self._receiver.on_lost(peer)

    def refuse(self, sender: NodeId | None, reason: str) -> None:
        """Tell that a connection is closed for what was sent on it."""
        self.refused += 1
        assert self._receiver is not None
        self._receiver.on_refused(sender, reason)

    async def _refuse(self, context: Any, sender: NodeId | None, reason: str) -> None:
        self.refuse(sender, reason)
        await context.abort(grpc.StatusCode.PERMISSION_DENIED, "refused")  # raises

    def dial(self, to: NodeId, contact: Contact) -> Any:
        """A channel to a member."""
        credentials = grpc.ssl_channel_credentials(
            contact.certificate, self._identity.private_key, self._identity.certificate
        )
        return grpc.aio.secure_channel(
            contact.address,
            credentials,
            options=[
                *self._options,
                ("grpc.ssl_target_name_override", to),
                ("grpc.use_local_subchannel_pool", 1),
                ("grpc.enable_retries", 0),
                ("grpc.initial_reconnect_backoff_ms", int(REDIAL_FIRST_S * 1000)),
                ("grpc.max_reconnect_backoff_ms", int(REDIAL_MAX_S * 1000)),
            ],
        )


class _Link:
    """What goes to one member, and the connection that it goes on: dialled, unless it has dialled
    us, until one stands, and again whenever the last one breaks."""

    def __init__(self, transport: GrpcTransport, name: NodeId, contact: Contact) -> None:
        self.contact = contact
        self._transport = transport
        self._name = name
        self._lanes: dict[str, Lane] = {TALK: TalkLane(), CARRY: ItemLane(transport.count)}
        self._heeding: dict[asyncio.Future[None], bool] = {}
        """Of each stream that stands: whether it is on a connection that we have made."""
        self._heard_s: dict[bool, float] = {}
        """By that: when such a stream began, or something was heard on one."""
        self._accepted = 0
        """Streams that the member has opened."""
        self._changed = asyncio.Event()
        """Of that number; more than one task may wait."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    def talk(self, content: bytes) -> None:
        lane = self._lanes[TALK]
        assert isinstance(lane, TalkLane)
        lane.put(content)

    def carry(self, item: Item, content: bytes | memoryview) -> None:
        """An item that waits already is not sent twice, however often it is asked for."""
        lane = self._lanes[CARRY]
        assert isinstance(lane, ItemLane)
        lane.put(item, content)

    @contextlib.contextmanager
    def accepted(self) -> Iterator[None]:
        """As long as a stream stands that the member has opened."""
        self._count(+1)
        try:
            yield
        finally:
            self._count(-1)

    async def use(
        self, kind: str, write: Write, frames: AsyncIterator[bytes], *, dialled: bool
    ) -> None:
        """Send and listen on a stream until it ends.

        Args:
            dialled: whether it is on a connection that we have made.

        Raises:
            CodecError: the member does not keep to the protocol.
        """
        self.renew()  # whoever dials has a reason to
        preferred = dialled is (self._transport.name < self._name)
        sends = asyncio.ensure_future(self._lanes[kind].send(write, preferred=preferred))
        self._hears(dialled)
        heeds = asyncio.ensure_future(
            self._transport.heed(
                self._name, self.contact, frames, kind, lambda: self._hears(dialled)
            )
        )
        self._heeding[heeds] = dialled
        try:
            await asyncio.wait((sends, heeds), return_when=asyncio.FIRST_COMPLETED)
        finally:
            del self._heeding[heeds]
            sends.cancel()
            heeds.cancel()
            _, ended = await asyncio.gather(sends, heeds, return_exceptions=True)
        if isinstance(ended, Exception) and not isinstance(ended, BROKEN):
            raise ended

    def renew(self) -> None:
        """End connections on which nothing was heard for long; another takes their place."""
        silent_since_s = asyncio.get_running_loop().time() - RENEW_S
        for heeds, dialled in self._heeding.items():
            if self._heard_s[dialled] < silent_since_s:
                heeds.cancel()

    def _hears(self, dialled: bool) -> None:
        self._heard_s[dialled] = asyncio.get_running_loop().time()

    def abandon(self) -> None:
        """Stop without waiting for it."""
        self._task.cancel()

    async def stop(self) -> None:
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    def _count(self, streams: int) -> None:
        self._accepted += streams
        self._changed.set()

    async def _run(self) -> None:
        stood, limit_s = False, HANDSHAKE_LIMIT_S
        if self._transport.name > self._name:
            await self._is_accepted(GIVE_WAY_S)
        while True:
            if self._accepted:
                await self._is_left()
                stood, limit_s = True, RECONNECT_S
            elif await self._attempt(limit_s):
                stood, limit_s = True, RECONNECT_S  # a peer that has restarted is not lost
            elif not self._accepted:
                if stood:
                    await self._transport.lose(self._name)
                stood, limit_s = False, HANDSHAKE_LIMIT_S
            await self._is_accepted(PAUSE_S)

    async def _is_accepted(self, limit_s: float) -> bool:
        """Whether the member has dialled, or does so in time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                while not self._accepted:
                    self._changed.clear()
                    await self._changed.wait()
        return bool(self._accepted)

    async def _is_left(self) -> None:
        while self._accepted:
            self._changed.clear()
            await self._changed.wait()

    async def _attempt(self, limit_s: float) -> bool:
        """One connection, to its end; whether it ever stood."""
        channel = self._transport.dial(self._name, self.contact)
        try:
            if not await self._is_ready(channel, limit_s):
                return False
            await self._use_both(channel)
            return True
        except BROKEN:
            return False
        finally:
            await channel.close()

    async def _use_both(self, channel: Any) -> None:
        """Send and listen on a channel until one of its streams ends."""
        calls = {kind: channel.stream_stream(f"/{SERVICE}/{kind}")() for kind in self._lanes}
        tasks = [
            asyncio.ensure_future(self.use(kind, call.write, _frames(call), dialled=True))
            for kind, call in calls.items()
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            for error in await asyncio.gather(*tasks, return_exceptions=True):
                if isinstance(error, codec.CodecError):
                    self._transport.refuse(self._name, error.message)
                elif isinstance(error, Exception):
                    _LOG.error("A connection to %s ended", self._name, exc_info=error)

    async def _is_ready(self, channel: Any, limit_s: float) -> bool:
        """Whether a channel stands in time; once the member has dialled, none is needed."""
        waits = [
            asyncio.ensure_future(channel.channel_ready()),
            asyncio.ensure_future(self._is_accepted(limit_s)),
        ]
        try:
            await asyncio.wait(waits, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
            return waits[0].done() and not waits[0].cancelled() and not self._accepted
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)


async def _frames(call: Any) -> AsyncIterator[bytes]:
    """What the other side sends, until it ends the stream."""
    while (frame := await call.read()) is not grpc.aio.EOF:
        yield frame
