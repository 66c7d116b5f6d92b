"""The table of faults on real processes, and how each is carried out.

Cells of one world (loopback, a network of namespaces, wall clocks that can be stepped) share a
group, one after the other: each begins with all nodes level and ends so.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from campaigns.peers import hostile, joining, net, steps
from campaigns.peers import node as toy
from campaigns.peers.group import FAKETIME, BrokenError, Group
from campaigns.peers.steps import Line
from onefed.node import contact
from onefed.node.checkpoints import Folder, Kind
from onefed.node.grpc_transport import CONNECTIONS_MAX
from onefed.node.points import FOLLOWERS_ONLY, LEADERS_ONLY, POINTS

NODES = 4
PAUSE_S = 10.0
PARTED_S = 6.0
LOSS_PERCENT = 5
LOSS_S = 20.0
STEP_S = 3600
HOSTILE_S = 6.0
KNOCKS = 10_000
KNOCKS_TOGETHER = 100
DISK_BYTES = 4 * 2**20
MEMORY_GROWTH_MAX = 64 * 2**20
"""Of a node that is sent nonsense."""
DESCRIPTORS_MAX = 2 * CONNECTIONS_MAX
UP_ROUNDS = 3
"""Undisturbed rounds between two cells."""

WORLDS = ("kills", "joins", "pauses", "disks", "network", "clocks", "nonsense")
KILLS, JOINS, PAUSES, DISKS, NETWORK, CLOCKS, NONSENSE = WORLDS


@dataclass(frozen=True)
class Cell:
    """One thing to try."""

    world: str
    what: str
    """For people, and unique."""
    run: Callable[[Group], Line]


def matrix() -> list[Cell]:
    """Every cell."""
    cells = []
    for point in POINTS:
        for role, not_its in (("leader", FOLLOWERS_ONLY), ("follower", LEADERS_ONLY)):
            if point not in not_its:
                cells.append(Cell(KILLS, f"kill -9 of the {role}: {point}", _kill(role, point)))
    cells += [
        Cell(KILLS, f"kill -9 of all, one of them: {point}", _kill_all(point))
        for point in ("trained", "accepted", "committed", "announced")
    ]
    cells.append(Cell(KILLS, "kill -9 of two, one restarted after 4 s", _kill_two))
    cells += [
        Cell(JOINS, f"kill -9 of a joining node: {point}", joining.kill(point))
        for point in POINTS
        if point not in LEADERS_ONLY
    ]
    cells += [
        Cell(PAUSES, f"SIGSTOP of the {role} for {PAUSE_S:.0f} s", _pause(role))
        for role in ("leader", "follower")
    ]
    cells += [
        Cell(DISKS, f"disk of the {role} full", _disk_full(role)) for role in ("leader", "follower")
    ]
    cells.append(Cell(DISKS, "disk of a follower wiped", _wipe))
    cells += [
        Cell(
            NETWORK, "partition 3|1, the leader alone", _part(lambda g: [[g.leader], g.followers])
        ),
        Cell(
            NETWORK,
            "partition 3|1, a follower alone",
            _part(lambda g: [g.followers[:1], [g.leader, *g.followers[1:]]]),
        ),
        Cell(
            NETWORK,
            "partition 2|2",
            _part(lambda g: [[g.leader, g.followers[0]], g.followers[1:]], even=True),
        ),
        Cell(NETWORK, "one-way: the leader hears nobody", _deaf(lambda g: {g.leader: g.followers})),
        Cell(
            NETWORK,
            "one-way: a follower hears nobody",
            _deaf(lambda g: {g.followers[0]: [g.leader, *g.followers[1:]]}),
        ),
        Cell(
            NETWORK,
            "one-way: nobody hears the leader",
            _deaf(lambda g: {name: [g.leader] for name in g.followers}),
        ),
        Cell(
            NETWORK,
            "one-way: a follower does not hear another",
            _deaf(lambda g: {g.followers[0]: [g.followers[1]]}),
        ),
        Cell(NETWORK, f"loss of {LOSS_PERCENT} % for {LOSS_S:.0f} s", _loss),
    ]
    cells += [
        Cell(CLOCKS, "clock of the leader an hour on", _step_clock(lambda g: [g.leader], STEP_S)),
        Cell(CLOCKS, "clock of a follower an hour back", _step_clock(_a_follower, -STEP_S)),
        Cell(CLOCKS, "clocks of all an hour on", _step_clock(lambda g: g.names, STEP_S)),
    ]
    cells += [
        Cell(NONSENSE, f"a member that sends {kind} frames", _lie(kind)) for kind in hostile.KINDS
    ]
    cells.append(Cell(NONSENSE, "a peer with a foreign certificate", _foreign))
    cells.append(Cell(NONSENSE, f"{KNOCKS:,} connections of a stranger to the leader", _knock))
    return cells


def missing(world: str) -> str | None:
    """What keeps this machine from running the cells of a world; None: nothing."""
    if world in (DISKS, NETWORK):
        return net.missing()
    if world == CLOCKS and not FAKETIME.exists():
        return "without libfaketime"
    return None


@contextmanager
def group_of(world: str) -> Iterator[Group]:
    """A group that trains, for the cells of a world."""
    names = [f"node-{index}" for index in range(NODES)]
    network = net.Network(names) if world == NETWORK else None
    try:
        with Group(
            NODES,
            network=network,
            clocks=world == CLOCKS,
            record=names[-1] if world == NONSENSE else None,
            options=joining.OPTIONS if world == JOINS else (),
        ) as group:
            yield group
    finally:
        if network is not None:
            network.close()


def settle(group: Group) -> Line:
    """Wait until all are level and have trained a few rounds together; nobody has died.

    Returns:
        Who lives, and the model that all of them have.

    Raises:
        BrokenError: it is not one model.
    """
    group.require_nobody_died()
    began = group.reached
    group.wait_for(
        "an undisturbed round of all",
        lambda: (
            group.reached >= began + UP_ROUNDS
            and group.all_at(began + UP_ROUNDS)
            and len(group.round(group.reached).contributors.split(",")) == len(group.living)
        ),
    )
    number = max(set.intersection(*(set(group.views[name].rounds) for name in group.living)))
    models = {group.views[name].rounds[number].model_sha256 for name in group.living}
    if len(models) != 1:
        raise BrokenError(f"{len(models)} models of round {number} among the living")
    return {"round": number, "living": len(group.living), "model_sha256": models.pop()}


# --- kills ---------------------------------------------------------------------------------------


def _kill(role: str, point: str) -> Callable[[Group], Line]:
    def run(group: Group) -> Line:
        victim = steps.who(group, role)
        steps.hold(group, victim, point)
        return {**steps.kill_held(group, victim), "goal_s": 2.0}

    return run


def _kill_all(point: str) -> Callable[[Group], Line]:
    def run(group: Group) -> Line:
        steps.hold(group, group.leader, point)
        number, terms = group.reached, len(group.leaders)
        group.kill(*group.living)
        began_s = time.monotonic()
        again_s = steps.come_back(group, *group.names)
        gap_s = group.first_at[number + 1] - began_s
        return {"gap_s": gap_s, "again_s": again_s, "said": steps.story(group, number, terms)}

    return run


def _kill_two(group: Group) -> Line:
    victims = group.followers[:2]
    group.kill(*victims)
    group.watch(1.0)  # what was decided already is told
    number = group.reached
    group.watch(3.0)
    without = group.reached - number
    number = group.reached
    group.release(victims[0])
    group.start(victims[0])
    gap_s = steps.next_round(group, number)
    again_s = steps.come_back(group, victims[1])
    return {
        "gap_s": gap_s,
        "again_s": again_s,
        "said": f"{without} rounds without a majority",
        "wrong": without > 0,
    }


def _pause(role: str) -> Callable[[Group], Line]:
    def run(group: Group) -> Line:
        victim = steps.who(group, role)
        group.signal(victim, signal.SIGSTOP)
        began_s, number = time.monotonic(), group.reached
        try:
            gap_s = steps.next_round(group, number)
            group.watch(began_s + PAUSE_S - time.monotonic())
        finally:
            group.signal(victim, signal.SIGCONT)
        went_on = group.reached - number
        again_s = steps.level(group, victim)
        said = f"{went_on} rounds without it"
        return {"gap_s": gap_s, "again_s": again_s, "said": said, "goal_s": 5.0}

    return run


# --- disks ---------------------------------------------------------------------------------------


def _wipe(group: Group) -> Line:
    victim = group.followers[0]
    group.wait_for("others to keep something of it", lambda: _is_kept(group, victim))
    group.kill(victim)
    number = group.reached
    gap_s = steps.next_round(group, number)
    shutil.rmtree(group.disk(victim))
    newcomer = contact.successor(victim, group.names)
    again_s = steps.come_back(group, newcomer)
    group.names.remove(victim)
    kept = Folder(group.disk(newcomer) / "checkpoints", toy.EXPERIMENT, newcomer)
    restored = kept.newest(victim, kinds=(Kind.REMOTE,))
    said = f"it comes back as {newcomer}, with what others kept of it: " + (
        "nothing" if restored is None else f"round {restored.about.round_number} of {number}"
    )
    return {"gap_s": gap_s, "again_s": again_s, "said": said, "wrong": restored is None}


def _is_kept(group: Group, owner: str) -> bool:
    """Whether a node's checkpoint is on the disks of two others."""
    folders = [
        Folder(group.disk(name) / "checkpoints", toy.EXPERIMENT, name)
        for name in group.living
        if name != owner
    ]
    return sum(bool(folder.rounds(owner, Kind.REMOTE)) for folder in folders) >= 2


