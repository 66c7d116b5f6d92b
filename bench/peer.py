"""Rounds without a coordinator: what agreement costs, the bytes that a node sends, and how soon
the others go on after a kill.

    python bench/peer.py

Nodes are processes on loopback, with mutual TLS and real disks; the app is a function that takes no
time, so a round is nothing but overhead. Bytes are multiples of the model M: items as they are
given to a connection, and all that loopback has carried, with headers, TLS, heartbeats and the
start of the connections (as root: in a network namespace of its own). The bound is 2(n-1)/n for
rules that work element by element.
"""

from __future__ import annotations

import asyncio
import itertools
import multiprocessing
import os
import signal
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from multiprocessing.queues import Queue
from pathlib import Path
from random import Random
from typing import Any, TypeAlias

import numpy as np
import record

sys.path.insert(0, str(record.ROOT))  # campaigns lie beside src

from campaigns.peers import cells, net
from campaigns.peers.group import Group

from onefed import aggregate
from onefed.arrays import Arrays
from onefed.node import Node, Pace, World
from onefed.node.grpc_transport import GrpcTransport
from onefed.node.training import Task, Trained
from onefed.peer.messages import Member
from onefed.telemetry import events

CASES = ((4, 9_000, 40), (8, 9_000, 40), (4, 10_000_000, 8))
"""Nodes, float32 parameters, rounds; times are those between two rounds."""

KILLS = 6
"""Of the leader, and of a follower."""
PAUSES = 2
PAUSE_S = 6.0

LIMIT_S = 300.0

Result: TypeAlias = tuple[list[float], int]
"""When a node had each round, monotonic seconds; bytes that it has sent."""


@dataclass
class InstantApp:
    """Hands the model back, a little moved."""

    parameters: int
    share: float

    def initial_model(self) -> Arrays:
        return {"w": np.zeros(self.parameters, np.float32)}

    def train(self, task: Task, cancelled: threading.Event) -> Trained:
        return Trained({"w": task.model["w"] + np.float32(self.share)}, 1, None)

    def close(self) -> None:
        pass


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@dataclass(frozen=True)
class Case:
    """What a node of a run has to know; it travels to its process."""

    folder: Path
    index: int
    ports: tuple[int, ...]
    parameters: int
    rounds: int


def be_a_node(case: Case, members: Sequence[Queue[Member]], results: Queue[Result]) -> None:
    """The life of a process."""
    asyncio.run(_be_a_node(case, members, results))


async def _be_a_node(case: Case, members: Sequence[Queue[Member]], results: Queue[Result]) -> None:
    times: list[float] = []

    def emit(event: events.Event) -> None:
        if isinstance(event, events.PeerRound):
            times.append(time.monotonic())

    transports: list[GrpcTransport] = []

    def make_transport(*arguments: Any) -> GrpcTransport:
        transports.append(GrpcTransport(*arguments))
        return transports[0]

    world = World(
        make_transport=make_transport,
        clock=time.monotonic,
        now=lambda: datetime.now(UTC),
        jitter=Random().random,  # noqa: S311 - keeps elections apart, no secret
        emit=emit,
    )
    node = Node(
        InstantApp(case.parameters, case.index + 1.0),
        case.folder / str(case.index),
        name=f"node-{case.index}",
        address=f"127.0.0.1:{case.ports[case.index]}",
        experiment="bench",
        rule=aggregate.rule("FedAvg"),
        world=world,
        pace=Pace(straggler_floor_s=20.0),
    )
    await node.start()
    for queue in members:
        queue.put(node.member)
    for _ in members:
        node.connect(await asyncio.to_thread(members[case.index].get))
    await node.set_start_learning(case.rounds)
    await node.ended()
    assert node.error is None, node.error
    results.put((times, transports[0].carried_bytes))
    await asyncio.to_thread(members[case.index].get)  # until all have the last model
    await node.stop()


