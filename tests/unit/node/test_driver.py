"""Real nodes in one process: they agree, survive, come back, and give the hub engine's bits."""

from __future__ import annotations

import asyncio
import errno
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest
from tests.unit.node.conftest import LIMIT_S, PACE, Group, by_the_rule, memory_group

from onefed import aggregate, arrays
from onefed.checkpoint import files
from onefed.errors import InUseError, StorageError
from onefed.node import NodeError, codec
from onefed.node.memory_transport import MemoryNetwork, MemoryTransport
from onefed.node.store import Store
from onefed.node.world import ContributionsError
from onefed.peer.interface import AcceptedRecord, CommittedRecord, VoteRecord
from onefed.peer.journal import JournalError
from onefed.peer.messages import Ballot, Entry, Item, Member, NodeId, Slice, Welcome
from onefed.peer.topology import Topology, neighbours
from onefed.telemetry import events

FIRST = Entry(0, "0" * 64, 5, Ballot(0, 0), (Member("a", ""),), (), ())
FOUR = ("node-0", "node-1", "node-2", "node-3")


@pytest.mark.parametrize(
    "rule", ["FedAvg", "FedAdam", "FedMedian", "FedTrimmedAvg", "Krum", "FedAvgM"]
)
def test_all_nodes_have_the_model_of_the_hub_engine_under_any_rule(
    rule: str, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with memory_group(tmp_path, rule=rule) as group:
            await group.start(*FOUR)
            await group.until(group.all_at(3))

            expected = by_the_rule(aggregate.rule(rule), group.contributors())
            assert group.models() == {arrays.digest(expected)}
            assert group.contributors() == [list(FOUR)] * 3

    asyncio.run(scenario())


@pytest.mark.parametrize("topology", ["ring", "line", "star"])
@pytest.mark.parametrize("rule", ["FedAvg", "Krum"])
def test_members_that_are_not_all_connected_have_the_same_model(
    topology: str, rule: str, tmp_path: Path
) -> None:
    """Peers talk to their neighbours only, and the model is that of any other topology."""

    async def scenario() -> None:
        async with memory_group(tmp_path, rule=rule, topology=Topology(topology)) as group:
            await group.start(*FOUR)
            await group.until(group.all_at(3))

            expected = by_the_rule(aggregate.rule(rule), group.contributors())
            assert group.models() == {arrays.digest(expected)}
            for name in FOUR:
                assert group.transports[name].peers <= neighbours(Topology(topology), FOUR, name)

    asyncio.run(scenario())


def test_a_node_that_is_killed_is_not_waited_for_and_goes_on_from_its_disk(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with memory_group(tmp_path, rounds=5) as group:
            await group.start(*FOUR)
            await group.until(group.all_at(1))
            for app in group.apps.values():
                app.free.clear()  # nobody finishes a round until it is gone
            await group.kill("node-0")
            reached = max(node.state.round_number for node in group.nodes.values())
            for app in group.apps.values():
                app.free.set()
            await group.until(group.all_at(min(reached + 1, 5)))
            await group.start("node-0")
            await group.until(group.all_at(5))

            expected = by_the_rule(aggregate.rule("FedAvg"), group.contributors())
            assert group.models() == {arrays.digest(expected)}

    asyncio.run(scenario())


def test_all_nodes_killed_at_once_go_on_where_they_were(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with memory_group(tmp_path, rounds=4) as group:
            await group.start(*FOUR)
            await group.until(group.all_at(2))
            for name in FOUR:
                await group.kill(name)
            await group.start(*FOUR)
            await group.until(group.all_at(4))

            expected = by_the_rule(aggregate.rule("FedAvg"), group.contributors())
            assert group.models() == {arrays.digest(expected)}

    asyncio.run(scenario())


def test_without_a_majority_nothing_is_agreed_on(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with memory_group(tmp_path, rounds=50) as group:
            await group.start(*FOUR)
            await group.until(group.all_at(1))
            for app in group.apps.values():
                app.free.clear()
            await group.kill("node-2")
            await group.kill("node-3")
            before = {name: node.state.round_number for name, node in group.nodes.items()}
            for app in group.apps.values():
                app.free.set()
            await group.until(
                lambda: (
                    any(node.state.state == "no quorum" for node in group.nodes.values())
                    or all(node.state.leader is None for node in group.nodes.values())
                )
            )
            after = {name: node.state.round_number for name, node in group.nodes.items()}
            # What was accepted by all four already may be finished; nothing new is.
            assert max(after.values()) <= max(before.values()) + 1

    asyncio.run(scenario())


def test_a_node_joins_a_group_that_trains(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with memory_group(tmp_path, rounds=12) as group:
            await group.start(*FOUR[:3])
            await group.until(group.all_at(1))
            await group.start("node-3", founds=False)
            await group.until(lambda: "node-3" in group.nodes["node-0"].state.voters)
            await group.until(group.all_at(12))

            expected = by_the_rule(aggregate.rule("FedAvg"), group.contributors())
            assert group.models() == {arrays.digest(expected)}
            assert "node-3" in group.contributors()[-1]

    asyncio.run(scenario())


def test_a_node_leaves_and_the_others_go_on(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with memory_group(tmp_path, rounds=8) as group:
            await group.start(*FOUR)
            await group.until(group.all_at(1))
            group.nodes["node-1"].leave("node-3")
            await group.until(lambda: "node-3" not in group.nodes["node-0"].state.voters)
            await group.kill("node-3")
            await group.until(group.all_at(8))

            assert len(group.models()) == 1
            assert "node-3" not in group.contributors()[-1]

    asyncio.run(scenario())


def test_a_member_that_was_struck_out_cannot_come_back(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with memory_group(tmp_path, rounds=30) as group:
            await group.start(*FOUR)
            await group.until(group.all_at(1))
            group.nodes["node-1"].leave("node-3")
            await group.until(lambda: "node-3" not in group.nodes["node-0"].state.voters)
            await group.kill("node-3")
            rejoined = group.make("node-3")
            await rejoined.start()
            for name in FOUR[:3]:
                rejoined.connect(group.nodes[name].member)
                group.nodes[name].forget("node-3")
            await rejoined.set_start_learning(30)
            del group.nodes["node-3"]  # it does not get far
            await group.until(group.all_at(30))
            await rejoined.stop()

            told = [event for name in FOUR[:3] for event in group.told[name]]
            assert any(isinstance(e, events.PeerNotice) and e.kind == "refused" for e in told)
            assert "node-3" not in group.nodes["node-0"].state.voters
            assert "node-3" not in group.contributors()[-1]

    asyncio.run(scenario())


def test_an_app_that_raises_costs_its_node_the_round_and_nobody_else(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with memory_group(tmp_path, rounds=1) as group:
            group.make("node-2")
            group.apps["node-2"].fails = True
            await group.start(*FOUR)
            await group.until(group.all_at(1))

            assert group.contributors() == [["node-0", "node-1", "node-3"]]
            failures = [e for e in group.told["node-2"] if isinstance(e, events.ClientFailure)]
            assert failures
            assert len(group.models()) == 1

    asyncio.run(scenario())


def test_nobody_waits_for_a_node_whose_app_raises(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with memory_group(tmp_path, rounds=3) as group:
            group.pace = replace(PACE, straggler_floor_s=1000.0, straggler_cap_s=1000.0)
            group.make("node-2")
            group.apps["node-2"].fails = True
            await group.start(*FOUR)
            await group.until(group.all_at(3))

            assert group.contributors() == [["node-0", "node-1", "node-3"]] * 3

    asyncio.run(scenario())


@dataclass(frozen=True)
class Together(aggregate.FedAvg):
    """A mean that is worth nothing without one of the members."""

    SUPPORTS_PARTIAL_AGGREGATION: ClassVar[bool] = False


def test_a_rule_without_partial_aggregation_waits_for_all_and_fails_without_one(
    tmp_path: Path,
) -> None:
    """Scenario A4: a defined error, at every node, and no hang."""

    async def scenario() -> None:
        async with memory_group(tmp_path, rounds=3) as group:
            group.rule = Together()
            group.pace = replace(PACE, straggler_floor_s=0.2, straggler_cap_s=2.0)
            await group.start(*FOUR)
            await group.until(group.all_at(1))
            group.apps["node-1"].free.clear()
            async with asyncio.timeout(LIMIT_S):
                for node in group.nodes.values():
                    await node.ended()

            for node in group.nodes.values():
                assert isinstance(node.error, ContributionsError)
                assert "none of node-1" in node.error.message
                assert node.state.state == "failed"
            assert all(names == list(FOUR) for names in group.contributors())

            # Nothing is lost: the same folders go on.
            reached = len(group.contributors())
            group.apps["node-1"].free.set()
            for name in FOUR:
                await group.kill(name)
            await group.start(*FOUR)
            await group.until(group.all_at(3))
            expected = by_the_rule(aggregate.rule("FedAvg"), [list(FOUR)] * 3)
            assert reached < 3
            assert group.models() == {arrays.digest(expected)}

    asyncio.run(scenario())


def test_a_long_journal_becomes_short_and_forgets_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path, journal_long_bytes=2000)
    store.create("a", "x", FIRST, b"model")
    store.load("a", "x")
    sizes = set()
    for term in range(1, 60):
        store.append(VoteRecord(term, "b"))
        store.append(AcceptedRecord(replace(FIRST, round_number=term, ballot=Ballot(term, 1))))
        store.sync()
        sizes.add((tmp_path / "journal").stat().st_size)
    store.append(CommittedRecord(replace(FIRST, round_number=59)))
    store.sync()
    store.close()

    assert max(sizes) < 4000
    reopened = Store(tmp_path)
    saved = reopened.load("a", "x")
    reopened.close()
    assert (saved.term, saved.voted_for, saved.commit.round_number) == (59, "b", 59)
    assert saved.accepted is not None
    assert saved.accepted.ballot == Ballot(59, 1)


def test_what_the_app_keeps_is_that_of_the_last_round_that_was_agreed_on(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with memory_group(tmp_path, rounds=4) as group:
            await group.start(*FOUR[:3])
            await group.until(group.all_at(2))
            for name in FOUR[:3]:
                await group.kill(name)
            await group.start(*FOUR[:3])
            await group.until(group.all_at(4))

            seen = group.apps["node-1"].privates
            assert seen[0] is None
            assert seen[-1] == b"after 3"
            assert set(seen) == {None, b"after 1", b"after 2", b"after 3"}

    asyncio.run(scenario())


class FillingDisk(files.System):
    """Has room until it is full."""

    is_full = False

    def write(self, descriptor: int, data: memoryview) -> int:
        if self.is_full:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(descriptor, data)


def test_a_node_whose_disk_is_full_ends_and_the_others_go_on(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with memory_group(tmp_path, rounds=8) as group:
            disk = group.disks["node-2"] = FillingDisk()
            await group.start(*FOUR)
            await group.until(group.all_at(1))
            full = group.nodes.pop("node-2")
            disk.is_full = True
            await full.ended()
            assert isinstance(full.error, StorageError)
            assert full.state.state == "failed"
            await full.stop()
            await group.until(group.all_at(8))

            assert len(group.models()) == 1

    asyncio.run(scenario())


def test_a_folder_has_one_node_at_a_time(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with memory_group(tmp_path) as group:
            await group.start("node-0", "node-1", "node-2")
            with pytest.raises(InUseError):
                await group.make("node-0").start()
            group.nodes.pop("node-0")

    asyncio.run(scenario())


def test_a_journal_that_is_damaged_in_its_middle_is_not_voted_with(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with memory_group(tmp_path) as group:
            await group.start(*FOUR[:3])
            await group.until(group.all_at(2))
            await group.kill("node-0")
            path = tmp_path / "node-0" / "journal"
            content = bytearray(path.read_bytes())
            content[len(content) // 2] ^= 1
            path.write_bytes(content)
            with pytest.raises(JournalError):
                await group.start("node-0")
            await group.kill("node-0")

    asyncio.run(scenario())


def test_a_rule_that_needs_more_members_says_so_at_the_start(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with memory_group(tmp_path, rule="Bulyan", malicious=1) as group:
            with pytest.raises(NodeError, match="needs"):
                await group.start("node-0", "node-1")

    asyncio.run(scenario())


def test_a_contact_that_cannot_be_used_comes_on_no_roster(tmp_path: Path) -> None:
    """It would be agreed on, and no node could read its journal again."""

    async def scenario() -> None:
        async with memory_group(tmp_path, rounds=1000) as group:
            await group.start(*FOUR)
            await group.until(group.all_at(2))
            lie = Entry(10**6, "0" * 64, 5, Ballot(9, 9), (Member("a", "nowhere"),), (), ())
            group.transports["node-3"].talk("node-0", codec.encode(Welcome(lie)))
            await group.until(
                lambda: any(
                    isinstance(each, events.PeerNotice) and each.kind == "refused"
                    for each in group.told["node-0"]
                )
            )
            reached = group.nodes["node-0"].state.round_number
            await group.until(group.all_at(reached + 2))

    asyncio.run(scenario())


def test_a_node_that_misses_a_neighbour_says_so(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with memory_group(tmp_path, rounds=1000) as group:
            await group.start(*FOUR)
            await group.until(group.all_at(2))
            await group.kill("node-3")
            said = (
                "⚠️ Node shortage detected at node-0: 2 neighbors, expected 3. Waiting 10 seconds..."
            )
            await group.until(lambda: events.Notice("WARNING", said) in group.told["node-0"])

    asyncio.run(scenario())


class Miser(MemoryTransport):
    """Says that it has an update, and gives it to nobody."""

    def carry(self, to: NodeId, item: Item, content: bytes) -> None:
        if not isinstance(item, Slice):
            super().carry(to, item, content)


@pytest.mark.parametrize("rule", ["FedAvg", "Krum"])
def test_a_member_that_keeps_its_update_for_itself_is_left_out(rule: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        network = MemoryNetwork()
        group = Group(
            tmp_path,
            aggregate.rule(rule),
            rounds=2,
            make_transport=lambda name: (
                lambda *_: (Miser if name == "node-3" else MemoryTransport)(name, network)
            ),
            address=lambda name: f"{name}:1",
        )
        try:
            await group.start(*FOUR)
            await group.until(group.all_at(2))
            assert len(group.models()) == 1
            assert group.contributors()[0] == list(FOUR[:3])
        finally:
            for node in group.nodes.values():
                await node.stop()

    asyncio.run(scenario())
