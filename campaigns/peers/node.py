"""``python -m campaigns.peers.node``: a node whose app starts at once, until standard input ends.

The node is the product's own, with its gRPC, TLS and disk; only the app is a toy, so that a process
is up within a second. It is held at the points of ``onefed.node.points`` where ``--points`` says.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import random
import struct
import sys
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import ClassVar

import numpy as np

from onefed import aggregate, failpoints
from onefed.arrays import Arrays
from onefed.checkpoint import files
from onefed.errors import StorageError
from onefed.node import Node, Pace, World
from onefed.node.checkpoints import rejoin
from onefed.node.content import client_key
from onefed.node.grpc_transport import GrpcTransport
from onefed.node.training import Task, Trained, TrainingError
from onefed.peer.messages import Member, NodeId
from onefed.peer.topology import Topology
from onefed.telemetry import events
from onefed.telemetry.log import EventLog

EXPERIMENT = "peer-faults"
RULE = "FedAvg"
KEPT_ROUNDS = 2
"""Of a node's checkpoints: a small disk is full of them after a few seconds otherwise."""
REJOINED = "rejoined"
"""Kind of the notice by which a node says what ``rejoin`` has returned."""
LOOK_S = 0.05
PIECE_BYTES = 2**14
"""A model has five of them, so that one that is missing is fetched from several members."""
FRAMES_KEPT = 4000
LENGTH = struct.Struct("<I")


def first_model(parameters: int) -> Arrays:
    """Of every group."""
    return {"w": np.random.default_rng(3).normal(size=parameters).astype(np.float32)}


def trained(name: str, model: Arrays, round_number: int) -> Arrays:
    """What the toy app makes of a model: the same for the same node, round and model."""
    noise = np.random.default_rng([int(client_key(name)), round_number])
    size = model["w"].size
    return {"w": model["w"] * np.float32(0.5) + noise.random(size, np.float32)}


def examples(name: str) -> int:
    """The weight of a node."""
    return 10 + int(client_key(name))


class Together(aggregate.FedAvg):
    """A mean that is worth nothing without one of the members."""

    SUPPORTS_PARTIAL_AGGREGATION: ClassVar[bool] = False


class ToyApp:
    """Waits a moment instead of training."""

    def __init__(self, name: str, parameters: int, train_s: float) -> None:
        self._name = name
        self._parameters = parameters
        self._train_s = train_s

    def initial_model(self) -> Arrays:
        return first_model(self._parameters)

    def train(self, task: Task, cancelled: threading.Event) -> Trained:
        if cancelled.wait(self._train_s):
            raise TrainingError("Cancelled.")
        model = trained(self._name, task.model, task.round_number)
        return Trained(model, examples(self._name), None)

    def close(self) -> None:
        pass


class RecordingTransport(GrpcTransport):
    """Writes down what it says, for somebody who says it again."""

    record: Path | None = None
    _frames = 0

    def talk(self, to: NodeId, content: bytes) -> None:
        if self.record is not None and self._frames < FRAMES_KEPT:
            self._frames += 1
            with self.record.open("ab") as stream:
                stream.write(LENGTH.pack(len(content)) + content)
        super().talk(to, content)


async def be_a_node(options: argparse.Namespace) -> int:
    """Be a node until standard input ends; the exit code."""
    name: str = options.node
    log = EventLog(options.folder / f"{name}.jsonl", role=name, clock=lambda: datetime.now(UTC))
    world = World(
        make_transport=RecordingTransport,
        clock=time.monotonic,
        now=lambda: datetime.now(UTC),
        jitter=random.Random().random,
        emit=log.emit,
        reach=failpoints.from_environ({failpoints.VARIABLE: str(options.points)})
        if options.points
        else None,
    )
    node = Node(
        ToyApp(name, options.parameters, options.train_s),
        options.data,
        name=name,
        address=options.address,
        experiment=EXPERIMENT,
        rule=Together() if options.together else aggregate.rule(RULE),
        world=world,
        pace=Pace(
            straggler_floor_s=options.straggler_floor_s,
            straggler_cap_s=options.straggler_cap_s,
            stall_s=options.stall_s,
            evict_after_rounds=options.evict_after_rounds,
            topology=Topology(options.topology),
            piece_bytes=PIECE_BYTES,
        ),
        kept_rounds=options.keep or None,
    )
    node.settings.general.REMOTE_CHECKPOINT_INTERVAL = options.remote_interval
    await node.start()
    members: Path = options.folder / "members"
    own = node.member
    files.write_json(members / own.node, {"node": own.node, "contact": own.contact})
    founders = set(options.founders)
    while not founders <= set(files.names_in(members)):  # noqa: ASYNC110 - a folder has no event
        await asyncio.sleep(LOOK_S)
    _follow(node, members, only=founders)
    if options.rejoin:
        state = dataclasses.replace(
            node.state, name=options.rejoin, experiment=EXPERIMENT, rounds_total=options.rounds
        )
        restored = await rejoin(state, node.learner, node.communication_protocol)
        log.emit(events.PeerNotice(REJOINED, str(restored)))
    else:
        await node.set_start_learning(options.rounds, founds=name in founders)
    looking = asyncio.ensure_future(_keep_following(node, members))
    stopped = asyncio.ensure_future(_end_of_input())
    ended = asyncio.ensure_future(node.ended())
    await asyncio.wait([stopped, ended], return_when=asyncio.FIRST_COMPLETED)
    if node.error is None:
        await stopped
    looking.cancel()
    await node.stop()
    log.close()
    return 0 if node.error is None else int(node.error.exit_code)


async def _keep_following(node: Node, members: Path) -> None:
    while True:
        await asyncio.sleep(LOOK_S)
        _follow(node, members)


def _follow(node: Node, members: Path, *, only: set[str] | None = None) -> None:
    for name in files.names_in(members):
        if only is None or name in only:
            with contextlib.suppress(KeyError, TypeError, StorageError):  # it was struck off
                document = files.read_json(members / name)
                node.connect(Member(str(document["node"]), str(document["contact"])))  # type: ignore[index,call-overload]


async def _end_of_input() -> None:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    await reader.read()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="campaigns.peers.node", description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="of the group")
    parser.add_argument("--data", type=Path, required=True, help="the node's disk")
    parser.add_argument("--node", required=True)
    parser.add_argument("--address", required=True)
    parser.add_argument("--founders", nargs="+", required=True)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--parameters", type=int, required=True)
    parser.add_argument("--train-s", type=float, required=True)
    parser.add_argument("--straggler-floor-s", type=float, default=0.5)
    parser.add_argument("--straggler-cap-s", type=float, default=60.0)
    parser.add_argument("--stall-s", type=float, default=Pace().stall_s)
    parser.add_argument("--evict-after-rounds", type=int, default=0, help="0: never")
    parser.add_argument("--topology", choices=list(Topology), default=Topology.FULL)
    parser.add_argument("--together", action="store_true", help="no round without one of them")
    parser.add_argument("--remote-interval", type=int, default=5)
    parser.add_argument("--keep", type=int, default=KEPT_ROUNDS, help="rounds; 0: all")
    parser.add_argument("--rejoin", help="come back as the node of this name, by its checkpoints")
    parser.add_argument("--points", type=Path, help="folder of the points at which it is held")
    parser.add_argument("--record", type=Path, help="write the messages that it sends to this file")
    options = parser.parse_args(arguments)
    RecordingTransport.record = options.record
    return asyncio.run(be_a_node(options))


if __name__ == "__main__":
    sys.exit(main())
