"""The roster: who joins, leaves, is taken off. One change at a time, in a committed entry."""

from __future__ import annotations

from onefed.peer.messages import PROTOCOL_VERSION, Hello, Join, Leave, NodeId, Roster, Welcome
from onefed.peer.state import NEVER, State


def on_hello(state: State, sender: NodeId, message: Hello) -> None:
    """Tell a peer of the same experiment what is committed."""
    if (message.version, message.experiment) != (PROTOCOL_VERSION, state.settings.experiment):
        state.notice("refused", f"{sender} speaks {message.version} about {message.experiment!r}")
        return
    state.send(sender, Welcome(state.commit))


def on_join(state: State, sender: NodeId, message: Join) -> None:
    """As leader, take it in; else pass it on, once, and tell the roster as it is known here.

    Whoever is asked may have left the roster since, and hears of no leader any more; the one that
    asks must then look elsewhere.
    """
    node = message.member.node
    lead = state.lead
    if lead is None:
        if sender == node:
            state.send(node, Welcome(state.commit))
            if state.leader not in (None, state.me, node):
                assert state.leader is not None
                state.send(state.leader, message)
        return
    state.heard_s[node] = state.now_s
    if node in state.voters:
        return
    if node not in lead.learners:
        state.beat_due = True
    lead.learners[node] = message.member
    lead.leaving.discard(node)
    if message.votes:
        lead.joining[node] = message.member


def on_leave(state: State, sender: NodeId, message: Leave) -> None:
    """As leader, plan it; else pass it on, once."""
    if state.lead is not None:
        if message.node in state.voters:
            state.lead.leaving.add(message.node)
    elif sender == message.node and state.leader not in (None, state.me, sender):
        assert state.leader is not None
        state.send(state.leader, message)


def ask_to_leave(state: State, node: NodeId) -> None:
    """The operator's wish; repeated until it is committed."""
    state.asked_to_leave.add(node)
    state.left = state.left or node == state.me
    state.join_at_s = state.now_s


def on_tick(state: State) -> None:
    """Repeat what was asked for and is not committed yet."""
    if state.now_s < state.join_at_s:
        return
    state.asked_to_leave &= set(state.voters)
    for node in sorted(state.asked_to_leave):
        if state.lead is not None:
            state.lead.leaving.add(node)
        elif state.leader is not None and state.leader != state.me:
            state.send(state.leader, Leave(node))
    joins = not state.is_voter and not state.left
    if joins:
        for node in state.voters:
            state.send(node, Join(state.settings.member, state.settings.votes))
    again = joins or state.asked_to_leave
    state.join_at_s = state.now_s + state.settings.join_s if again else NEVER


def committed(state: State, before: Roster) -> None:
    """As leader, after a commit: whoever got a vote or lost one is known as what it is now."""
    lead = state.lead
    assert lead is not None
    for node in [node for node in lead.learners if not state.is_live(node)]:
        del lead.learners[node]
        lead.joining.pop(node, None)
    for member in before:
        lead.learners[member.node] = member  # who lost its vote is told so
    for node in state.voters:
        lead.learners.pop(node, None)
        lead.joining.pop(node, None)
        lead.absent[node] = 0 if state.is_live(node) else lead.absent.get(node, 0) + 1
    lead.leaving &= set(state.voters)


def noticed(state: State, before: tuple[NodeId, ...]) -> None:
    """After a commit, whoever leads: a node that fell off the roster asks to come back."""
    if state.me in before and not state.is_voter:
        state.notice("off_roster", "left" if state.left else "taken off")
    if not state.is_voter and not state.left:
        state.join_at_s = min(state.join_at_s, state.now_s)


def next_roster(state: State) -> Roster:
    """What the next plan proposes."""
    lead = state.lead
    assert lead is not None
    if state.evicted:
        return state.rules.without(state.commit.roster, state.evicted)
    leaving = [node for node in state.voters if node in lead.leaving]
    limit = state.settings.evict_after_rounds
    if limit and not leaving:
        leaving = [
            node
            for node in state.voters
            if lead.absent.get(node, 0) >= limit and not state.is_live(node)
        ]
    joining = [
        member
        for node, member in sorted(lead.joining.items())
        if state.is_live(node)
        and node in lead.acks
        and lead.acks[node].installed == state.commit.round_number
    ]
    return state.rules.changed(state.commit.roster, leaving, joining)
