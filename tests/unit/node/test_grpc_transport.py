"""Only pinned members get in, each as itself, and what they send is bounded and understood."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest

from onefed.node import codec, grpc_transport
from onefed.node.contact import Contact
from onefed.node.grpc_transport import (
    CARRY,
    CONNECTIONS_MAX,
    FRAME_BYTES_MAX,
    SERVICE,
    TALK,
    GrpcTransport,
)
from onefed.node.packing import Packer
from onefed.node.transport import CHUNK_BYTES, Chunk, decode_chunk, header_unpacker
from onefed.peer.messages import Item, NodeId, Slice, Want
from onefed.tls import member_identity
from onefed.tls.member_identity import MemberIdentity

LIMIT_S = 20.0
ITEM = Slice(1, "node-0", "digest", 0, 1)
NOW = datetime(2026, 1, 1, tzinfo=UTC)
LONG_AGO = datetime(2010, 1, 1, tzinfo=UTC)
"""A certificate of then has ended."""


def free_address() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{found.getsockname()[1]}"


@dataclass
class Ears:
    """Takes what arrives, and understands it as a node does."""

    talk: list[tuple[NodeId, bytes]] = field(default_factory=list)
    chunks: list[tuple[NodeId, Chunk]] = field(default_factory=list)
    lost: list[NodeId] = field(default_factory=list)
    refused: list[NodeId | None] = field(default_factory=list)

    async def on_talk(self, sender: NodeId, content: bytes) -> None:
        codec.decode(content)
        self.talk.append((sender, content))

    async def on_chunk(self, sender: NodeId, chunk: Chunk) -> None:
        self.chunks.append((sender, chunk))

    async def on_lost(self, peer: NodeId) -> None:
        self.lost.append(peer)

    def on_refused(self, sender: NodeId | None, reason: str) -> None:
        self.refused.append(sender)


@dataclass
class Side:
    """One member."""

    name: NodeId
    identity: MemberIdentity
    address: str
    known: dict[NodeId, Contact] = field(default_factory=dict)
    ears: Ears = field(default_factory=Ears)
    transport: GrpcTransport | None = None
    keepalive: Mapping[str, float] = field(default_factory=dict)

    @property
    def contact(self) -> Contact:
        return Contact(self.address, self.identity.certificate)

    def contacts(self) -> Mapping[NodeId, Contact]:
        return self.known

    async def start(self) -> None:
        self.transport = GrpcTransport(
            self.name, self.identity, self.address, self.contacts, **self.keepalive
        )
        await self.transport.start(self.ears)

    def talk(self, to: NodeId, content: bytes) -> None:
        assert self.transport is not None
        self.transport.talk(to, content)

    def carry(self, to: NodeId, item: Item, content: bytes) -> None:
        assert self.transport is not None
        self.transport.carry(to, item, content)

    def renew(self, to: NodeId) -> None:
        assert self.transport is not None
        self.transport.renew(to)

    async def stop(self) -> None:
        if self.transport is not None:
            await self.transport.stop()
            self.transport = None


def side(folder: Path, name: NodeId, *, directory: str | None = None, now: datetime = NOW) -> Side:
    identity = member_identity.ensure(folder / (directory or name), name, now)
    return Side(name, identity, free_address())


@asynccontextmanager
async def two(
    folder: Path, *, now: datetime = NOW, **keepalive: float
) -> AsyncIterator[tuple[Side, Side]]:
    """Two that have listed each other; ``now`` is what the clock of the second one says."""
    sides = side(folder, "node-0"), side(folder, "node-1", now=now)
    for one, other in (sides, sides[::-1]):
        one.keepalive = keepalive
        one.known[other.name] = other.contact
        await one.start()
    try:
        yield sides
    finally:
        for each in sides:
            await each.stop()


class Firewall:
    """Passes connections on, until it has forgotten them: then it swallows what they say."""

    def __init__(self, to: str) -> None:
        self._host, _, port = to.rpartition(":")
        self._port = int(port)
        self._passes = True
        self._generation = 0
        self._tasks: list[asyncio.Task[None]] = []
        self._writers: list[asyncio.StreamWriter] = []
        self._server: asyncio.Server | None = None

    async def start(self) -> str:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        return f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def forget(self) -> None:
        self._passes = False

    def lets_new_in(self) -> None:
        """What it has forgotten stays so."""
        self._passes = True
        self._generation += 1

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for writer in self._writers:
            writer.transport.abort()

    async def _connected(self, here: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        there, on = await asyncio.open_connection(self._host, self._port)
        self._writers += [back, on]
        self._tasks += [
            asyncio.create_task(self._pump(here, on)),
            asyncio.create_task(self._pump(there, back)),
        ]

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        generation = self._generation
        while content := await reader.read(65536):
            if self._passes and self._generation == generation:
                writer.write(content)
                await writer.drain()
        writer.close()


async def until(reached: Callable[[], object]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while True:
            if reached():
                return
            await asyncio.sleep(0.005)


WORD = codec.encode(Want(ITEM, "node-0"))


def packed(*messages: bytes) -> list[bytes]:
    packer = Packer()
    return [packer.pack(message) for message in messages]


async def said(by: MemberIdentity, to: Side, method: str, frames: list[bytes]) -> str:
    """Send frames as anybody can who has an identity; how it ended."""
    credentials = grpc.ssl_channel_credentials(
        to.identity.certificate, by.private_key, by.certificate
    )
    options = [("grpc.ssl_target_name_override", to.name), ("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.secure_channel(to.address, credentials, options=options) as channel:
        call: Any = channel.stream_stream(f"/{SERVICE}/{method}")()
        try:
            async with asyncio.timeout(LIMIT_S):
                for frame in frames:
                    await call.write(frame)
                await call.read()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            pass
        return str((await call.code()).name)


def test_members_hear_each_other_and_know_who_it_was(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with two(tmp_path) as (one, other):
            one.talk("node-1", WORD)
            other.talk("node-0", WORD)
            await until(lambda: one.ears.talk and other.ears.talk)

            assert one.ears.talk == [("node-1", WORD)]
            assert other.ears.talk == [("node-0", WORD)]

    asyncio.run(scenario())


def test_a_clock_that_is_days_ahead_keeps_nobody_out(tmp_path: Path) -> None:
    """Or one that is behind, seen from the other side: its machine takes local time for UTC."""

    async def scenario() -> None:
        ahead = datetime.now(UTC) + timedelta(days=3)
        async with two(tmp_path, now=ahead) as (one, other):
            one.talk("node-1", WORD)
            other.talk("node-0", WORD)
            await until(lambda: one.ears.talk and other.ears.talk)

    asyncio.run(scenario())


def test_an_item_arrives_in_order_and_in_bounded_chunks(tmp_path: Path) -> None:
    async def scenario() -> None:
        content = bytes(range(256)) * (3 * CHUNK_BYTES // 256) + b"end"
        async with two(tmp_path) as (one, other):
            one.talk("node-1", WORD)
            await until(lambda: other.ears.talk)
            one.carry("node-1", ITEM, content)
            await until(lambda: len(other.ears.chunks) == 4)

            assert b"".join(chunk.content for _, chunk in other.ears.chunks) == content
            assert [chunk.offset for _, chunk in other.ears.chunks] == [
                CHUNK_BYTES * number for number in range(4)
            ]

    asyncio.run(scenario())


def connections(sides: tuple[Side, ...]) -> int:
    """That stand, counted where they were accepted."""
    ports = {int(each.address.rpartition(":")[2]) for each in sides}
    return sum(
        each.laddr.port in ports and each.status == psutil.CONN_ESTABLISHED
        for each in psutil.Process().net_connections("tcp")
    )


@pytest.mark.parametrize("first", ["node-0", "node-1"])
def test_two_members_share_one_connection_whoever_dials(first: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with two(tmp_path) as sides:
            one, other = sides if first == "node-0" else sides[::-1]
            one.talk(other.name, WORD)
            await until(lambda: other.ears.talk)
            other.talk(one.name, WORD)
            await until(lambda: one.ears.talk)
            one.carry(other.name, ITEM, b"there")
            other.carry(one.name, ITEM, b"back")
            await until(lambda: one.ears.chunks and other.ears.chunks)

            assert other.ears.chunks[0][1].content == b"there"
            assert one.ears.chunks[0][1].content == b"back"
            assert connections(sides) == 1

    asyncio.run(scenario())


def test_who_answers_a_dial_with_garbage_is_refused_and_told(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with two(tmp_path) as (one, other):
            await other.stop()

            async def lie(_: AsyncIterator[bytes], context: Any) -> None:
                await context.write(b"\xff" * 100)
                await asyncio.Event().wait()

            server = grpc.aio.server()
            handlers = {TALK: grpc.stream_stream_rpc_method_handler(lie)}
            server.add_generic_rpc_handlers(
                (grpc.method_handlers_generic_handler(SERVICE, handlers),)
            )
            server.add_secure_port(
                other.address,
                grpc.ssl_server_credentials(
                    [(other.identity.private_key, other.identity.certificate)],
                    one.identity.certificate,
                    require_client_auth=True,
                ),
            )
            await server.start()
            one.talk("node-1", WORD)
            await until(lambda: one.ears.refused)
            await server.stop(None)

            assert one.ears.refused[0] == "node-1"
            assert one.ears.talk == []

    asyncio.run(scenario())


def test_a_peer_that_is_gone_is_told_once_and_found_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with two(tmp_path) as (one, other):
            one.talk("node-1", WORD)
            await until(lambda: other.ears.talk)
            await other.stop()
            await until(lambda: one.ears.lost)
            assert one.ears.lost == ["node-1"]
            other.ears.talk.clear()
            await other.start()
            one.talk("node-1", WORD)
            await until(lambda: other.ears.talk)

    asyncio.run(scenario())


def test_a_stranger_does_not_finish_a_handshake(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with two(tmp_path) as (one, _):
            stranger = side(tmp_path, "node-9").identity
            assert await said(stranger, one, TALK, packed(WORD)) == "UNAVAILABLE"
            assert one.ears.talk == []

    asyncio.run(scenario())


def test_another_certificate_in_the_name_of_a_member_is_a_stranger(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with two(tmp_path) as (one, _):
            impostor = side(tmp_path, "node-1", directory="elsewhere").identity
            assert await said(impostor, one, TALK, packed(WORD)) == "UNAVAILABLE"
            assert one.ears.talk == []

    asyncio.run(scenario())


def test_a_certificate_that_has_ended_is_refused_although_it_is_pinned(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with two(tmp_path) as (one, other):
            ended = member_identity.ensure(tmp_path / "ended", "node-1", LONG_AGO)
            one.known["node-1"] = Contact(other.address, ended.certificate)
            assert await said(ended, one, TALK, packed(WORD)) == "UNAVAILABLE"
            assert one.ears.talk == []

            await other.stop()
            other.identity = ended  # it listens with it, too
            await other.start()
            assert await said(one.identity, other, TALK, packed(WORD)) == "UNAVAILABLE"
            assert other.ears.talk == []

    asyncio.run(scenario())


def test_a_connection_that_has_died_in_silence_is_found_by_the_keepalive(tmp_path: Path) -> None:
    """What a firewall that has forgotten a connection looks like: nothing comes."""

    async def scenario() -> None:
        async with two(tmp_path, keepalive_time_s=1.0, keepalive_timeout_s=1.0) as (one, other):
            wall = Firewall(other.address)
            one.known["node-1"] = Contact(await wall.start(), other.identity.certificate)
            other.known["node-0"] = Contact(free_address(), one.identity.certificate)
            one.talk("node-1", WORD)
            await until(lambda: other.ears.talk)
            wall.forget()
            await until(lambda: one.ears.lost)
            assert one.ears.lost == ["node-1"]
            await wall.stop()

    asyncio.run(scenario())


@pytest.mark.parametrize("dialled", [True, False])
def test_a_connection_that_has_died_in_silence_is_made_anew_when_no_answer_comes(
    dialled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an outage TCP tries again late; whoever waits for an answer need not."""
    monkeypatch.setattr(grpc_transport, "RENEW_S", 0.2)

    async def scenario() -> None:
        async with two(tmp_path) as sides:
            one, other = sides if dialled else sides[::-1]
            wall = Firewall(sides[1].address)
            sides[0].known["node-1"] = Contact(await wall.start(), sides[1].identity.certificate)
            sides[0].talk("node-1", WORD)  # so it dials
            await until(lambda: sides[1].ears.talk)
            wall.forget()
            other.ears.talk.clear()
            wall.lets_new_in()

            def answered() -> object:
                one.renew(other.name)
                one.talk(other.name, WORD)
                return other.ears.talk

            await until(answered)

            one.ears.talk.clear()
            other.talk(one.name, WORD)  # and nobody sends on the dead one any more
            await until(lambda: one.ears.talk)
            await wall.stop()

    asyncio.run(scenario())


