"""Groups without a coordinator: a process for each node, real connections, kill -9."""

from __future__ import annotations

import asyncio
import functools
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message
from tests.integration.conftest import LIMIT_S, ONEFED, Home

from onefed import aggregate, arrays
from onefed.apps.image_classification import client_app, task
from onefed.errors import ExitCode
from onefed.flower import payload, peer_app, virtual
from onefed.local import peer_group
from onefed.local.peer_group import GroupRun
from onefed.local.peer_spec import PeerGroup, PeerSpec, free_addresses, group
from onefed.node.checkpoints.file import Kind
from onefed.node.checkpoints.folder import Folder
from onefed.peer import journal
from onefed.peer.messages import Eviction
from onefed.telemetry import events
from onefed.telemetry.lines import Record

pytestmark = [pytest.mark.peer, pytest.mark.timeout(300)]

SEED = 7


A1_LINES = (
    "💥💥💥 All nodes completed round 2. Failing nodes ['node-0'] before round 3 starts 💥💥💥",
    "🔄🔄🔄 All nodes completed round 3. Recovering nodes ['node-0'] before round 4 starts 🔄🔄🔄",
    "✅ Node node-0 restarted.",
    "🚀 Started learning workflow for node-0 to participate in round 4 training.",
)
"""What ``onefed peer up`` says, in this order."""


def by_the_hub(contributors: Sequence[Sequence[str]], nodes: int) -> str:
    """``model_sha256`` that the hub engine's grid, app and rule give of the same contributors."""
    config = {"seed": SEED, "local-epochs": 1}
    grid = virtual.VirtualGrid()
    ids = {
        f"node-{index}": grid.add(
            str(index),
            virtual.node(
                client_app.app, partition_id=index, num_partitions=nodes, run_config=config
            ),
        )
        for index in range(nodes)
    }
    rule = aggregate.rule("FedAvg")
    model = dict(task.initial_arrays({"seed": SEED}))
    state = rule.init(model)
    for number, names in enumerate(contributors, start=1):
        updates = []
        for name in names:
            record = payload.to_record(model)
            message: Message = payload.train_message(
                ids[name], record, round_number=number, seed=SEED
            )
            [reply] = grid.send_and_receive([message])
            content = reply.content
            examples = int(content.metric_records["metrics"]["num-examples"])  # type: ignore[arg-type]
            trained = payload.to_arrays(content.array_records["arrays"])
            updates.append(aggregate.Update(name.removeprefix("node-"), examples, trained))
        state, model = rule.step(state, model, updates, number)
    return arrays.digest(model)


def recorded(summary: dict[str, Any]) -> list[list[str]]:
    """Contributors by round."""
    return [summary["contributors"][str(number + 1)] for number in range(summary["rounds_done"])]


@pytest.mark.parametrize("protocol", ["grpc", "memory"])
def test_a_node_that_is_killed_comes_back_from_its_disk(
    protocol: str, home: Home, tmp_path: Path
) -> None:
    """Scenario A1: the example of the design, with its spelling of the options."""
    said = home.run(
        *("peer", "up", "--nodes", "4", "--rounds", "6", "--epochs", "1", "--seed", str(SEED)),
        *("--failure_round", "2", "--recovery_round", "4", "--failure_nodes", "node-0"),
        *("--protocol", protocol, "--summary", str(tmp_path / "summary.json")),
    )

    order = [said.index(line) for line in A1_LINES]
    assert order == sorted(order)
    if protocol == "grpc":  # else it is back before anybody misses it
        assert "Node shortage detected at node-1: 2 neighbors, expected 3. Waiting 10 s" in said
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["status"], summary["rounds_done"], summary["restarts"]) == ("finished", 6, 1)
    assert {node["rounds"] for node in summary["nodes"].values()} == {6}
    assert {node["state"] for node in summary["nodes"].values()} == {"finished"}
    assert "node-0" not in summary["contributors"]["3"]
    assert "node-0" in summary["contributors"]["4"]
    [model] = {node["model_sha256"] for node in summary["nodes"].values()}
    assert summary["model_sha256"] == model == by_the_hub(recorded(summary), 4)
    assert summary["accuracy"] > 0.85
    with np.load(summary["checkpoint"], allow_pickle=False) as saved:
        arrays_saved = {key: saved[key] for key in task.initial_arrays({"seed": SEED})}
    assert arrays.digest(arrays_saved) == model
    assert "finished" in home.run("peer", "status")


