"""A member whose key somebody else has sends whatever it likes: no node ends, and all go on."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import random
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from tests.unit.node.conftest import LIMIT_S, PACE, Group, trained

from onefed import aggregate, arrays
from onefed.node import codec, contact
from onefed.node.grpc_transport import CARRY, FRAME_BYTES_MAX, SERVICE, TALK, GrpcTransport
from onefed.node.packing import Packer
from onefed.node.transport import encode_chunk, header_packer
from onefed.peer.messages import (
    Ack,
    Ballot,
    Blob,
    Contribution,
    Item,
    Parcel,
    Piece,
    Shard,
    Slice,
    Stashed,
    Stashes,
    Unstash,
    Want,
)
from onefed.telemetry import events
from onefed.tls.member_identity import MemberIdentity

FOUR = ("node-0", "node-1", "node-2", "node-3")
LIAR = FOUR[-1]
CONNECTIONS = 90
FRAMES_TOGETHER = 40

Frame = tuple[str, bytes]


def free_address() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{found.getsockname()[1]}"


@asynccontextmanager
async def grpc_group(folder: Path) -> AsyncIterator[Group]:
    """Nodes that talk over TLS on loopback."""
    addresses = {name: free_address() for name in FOUR}
    group = Group(
        folder,
        aggregate.rule("FedAvg"),
        rounds=100_000,
        make_transport=lambda _: GrpcTransport,
        address=addresses.__getitem__,
        pace=dataclasses.replace(PACE, straggler_floor_s=0.2),
    )
    try:
        yield group
    finally:
        for node in group.nodes.values():
            await node.stop()


class Liar:
    """Makes frames: bytes by chance, parts of messages, and words about things there are not."""

    def __init__(self, chance: random.Random) -> None:
        self.digests = ["0" * 64]
        """Of what the others have now: it was one of them."""
        self._chance = chance

    def frames(self) -> Iterator[Frame]:
        while True:
            yield from self._chance.choice(
                (self._garbage, self._truncated, self._altered, self._asks, self._chunks)
            )()

    def _number(self) -> int:
        return self._chance.choice((-1, 0, 1, 2, 3, 4095, 4096, 2**31, 2**53))

    def _item(self) -> Item:
        number = self._number()
        digest = self._chance.choice(("", "../../x", "x" * 4096, *(2 * self.digests)))
        node = self._chance.choice((*FOUR, "", "../node-0"))
        return self._chance.choice(
            (
                Slice(number, node, digest, self._number(), self._number()),
                Shard(number, Ballot(self._number(), self._number()), self._number()),
                Blob(digest),
                Piece(digest, self._number(), self._number()),
                Parcel(node, number, digest, digest),
            )
        )

    def _message(self) -> bytes:
        item = self._item()
        parcel = Parcel(LIAR, self._number(), "0" * 64, "")
        update = Contribution(LIAR, self._chance.choice((-1, 0, 2**53)), "0" * 64, 1)
        other = Contribution("node-0", 1, "0" * 64, 1)
        message = self._chance.choice(
            (
                *(3 * (Want(item, "node-0"),)),
                *(Unstash(FOUR), Stashed(parcel), Stashes((parcel,))),
                *(Ack(0, 1, 2**40, 1, ready, None, 0, ()) for ready in (update, other)),
            )
        )
        return codec.encode(message)

    def _garbage(self) -> Iterator[Frame]:
        texts = (
            b"",
            b"null",
            b"7",
            b"[]",
            b"[[]]",
            b"{}",
            b"[" * 100_000,
            b"\xff\xfe\x00",
            b"9" * 5000,
        )
        content = self._chance.choice(
            (*texts, self._chance.randbytes(self._chance.randint(1, 999)))
        )
        yield self._chance.choice((TALK, CARRY)), content
        yield CARRY, len(content).to_bytes(4, "little") + content
        if self._chance.random() < 0.02:
            yield self._chance.choice((TALK, CARRY)), bytes(FRAME_BYTES_MAX + 1)

    def _truncated(self) -> Iterator[Frame]:
        message, chunk = self._message(), self._chunk()
        yield TALK, message[: self._chance.randrange(len(message))]
        yield CARRY, chunk[: self._chance.randrange(len(chunk))]

    def _altered(self) -> Iterator[Frame]:
        document: Any = json.loads(self._message())
        other = self._chance.choice((None, [], {}, 1.5, True, "\ud800", -2, 2**63, [["Blob"]]))
        place = document if self._chance.random() < 0.5 else document[1]
        if isinstance(place, list) and place:
            place[self._chance.randrange(len(place))] = other
        yield TALK, json.dumps(document).encode()

    def _asks(self) -> Iterator[Frame]:
        for _ in range(20):
            yield TALK, self._message()

    def _chunks(self) -> Iterator[Frame]:
        yield CARRY, self._chunk()

    def _chunk(self) -> bytes:
        size = self._chance.choice((0, 1, 60, 180, 1000))
        total, offset = self._chance.choice((size, 2 * size, 180, 2**52)), self._number()
        content = memoryview(self._chance.randbytes(size))
        where = self._chance.choice((0, 0, offset))
        return encode_chunk(header_packer(), self._item(), total, where, content)


async def harass(group: Group, own: MemberIdentity, chance: random.Random, liar: Liar) -> int:
    """Send on one connection after the other, each ended in its own way; frames that were sent."""
    sent, frames = 0, liar.frames()
    for number in range(CONNECTIONS):
        name, node = list(group.nodes.items())[number % len(group.nodes)]
        victim = contact.of(node.member)
        model, next_round = await node.model(), node.state.round_number + 1
        liar.digests = [
            arrays.digest(model),
            *(arrays.digest(trained(each, model, next_round)) for each in group.nodes),
        ]
        credentials = grpc.ssl_channel_credentials(
            victim.certificate, own.private_key, own.certificate
        )
        options = [
            ("grpc.ssl_target_name_override", name),
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.max_send_message_length", -1),
        ]
        channel = grpc.aio.secure_channel(victim.address, credentials, options=options)
        calls: dict[str, Any] = {}
        hears: list[asyncio.Task[None]] = []
        packer = Packer()
        try:
            async with asyncio.timeout(LIMIT_S):
                for _ in range(FRAMES_TOGETHER):
                    stream, content = next(frames)
                    if stream not in calls or calls[stream].done():
                        calls[stream] = channel.stream_stream(f"/{SERVICE}/{stream}")()
                        hears.append(asyncio.create_task(heard(calls[stream])))
                        packer = Packer() if stream == TALK else packer
                    if stream == TALK and chance.random() < 0.95:  # else as it is: no packed one
                        content = packer.pack(content)
                    with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
                        await calls[stream].write(content)
                        sent += 1
                await _end(calls, chance.choice(("half", "cancel", "go")))
        finally:
            await channel.close()
            await asyncio.gather(*hears, return_exceptions=True)
    return sent


async def heard(call: Any) -> None:
    """Read what is answered: gRPC tells of a stream's end only behind it."""
    with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
        while await call.read() is not grpc.aio.EOF:
            pass


