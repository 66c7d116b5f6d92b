"""Whatever a member says in the words of the protocol, the machine takes or tells; it goes on."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Sequence
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from onefed.node import codec
from onefed.peer import messages
from onefed.peer.interface import (
    Action,
    Assemble,
    Assembled,
    Event,
    Notice,
    Received,
    Reduce,
    Reduced,
    Started,
    Tick,
    Train,
    Trained,
)
from onefed.peer.machine import Machine
from onefed.peer.messages import (
    Ballot,
    Contribution,
    Entry,
    Heartbeat,
    Member,
    Message,
    NodeId,
    Plan,
    Prevoted,
    Vote,
    Welcome,
)
from onefed.peer.settings import Saved, Settings
from onefed.peer.state import Role
from onefed.peer.topology import Topology

NAMES = ("node-0", "node-1", "node-2", "node-9")
ROSTER = tuple(Member(name, "") for name in NAMES[:3])
FIRST = Entry(0, "r0", 100, Ballot(0, 0), ROSTER, (), ())
UPDATE = Contribution("node-0", 1, "d", 100)


def words(hint: Any) -> st.SearchStrategy[Any]:
    """Values of a type, made of few names and numbers, so that they often fit each other."""
    if hint is Entry:
        return st.just(FIRST) | built(Entry)
    if hint is Ballot:
        return st.builds(Ballot, words(int), words(int))
    if isinstance(hint, types.UnionType):
        return st.one_of(*(words(each) for each in typing.get_args(hint)))
    if typing.get_origin(hint) is tuple:
        return st.lists(words(typing.get_args(hint)[0]), max_size=2).map(tuple)
    if dataclasses.is_dataclass(hint):
        return built(typing.cast("type", hint))
    return st.sampled_from(
        {
            str: (*NAMES, "r0", "r1", "d", ""),
            int: (1, 0, 2, 3, -1, 2**53),
            bool: (True, False),
            types.NoneType: (None,),
        }[hint]
    )


def built(kind: type) -> st.SearchStrategy[Any]:
    hints = typing.get_type_hints(kind, vars(messages))
    return st.deferred(
        lambda: st.builds(
            kind, **{each.name: words(hints[each.name]) for each in dataclasses.fields(kind)}
        )
    )


SAID = st.one_of(*(built(kind) for kind in typing.get_args(Message)))


class Alone:
    """A machine whose work is done at once."""

    def __init__(self, topology: Topology = Topology.FULL, *, leads: bool) -> None:
        node = Settings(member=ROSTER[0], experiment="x", rounds_total=5, topology=topology)
        self.machine = Machine(node, Saved(FIRST, models=("r0",)), jitter=lambda: 0.5)
        self.now_s = 0.0
        self.step(Started())
        if leads:
            self.now_s = self.machine.due_s
            self.step(Tick())
            self.hear("node-1", Prevoted(1, True, 0, FIRST))
            self.hear("node-1", Vote(1, True, FIRST, None))
            assert self.machine.role is Role.LEADER

    def hear(self, sender: NodeId, message: Message) -> list[Action]:
        return self.step(Received(sender, message))

    def step(self, event: Event) -> list[Action]:
        actions = self.machine.step(self.now_s, event)
        for action in list(actions):
            match action:
                case Train(number, base):
                    actions += self.step(Trained(number, base, UPDATE))
                case Reduce(plan, index):
                    actions += self.step(Reduced(plan.ballot, index))
                case Assemble(plan):
                    actions += self.step(Assembled(plan, f"r{plan.round_number}", 100))
                case _:
                    pass
        return actions


def nonsense(actions: Sequence[Action]) -> list[str]:
    return [each.detail for each in actions if isinstance(each, Notice) and each.kind == "nonsense"]


@settings(max_examples=150)
@given(
    st.sampled_from(Topology),
    st.booleans(),
    st.lists(
        st.tuples(st.sampled_from(NAMES[1:]), SAID, st.sampled_from((0.0, 0.0, 0.3))), max_size=12
    ),
)
def test_no_message_makes_the_machine_fail(
    topology: Topology, leads: bool, said: list[tuple[NodeId, Message, float]]
) -> None:
    node = Alone(topology, leads=leads)
    for sender, message, later_s in said:
        try:
            heard = codec.decode(codec.encode(message))
        except codec.CodecError:
            continue
        node.hear(sender, heard)
        node.now_s += later_s
        if node.machine.due_s <= node.now_s:
            node.step(Tick())


def test_a_leader_of_the_same_term_and_another_model_of_a_round_are_told_and_change_nothing() -> (
    None
):
    node = Alone(leads=True)

    assert nonsense(node.hear("node-1", Heartbeat(1, FIRST, None)))
    other = dataclasses.replace(FIRST, root="r1")
    assert nonsense(node.hear("node-1", Welcome(other)))
    assert node.machine.role is Role.LEADER
    assert node.machine.root == "r0"


def test_a_plan_under_another_rule_or_on_another_model_is_not_worked_on() -> None:
    plan = Plan(Ballot(1, 1), 1, "r0", (UPDATE,), ("node-0",), ("node-0",), ROSTER, "")
    for wrong in (dataclasses.replace(plan, rule="other"), dataclasses.replace(plan, base="r1")):
        node = Alone(leads=False)
        done = node.hear("node-1", Heartbeat(1, FIRST, wrong))
        assert nonsense(done)
        assert not [each for each in done if isinstance(each, Reduce)]
    node = Alone(leads=False)
    assert [
        each for each in node.hear("node-1", Heartbeat(1, FIRST, plan)) if isinstance(each, Reduce)
    ]