def test_processes_that_are_not_all_connected_train_the_same_model(
    home: Home, tmp_path: Path
) -> None:
    """Rings and stars are in ``test_peer_recovery``, with a member that is killed."""
    home.run(
        *("peer", "up", "--nodes", "4", "--rounds", "3", "--seed", str(SEED), "--epochs", "1"),
        *("--topology", "line", "--summary", str(tmp_path / "summary.json")),
    )

    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["status"], summary["rounds_done"]) == ("finished", 3)
    assert summary["model_sha256"] == by_the_hub(recorded(summary), 4)
    assert {len(names) for names in recorded(summary)} == {4}


class Watched:
    """A group whose parent is this test."""

    def __init__(self, folder: Path, *, nodes: int, rounds: int) -> None:
        self.leaders: dict[int, str] = {}
        """By term."""
        self.rounds: list[tuple[float, int]] = []
        """When the first node had each new round, monotonic seconds."""
        place = group(folder, "watched")
        names = [f"node-{index}" for index in range(nodes)]
        spec = PeerSpec(
            name="watched",
            addresses=dict(zip(names, free_addresses(nodes), strict=True)),
            rounds=rounds,
            epochs=1,
            seed=SEED,
            strategy="FedAvg",
            app="image-classification",
            run_config={"strategy": "FedAvg", "seed": SEED},
        )
        place.write(spec, peer_app.pack(None, "image-classification"))
        self.place, self.spec = place, spec
        self.run = GroupRun(
            place,
            spec,
            environ=os.environ,
            clock=time.monotonic,
            say=lambda _: None,
            show=self.show,
        )

    def show(self, records: Sequence[Record]) -> None:
        for record in records:
            if isinstance(record.event, events.PeerNotice) and record.event.kind == "leader":
                name, _, term = record.event.detail.partition(" leads term ")
                self.leaders[int(term)] = name
            if isinstance(record.event, events.PeerRound) and record.event.round > self.reached:
                self.rounds.append((time.monotonic(), record.event.round))

    @property
    def reached(self) -> int:
        return self.rounds[-1][1] if self.rounds else 0

    @property
    def leader(self) -> str:
        return self.leaders[max(self.leaders)]


@pytest.mark.parametrize("strategy", ["FedAvg", "FedAdam"])
def test_a_group_ends_with_the_model_of_a_federation_with_a_coordinator(
    strategy: str, home: Home, tmp_path: Path
) -> None:
    """One app, two topologies, the same bits: both with real processes and connections."""
    size = ("--nodes", "3", "--rounds", "2", "--seed", str(SEED), "--epochs", "1")
    by_peers = (
        *("peer", "up", *size, "--strategy", strategy),
        *("--summary", str(tmp_path / "peers.json")),
    )
    federation = home.start(
        *("up", "--name", "hub", "--nodes", "3", "--rounds", "2", "--seed", str(SEED)),
        *("--set", "local-epochs=1", "--strategy", strategy),
    )
    home.run(*by_peers)

    peers = json.loads((tmp_path / "peers.json").read_text())
    hub = federation.finish()
    assert (peers["rounds_done"], hub["rounds_done"]) == (2, 2)
    assert recorded(peers) == [["node-0", "node-1", "node-2"]] * 2
    assert peers["model_sha256"] == hub["model_sha256"]
    assert {node["model_sha256"] for node in peers["nodes"].values()} == {hub["model_sha256"]}


