"""Nodes that fail in the middle of a round: killed, or silent for good, with real connections.

The app is a toy, so that processes are up at once; everything else is the product's own.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))  # campaigns lie beside src

from campaigns.peers.group import STEP_LIMIT_S, Group

pytestmark = [pytest.mark.peer, pytest.mark.timeout(180)]

NEVER_S = 1000.0
"""Of a timeout for which nothing here may wait."""
DEADLINE_S = 2.0
"""Of a round, for those that have not trained. One takes 0.1 s or so."""


def without(group: Group, *absent: str) -> str:
    """Contributors of a round that all the others are in."""
    return ",".join(name for name in group.names if name not in absent)


def test_who_is_killed_while_a_round_is_aggregated_is_not_waited_for() -> None:
    """Scenario A2, at each stage of the aggregation: every timeout is longer than the test."""
    assert STEP_LIMIT_S < NEVER_S
    timeouts = ("--straggler-floor-s", "--straggler-cap-s", "--stall-s")
    options = [each for option in timeouts for each in (option, str(NEVER_S))]
    with Group(options=options) as group:
        for point in ("sliced", "reduced", "sharded"):
            victim = group.followers[0]
            group.hold(victim, point)
            group.wait_for(f"{victim} to pass {point}", lambda who=victim: group.held(who))  # type: ignore[misc]
            number = group.reached + 1  # it is being aggregated, with the victim's update
            group.kill(victim)
            group.wait_for("that round", lambda number=number: group.all_at(number))  # type: ignore[misc]

            assert group.round(number).contributors == without(group, victim)
            group.release(victim)
            group.start(victim)
            group.wait_for(
                "it to be back",
                lambda who=victim, number=number: group.contributes_after(who, number),  # type: ignore[misc]
            )
        group.require_nobody_died()
        group.require_reference()


def test_who_is_silent_but_a_member_is_waited_for_until_the_deadline_and_stays_one() -> None:
    """Scenario A3: its app hangs, then all of it does. Nobody takes it off the roster."""
    deadline = ("--straggler-floor-s", str(DEADLINE_S), "--straggler-cap-s", str(DEADLINE_S))
    with Group(options=deadline) as group:
        victim, *others = [*group.followers, group.leader]
        group.kill(victim)
        group.start(victim, "--train-s", str(NEVER_S))
        number = group.reached
        group.wait_for("it to follow", lambda: group.views[victim].reached > number + 1)
        number = group.reached
        group.wait_for("rounds that it was waited for", lambda: group.all_at(number + 2))

        for late in (number + 1, number + 2):
            assert group.round(late).contributors == without(group, victim)
            took_s = max(view.rounds[late].round_duration_seconds for view in group.views.values())
            assert took_s > DEADLINE_S / 2, "not without waiting"

        group.signal(victim, signal.SIGSTOP)
        number = group.reached
        group.wait_for("rounds without it", lambda: group.all_at(number + 3, others))
        assert group.round(number + 3).contributors == without(group, victim)

        group.kill(victim)
        group.start(victim)  # on its disk, under its name: it has been a member all the time
        number = group.reached
        group.wait_for("its updates", lambda: group.contributes_after(victim, number))
        group.require_nobody_died()
        group.require_reference()
