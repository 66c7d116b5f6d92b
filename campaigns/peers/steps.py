"""What the cells of several worlds do to a group, and wait for."""

from __future__ import annotations

from typing import Any

from campaigns.peers.group import Group

Line = dict[str, Any]
"""What is noted of a cell."""


def who(group: Group, role: str) -> str:
    """The leader, or one that is not."""
    return group.leader if role == "leader" else group.followers[0]


def next_round(group: Group, number: int) -> float:
    """Seconds until anybody has a round after that one."""
    return group.wait_for("a committed round", lambda: group.reached > number)


def come_back(group: Group, *names: str) -> float:
    """Start nodes that were killed; seconds until all of them contribute."""
    number = group.reached
    for name in names:
        group.release(name)
        group.start(name)
    return group.wait_for(
        f"a contribution of {', '.join(names)}",
        lambda: all(group.contributes_after(name, number) for name in names),
    )


def hold(group: Group, victim: str, point: str) -> None:
    """Have a node wait at a point, and wait until it does."""
    group.hold(victim, point)
    group.wait_for(f"{victim} to pass {point}", lambda: group.held(victim))


def kill_held(group: Group, victim: str) -> Line:
    """Kill a node that waits at a point; what becomes of the others, and then of it."""
    number, terms = group.reached, len(group.leaders)
    group.kill(victim)
    gap_s = next_round(group, number)
    said = story(group, number, terms)
    return {"gap_s": gap_s, "again_s": come_back(group, victim), "said": said}


def story(group: Group, number: int, terms: int) -> str:
    """What came of the round after ``number``; ``terms`` is how many there had been."""
    found = group.round(number + 1)
    updates = len(found.contributors.split(","))
    return f"round {number + 1} has {updates} updates; {len(group.leaders) - terms} elections"


def level(group: Group, *names: str) -> float:
    """Seconds until all nodes have what the first one has now, and some contribute again."""
    number = group.reached
    return group.wait_for(
        "all to be level",
        lambda: (
            group.all_at(number) and all(group.contributes_after(name, number) for name in names)
        ),
    )