def test_the_leader_is_killed_and_the_others_go_on_without_it(tmp_path: Path) -> None:
    rounds = 16

    async def scenario() -> peer_group.Outcome:
        watched = Watched(tmp_path, nodes=4, rounds=rounds)
        run = watched.run

        async def faults() -> None:
            await run.until(lambda: watched.reached >= 2)
            killed, term = watched.leader, max(watched.leaders)
            await run.kill(killed)
            killed_at = watched.reached
            await run.until(
                lambda: max(watched.leaders) > term and watched.reached >= killed_at + 2
            )
            assert watched.leader != killed
            assert run.views[killed].round_number <= killed_at + 1
            await run.start(killed)

        ended = asyncio.ensure_future(run.run())
        await asyncio.sleep(0)  # it has begun to start the processes
        await run.until(lambda: watched.reached >= 1)
        try:
            await faults()
        finally:
            outcome = await ended
        document = peer_group.summary(watched.place, watched.spec, outcome)
        assert document["model_sha256"] == by_the_hub(recorded(document), 4)
        return outcome

    outcome = asyncio.run(scenario())

    assert outcome.error is None
    assert outcome.status == "finished"
    assert {view.round_number for view in outcome.nodes.values()} == {rounds}
    assert len({view.model_sha256 for view in outcome.nodes.values()}) == 1


def evictions(place: PeerGroup, name: str) -> tuple[Eviction, ...]:
    """What stands in the journal of a node that has ended."""
    content = (place.node(name) / "journal").read_bytes()
    return journal.replay(content, name, place.folder.name).saved.commit.evictions


@pytest.mark.parametrize("who", ["leader", "followers"])
def test_two_of_four_are_lost_at_once_and_the_operator_goes_on(
    who: str, home: Home, tmp_path: Path
) -> None:
    """Scenario A11: no quorum, then an unsafe eviction, which stands in the history."""

    async def scenario() -> None:
        watched = Watched(home.folder, nodes=4, rounds=1000)
        run, place = watched.run, watched.place
        evict = functools.partial(asyncio.to_thread, home.run, "peer", "evict", "--name", "watched")
        ended = asyncio.ensure_future(run.run())
        await asyncio.sleep(0)
        try:
            await run.until(lambda: watched.reached >= 2)
            order = sorted(watched.spec.addresses, key=lambda name: name != watched.leader)
            lost, left = (order[:2], order[2:]) if who == "leader" else (order[2:], order[:2])
            await evict(lost[0], "--unsafe", code=ExitCode.CONFIG)  # it is alive
            for name in lost:
                await run.kill(name)
            await run.until(
                lambda: all(place.states()[name]["state"] == "no quorum" for name in left)
            )
            reached = watched.reached
            await evict(*lost, code=ExitCode.CONFIG)  # it is unsafe, and nobody said so
            assert "went on without" in await evict(*lost, "--unsafe")
            await run.until(
                lambda: all(run.views[name].round_number > reached + 2 for name in left)
            )
        finally:
            run.stop()
            outcome = await ended
        assert outcome.error is None
        assert f"took off {', '.join(sorted(lost))}" in await asyncio.to_thread(
            home.run, "peer", "status", "--name", "watched"
        )
        assert [each["nodes"] for each in peer_group.evictions(place)] == [sorted(lost)]
        assert len({outcome.nodes[name].models[reached + 2] for name in left}) == 1
        assert outcome.view.rounds[reached + 2].contributors == tuple(sorted(left))
        for name in left:
            [decision] = evictions(place, name)
            assert decision.nodes == tuple(sorted(lost))
            assert decision.round_number in (reached, reached + 1)

    asyncio.run(scenario())


def test_two_of_four_are_lost_one_after_the_other_and_nobody_has_to_decide(home: Home) -> None:
    """Scenario A11, the other way: each is taken off by a commit before the next one fails. Of two
    one can leave; were it killed, no majority would be left."""

    async def scenario() -> None:
        watched = Watched(home.folder, nodes=4, rounds=1000)
        run, place = watched.run, watched.place
        ended = asyncio.ensure_future(run.run())
        await asyncio.sleep(0)
        try:
            await run.until(lambda: watched.reached >= 1)
            for left in (3, 2):
                lost = watched.leader
                await run.kill(lost)
                await asyncio.to_thread(home.run, "peer", "leave", lost, "--name", "watched")
                living = [name for name in run.views if name not in run.killed]
                assert len(living) == left
                assert {len(place.states()[name]["voters"]) for name in living} == {left}
            both = watched.reached
            await run.until(lambda: watched.reached >= both + 2)
            await asyncio.to_thread(home.run, "peer", "leave", living[0], "--name", "watched")
            alone = watched.reached
            await run.until(lambda: run.views[living[1]].round_number >= alone + 2)
            assert place.states()[living[1]]["voters"] == [living[1]]
        finally:
            run.stop()
            outcome = await ended
        assert len({outcome.nodes[name].models[both] for name in living}) == 1
        assert outcome.view.rounds[alone + 2].contributors == (living[1],)
        assert outcome.error is None

    asyncio.run(scenario())


