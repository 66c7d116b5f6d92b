"""Groups of real nodes in one process: real disks, real bytes, a toy app, no network."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from random import Random

import numpy as np

from onefed import aggregate
from onefed.arrays import Arrays
from onefed.checkpoint import files
from onefed.failpoints import Reach
from onefed.node import Node, Pace, World
from onefed.node.content import client_key
from onefed.node.memory_transport import MemoryNetwork, MemoryTransport
from onefed.node.training import Task, Trained, TrainingError
from onefed.node.world import MakeTransport
from onefed.peer.topology import Topology
from onefed.telemetry import events

PACE = Pace(
    beat_s=0.02,
    suspect_s=0.5,
    election_min_s=0.5,
    election_max_s=1.0,
    repair_s=0.2,
    stall_s=1.0,
    straggler_floor_s=3.0,
    straggler_cap_s=3.0,
)
LIMIT_S = 30.0


def first_model() -> Arrays:
    random = np.random.default_rng(3)
    return {
        "w": random.normal(size=(6, 5)).astype(np.float32),
        "b": random.normal(size=5),
    }


def trained(name: str, model: Arrays, round_number: int) -> Arrays:
    """What the toy app makes of a model: the same for the same client, round and model."""
    random = np.random.default_rng([int(client_key(name)), round_number])
    return {
        key: (array * 0.5 + random.normal(size=array.shape)).astype(array.dtype)
        for key, array in model.items()
    }


@dataclass
class ToyApp:
    """Trains in no time, unless it is held; keeps how often it has trained."""

    name: str
    free: threading.Event = field(default_factory=threading.Event)
    fails: bool = False
    privates: list[bytes | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.free.set()

    def initial_model(self) -> Arrays:
        return first_model()

    def train(self, task: Task, cancelled: threading.Event) -> Trained:
        while not self.free.wait(0.01):
            if cancelled.is_set():
                raise TrainingError("Cancelled.")
        if self.fails:
            raise TrainingError("The app raised.")
        self.privates.append(task.private)
        model = trained(self.name, task.model, task.round_number)
        private = f"after {task.round_number}".encode()
        return Trained(model, 10 + int(client_key(self.name)), private)

    def close(self) -> None:
        pass


@dataclass
class Group:
    """Nodes by name, on folders that outlive them."""

    folder: Path
    rule: aggregate.Rule
    rounds: int
    make_transport: Callable[[str], MakeTransport]
    address: Callable[[str], str]
    nodes: dict[str, Node] = field(default_factory=dict)
    apps: dict[str, ToyApp] = field(default_factory=dict)
    told: dict[str, list[events.Event]] = field(default_factory=dict)
    transports: Mapping[str, MemoryTransport] = field(default_factory=dict)
    pace: Pace = PACE
    disks: dict[str, files.System] = field(default_factory=dict)
    """Of nodes whose disk is a special one."""
    reached: dict[str, Reach] = field(default_factory=dict)
    """What nodes call at the places of ``node.points``."""

    def make(self, name: str) -> Node:
        """A node on its folder, for the first time or again."""
        self.apps.setdefault(name, ToyApp(name))
        starts = len(self.told.setdefault(name, []))
        world = World(
            make_transport=self.make_transport(name),
            clock=time.monotonic,
            now=lambda: datetime.now(UTC),
            jitter=Random(f"{name} {starts}").random,
            emit=self.told[name].append,
            system=self.disks.get(name, files.SYSTEM),
            reach=self.reached.get(name),
        )
        node = self.nodes[name] = Node(
            self.apps[name],
            self.folder / name,
            name=name,
            address=self.address(name),
            experiment="test",
            rule=self.rule,
            world=world,
            pace=self.pace,
        )
        return node

    async def start(self, *names: str, founds: bool = True, again: bool = True) -> None:
        """Start nodes that know each other and all that were started before.

        Args:
            again: make them first; False: they were made, and changed.
        """
        for name in names:
            await (self.make(name) if again else self.nodes[name]).start()
        for one, other in itertools.permutations(self.nodes.values(), 2):
            one.connect(other.member)
        for name in names:
            await self.nodes[name].set_start_learning(self.rounds, founds=founds)

    async def kill(self, name: str) -> None:
        """End a node; what it has not saved is lost."""
        await self.nodes.pop(name).stop()

    async def until(self, reached: Callable[[], bool]) -> None:
        """Let the group work until something is so."""
        async with asyncio.timeout(LIMIT_S):
            while not reached():
                for node in self.nodes.values():
                    assert node.error is None, node.error
                await asyncio.sleep(0.005)

    def all_at(self, round_number: int) -> Callable[[], bool]:
        return lambda: all(node.state.round_number >= round_number for node in self.nodes.values())

    def models(self) -> set[str | None]:
        return {node.state.model_sha256 for node in self.nodes.values()}

    def rounds_of(self, name: str) -> dict[int, events.PeerRound]:
        return {
            event.round: event for event in self.told[name] if isinstance(event, events.PeerRound)
        }

    def contributors(self) -> list[list[str]]:
        """Of every round, from whoever has told of it."""
        found: dict[int, list[str]] = {}
        for name in self.told:
            for number, event in self.rounds_of(name).items():
                names = event.contributors.split(",")
                assert found.setdefault(number, names) == names
        return [found[number] for number in sorted(found)]


@asynccontextmanager
async def memory_group(
    folder: Path,
    *,
    rule: str = "FedAvg",
    rounds: int = 3,
    malicious: int = 0,
    topology: Topology = Topology.FULL,
) -> AsyncIterator[Group]:
    """Nodes that talk without a network."""
    network = MemoryNetwork()
    transports: dict[str, MemoryTransport] = {}

    def transport(name: str, *_: object) -> MemoryTransport:
        transports[name] = network.transport(name)
        return transports[name]

    group = Group(
        folder,
        aggregate.rule(rule, **({"num_malicious": malicious} if malicious else {})),
        rounds,
        make_transport=lambda _: transport,
        transports=transports,
        address=lambda name: f"{name}:1",
        pace=dataclasses.replace(PACE, topology=topology),
    )
    try:
        yield group
    finally:
        for node in group.nodes.values():
            await node.stop()


def by_the_rule(rule: aggregate.Rule, contributors: list[list[str]]) -> Arrays:
    """The model that the hub engine's loop makes of the same contributors."""
    model = first_model()
    state = rule.init(model)
    for number, names in enumerate(contributors, start=1):
        updates = [
            aggregate.Update(
                client_key(name), 10 + int(client_key(name)), trained(name, model, number)
            )
            for name in names
        ]
        state, model = rule.step(state, model, updates, number)
    return model