def _disk_full(role: str) -> Callable[[Group], Line]:
    def run(group: Group) -> Line:
        victim = steps.who(group, role)
        disk = group.disk(victim)
        group.kill(victim)
        kept = disk.with_name(f"{victim}.kept")
        disk.rename(kept)
        disk.mkdir()
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(disk)], check=True
        )
        try:
            shutil.copytree(kept, disk, dirs_exist_ok=True)
            steps.come_back(group, victim)
            if role == "leader":
                _make_leader(group, victim)
            ballast = disk / "ballast"
            _fill(ballast)
            group.wait_for(f"the end of {victim}", lambda: group.exit_code(victim) is not None)
            code = group.exit_code(victim)
            gap_s = steps.next_round(group, group.reached)
            ballast.unlink()
            again_s = steps.come_back(group, victim)
            group.kill(victim)
            shutil.rmtree(kept)
            shutil.copytree(disk, kept)
        finally:
            subprocess.run(["umount", str(disk)], check=True)
        disk.rmdir()
        kept.rename(disk)
        steps.come_back(group, victim)
        said = f"it ends with exit code {code}"
        return {"gap_s": gap_s, "again_s": again_s, "said": said, "wrong": code == 0}

    return run


def _make_leader(group: Group, name: str) -> None:
    """Kill leaders until it is one."""
    while group.leader != name:
        fallen = group.leader
        group.kill(fallen)
        group.wait_for("another leader", lambda fallen=fallen: group.leader != fallen)  # type: ignore[misc]
        steps.come_back(group, fallen)


