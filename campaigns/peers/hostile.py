"""``python -m campaigns.peers.hostile``: a member that sends nonsense, for so many seconds.

It has the identity of a member that was killed, so its connections are let in; what it sends on
them is garbage, too large, cut off, or what the member has said before. It prints how many frames
it has sent and how often it was cut off, as JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from campaigns.peers.node import LENGTH
from onefed.node import contact
from onefed.node.codec import MESSAGE_BYTES_MAX, encode
from onefed.node.contact import Contact
from onefed.node.grpc_transport import CARRY, FRAME_BYTES_MAX, SERVICE, TALK
from onefed.node.packing import Packer
from onefed.node.transport import CHUNK_BYTES, encode_chunk, header_packer
from onefed.peer.messages import (
    Ack,
    Ballot,
    Blob,
    Contribution,
    Item,
    Member,
    Parcel,
    Piece,
    Shard,
    Slice,
    Want,
)
from onefed.tls import member_identity
from onefed.tls.member_identity import MemberIdentity

FRAMES_TOGETHER = 50
"""On one connection, unless it is cut off before."""
HALF_HANDSHAKES = 20
LIMIT_S = 5.0

RAW = "raw"
"""The stream of messages, not packed."""

Frame = tuple[str, bytes]
"""Stream, and what is sent on it; messages are packed on the way."""


def chunk_of(item: Item, total_bytes: int, offset: int, content: bytes) -> bytes:
    """A chunk that can be read wherever on a stream it comes: it refers to nothing before it."""
    return encode_chunk(header_packer(), item, total_bytes, offset, memoryview(content))


def garbage(chance: random.Random, said: Sequence[bytes]) -> Iterator[Frame]:
    """Bytes by chance, JSON that is no message, numbers out of range."""
    texts = (
        b"", b"null", b"[]", b"{}", b"[" * 100_000, b'{"kind": "Vote"}', b"\xff\xfe\x00",
        b'["Ack", 1e400, null]', b'["Ack", 99999999999999999999999]',
    )  # fmt: skip
    while True:
        stream = chance.choice((TALK, RAW, CARRY))
        yield (
            stream,
            chance.choice((chance.choice(texts), chance.randbytes(chance.randint(1, 4096)))),
        )


def oversized(chance: random.Random, said: Sequence[bytes]) -> Iterator[Frame]:
    """More than a frame may have, and items larger than they can be."""
    while True:
        yield TALK, bytes(2 ** chance.randint(21, 26))
        yield RAW, bytes(chance.choice((MESSAGE_BYTES_MAX + 1, FRAME_BYTES_MAX + 1, 2**23)))
        yield CARRY, bytes(FRAME_BYTES_MAX + chance.randint(1, 2**20))
        item = chance.choice((Slice(1, "node-0", "0" * 64, 0, 1), Shard(1, Ballot(1, 1), 0)))
        total = 2 ** chance.randint(31, 52)
        yield CARRY, chunk_of(item, total, 0, bytes(CHUNK_BYTES))
        yield CARRY, chunk_of(Blob("0" * 64), total, 0, b"x")


def truncated(chance: random.Random, said: Sequence[bytes]) -> Iterator[Frame]:
    """Messages and chunks that end too early."""
    chunk = chunk_of(Slice(1, "node-0", "0" * 64, 0, 4), 1000, 0, bytes(1000))
    while True:
        whole = chance.choice(said)
        cut = whole[: chance.randrange(len(whole))]
        yield TALK, cut
        yield RAW, Packer().pack(whole)[: len(cut) // 2]
        yield CARRY, chunk[: chance.randrange(20)]
        yield CARRY, LENGTH.pack(chance.choice((2**32 - 1, 4096, 4097))) + b"[]"


def absurd(chance: random.Random, said: Sequence[bytes]) -> Iterator[Frame]:
    """Words of the protocol about things that there cannot be."""
    numbers = (-1, 0, 1, 4096, 2**53)
    while True:
        number, other = chance.choice(numbers), chance.choice(numbers)
        digest = chance.choice(("", "0" * 64, "../../x"))
        item: Item = chance.choice(
            (
                Slice(number, "node-0", digest, number, other),
                Shard(number, Ballot(number, other), number),
                Blob(digest),
                Piece(digest, number, other),
                Parcel("../node-0", number, digest, digest),
            )
        )
        update = Contribution("node-3", chance.choice((-1, 0, 2**40)), digest, 1)
        yield TALK, encode(Want(item, "node-0"))
        yield TALK, encode(Ack(0, 1, 2**40, 1, update, None, 0, ()))
        yield CARRY, chunk_of(item, 10, chance.choice((0, 9)), b"x")


def replayed(chance: random.Random, said: Sequence[bytes]) -> Iterator[Frame]:
    """What the member has said since it began: in order, then by chance."""
    while True:
        for frame in said:
            yield TALK, frame
        for _ in said:
            yield TALK, chance.choice(said)


KINDS: dict[str, Callable[[random.Random, Sequence[bytes]], Iterator[Frame]]] = {
    "garbage": garbage,
    "oversized": oversized,
    "truncated": truncated,
    "absurd": absurd,
    "replayed": replayed,
}


@dataclass
class Count:
    """What has come of it."""

    frames: int = 0
    connections: int = 0
    cut_off: int = 0
    """Connections that the other side has ended."""


async def harass(
    name: str, victim: Contact, own: MemberIdentity, frames: Iterator[Frame], until_s: float
) -> Count:
    """Send to one member, one connection after the other."""
    count = Count()
    credentials = grpc.ssl_channel_credentials(victim.certificate, own.private_key, own.certificate)
    while time.monotonic() < until_s:
        channel = grpc.aio.secure_channel(
            victim.address,
            credentials,
            options=[
                ("grpc.ssl_target_name_override", name),
                ("grpc.use_local_subchannel_pool", 1),
            ],
        )
        count.connections += 1
        try:
            async with asyncio.timeout(LIMIT_S):
                await channel.channel_ready()
                await _send(channel, frames, count)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            count.cut_off += 1
        except TimeoutError:
            pass
        finally:
            await channel.close()
        await asyncio.sleep(0.01)
    return count


async def _send(channel: Any, frames: Iterator[Frame], count: Count) -> None:
    """Until a stream is cut off, which raises, or enough is said."""
    calls: dict[str, Any] = {}
    ends: list[asyncio.Task[None]] = []
    packer = Packer()
    try:
        for _ in range(FRAMES_TOGETHER):
            stream, frame = next(frames)
            if stream == TALK:
                frame = packer.pack(frame)
            stream = TALK if stream == RAW else stream
            if stream not in calls:
                calls[stream] = channel.stream_stream(f"/{SERVICE}/{stream}")()
                ends.append(asyncio.create_task(_hear(calls[stream])))
            with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
                await calls[stream].write(frame)
                count.frames += 1
                continue
            if all(call.done() for call in calls.values()):
                break
    finally:
        for end in ends:
            end.cancel()  # nothing, where it has ended
        found = await asyncio.gather(*ends, return_exceptions=True)
    for each in found:
        if isinstance(each, grpc.aio.AioRpcError | asyncio.InvalidStateError):
            raise each  # what ended it


async def _hear(call: Any) -> None:
    """Read what is answered: gRPC tells of a stream's end only behind it."""
    while await call.read() is not grpc.aio.EOF:
        pass