def test_a_connection_on_which_something_is_heard_is_not_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grpc_transport, "RENEW_S", 0.2)

    async def scenario() -> None:
        async with two(tmp_path) as (one, other):
            one.talk("node-1", WORD)
            await until(lambda: other.ears.talk)
            heard = [0]

            def talks() -> bool:
                other.talk("node-0", WORD)
                heard.append(len(one.ears.talk))
                one.renew("node-1")
                return len(one.ears.talk) > 50

            await until(talks)
            assert one.ears.lost == other.ears.lost == []

    asyncio.run(scenario())


def test_who_shows_no_certificate_does_not_get_in(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with two(tmp_path) as (one, _):
            credentials = grpc.ssl_channel_credentials(one.identity.certificate)
            options = [("grpc.ssl_target_name_override", one.name)]
            async with grpc.aio.secure_channel(
                one.address, credentials, options=options
            ) as channel:
                call: Any = channel.stream_stream(f"/{SERVICE}/{TALK}")()
                with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
                    await call.write(*packed(WORD))
                assert (await call.code()).name == "UNAVAILABLE"
            assert one.ears.talk == []

    asyncio.run(scenario())


def test_a_member_that_is_taken_off_is_heard_no_more(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with two(tmp_path) as (one, other):
            other.talk("node-0", WORD)
            await until(lambda: one.ears.talk)
            del one.known["node-1"]
            other.talk("node-0", WORD)
            await until(lambda: one.ears.refused)

            assert len(one.ears.talk) == 1
            assert await said(other.identity, one, TALK, packed(WORD)) == "UNAVAILABLE"

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("method", "frame"),
    [
        (TALK, b""),
        (TALK, b"\xff" * 100),
        (TALK, WORD),
        (TALK, *packed(b"")),
        (TALK, *packed(b'["Shutdown"]')),
        (TALK, *packed(b'["Prevote",9223372036854775808,null]')),
        (CARRY, b"\xff\xff\xff\xff"),
        (CARRY, b"\x02\x00\x00\x00{}"),
        (CARRY, b""),
    ],
)
def test_garbage_ends_the_stream_and_nothing_else(
    method: str, frame: bytes, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with two(tmp_path) as (one, other):
            assert await said(other.identity, one, method, [frame]) == "PERMISSION_DENIED"
            assert one.ears.refused == ["node-1"]
            other.talk("node-0", WORD)
            await until(lambda: one.ears.talk)

    asyncio.run(scenario())


def test_a_frame_that_is_too_long_is_never_handed_on(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with two(tmp_path) as (one, other):
            frame = bytes(FRAME_BYTES_MAX + 1)
            assert await said(other.identity, one, TALK, [frame]) == "RESOURCE_EXHAUSTED"
            assert await said(other.identity, one, TALK, packed(frame)) == "PERMISSION_DENIED"
            assert one.ears.talk == []

    asyncio.run(scenario())


def test_an_unknown_method_is_refused_and_the_others_go_on(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with two(tmp_path) as (one, other):
            assert await said(other.identity, one, "Other", packed(WORD)) == "UNIMPLEMENTED"
            other.talk("node-0", WORD)
            await until(lambda: one.ears.talk)

    asyncio.run(scenario())


def test_the_frames_of_the_two_streams_are_told_apart() -> None:
    with pytest.raises(codec.CodecError):
        decode_chunk(header_unpacker(), WORD)


STRANGERS = 3000
HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"
"""The beginning of a TLS handshake."""


async def knock(address: str, says: bytes) -> None:
    """Connect, say something, go away."""
    host, _, port = address.rpartition(":")
    with contextlib.suppress(OSError):
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(says)
        writer.transport.abort()


def test_strangers_that_knock_all_at_once_do_not_end_the_process(tmp_path: Path) -> None:
    """A thousand of them did, within a second: see ``onefed.node.pins``."""

    async def scenario() -> None:
        chance = random.Random(6)
        texts = [b"", HELLO, b"GET / HTTP/1.1\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"]
        async with two(tmp_path) as (one, other):
            other.talk("node-0", WORD)
            await until(lambda: one.ears.talk)
            for _ in range(0, STRANGERS, 100):
                says = [chance.choice((*texts, chance.randbytes(100))) for _ in range(100)]
                await asyncio.gather(*(knock(one.address, text) for text in says))
            other.talk("node-0", WORD)
            await until(lambda: len(one.ears.talk) == 2)
            assert one.ears.lost == other.ears.lost == []

    asyncio.run(scenario())


def test_connections_beyond_a_limit_are_closed_and_members_go_on(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with two(tmp_path) as (one, other):
            other.talk("node-0", WORD)
            await until(lambda: one.ears.talk)
            host, _, port = one.address.rpartition(":")
            opened = [
                await asyncio.open_connection(host, int(port)) for _ in range(2 * CONNECTIONS_MAX)
            ]
            ended = [asyncio.create_task(reader.read()) for reader, _ in opened]
            await until(lambda: sum(task.done() for task in ended) >= CONNECTIONS_MAX)
            other.talk("node-0", WORD)
            await until(lambda: len(one.ears.talk) == 2)
            for _, writer in opened:
                writer.transport.abort()
            await asyncio.gather(*ended, return_exceptions=True)
            assert one.ears.lost == []

    asyncio.run(scenario())