def _fill(path: Any) -> None:
    with path.open("wb", buffering=0) as stream:
        size = 2**16
        while size:
            try:
                stream.write(bytes(size))
            except OSError:
                size //= 2


# --- network -------------------------------------------------------------------------------------


def _part(
    groups: Callable[[Group], list[list[str]]], *, even: bool = False
) -> Callable[[Group], Line]:
    def run(group: Group) -> Line:
        assert group.network is not None
        parts = groups(group)
        group.network.split(*parts)
        began_s, number = time.monotonic(), group.reached
        line: Line = {}
        if not even:
            line = {"gap_s": steps.next_round(group, number + 1), "goal_s": 5.0}
        group.watch(began_s + PARTED_S - time.monotonic())
        small = min(parts, key=len)
        went_on = group.reached - number
        behind = max(group.views[name].reached for name in small) - number
        group.network.heal()
        healed = group.reached
        if even:
            line = {"gap_s": steps.next_round(group, healed), "goal_s": 5.0}
        line["again_s"] = steps.level(group, *group.names)
        line["said"] = f"{went_on} rounds meanwhile, {behind} of them at the smaller side"
        line["wrong"] = behind > 1 or (even and went_on > 1)  # one may have been decided before
        return line

    return run


def _deaf(who: Callable[[Group], dict[str, list[str]]]) -> Callable[[Group], Line]:
    def run(group: Group) -> Line:
        assert group.network is not None
        for name, others in who(group).items():
            group.network.deafen(name, others)
        began_s, number = time.monotonic(), group.reached
        gap_s = steps.next_round(group, number + 1)
        group.watch(began_s + PARTED_S - time.monotonic())
        went_on = group.reached - number
        group.network.heal()
        again_s = steps.level(group, *group.names)
        said = f"{went_on} rounds meanwhile"
        return {"gap_s": gap_s, "again_s": again_s, "said": said, "goal_s": 5.0}

    return run


def _loss(group: Group) -> Line:
    assert group.network is not None
    number, terms = group.reached, len(group.leaders)
    group.network.lose(LOSS_PERCENT)
    gap_s = steps.next_round(group, number)
    group.watch(LOSS_S)
    went_on, elections = group.reached - number, len(group.leaders) - terms
    group.network.heal()
    again_s = steps.level(group, *group.names)
    said = f"{went_on} rounds meanwhile, {elections} elections"
    return {"gap_s": gap_s, "again_s": again_s, "said": said, "wrong": went_on < 2}