def test_a_group_that_was_stopped_goes_on(home: Home, tmp_path: Path) -> None:
    started = home.start(
        *("peer", "up", "--nodes", "3", "--rounds", "8", "--seed", str(SEED), "--epochs", "1"),
        *("--protocol", "memory"),
    )
    started.wait_for(lambda line: line["event"] == "peer_round" and line["data"]["round"] == 3)
    started.process.send_signal(signal.SIGINT)
    assert started.process.wait(LIMIT_S) == ExitCode.INTERRUPTED
    home.run("peer", "resume", "--summary", str(tmp_path / "summary.json"))

    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["status"], summary["rounds_done"]) == ("finished", 8)
    assert summary["model_sha256"] == by_the_hub(recorded(summary), 3)


def test_the_others_finish_all_rounds_without_a_node_that_stays_away(
    home: Home, tmp_path: Path
) -> None:
    """Scenario A10."""
    home.run(
        *("peer", "up", "--nodes", "4", "--rounds", "4", "--seed", str(SEED), "--epochs", "1"),
        *("--failure-round", "2", "--failure-nodes", "node-0", "--keep-checkpoints", "1"),
        *("--summary", str(tmp_path / "summary.json")),
    )

    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["status"], summary["rounds_done"]) == ("finished", 4)
    others = ("node-1", "node-2", "node-3")
    assert summary["nodes"]["node-0"]["state"] == "killed"
    assert [summary["nodes"][name]["rounds"] for name in others] == [4, 4, 4]
    assert len({summary["nodes"][name]["model_sha256"] for name in others}) == 1
    assert recorded(summary)[2:] == [list(others)] * 2
    assert summary["model_sha256"] == by_the_hub(recorded(summary), 4)
    place = group(home.folder, "peers")
    kept = Folder(place.node("node-1") / "checkpoints", "peers", "node-1").rounds("node-1")
    assert kept == [4]


def test_a_node_that_lost_its_disk_joins_and_leaves_a_group_that_trains(home: Home) -> None:
    """Scenario A5: under another name, with what others have kept of it."""
    started = home.start(
        *("peer", "up", "--nodes", "4", "--rounds", "10000", "--seed", str(SEED)),
        *("--failure-round", "3", "--failure-nodes", "node-0"),
        *("--remote-checkpoint-interval", "2", "--keep-checkpoints", "2"),
    )
    started.wait_for(lambda line: line["event"] == "peer_round" and line["data"]["round"] == 5)
    place = group(home.folder, "peers")
    lost = Folder(place.node("node-0") / "checkpoints", "peers", "node-0")
    own = lost.read("node-0", 2, Kind.LOCAL)
    shutil.rmtree(place.node("node-0"))
    joins = subprocess.Popen(
        [ONEFED, "peer", "join", "r1-node-0"],
        env=home.environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        started.wait_for(
            lambda line: (
                line["event"] == "peer_round" and "r1-node-0" in line["data"]["contributors"]
            )
        )
        kept = [
            Folder(place.node(name) / "checkpoints", "peers", name).read("node-0", 2, Kind.REMOTE)
            for name in ("node-1", "node-2", "r1-node-0")
        ]
        assert {each.digest for each in kept} == {own.digest}
        assert "off the roster" in home.run("peer", "leave", "r1-node-0")
        assert not (place.members / "r1-node-0").exists()
        without = "node-1,node-2,node-3"
        started.wait_for(
            lambda line: line["event"] == "peer_round" and line["data"]["contributors"] == without
        )
        rounds = [line["data"] for line in started.lines if line["event"] == "peer_round"]
        models = {(each["round"], each["model_sha256"]) for each in rounds}
        assert len(models) == len({each["round"] for each in rounds})
    finally:
        started.process.send_signal(signal.SIGINT)
        joins.terminate()
        joins.communicate(timeout=LIMIT_S)
        started.process.communicate(timeout=LIMIT_S)
    assert started.process.returncode == ExitCode.INTERRUPTED