def half_a_handshake(address: str) -> socket.socket:
    """A connection that begins TLS and says no more."""
    host, _, port = address.rpartition(":")
    connection = socket.create_connection((host, int(port)), LIMIT_S)
    connection.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
    return connection


def contacts(members: Path, *, without: str) -> dict[str, Contact]:
    """Of the members that are listed in a folder, but one."""
    found = {}
    for path in sorted(members.iterdir()):
        document = json.loads(path.read_text())
        if path.name != without:
            found[path.name] = contact.of(Member(document["node"], document["contact"]))
    return found


async def harass_all(
    victims: Mapping[str, Contact],
    own: MemberIdentity,
    kind: str,
    said: Sequence[bytes],
    until_s: float,
) -> dict[str, int]:
    """Harass all of them together; the sum of what has come of it."""
    counts = await asyncio.gather(
        *(
            harass(name, victim, own, KINDS[kind](random.Random(name), said), until_s)
            for name, victim in victims.items()
        )
    )
    return {
        "frames": sum(count.frames for count in counts),
        "connections": sum(count.connections for count in counts),
        "cut_off": sum(count.cut_off for count in counts),
    }


async def run(options: argparse.Namespace) -> dict[str, int]:
    """Harass all members but the one whose identity is used."""
    own = MemberIdentity(
        *((options.identity / each).read_bytes() for each in ("member.crt", "member.key"))
    )
    victims = contacts(options.members, without=member_identity.name_of(own.certificate))
    said = list(_frames(options.frames.read_bytes())) if options.frames else [b"[]"]
    open_ones = []
    if options.kind == "truncated":
        for victim in victims.values():
            open_ones += [half_a_handshake(victim.address) for _ in range(HALF_HANDSHAKES)]
    until_s = time.monotonic() + options.seconds
    told = await harass_all(victims, own, options.kind, said, until_s)
    for connection in open_ones:
        connection.close()
    return told


def _frames(content: bytes) -> Iterator[bytes]:
    start = 0
    while start + LENGTH.size <= len(content):
        (length,) = LENGTH.unpack_from(content, start)
        start += LENGTH.size
        yield content[start : start + length]
        start += length


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="campaigns.peers.hostile", description=__doc__)
    parser.add_argument("--kind", choices=sorted(KINDS), required=True)
    parser.add_argument("--members", type=Path, required=True, help="folder of the group's members")
    parser.add_argument(
        "--identity", type=Path, required=True, help="folder of a member's identity"
    )
    parser.add_argument("--frames", type=Path, help="what that member has said")
    parser.add_argument("--seconds", type=float, required=True)
    sys.stdout.write(json.dumps(asyncio.run(run(parser.parse_args(arguments)))) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
