"""``python -m onefed.local.peer_process``: one node of a peer group, until SIGTERM.

What it is to do lies in the group's folder. A line ``go ROUND`` on standard input lets it train a
round that is held. When standard input ends, so does the node: whoever started it is gone.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import logging
import signal
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from onefed.errors import OnefedError
from onefed.flower import peer_app
from onefed.flower.node import forks
from onefed.local import peer_member
from onefed.local.peer_spec import PeerGroup
from onefed.node.grpc_transport import GrpcTransport


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a node; returns its exit code."""
    nursery = forks.start_nursery()  # first of all: from a process without threads
    parser = argparse.ArgumentParser(prog="onefed.local.peer_process", description=__doc__)
    parser.add_argument("--group", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--node", required=True, metavar="NAME")
    parser.add_argument("--address", required=True, metavar="HOST:PORT", help="of this node")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    try:
        return asyncio.run(_run(PeerGroup(options.group), options.node, options.address, nursery))
    except OnefedError as error:
        sys.stderr.write(f"{error}\n")
        return int(error.exit_code)


async def _run(place: PeerGroup, name: str, address: str, nursery: socket.socket) -> int:
    spec = place.read()
    own, count = peer_member.partition(spec, name)
    flower = peer_app.PeerApp(
        nursery,
        place.app.read_bytes(),
        spec.run_config,
        partition_id=own,
        num_partitions=count,
    )
    app = peer_member.HeldApp(flower, spec.holds, outlives=False)
    connect = functools.partial(
        GrpcTransport,
        keepalive_time_s=spec.keepalive_time_s,
        keepalive_timeout_s=spec.keepalive_timeout_s,
    )
    stop = stopping()
    steering = asyncio.ensure_future(_steer(app, stop))
    try:
        error = await peer_member.run(
            place, name, address, flower, app, connect, stop, asyncio.Event()
        )
    finally:
        steering.cancel()
    return 0 if error is None else int(error.exit_code)


async def _steer(app: peer_member.HeldApp, stop: asyncio.Event) -> None:
    async for words in commands():
        match words:
            case ["go", number] if number.isdigit():
                app.go(int(number))
            case _:
                sys.stderr.write(f"Not understood: {' '.join(words)!a}\n")
    stop.set()


def stopping() -> asyncio.Event:
    """Set by SIGTERM and SIGINT."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop


async def commands() -> AsyncIterator[list[str]]:
    """Lines of standard input, as words, to its end."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    while line := await reader.readline():
        yield line.decode("utf-8", "replace").split()


if __name__ == "__main__":
    sys.exit(main())