async def _end(calls: dict[str, Any], how: str) -> None:
    for call in calls.values():
        if how == "cancel":
            call.cancel()
        elif how == "half" and not call.done():
            with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
                await call.done_writing()


@pytest.mark.parametrize("seed", [1])
@pytest.mark.timeout(180)
def test_nothing_that_a_member_sends_ends_a_node_or_keeps_the_others_from_their_rounds(
    seed: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with grpc_group(tmp_path) as group:
            await group.start(*FOUR)
            await group.until(group.all_at(2))
            await group.kill(LIAR)
            folder = tmp_path / LIAR / "identity"
            own = MemberIdentity(
                *((folder / each).read_bytes() for each in ("member.crt", "member.key"))
            )
            chance = random.Random(seed)
            before = max(node.state.round_number for node in group.nodes.values())

            reached = before
            while reached == before:  # a few seconds may be less than a round takes so
                sent = await harass(group, own, chance, Liar(chance))
                assert sent > CONNECTIONS * FRAMES_TOGETHER / 4
                reached = max(node.state.round_number for node in group.nodes.values())
            await group.until(group.all_at(reached + 2))
            rounds = [group.rounds_of(name) for name in group.nodes]
            for number in range(1, reached + 2):
                assert len({each[number].model_sha256 for each in rounds if number in each}) == 1
            refused = [
                each
                for told in group.told.values()
                for each in told
                if isinstance(each, events.PeerNotice) and each.kind == "refused"
            ]
            assert refused
        assert not [each for each in caplog.records if each.levelname == "ERROR"]

    asyncio.run(scenario())
