"""Recovery of nodes that are processes, with real connections and disks, by their checkpoints.

The app is a toy, so that processes are up at once; everything else is the product's own.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))  # campaigns lie beside src

from campaigns.peers import node as toy
from campaigns.peers.group import Group

from onefed.errors import ExitCode
from onefed.node.checkpoints import file
from onefed.node.checkpoints.file import Kind
from onefed.node.checkpoints.folder import Folder
from onefed.peer.topology import Topology

pytestmark = [pytest.mark.peer, pytest.mark.timeout(180)]

INTERVAL = 2
NEWCOMER = "r1-node-9"


@pytest.fixture(scope="module")
def group() -> Iterator[Group]:
    """Four nodes that have all their checkpoints kept, and every other round by two others."""
    options = ("--remote-interval", str(INTERVAL), "--keep", "0")
    with Group(options=options) as started:
        yield started


def checkpoints(group: Group, name: str) -> Folder:
    return Folder(group.disk(name) / "checkpoints", toy.EXPERIMENT, name)


def keepers(group: Group, owner: str, number: int) -> list[str]:
    """Who has a remote checkpoint of a node on its disk."""
    return [
        name
        for name in group.founders
        if number in checkpoints(group, name).rounds(owner, Kind.REMOTE)
    ]


def spoil(group: Group, name: str, kinds: tuple[Kind, ...]) -> list[str]:
    """Damage the newest checkpoints of these kinds; the names of their files."""
    folder = checkpoints(group, name)
    own = (Kind.LOCAL, Kind.AGGREGATED, Kind.ROUND_FINISHED)
    number = max(set.intersection(*(set(folder.rounds(name, kind)) for kind in own)))
    paths = []
    for later in folder.rounds(name):
        for kind in Kind:
            path = file.place(folder.root, toy.EXPERIMENT, name, later, kind)
            if later > number:
                path.unlink(missing_ok=True)  # of a round of which one is missing
            elif later == number and kind in kinds:
                path.write_bytes(path.read_bytes()[:-7] + b"garbage")
                paths.append(path.name)
    return paths


def test_a_rule_that_needs_all_ends_with_an_error_and_goes_on_when_all_are_back() -> None:
    """Scenario A4."""
    with Group(nodes=3, options=("--together", "--straggler-cap-s", "1")) as group:
        lost = group.followers[0]
        group.kill(lost)
        others = [name for name in group.names if name != lost]
        group.wait_for("the end", lambda: all(group.exit_code(name) is not None for name in others))
        group.look()

        for name in others:
            assert group.exit_code(name) == ExitCode.FAILED
            assert f"none of {lost}" in group.views[name].errors[-1]
        reached = group.reached
        for name in group.names:
            group.start(name)
        group.wait_for("rounds of all", lambda: group.all_at(reached + 2))
        assert {group.round(n).contributors for n in range(1, group.reached + 1)} == {
            ",".join(group.names)
        }
        group.require_reference()


@pytest.mark.parametrize("topology", [Topology.RING, Topology.STAR])
def test_members_that_are_not_all_connected_go_on_without_one_of_them(topology: Topology) -> None:
    """A ring is a line then; a star has its hub."""
    with Group(options=("--topology", topology)) as group:
        lost = next(name for name in group.followers if name != group.founders[0])
        group.kill(lost)
        number = group.reached
        group.wait_for("rounds without it", lambda: group.all_at(number + 3))
        assert lost not in group.round(number + 3).contributors
        group.start(lost)
        number = group.reached
        group.wait_for("its updates", lambda: group.contributes_after(lost, number))
        group.wait_for("one more round", lambda n=group.reached: group.all_at(n + 1))  # type: ignore[misc]
        group.require_nobody_died()
        group.require_reference()


def test_every_second_round_is_on_the_disks_of_two_others_bit_by_bit(group: Group) -> None:
    """Scenarios A8 and A9: what is packed as a difference gives the owner's very checkpoint."""
    rounds = (2, 4, 6)
    group.wait_for(
        "remote checkpoints",
        lambda: all(
            len(keepers(group, owner, number)) == 2 for owner in group.founders for number in rounds
        ),
    )

    for owner in group.founders:
        own = checkpoints(group, owner)
        assert own.rounds(owner, Kind.REMOTE) == []
        for number in rounds:
            local = own.read(owner, number, Kind.LOCAL)
            for name in keepers(group, owner, number):
                remote = checkpoints(group, name).read(owner, number, Kind.REMOTE)
                assert (remote.digest, remote.about.base) == (local.digest, local.about.base)
                assert remote.about.base, "it can travel as a difference from that model"
        others = [name for name in group.founders if name != owner]
        kept = {n for name in others for n in checkpoints(group, name).rounds(owner, Kind.REMOTE)}
        assert {number % INTERVAL for number in kept} == {0}


def test_a_node_whose_checkpoints_are_deleted_gets_back_what_others_keep() -> None:
    """Scenario A5 to the letter: it has its journal, and so its name. ``test_peer`` has a node that
    lost all of its disk."""
    with Group(nodes=3, options=("--remote-interval", str(INTERVAL), "--keep", "0")) as group:
        victim = group.followers[0]
        group.wait_for("others to keep it", lambda: len(keepers(group, victim, 4)) == 2)
        group.kill(victim)
        own = checkpoints(group, victim)
        were = {n: own.read(victim, n, Kind.LOCAL) for n in own.rounds(victim, Kind.LOCAL)}
        shutil.rmtree(group.disk(victim) / "checkpoints")
        group.start(victim, "--rejoin", victim)
        view, number = group.views[victim], group.reached
        group.wait_for("its rejoin", lambda: view.rejoined)

        assert view.rejoined == ["True"]
        [restored] = own.rounds(victim, Kind.REMOTE)
        assert restored >= 4, "the newest that others have"
        assert own.read(victim, restored, Kind.REMOTE).digest == were[restored].digest
        group.wait_for("its updates", lambda: group.contributes_after(victim, number))
        group.require_nobody_died()
        group.require_reference()


def test_a_node_that_nobody_keeps_anything_of_starts_afresh_and_catches_up(group: Group) -> None:
    """Scenario A6, beside A7 in the same group: it looks for five seconds."""
    group.start(NEWCOMER, "--rejoin", "node-9")
    victim = group.followers[0]
    for kinds in ((Kind.LOCAL,), (Kind.LOCAL, Kind.AGGREGATED)):
        group.kill(victim)
        spoiled = spoil(group, victim, kinds)
        view = group.views[victim]
        view.warnings.clear()
        view.rejoined.clear()
        group.start(victim, "--rejoin", victim)
        group.wait_for(victim, lambda view=view: view.rejoined)  # type: ignore[misc]
        number = group.reached
        group.wait_for(victim, lambda n=number: group.contributes_after(victim, n))  # type: ignore[misc]

        assert view.rejoined == ["True"]
        unused = [each for each in view.warnings if each.startswith("A checkpoint is not used")]
        assert len(unused) == len(spoiled) == len(kinds)  # and the next kind was used
        for name, warning in zip(spoiled, unused, strict=True):
            assert name in warning

    group.wait_for("the newcomer", lambda: group.contributes_after(NEWCOMER, number))
    assert group.views[NEWCOMER].rejoined == ["False"]
    assert "not_restored" in group.views[NEWCOMER].notices
    group.wait_for("one more round of all", lambda n=group.reached: group.all_at(n + 1))  # type: ignore[misc]
    group.require_nobody_died()
    group.require_reference()
