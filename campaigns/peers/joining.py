"""Cells of a node that joins a group which trains, and is killed at each stage of its first round.

Each cell has a newcomer of its own. When it is over the newcomer stays away, and the others take it
off their roster; else a few cells later most of the voters would be dead.
"""

from __future__ import annotations

from collections.abc import Callable

from campaigns.peers import node as toy
from campaigns.peers import steps
from campaigns.peers.group import Group
from campaigns.peers.steps import Line
from onefed.peer import journal

EVICT_AFTER_ROUNDS = 10
OPTIONS = ("--evict-after-rounds", str(EVICT_AFTER_ROUNDS))
"""Of every node."""


def kill(point: str) -> Callable[[Group], Line]:
    """Kill -9 of a newcomer where it passes a point for the first time; then it joins all the
    same."""

    def run(group: Group) -> Line:
        newcomer = f"node-{len(group.views)}"
        group.points(newcomer).mkdir()
        group.hold(newcomer, point)
        began = group.reached
        group.start(newcomer)
        group.wait_for(f"{newcomer} to pass {point}", lambda: group.held(newcomer))
        before = group.reached - began
        line = steps.kill_held(group, newcomer)
        line["said"] = f"{before} rounds until it was there; {line['said']}"
        group.retire(newcomer)
        group.wait_for("it to be taken off the roster", lambda: newcomer not in voters(group))
        return {**line, "goal_s": 2.0}

    return run


def voters(group: Group) -> list[str]:
    """By the newest commit that stands in the leader's journal."""
    name = group.leader
    content = (group.disk(name) / "journal").read_bytes()
    roster = journal.replay(content, name, toy.EXPERIMENT).saved.commit.roster
    return [member.node for member in roster]
