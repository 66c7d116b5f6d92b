"""What a follower keeps and asks for while a round is agreed on."""

from __future__ import annotations

import pytest

from onefed.peer.interface import (
    Action,
    Drop,
    Event,
    Install,
    Notice,
    Received,
    Send,
    Started,
    Tick,
)
from onefed.peer.interface import Trained as TrainedEvent
from onefed.peer.leading import ACK_WAITS
from onefed.peer.machine import Machine
from onefed.peer.messages import (
    PROTOCOL_VERSION,
    Ack,
    Ballot,
    Contribution,
    Data,
    Entry,
    Heartbeat,
    Hello,
    Item,
    Member,
    Plan,
    Shard,
    Slice,
    Want,
    Welcome,
)
from onefed.peer.settings import Pace, Saved, Settings

NAMES = ("n0", "n1", "n2")
ROSTER = tuple(Member(name, "") for name in NAMES)
UPDATES = tuple(Contribution(name, 1, f"d-{name}", 12) for name in NAMES)
FIRST = Entry(0, "root", 12, Ballot(0, 0), ROSTER, (), ())
PLAN = Plan(Ballot(1, 1), 1, "root", UPDATES, NAMES, NAMES, ROSTER, "")
REPAIR_S = 0.5
BEAT_S = Pace().beat_s


class Follower:
    """n0, which follows n2."""

    def __init__(self) -> None:
        settings = Settings(
            member=ROSTER[0], experiment="test", rounds_total=9, repair_s=REPAIR_S, stall_s=60.0
        )
        self._machine = Machine(settings, Saved(FIRST, models=("root",)), jitter=lambda: 0.5)
        self.do(0.0, Started())

    @property
    def due_s(self) -> float:
        return self._machine.due_s

    def do(self, now_s: float, event: Event) -> list[Action]:
        return self._machine.step(now_s, event)

    def hear(self, now_s: float, item: Item) -> list[Action]:
        return self.do(now_s, Received("n1", Data(item)))

    def beat(self, now_s: float) -> None:
        self.do(now_s, Received("n2", Heartbeat(1, FIRST, PLAN)))


def wanted(actions: list[Action]) -> list[tuple[Item, str]]:
    return [
        (each.message.item, each.to)
        for each in actions
        if isinstance(each, Send) and isinstance(each.message, Want)
    ]


def test_a_node_starts_from_its_model() -> None:
    settings = Settings(member=ROSTER[0], experiment="test", rounds_total=9)
    machine = Machine(settings, Saved(FIRST, models=("root",)), jitter=lambda: 0.5)

    assert Install(FIRST) in machine.step(0.0, Started())


@pytest.mark.parametrize(
    ("round_number", "is_kept"), [(0, False), (1, True), (2, True), (3, False)]
)
def test_items_of_the_next_two_rounds_are_kept(round_number: int, is_kept: bool) -> None:
    """Others may know of a commit sooner and send what follows; they send it once."""
    for item in (
        Slice(round_number, "n1", "d-n1", 0, 3),
        Shard(round_number, Ballot(1, 1), 1),
    ):
        assert (Drop(item) not in Follower().hear(0.1, item)) is is_kept


def test_what_is_missing_is_asked_for_where_it_is_made_and_then_of_the_leader() -> None:
    follower = Follower()
    follower.do(0.1, TrainedEvent(1, "root", UPDATES[0]))
    follower.beat(0.2)
    shard = Shard(1, PLAN.ballot, 1)
    follower.do(0.6, Received("n1", Welcome(FIRST)))
    follower.beat(0.6)

    asked = wanted(follower.do(0.2 + REPAIR_S, Tick()))
    assert (shard, "n1") in asked
    follower.beat(1.0)
    assert (shard, "n2") in wanted(follower.do(0.2 + 2 * REPAIR_S, Tick()))


def test_nothing_is_asked_for_while_something_comes() -> None:
    follower = Follower()
    follower.do(0.1, TrainedEvent(1, "root", UPDATES[0]))
    follower.beat(0.2)
    follower.hear(0.6, Slice(1, "n1", "d-n1", 0, 3))
    follower.beat(0.65)

    assert wanted(follower.do(0.2 + REPAIR_S, Tick())) == []
    follower.beat(0.9)
    assert wanted(follower.do(0.6 + REPAIR_S, Tick())) != []


def acks(actions: list[Action]) -> list[Ack]:
    return [
        each.message for each in actions if isinstance(each, Send) and isinstance(each.message, Ack)
    ]


def test_news_are_told_at_once_and_a_heartbeat_without_any_is_answered_a_little_later() -> None:
    follower = Follower()
    heartbeat = Received("n2", Heartbeat(1, FIRST, None))
    assert acks(follower.do(0.1, heartbeat))  # it follows somebody now

    assert not acks(follower.do(0.11, heartbeat))
    late_s = 0.11 + BEAT_S / ACK_WAITS
    assert follower.due_s == late_s
    assert acks(follower.do(late_s, Tick()))

    assert not acks(follower.do(0.2, heartbeat))
    (told,) = acks(follower.do(0.21, TrainedEvent(1, "root", UPDATES[0])))
    assert told.ready == UPDATES[0]
    assert not acks(follower.do(0.2 + BEAT_S / ACK_WAITS, Tick()))  # all was told with that


def test_a_member_that_speaks_another_version_is_refused_and_told() -> None:
    follower = Follower()
    old = Hello(PROTOCOL_VERSION - 1, "test", 1, FIRST)
    actions = follower.do(0.1, Received("n1", old))

    assert [each.kind for each in actions if isinstance(each, Notice)] == ["refused"]
    assert not [each for each in actions if isinstance(each, Send)]
