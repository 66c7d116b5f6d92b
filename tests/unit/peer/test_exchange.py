"""What a follower keeps and asks for while a round is agreed on."""

from __future__ import annotations

import pytest

from onefed.peer.interface import Action, Drop, Event, Install, Received, Send, Started, Tick
from onefed.peer.interface import Trained as TrainedEvent
from onefed.peer.machine import Machine
from onefed.peer.messages import (
    Ballot,
    Contribution,
    Data,
    Entry,
    Heartbeat,
    Item,
    Member,
    Plan,
    Shard,
    Slice,
    Want,
    Welcome,
)
from onefed.peer.settings import Saved, Settings

NAMES = ("n0", "n1", "n2")
ROSTER = tuple(Member(name, "") for name in NAMES)
UPDATES = tuple(Contribution(name, 1, f"d-{name}", 12) for name in NAMES)
FIRST = Entry(0, "root", 12, Ballot(0, 0), ROSTER, (), ())
PLAN = Plan(Ballot(1, 1), 1, "root", UPDATES, NAMES, NAMES, ROSTER, "")
REPAIR_S = 0.5


class Follower:
    """n0, which follows n2."""

    def __init__(self) -> None:
        settings = Settings(
            member=ROSTER[0], experiment="test", rounds_total=9, repair_s=REPAIR_S, stall_s=60.0
        )
        self._machine = Machine(settings, Saved(FIRST, models=("root",)), jitter=lambda: 0.5)
        self.do(0.0, Started())

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
