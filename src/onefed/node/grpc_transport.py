"""Connections over gRPC and mutual TLS, where each member's certificate is pinned.

Each member dials every other one, and only sends on the connection that it has made: a stream for
talk, and one for items, whose flow control nothing else waits for. A connection is the member whose
pinned certificate it shows, whatever its messages say; nobody else finishes a handshake.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import grpc

from onefed.node import codec
from onefed.node.contact import Contact
from onefed.node.packing import Packer, Unpacker
from onefed.node.pins import Pins
from onefed.node.transport import (
    CHUNK_BYTES,
    CHUNK_HEADER_BYTES_MAX,
    TALK_QUEUE_MAX,
    Receiver,
    decode_chunk,
)
from onefed.node.waiting import Waiting
from onefed.peer.messages import Item, NodeId
from onefed.tls import member_identity
from onefed.tls.errors import TlsError
from onefed.tls.member_identity import MemberIdentity

SERVICE = "onefed.Peer"
TALK, CARRY = "Talk", "Carry"

FRAME_BYTES_MAX = max(codec.MESSAGE_BYTES_MAX, CHUNK_BYTES + CHUNK_HEADER_BYTES_MAX + 64)
"""gRPC ends a connection that announces more, before it makes room for it."""

RECONNECT_S = 0.2
"""A connection that broke is made anew once within this time; then its peer is lost."""
PAUSE_S = 0.05
"""Between two tries. gRPC itself waits longer and longer while an address does not answer."""
REDIAL_FIRST_S, REDIAL_MAX_S = 0.1, 1.0
STREAMS_PER_CONNECTION_MAX = 4
CONNECTIONS_MAX = 256
"""Accepted at a time, handshakes among them; more are closed at once. Each of 64 members has one,
and a second one for a moment after the first broke."""
HANDSHAKE_LIMIT_S = 5.0
STOP_LIMIT_S = 0.2

Contacts = Callable[[], Mapping[NodeId, Contact]]
"""Whom the node may talk to now: its roster, and whom the operator has listed."""


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
        self._name = name
        self._identity = identity
        self._address = address
        self._contacts = contacts
        self._keepalive = [
            ("grpc.keepalive_time_ms", int(keepalive_time_s * 1000)),
            ("grpc.keepalive_timeout_ms", int(keepalive_timeout_s * 1000)),
            # gRPC waits for the answer to a probe as long as for that to any ping: 60 s by itself.
            ("grpc.http2.ping_timeout_ms", int(keepalive_timeout_s * 1000)),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.max_pings_without_data", 0),
        ]
        self._links: dict[NodeId, _Link] = {}
        self._server: Any = None
        self._receiver: Receiver | None = None

    async def start(self, receiver: Receiver) -> None:
        """Listen."""
        self._receiver = receiver
        self._server = grpc.aio.server(
            options=[
                *self._keepalive,
                ("grpc.so_reuseport", 0),
                ("grpc.max_receive_message_length", FRAME_BYTES_MAX),
                ("grpc.max_allowed_incoming_connections", CONNECTIONS_MAX),
                ("grpc.max_concurrent_streams", STREAMS_PER_CONNECTION_MAX),
                ("grpc.server_handshake_timeout_ms", int(HANDSHAKE_LIMIT_S * 1000)),
                ("grpc.http2.min_recv_ping_interval_without_data_ms", 1000),
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

    async def stop(self) -> None:
        for link in self._links.values():
            await link.stop()
        self._links.clear()
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
        if contact is None or self._receiver is None:
            return None
        link = self._links[to] = _Link(
            to, contact, self._identity, self._receiver.on_lost, self._count, self._keepalive
        )
        return link

    def _count(self, content_bytes: int) -> None:
        self.carried_bytes += content_bytes

    def _sender(self, context: Any) -> NodeId | None:
        """The member whose pinned certificate a connection has shown."""
        shown = context.auth_context().get("x509_pem_cert", [b""])[0]
        with contextlib.suppress(TlsError):
            name = member_identity.name_of(shown)
            contact = self._contacts().get(name)
            if contact is not None and name != self._name:
                pinned = member_identity.to_der(contact.certificate)
                if pinned == member_identity.to_der(shown):
                    return name
        return None

    async def _hear(self, frames: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        receiver, stream = self._receiver, Unpacker()
        assert receiver is not None

        async def hear(sender: NodeId, frame: bytes) -> None:
            await receiver.on_talk(sender, stream.unpack(frame))

        await self._listen(frames, context, hear)
        return
        yield b""  # a stream in both directions, of which one is unused

    async def _take(self, frames: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        receiver = self._receiver
        assert receiver is not None

        async def take(sender: NodeId, frame: bytes) -> None:
            await receiver.on_chunk(sender, decode_chunk(frame))

        await self._listen(frames, context, take)
        return
        yield b""

    async def _listen(
        self,
        frames: AsyncIterator[bytes],
        context: Any,
        take: Callable[[NodeId, bytes], Awaitable[None]],
    ) -> None:
        """Hand on what a member sends, as long as it is one and keeps to the protocol."""
        sender = self._sender(context)
        if sender is None:
            await self._refuse(context, None, "it is no member's")
            return
        link = self._links.get(sender)
        if link is not None:
            link.nudge()
        contact = self._contacts().get(sender)
        async for frame in frames:
            if self._contacts().get(sender) != contact:
                await self._refuse(context, sender, "it is no member any more")
            try:
                await take(sender, frame)
            except codec.CodecError as error:
                await self._refuse(context, sender, error.message)

    async def _refuse(self, context: Any, sender: NodeId | None, reason: str) -> None:
        self.refused += 1
        assert self._receiver is not None
        self._receiver.on_refused(sender, reason)
        await context.abort(grpc.StatusCode.PERMISSION_DENIED, "refused")  # raises


class _Link:
    """The connection to one member: dialled until it stands, and again whenever it breaks."""

    def __init__(
        self,
        name: NodeId,
        contact: Contact,
        identity: MemberIdentity,
        on_lost: Callable[[NodeId], Awaitable[None]],
        on_carried: Callable[[int], None],
        options: list[tuple[str, int]],
    ) -> None:
        self.contact = contact
        self._name = name
        self._identity = identity
        self._on_lost = on_lost
        self._on_carried = on_carried
        self._options = options
        self._talk: deque[bytes] = deque(maxlen=TALK_QUEUE_MAX)
        self._carry = Waiting()
        self._talk_waits = asyncio.Event()
        self._carry_waits = asyncio.Event()
        self._nudged = asyncio.Event()
        self._stands = False
        self._task = asyncio.get_running_loop().create_task(self._run())

    def talk(self, content: bytes) -> None:
        self._talk.append(content)
        self._talk_waits.set()

    def carry(self, item: Item, content: bytes | memoryview) -> None:
        """An item that waits already is not sent twice, however often it is asked for."""
        if self._stands and self._carry.put(item, content):
            self._carry_waits.set()

    def nudge(self) -> None:
        """The peer is there: it has dialled. No need to wait for gRPC's next try."""
        if not self._stands:
            self._nudged.set()

    def abandon(self) -> None:
        """Stop without waiting for it."""
        self._task.cancel()

    async def stop(self) -> None:
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    async def _run(self) -> None:
        stood, limit_s = False, HANDSHAKE_LIMIT_S
        while True:
            if await self._attempt(limit_s):
                stood, limit_s = True, RECONNECT_S  # a peer that has restarted is not lost
            else:
                if stood:
                    await self._on_lost(self._name)
                stood, limit_s = False, HANDSHAKE_LIMIT_S
            await asyncio.sleep(PAUSE_S)

    async def _attempt(self, limit_s: float) -> bool:
        """One connection, to its end; whether it ever stood."""
        try:
            return await self._connect_and_send(limit_s)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError, OSError):
            return False

    async def _connect_and_send(self, limit_s: float) -> bool:
        credentials = grpc.ssl_channel_credentials(
            self.contact.certificate, self._identity.private_key, self._identity.certificate
        )
        channel = grpc.aio.secure_channel(
            self.contact.address,
            credentials,
            options=[
                *self._options,
                ("grpc.ssl_target_name_override", self._name),
                ("grpc.use_local_subchannel_pool", 1),
                ("grpc.enable_retries", 0),
                ("grpc.initial_reconnect_backoff_ms", int(REDIAL_FIRST_S * 1000)),
                ("grpc.max_reconnect_backoff_ms", int(REDIAL_MAX_S * 1000)),
            ],
        )
        try:
            if not await self._is_ready(channel, limit_s):
                return False
            talk = channel.stream_stream(f"/{SERVICE}/{TALK}")()
            carry = channel.stream_stream(f"/{SERVICE}/{CARRY}")()
            self._stands = True
            tasks = [
                asyncio.ensure_future(work)
                for work in (
                    self._send_talk(talk),
                    self._send_items(carry),
                    _end(talk),
                    _end(carry),
                )
            ]
            try:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
            return True
        finally:
            self._stands = False
            self._carry = Waiting()
            await channel.close()

    async def _is_ready(self, channel: Any, limit_s: float) -> bool:
        """Whether a channel stands in time; a nudge ends the wait for another try."""
        self._nudged.clear()
        waits = [
            asyncio.ensure_future(channel.channel_ready()),
            asyncio.ensure_future(self._nudged.wait()),
        ]
        try:
            await asyncio.wait(waits, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
            return waits[0].done() and not waits[0].cancelled()
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)

    async def _send_talk(self, call: Any) -> None:
        stream = Packer()
        while True:
            while self._talk:
                await call.write(stream.pack(self._talk.popleft()))
            self._talk_waits.clear()
            await self._talk_waits.wait()

    async def _send_items(self, call: Any) -> None:
        while True:
            while (chunk := self._carry.next_chunk()) is not None:
                await call.write(chunk)
                self._on_carried(self._carry.sent())
            self._carry_waits.clear()
            await self._carry_waits.wait()


async def _end(call: Any) -> None:
    """Wait until the other side ends a stream: it never sends anything."""
    await call.read()