# --- clocks and nonsense -------------------------------------------------------------------------


def _a_follower(group: Group) -> list[str]:
    return group.followers[:1]


def _step_clock(who: Callable[[Group], Sequence[str]], seconds: int) -> Callable[[Group], Line]:
    def run(group: Group) -> Line:
        victims, terms = list(who(group)), len(group.leaders)
        number = group.reached
        for name in victims:
            group.step_clock(name, seconds)
        gap_s = steps.next_round(group, number)
        group.wait_for("ten rounds of all", lambda: group.all_at(number + 10))
        elections = len(group.leaders) - terms
        for name in victims:
            group.step_clock(name, 0)
        again_s = steps.level(group, *group.names)
        return {
            "gap_s": gap_s,
            "again_s": again_s,
            "said": f"{elections} elections",
            "wrong": elections > 0,
            "goal_s": 2.0,
        }

    return run


def _lie(kind: str) -> Callable[[Group], Line]:
    def run(group: Group) -> Line:
        liar = group.names[-1]
        line, told = _harass(
            group,
            *("campaigns.peers.hostile", "--kind", kind, "--frames", str(group.frames(liar))),
            *("--identity", str(group.disk(liar) / "identity")),
        )
        line["said"] = (
            f"{told['frames']} frames on {told['connections']} connections, "
            f"{told['cut_off']} of which were cut off; {line['said']}"
        )
        return line

    return run


def _foreign(group: Group) -> Line:
    liar, before = group.names[-1], _refusals(group)
    line, told = _harass(
        group, *("campaigns.peers.foreign", "--name", liar, "--address", group.address(liar))
    )
    taken = _refusals(group) - before  # what it sends is nonsense: had it come in, it were refused
    line["said"] = (
        f"{told['connections']} connections under a member's name, of which {taken} frames came "
        f"in; {told['heard']} requests to it in that member's place; {line['said']}"
    )
    line["wrong"] |= taken > 0 or told["heard"] > 0 or told["connections"] == 0
    return line


def _refusals(group: Group) -> int:
    """Frames that nodes have told to be none."""
    group.look()
    return sum(view.notices.count("refused") for view in group.views.values())


def _harass(group: Group, program: str, *arguments: str) -> tuple[Line, dict[str, int]]:
    """Run a program in the last member's place; what becomes of the others, and what it says."""
    liar = group.names[-1]
    group.kill(liar)
    number = group.reached
    gap_s = steps.next_round(group, number)
    number, before = group.reached, group.memory_bytes()
    done = subprocess.Popen(
        [
            *(sys.executable, "-m", program, *arguments),
            *("--members", str(group.folder / "members"), "--seconds", str(HOSTILE_S)),
        ],
        stdout=subprocess.PIPE,
    )
    try:
        group.wait_for("the end of the nonsense", lambda: done.poll() is not None)
    finally:
        done.kill()
    told: dict[str, int] = json.loads(done.communicate()[0])
    went_on = group.reached - number
    grown = max(after - before[name] for name, after in group.memory_bytes().items())
    line: Line = {
        "gap_s": gap_s,
        "again_s": steps.come_back(group, liar),
        "said": f"{went_on} rounds meanwhile; at most {max(grown, 0) / 2**20:.0f} MiB more memory",
        "wrong": went_on < 2 or grown > MEMORY_GROWTH_MAX,
    }
    return line, told


def _knock(group: Group) -> Line:
    victim = group.leader
    number, terms = group.reached, len(group.leaders)
    memory = group.memory_bytes()[victim]
    most, opened = 0, []
    try:
        for count in range(KNOCKS):
            with contextlib.suppress(OSError):  # it was closed at once
                opened.append(hostile.half_a_handshake(group.address(victim)))
            if count % KNOCKS_TOGETHER == 0:
                most = max(most, group.descriptors()[victim])
                group.look()
        gap_s = steps.next_round(group, group.reached)
        most = max(most, group.descriptors()[victim])
        grown = group.memory_bytes()[victim] - memory
    finally:
        for connection in opened:
            connection.close()
    went_on, elections = group.reached - number, len(group.leaders) - terms
    again_s = steps.level(group, *group.names)
    said = (
        f"{went_on} rounds meanwhile, {elections} elections; at most {most} descriptors and "
        f"{max(grown, 0) / 2**20:.0f} MiB more memory"
    )
    wrong = went_on < 2 or elections > 0 or grown > MEMORY_GROWTH_MAX or most > DESCRIPTORS_MAX
    return {"gap_s": gap_s, "again_s": again_s, "said": said, "wrong": wrong}