def run(nodes: int, parameters: int, rounds: int) -> dict[str, Any]:
    """Seconds a round, and bytes that a node sends a round over M: items of the busiest node, and
    the mean of all that went over the wire."""
    carried = wire_bytes()
    context = multiprocessing.get_context("spawn")
    results: Queue[Result] = context.Queue()
    members: list[Queue[Member]] = [context.Queue() for _ in range(nodes)]
    with tempfile.TemporaryDirectory() as folder:
        ports = tuple(free_port() for _ in range(nodes))
        processes = []
        for index in range(nodes):
            case = Case(Path(folder), index, ports, parameters, rounds)
            processes.append(context.Process(target=be_a_node, args=(case, members, results)))
            processes[-1].start()
        found = [results.get(timeout=LIMIT_S) for _ in processes]
        for queue in members:
            queue.put(Member("", ""))
        for process in processes:
            process.join()
    spans = [later - earlier for times, _ in found for earlier, later in itertools.pairwise(times)]
    model_bytes = 4 * parameters
    return {
        "nodes": nodes,
        "parameters": parameters,
        "median_s": statistics.median(spans),
        "worst_s": max(spans),
        "sent_models": max(sent for _, sent in found) / rounds / model_bytes,
        "wire_models": (wire_bytes() - carried) / nodes / rounds / model_bytes,
        "bound_models": 2 * (nodes - 1) / nodes,
    }


def wire_bytes() -> int:
    """What loopback has carried; 0 where it is not ours alone."""
    if not os.environ.get(net.INSIDE):
        return 0
    lines = Path("/proc/net/dev").read_text().splitlines()
    return next(int(line.split()[9]) for line in lines if line.strip().startswith("lo:"))


def recovery() -> dict[str, list[float]]:
    """Seconds from a fault to the next committed round of the others."""
    gaps: dict[str, list[float]] = {"leader killed": [], "follower killed": [], "leader silent": []}
    with Group() as group:
        for number in range(2 * KILLS):
            what, victim = (
                ("leader killed", group.leader)
                if number % 2
                else ("follower killed", group.followers[0])
            )
            group.kill(victim)
            reached = group.reached
            gaps[what].append(group.wait_for("a round", lambda r=reached: group.reached > r))  # type: ignore[misc]
            group.start(victim)
            cells.settle(group)
        for _ in range(PAUSES):
            victim, reached = group.leader, group.reached
            group.signal(victim, signal.SIGSTOP)
            gaps["leader silent"].append(
                group.wait_for("a round", lambda r=reached: group.reached > r + 1)  # type: ignore[misc]
            )
            group.signal(victim, signal.SIGCONT)
            cells.settle(group)
        group.require_reference()
    return gaps


def main() -> int:
    """Print the tables, and keep the numbers."""
    net.enter(*sys.argv)
    raw: dict[str, Any] = {"load": os.getloadavg()[0], "rounds": [], "recovery_s": {}}
    print(
        "| nodes | parameters | median s a round | worst | items sent / M | on the wire | bound |"
    )
    print("|---|---|---|---|---|---|---|")
    for case in CASES:
        found = run(*case)
        raw["rounds"].append(found)
        print(
            f"| {found['nodes']} | {found['parameters']:,} | {found['median_s']:.3f} "
            f"| {found['worst_s']:.3f} | {found['sent_models']:.3f} "
            f"| {found['wire_models']:.3f} | {found['bound_models']:.3f} |",
            flush=True,
        )
    raw["recovery_s"] = recovery()
    print("\n| of four nodes | times | next committed round after, median s | worst |")
    print("|---|---|---|---|")
    for what, gaps in raw["recovery_s"].items():
        print(f"| {what} | {len(gaps)} | {statistics.median(gaps):.2f} | {max(gaps):.2f} |")
    record.save_raw("peer", raw)
    return 0


if __name__ == "__main__":
    sys.exit(main())
