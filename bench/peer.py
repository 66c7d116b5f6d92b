"""Rounds without a coordinator: what agreement costs, and the bytes that a node sends.

    python bench/peer.py

Nodes are processes on loopback, with mutual TLS and real disks; the app is a function that takes no
time, so a round is nothing but overhead. Bytes are counted where items are given to the connection,
as multiples of the model M; the bound is 2(n-1)/n for rules that work element by element.
"""

from __future__ import annotations

import asyncio
import itertools
import multiprocessing
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
from typing import TypeAlias

import numpy as np

from onefed import aggregate
from onefed.arrays import Arrays
from onefed.node import Node, Pace, World
from onefed.node.grpc_transport import GrpcTransport
from onefed.node.training import Task, Trained
from onefed.peer.messages import Item, Member, NodeId
from onefed.telemetry import events

CASES = ((4, 9_000, 40), (8, 9_000, 40), (4, 10_000_000, 6))
"""Nodes, float32 parameters, rounds; times are those between two rounds."""


LIMIT_S = 300.0

Result: TypeAlias = tuple[list[float], int]
"""When a node had each round, monotonic seconds; bytes that it has sent."""


class CountingTransport(GrpcTransport):
    """Counts what is given to it."""

    sent_bytes = 0

    def carry(self, to: NodeId, item: Item, content: bytes) -> None:
        CountingTransport.sent_bytes += len(content)
        super().carry(to, item, content)


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

    world = World(
        make_transport=CountingTransport,
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
    results.put((times, CountingTransport.sent_bytes))
    await asyncio.to_thread(members[case.index].get)  # until all have the last model
    await node.stop()


def run(nodes: int, parameters: int, rounds: int) -> tuple[float, float, float]:
    """Median and worst seconds a round, and the most bytes that a node sends a round, over M."""
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
    sent = max(sent for _, sent in found) / rounds / (4 * parameters)
    return statistics.median(spans), max(spans), sent


def main() -> int:
    """Print the table."""
    print("| nodes | parameters | median s a round | worst | bytes sent / M | bound |")
    print("|---|---|---|---|---|---|")
    for nodes, parameters, rounds in CASES:
        median_s, worst_s, sent = run(nodes, parameters, rounds)
        times = f"{median_s:.3f} | {worst_s:.3f}"
        bound = 2 * (nodes - 1) / nodes
        print(f"| {nodes} | {parameters:,} | {times} | {sent:.3f} | {bound:.3f} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
