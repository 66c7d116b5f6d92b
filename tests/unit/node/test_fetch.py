"""A node that comes late fetches the model in pieces from several others, whoever is left."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from tests.unit.node.conftest import PACE, Group

from onefed import aggregate
from onefed.node.memory_transport import MemoryNetwork, MemoryTransport
from onefed.peer.messages import Blob, Item, NodeId, Piece
from onefed.telemetry import events

FOUR = ("node-0", "node-1", "node-2", "node-3")
LATE = "node-4"
COUNT = 16
"""Pieces of the model, which has 160 bytes."""
ROUNDS = 2


@dataclass
class Wire:
    """What goes to the late node, in its order; and what becomes of it."""

    given: list[tuple[NodeId, Item]] = field(default_factory=list)
    holds: bool = True
    """Nothing of the model goes, until ``release``."""
    alters: Callable[[NodeId, Piece], bool] = lambda *_: False
    """Whether other bytes than the model's are sent."""
    waiting: list[tuple[NodeId, Callable[[], None]]] = field(default_factory=list)

    def release(self) -> None:
        self.holds = False
        for _, send in self.waiting:
            send()

    def askers(self) -> set[NodeId]:
        return {name for name, _ in self.given}


class Held(MemoryTransport):
    """Gives models when the test says so."""

    def __init__(self, name: NodeId, network: MemoryNetwork, wire: Wire) -> None:
        super().__init__(name, network)
        self._wire = wire

    def carry(self, to: NodeId, item: Item, content: bytes | memoryview) -> None:
        wire = self._wire
        if to != LATE or not isinstance(item, Blob | Piece):
            super().carry(to, item, content)
            return
        wire.given.append((self._name, item))
        if isinstance(item, Piece) and wire.alters(self._name, item):
            content = bytes(each ^ 1 for each in content)
        if wire.holds:
            wire.waiting.append((self._name, lambda: super(Held, self).carry(to, item, content)))
        else:
            super().carry(to, item, content)

    async def stop(self) -> None:
        self._wire.waiting = [each for each in self._wire.waiting if each[0] != self._name]
        await super().stop()


@asynccontextmanager
async def done_group(folder: Path, wire: Wire) -> AsyncIterator[Group]:
    """Four nodes that have the last model; who comes late does not ask twice for what is slow."""
    network = MemoryNetwork()
    group = Group(
        folder,
        aggregate.rule("FedAvg"),
        rounds=ROUNDS,
        make_transport=lambda _: lambda name, *_: Held(name, network, wire),
        address=lambda name: f"{name}:1",
        pace=PACE,
    )
    try:
        await group.start(*FOUR)
        await group.until(group.all_at(ROUNDS))
        group.pace = replace(PACE, piece_bytes=10, repair_s=60.0)
        yield group
    finally:
        for node in group.nodes.values():
            await node.stop()


def test_a_holder_that_dies_costs_its_pieces_only(tmp_path: Path) -> None:
    async def scenario() -> None:
        wire = Wire()
        async with done_group(tmp_path, wire) as group:
            await group.start(LATE, founds=False)
            await group.until(lambda: wire.askers() == set(FOUR))
            owed = [item for name, item in wire.given if name == "node-3"]
            assert owed
            await group.kill("node-3")
            wire.release()
            await group.until(group.all_at(ROUNDS))

            assert len(group.models()) == 1
            items = [item for name, item in wire.given if name != "node-3"]
            assert {item.index for item in items if isinstance(item, Piece)} == set(range(COUNT))
            assert len(items) == COUNT
            assert set(owed) <= set(items)
            assert wire.askers() == set(FOUR)

    asyncio.run(scenario())


def test_pieces_that_do_not_fit_are_told_and_the_model_comes_in_one(tmp_path: Path) -> None:
    async def scenario() -> None:
        wire = Wire(holds=False, alters=lambda name, piece: piece.index == 7)
        async with done_group(tmp_path, wire) as group:
            await group.start(LATE, founds=False)
            await group.until(group.all_at(ROUNDS))

            assert len(group.models()) == 1
            assert [type(item) for _, item in wire.given] == [Piece] * COUNT + [Blob]
            told = [each for each in group.told[LATE] if isinstance(each, events.PeerNotice)]
            assert [each.kind for each in told if "do not have its digest" in each.detail] == [
                "refused"
            ]

    asyncio.run(scenario())


def test_a_model_that_is_no_longer_than_a_piece_comes_in_one(tmp_path: Path) -> None:
    async def scenario() -> None:
        wire = Wire(holds=False)
        async with done_group(tmp_path, wire) as group:
            group.pace = replace(group.pace, piece_bytes=160)
            await group.start(LATE, founds=False)
            await group.until(group.all_at(ROUNDS))

            assert [type(item) for _, item in wire.given] == [Blob]

    asyncio.run(scenario())
