"""How long a leader holds a round for a node that is behind."""

from __future__ import annotations

from onefed.peer.interface import (
    Action,
    Assemble,
    Assembled,
    Event,
    Install,
    Received,
    Reduce,
    Reduced,
    Send,
    Started,
    Tick,
)
from onefed.peer.interface import Trained as TrainedEvent
from onefed.peer.leading import CATCH_UP_ROUNDS
from onefed.peer.machine import Machine
from onefed.peer.messages import (
    Ack,
    Ballot,
    Contribution,
    Data,
    Entry,
    Heartbeat,
    Member,
    Plan,
    Prevoted,
    Shard,
    Slice,
    Vote,
)
from onefed.peer.settings import Saved, Settings

NAMES = ("n0", "n1", "n2")
ROSTER = tuple(Member(name, "") for name in NAMES)
FIRST = Entry(0, "root-0", 12, Ballot(0, 0), ROSTER, (), ())
GRACE_S, CAP_S = 2.0, 20.0
STEP_S = 0.1


def update(node: str, number: int) -> Contribution:
    return Contribution(node, 1, f"d-{node}-{number}", 12)


class Leader:
    """n0 leads; n1 does its part at once, n2 lives and has the model of ``behind_at``."""

    def __init__(self) -> None:
        settings = Settings(
            member=ROSTER[0],
            experiment="test",
            rounds_total=99,
            catch_up_grace_s=GRACE_S,
            straggler_cap_s=CAP_S,
        )
        self._machine = Machine(settings, Saved(FIRST, models=("root-0",)), jitter=lambda: 0.5)
        self._sequence = 0
        self.now_s = 0.0
        self.behind_at: int | None = 0
        """None: it is level and ready."""
        self.plan: Plan | None = None
        self.installed = 0
        self.do(Started())
        self.now_s = 1.6
        self.do(Tick())
        self.do(Received("n1", Prevoted(1, True, 0, FIRST)))
        self.do(Received("n1", Vote(1, True, FIRST, None)))

    def do(self, event: Event) -> list[Action]:
        actions = self._machine.step(self.now_s, event)
        for each in actions:
            match each:
                case Send(_, Heartbeat(proposal=Plan() as plan)):
                    self.plan = plan
                case Install(entry):
                    self.installed = entry.round_number
                case Reduce(plan, index):
                    self.do(Reduced(plan.ballot, index))
                case Assemble(plan):
                    self.do(Assembled(plan, f"root-{plan.round_number}", 12))
                case _:
                    pass
        return actions

    def round(self) -> float:
        """One round; for how long it was held, in seconds."""
        number = self.installed + 1
        began_s, self.plan = self.now_s, None
        self.do(TrainedEvent(number, f"root-{number - 1}", update("n0", number)))
        while self.plan is None or self.plan.round_number != number:
            self.now_s += STEP_S
            self._ack("n1", number - 1)
            self._ack("n2", number - 1 if self.behind_at is None else self.behind_at)
            self.do(Tick())
        held_s = self.now_s - began_s
        plan = self.plan
        for index, owner in enumerate(plan.owners):
            if owner != "n0":
                self.do(Received(owner, Data(Shard(number, plan.ballot, index))))
                continue
            for each in plan.contributors:
                if each.node != "n0":
                    part = Slice(number, each.node, each.digest, index, len(plan.owners))
                    self.do(Received(each.node, Data(part)))
        held = Entry(
            *(number, f"root-{number}", 12, plan.ballot, ROSTER),
            *(plan.contributors, plan.owners),
        )
        self._ack("n1", number - 1, held)
        assert self.installed == number
        return held_s

    def _ack(self, node: str, installed: int, held: Entry | None = None) -> None:
        self._sequence += 1
        ready = update(node, installed + 1) if installed == self.installed else None
        ack = Ack(1, 1, self._sequence, installed, ready, held, self._sequence, ())
        self.do(Received(node, ack))


def test_a_node_that_never_gets_level_is_waited_for_ever_more_seldom() -> None:
    leader = Leader()

    held_s = [leader.round() for _ in range(20)]

    waited = [number for number, each in enumerate(held_s) if each >= CAP_S]
    # It is behind from the second commit on: held after 3 of them, then after 8, after 18.
    assert waited == [CATCH_UP_ROUNDS + 1, 9, 19]
    assert all(each <= GRACE_S + 2 * STEP_S for each in held_s if each < CAP_S)


def test_a_node_that_gets_level_in_the_held_round_takes_part_again() -> None:
    leader = Leader()
    for _ in range(CATCH_UP_ROUNDS):
        assert leader.round() < CAP_S
    leader.behind_at = None

    assert leader.round() <= 2 * STEP_S
    assert leader.plan is not None
    assert {each.node for each in leader.plan.contributors} == set(NAMES)
    leader.behind_at = leader.installed - 1  # once more, from the beginning
    assert all(leader.round() <= GRACE_S + 2 * STEP_S for _ in range(CATCH_UP_ROUNDS))
