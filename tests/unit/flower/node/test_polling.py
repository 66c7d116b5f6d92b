"""When a node asks, in virtual time: soon where a message is owed, rarely where none is."""

from __future__ import annotations

import random

import pytest

from onefed.flower.node import polling
from onefed.flower.node.polling import Polling


def asks(fleet_size: int, seconds: float, *, after_s: float = 0.0) -> int:
    """How often one node asks in so many seconds when nothing comes for it."""
    generator = random.Random(7)
    policy = Polling(fleet_size, now_s=0.0, random=generator.random)
    now_s, count = 0.0, 0
    while now_s < after_s + seconds:
        count += now_s >= after_s
        now_s += policy.empty(now_s)
    return count


@pytest.mark.parametrize("fleet_size", [1, 4, 30, 100, 200, 300, 500])
def test_an_idle_fleet_keeps_its_budget_with_everybodys_heartbeats(fleet_size: int) -> None:
    hour_s = 3600.0
    asked_per_s = fleet_size * asks(fleet_size, hour_s, after_s=polling.EAGER_FOR_MAX_S) / hour_s
    heartbeats_per_s = fleet_size / polling.HEARTBEAT_S
    if fleet_size <= 240:
        assert asked_per_s + heartbeats_per_s <= polling.IDLE_REQUESTS_PER_S_MAX
    else:  # the heartbeats alone are most of it
        assert asked_per_s <= 2 * polling.POLLS_PER_S_MIN


@pytest.mark.parametrize("fleet_size", [2, 30, 200])
def test_a_whole_fleet_that_waits_for_its_next_round_is_no_crowd(fleet_size: int) -> None:
    """A stock SuperLink answers about 100 requests a second."""
    policy = Polling(fleet_size, now_s=0.0, random=random.Random(1).random)
    policy.messaged("train", came_s=1.0, now_s=2.0)
    now_s, count = 2.0, 0
    while now_s < 12.0:
        count += 1
        now_s += policy.empty(now_s)
    assert fleet_size * count / 10.0 <= 60


def test_a_node_that_is_owed_a_message_asks_at_once_and_then_less_often() -> None:
    policy = Polling(3, now_s=0.0, random=lambda: 0.0)
    policy.messaged("train", came_s=1.0, now_s=2.0)
    pauses = [policy.empty(2.0) for _ in range(12)]
    assert pauses[0] <= 0.05
    assert pauses == sorted(pauses)
    assert pauses[-1] == polling.EAGER_MAX_S


def test_the_first_look_waits_for_what_is_usual_after_a_reply_of_that_kind() -> None:
    policy = Polling(3, now_s=0.0, random=lambda: 0.0)
    now_s, pauses = 0.0, []
    for kind, gap_s in [("train", 0.1), ("evaluate", 0.4)] * 3:
        policy.messaged(kind, came_s=now_s, now_s=now_s)
        pauses.append(policy.empty(now_s))
        assert policy.empty(now_s) <= 0.05, "then it looks often"
        now_s += gap_s
    assert pauses == pytest.approx([0.03, 0.03, 0.07, 0.28, 0.07, 0.28])
    policy.messaged("train", came_s=now_s + 30.0, now_s=now_s + 30.0)
    assert policy.empty(now_s + 30.0) <= 0.1, "a single long gap does not change it"


def test_however_long_the_gaps_are_it_looks_soon() -> None:
    policy = Polling(3, now_s=0.0, random=lambda: 0.0)
    for round_number in range(5):
        policy.messaged("train", came_s=60.0 * round_number, now_s=60.0 * round_number)
    assert policy.empty(300.0) == polling.USUAL_MAX_S


def test_it_gives_up_hope_after_a_few_usual_gaps() -> None:
    policy = Polling(3, now_s=0.0, random=lambda: 0.0)
    policy.messaged("train", came_s=20.0, now_s=30.0)  # the gap was 20 s
    assert policy.empty(30.0 + 59.0) <= polling.EAGER_MAX_S
    assert policy.empty(30.0 + 61.0) == polling.IDLE_MIN_S


def test_a_node_that_just_started_is_owed_a_message() -> None:
    policy = Polling(3, now_s=100.0, random=lambda: 0.0)
    assert policy.empty(101.0) == polling.EAGER_MAX_S


def test_no_two_nodes_keep_in_step() -> None:
    first, second = (Polling(3, now_s=0.0, random=random.Random(seed).random) for seed in (1, 2))
    assert [first.empty(900.0) for _ in range(3)] != [second.empty(900.0) for _ in range(3)]


def test_a_lost_superlink_is_looked_for_less_and_less_often_but_soon_enough() -> None:
    policy = Polling(3, now_s=0.0, random=lambda: 0.0)
    pauses = [policy.lost() for _ in range(8)]
    assert pauses[0] == polling.LOST_FIRST_S
    assert pauses[-1] == polling.LOST_MAX_S
    policy.empty(1.0)
    assert policy.lost() == polling.LOST_FIRST_S, "an answer ends it"
