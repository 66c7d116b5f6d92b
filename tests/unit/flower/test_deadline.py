"""The policy, on lists of reply times."""

from __future__ import annotations

import statistics

from hypothesis import given
from hypothesis import strategies as st

from onefed.flower import deadline
from onefed.flower.deadline import Deadline

FLOOR_S, CAP_S = 2.0, 100.0
SECONDS = st.floats(0, 1000)


def after(*seconds: float, floor_s: float = FLOOR_S) -> float:
    policy = Deadline(floor_s, CAP_S)
    for each in seconds:
        policy.observe(each)
    return policy.limit_s


def test_who_knows_nothing_waits_as_long_as_may_be() -> None:
    assert after() == after(1.0, 1.0, 1.0) == CAP_S


@given(st.lists(SECONDS, max_size=40))
def test_the_deadline_is_between_floor_and_cap(seconds: list[float]) -> None:
    assert FLOOR_S <= after(*seconds) <= CAP_S


@given(st.lists(st.floats(0.1, 50), min_size=deadline.REPLIES_MIN, max_size=40))
def test_at_least_half_of_the_replies_would_have_come_in_time(seconds: list[float]) -> None:
    assert after(*seconds) >= min(CAP_S, 1.59 * statistics.median(seconds))


@given(st.lists(st.floats(5, 6), min_size=5, max_size=20), st.data())
def test_a_minority_cannot_move_it_far(honest: list[float], data: st.DataObject) -> None:
    """Neither by answering at once nor by never answering."""
    hostile = data.draw(st.lists(SECONDS, max_size=(len(honest) - 1) // 2))

    assert 8 <= after(*honest, *hostile) <= 6 + deadline.SPREAD * 1.0


def test_it_grows_with_the_spread_of_the_replies() -> None:
    assert after(10, 10, 10, 10) == 16
    assert after(6, 8, 12, 14) == 10 + deadline.SPREAD * 3


def test_where_half_of_the_clients_are_too_slow_it_grows_until_they_come() -> None:
    policy = Deadline(FLOOR_S, CAP_S)
    for _ in range(4):
        policy.observe(1.0)
    rounds = 0
    while policy.limit_s < 30:
        limit_s = policy.limit_s
        policy.observe(1.0)
        policy.give_up(limit_s)
        policy.give_up(limit_s)
        rounds += 1
        assert rounds < 25

    assert policy.limit_s >= 30


def test_old_times_are_forgotten() -> None:
    assert after(*[90.0] * 600, *[1.0] * deadline.WINDOW) == FLOOR_S


def test_a_floor_above_the_cap_is_the_cap() -> None:
    assert after(*[1.0] * 10, floor_s=10 * CAP_S) == CAP_S
