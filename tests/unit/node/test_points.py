"""Every named place is passed in a round, in its order, and a node that is held there can die."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from tests.unit.node.conftest import PACE, by_the_rule, memory_group

from onefed import aggregate, arrays
from onefed.node.points import FOLLOWERS_ONLY, LEADERS_ONLY, POINTS

FOUR = ("node-0", "node-1", "node-2", "node-3")

ORDER = (
    *("training", "trained", "sliced", "sharded", "assembled", "accepted"),
    *("committing", "committed"),
)
"""Of what each node does, whatever its role."""


class Passed:
    """Keeps which places a node has passed."""

    def __init__(self) -> None:
        self.places: list[tuple[str, int]] = []

    def __call__(self, point: str, number: int) -> None:
        self.places.append((point, number))


class HeldAt:
    """Holds whoever passes a place for the first time, until it is let go."""

    def __init__(self, point: str) -> None:
        self.point = point
        self.held = threading.Event()
        self.free = threading.Event()

    def __call__(self, point: str, number: int) -> None:
        if point == self.point and number >= 2 and not self.held.is_set():
            self.held.set()
            self.free.wait(30)


def test_every_place_is_passed_in_every_round(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with memory_group(tmp_path, rounds=3) as group:
            for name in FOUR:
                group.reached[name] = Passed()
            await group.start(*FOUR)
            await group.until(group.all_at(3))
            [leader] = {node.state.leader for node in group.nodes.values()}
            for name in FOUR:
                passed = group.reached[name]
                assert isinstance(passed, Passed)
                places = [point for point, number in passed.places if number == 2]
                barred = FOLLOWERS_ONLY if name == leader else LEADERS_ONLY
                assert set(places) == set(POINTS) - barred
                assert [point for point in places if point in ORDER] == list(ORDER)

    asyncio.run(scenario())


@pytest.mark.parametrize("point", ["sliced", "sharded"])
def test_who_is_killed_while_a_round_is_aggregated_is_not_waited_for(
    point: str, tmp_path: Path
) -> None:
    """Scenario A2: nothing here waits for a timeout, all of which are far longer than the test."""

    async def scenario() -> None:
        async with memory_group(tmp_path, rounds=3) as group:
            group.pace = replace(PACE, stall_s=1e3, straggler_floor_s=1e3, straggler_cap_s=1e3)
            held = group.reached["node-2"] = HeldAt(point)
            await group.start(*FOUR)
            await group.until(held.held.is_set)
            killing = asyncio.ensure_future(group.kill("node-2"))
            await asyncio.sleep(0)
            held.free.set()  # only its thread: the node is cancelled already
            await killing
            await group.until(group.all_at(3))

            assert group.contributors()[2] == ["node-0", "node-1", "node-3"]
            expected = by_the_rule(aggregate.rule("FedAvg"), group.contributors())
            assert group.models() == {arrays.digest(expected)}

    asyncio.run(scenario())


def test_who_is_silent_but_a_member_is_waited_for_until_the_deadline_and_stays_one(
    tmp_path: Path,
) -> None:
    """Scenario A3."""

    async def scenario() -> None:
        async with memory_group(tmp_path, rounds=2) as group:
            group.pace = replace(PACE, straggler_floor_s=0.3, straggler_cap_s=0.3)
            group.make("node-2")
            group.apps["node-2"].free.clear()
            await group.start(*FOUR)
            await group.until(group.all_at(2))

            assert group.contributors() == [["node-0", "node-1", "node-3"]] * 2
            assert "node-2" in group.nodes["node-0"].state.voters
            assert len(group.models()) == 1

    asyncio.run(scenario())
