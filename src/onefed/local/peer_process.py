"""``python -m onefed.local.peer_process``: one node of a peer group, until SIGTERM.

What it is to do lies in the group's folder. A line ``go ROUND`` on standard input lets it train a
round that is held. When standard input ends, so does the node: whoever started it is gone.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import os
import random
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from onefed.arrays import Arrays
from onefed.checkpoint import files
from onefed.errors import OnefedError
from onefed.flower import peer_app
from onefed.flower.node import forks
from onefed.local.peer_spec import PeerGroup
from onefed.node import Node, Pace, World, contact
from onefed.node.grpc_transport import GrpcTransport
from onefed.node.training import Task, Trained, TrainingError
from onefed.peer.messages import Member
from onefed.telemetry.log import EventLog

LOOK_S = 0.2
"""How soon a member that the operator lists is let in, and a request is seen."""

START_LIMIT_S = 60.0
"""The others of the first roster have listed themselves by then."""

PACE_SEEN = {"straggler_floor_s": 10.0}
"""On one machine all nodes share its cores: one that is slow is waited for, so that all of them
contribute to every round and the same seed gives the same bits."""


class HeldApp:
    """A Flower app whose rounds may be held until somebody says go."""

    def __init__(self, app: peer_app.PeerApp, holds: Sequence[int]) -> None:
        self._app = app
        self._holds = {each: threading.Event() for each in holds}

    def go(self, round_number: int) -> None:
        """Let a round be trained."""
        if round_number in self._holds:
            self._holds[round_number].set()

    def initial_model(self) -> Arrays:
        return self._app.initial_model()

    def train(self, task: Task, cancelled: threading.Event) -> Trained:
        hold = self._holds.get(task.round_number)
        while hold is not None and not hold.wait(peer_app.LOOK_S):
            if cancelled.is_set():
                raise TrainingError("The round was not wanted any more.")
        try:
            update = self._app.train(
                task.model, task.round_number, task.epochs, task.private, cancelled
            )
        except OnefedError as error:
            raise TrainingError(error.message, hint=error.hint) from error
        if update is None:
            raise TrainingError("The round was not wanted any more.")
        return Trained(update.model, update.examples, update.context)

    def close(self) -> None:
        self._app.close()


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
        return asyncio.run(_run(options, nursery))
    except OnefedError as error:
        sys.stderr.write(f"{error}\n")
        return int(error.exit_code)


async def _run(options: argparse.Namespace, nursery: socket.socket) -> int:
    place, name = PeerGroup(options.group), str(options.node)
    spec = place.read()
    names = list(spec.addresses)
    partition_id = names.index(name) if name in names else int(name.rpartition("-")[2])
    flower = peer_app.PeerApp(
        nursery,
        place.app.read_bytes(),
        spec.run_config,
        partition_id=partition_id,
        num_partitions=max(len(names), partition_id + 1),
    )
    app = HeldApp(flower, spec.holds)
    log = EventLog(place.events(name), role=name, clock=lambda: datetime.now(UTC))
    world = World(
        make_transport=GrpcTransport,
        clock=time.monotonic,
        now=lambda: datetime.now(UTC),
        jitter=random.Random().random,  # noqa: S311 - keeps elections apart, no secret
        emit=log.emit,
    )
    node = Node(
        app,
        place.node(name),
        name=name,
        address=options.address,
        experiment=spec.name,
        rule=flower.rule,
        world=world,
        pace=Pace(**PACE_SEEN),
    )
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        await node.start()
        _list_member(place, node.member)
        await _wait_for_members(place, [each for each in names if each != name], stop)
        for member in _members(place):
            if member.node in names:
                node.connect(member)
        await node.set_start_learning(spec.rounds, spec.epochs, founds=name in names)
        work = [
            asyncio.ensure_future(each)
            for each in (_steer(app, stop), _look_around(place, node), _show(place, node))
        ]
        ended = asyncio.ensure_future(node.ended())
        stopped = asyncio.ensure_future(stop.wait())
        await asyncio.wait([ended, stopped], return_when=asyncio.FIRST_COMPLETED)
        if node.error is None:
            await stopped  # until then it serves the others
        for task in (*work, ended, stopped):
            task.cancel()
    finally:
        await node.stop()
        _write_state(place, node)
    return 0 if node.error is None else int(node.error.exit_code)


def _list_member(place: PeerGroup, member: Member) -> None:
    """Have the others let this node in: on one machine, the operator's list is a folder."""
    document = {"node": member.node, "contact": member.contact}
    files.write_json(place.members / member.node, document)


def _members(place: PeerGroup) -> list[Member]:
    found = []
    for name in files.names_in(place.members):
        if not contact.NAME.fullmatch(name):
            continue
        document = files.read_json(place.members / name)
        if isinstance(document, dict):
            found.append(Member(str(document["node"]), str(document["contact"])))
    return found


async def _wait_for_members(place: PeerGroup, names: Sequence[str], stop: asyncio.Event) -> None:
    """Until all of the first roster have listed themselves, or the node is to stop."""
    deadline_s = time.monotonic() + START_LIMIT_S
    while missing := set(names) - set(files.names_in(place.members)):
        if time.monotonic() > deadline_s:
            raise OnefedError(
                f"{', '.join(sorted(missing))} did not start within {START_LIMIT_S:.0f} s.",
                hint=f"The nodes' logs are in {place.folder / 'nodes'}.",
            )
        if await _is_set(stop, LOOK_S / 4):
            return


async def _is_set(stop: asyncio.Event, wait_s: float) -> bool:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(wait_s):
            await stop.wait()
    return stop.is_set()


async def _look_around(place: PeerGroup, node: Node) -> None:
    """Connect to members that are listed later, and do what was asked for in a file."""
    while True:
        await asyncio.sleep(LOOK_S)
        for member in _members(place):
            node.connect(member)
        for name in files.names_in(place.requests(node.member.node)):
            verb, _, who = name.partition(" ")
            if verb == "leave" and contact.NAME.fullmatch(who):  # not one that is being written
                files.remove(place.requests(node.member.node) / name)
                node.leave(who)


async def _show(place: PeerGroup, node: Node) -> None:
    """Write down what the node is, for ``onefed peer status``."""
    while True:
        _write_state(place, node)
        await asyncio.sleep(1.0)


def _write_state(place: PeerGroup, node: Node) -> None:
    state: Mapping[str, object] = {**asdict(node.state), "pid": os.getpid()}
    with contextlib.suppress(OnefedError):
        files.write_json(place.node(node.state.name) / "state.json", state)


async def _steer(app: HeldApp, stop: asyncio.Event) -> None:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    while line := await reader.readline():
        match line.decode("utf-8", "replace").split():
            case ["go", number] if number.isdigit():
                app.go(int(number))
            case _:
                sys.stderr.write(f"Not understood: {json.dumps(line.decode(errors='replace'))}\n")
    stop.set()


if __name__ == "__main__":
    sys.exit(main())
