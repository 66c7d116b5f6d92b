"""``python -m onefed.local.peer_memory``: all nodes of a peer group in one process, until SIGTERM.

They talk without a network; disks and training processes are real. Lines on standard input steer
it: ``start NODE``, ``kill NODE``, ``go ROUND``. When standard input ends, so does the process.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from onefed.errors import OnefedError
from onefed.flower import peer_app
from onefed.flower.node import forks
from onefed.local import peer_member
from onefed.local.peer_process import commands, stopping
from onefed.local.peer_spec import PeerGroup
from onefed.node.memory_transport import MemoryNetwork


class Inhabitants:
    """The nodes of the process."""

    def __init__(self, place: PeerGroup, nurseries: Mapping[str, socket.socket]) -> None:
        self.failed: OnefedError | None = None
        self.stop = stopping()
        self._place = place
        self._spec = place.read()
        self._network = MemoryNetwork()
        fab = place.app.read_bytes()
        self._flowers = {}
        for name, nursery in nurseries.items():
            own, count = peer_member.partition(self._spec, name)
            self._flowers[name] = peer_app.PeerApp(
                nursery, fab, self._spec.run_config, partition_id=own, num_partitions=count
            )
        self._apps: dict[str, peer_member.HeldApp] = {}
        self._lives: dict[str, tuple[asyncio.Task[None], asyncio.Event, asyncio.Event]] = {}

    def start(self, name: str) -> None:
        """A node begins, or comes back on its disk."""
        stop, killed = asyncio.Event(), asyncio.Event()
        app = peer_member.HeldApp(self._flowers[name], self._spec.holds, outlives=True)
        self._apps[name] = app
        task = asyncio.ensure_future(self._live(name, app, stop, killed))
        self._lives[name] = (task, stop, killed)

    def kill(self, name: str) -> None:
        """A node ends at once."""
        _, stop, killed = self._lives[name]
        killed.set()
        stop.set()

    def go(self, round_number: int) -> None:
        """Let all nodes train a round that is held."""
        for app in self._apps.values():
            app.go(round_number)

    async def end(self) -> None:
        """Stop all nodes and their apps."""
        for _, stop, _ in self._lives.values():
            stop.set()
        await asyncio.gather(*(task for task, _, _ in self._lives.values()))
        for flower in self._flowers.values():
            flower.close()

    async def _live(
        self, name: str, app: peer_member.HeldApp, stop: asyncio.Event, killed: asyncio.Event
    ) -> None:
        try:
            error = await peer_member.run(
                self._place,
                name,
                self._spec.addresses[name],
                self._flowers[name],
                app,
                lambda *_: self._network.transport(name),
                stop,
                killed,
            )
        except OnefedError as problem:
            error = problem
        if error is not None:
            sys.stderr.write(f"{name}: {error}\n")
            self.failed = error
            self.stop.set()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the nodes; returns the exit code."""
    parser = argparse.ArgumentParser(prog="onefed.local.peer_memory", description=__doc__)
    parser.add_argument("--group", type=Path, required=True, metavar="FOLDER")
    place = PeerGroup(parser.parse_args(arguments).group)
    # Before there are threads.
    nurseries = {name: forks.start_nursery() for name in place.read().addresses}
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    return asyncio.run(_run(place, nurseries))


async def _run(place: PeerGroup, nurseries: Mapping[str, socket.socket]) -> int:
    inhabitants = Inhabitants(place, nurseries)
    steering = asyncio.ensure_future(_steer(inhabitants))
    try:
        await inhabitants.stop.wait()
    finally:
        steering.cancel()
        await inhabitants.end()
    return 0 if inhabitants.failed is None else int(inhabitants.failed.exit_code)


async def _steer(inhabitants: Inhabitants) -> None:
    async for words in commands():
        match words:
            case ["start", name]:
                inhabitants.start(name)
            case ["kill", name]:
                inhabitants.kill(name)
            case ["go", number] if number.isdigit():
                inhabitants.go(int(number))
            case _:
                sys.stderr.write(f"Not understood: {' '.join(words)!a}\n")
    inhabitants.stop.set()


if __name__ == "__main__":
    sys.exit(main())
