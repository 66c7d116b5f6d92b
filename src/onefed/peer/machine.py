"""The machine: one door. Events and the time go in, actions come out, nothing else happens.

The same state and the same events give the same actions, in every process.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from onefed.peer import (
    election,
    eviction,
    exchange,
    fetch,
    leading,
    membership,
    relay,
    repair,
    sense,
    stash,
)
from onefed.peer.interface import (
    Action,
    Adjusted,
    Append,
    Assembled,
    Combined,
    Declined,
    Event,
    EvictAsked,
    IncarnationRecord,
    LeaveAsked,
    Lost,
    Packed,
    Progressed,
    Received,
    Reduced,
    Started,
    Tick,
    Trained,
)
from onefed.peer.messages import (
    PROTOCOL_VERSION,
    Ack,
    Data,
    Digest,
    Eviction,
    Heartbeat,
    Hello,
    Join,
    Leave,
    Message,
    NodeId,
    Prevote,
    Prevoted,
    Relay,
    Stashed,
    Stashes,
    Unstash,
    Vote,
    VoteRequest,
    Want,
    Welcome,
)
from onefed.peer.safety import Rules
from onefed.peer.settings import Saved, Settings
from onefed.peer.state import NEVER, Role, State

ELECTION_SPREAD_MIN = 1.25
"""Of the longest to the shortest time before an election: nodes must not stand all at once."""


class Machine:
    """One node of the protocol."""

    def __init__(
        self,
        settings: Settings,
        saved: Saved,
        *,
        jitter: Callable[[], float],
        rules: Rules | None = None,
    ) -> None:
        """Make the machine of a node that starts, for the first time or again.

        Args:
            saved: what its journal and its disk hold.
            jitter: from 0 up to 1, another number at each call; spreads elections.
            rules: another set of safety rules, to see what it breaks.
        """
        self._state = State(
            settings=settings,
            rules=rules or Rules(),
            jitter=jitter,
            term=saved.term,
            voted_for=saved.voted_for,
            accepted=saved.accepted,
            commit=saved.commit,
            incarnation=saved.incarnation + 1,
            models=_models(saved),
            me=settings.member.node,
            evicted=frozenset(saved.evicted),
            installed=-1,
            stashes={each.node: each for each in saved.parcels},
            own=saved.own_parcel,
        )
        self._state.count_voters()

    @property
    def due_s(self) -> float:
        """When the next ``Tick`` is wanted; infinity: never."""
        return self._state.due_s

    @property
    def role(self) -> Role:
        """Follower, candidate or leader."""
        return self._state.role

    @property
    def leader(self) -> NodeId | None:
        """Whom the node follows; itself where it leads."""
        return self._state.leader

    @property
    def term(self) -> int:
        """Current term."""
        return self._state.term

    @property
    def installed(self) -> int:
        """Round of the newest model that was installed; -1 before the first."""
        return self._state.installed

    @property
    def root(self) -> Digest:
        """Of the newest committed model that is known, installed or not."""
        return self._state.commit.root

    @property
    def roster(self) -> tuple[NodeId, ...]:
        """By the newest commit."""
        return tuple(member.node for member in self._state.commit.roster)

    @property
    def evictions(self) -> tuple[Eviction, ...]:
        """Decisions of the operator without a majority, by the newest commit."""
        return self._state.commit.evictions

    @property
    def voters(self) -> tuple[NodeId, ...]:
        """The roster that decides on the next round."""
        return self._state.voters

    @property
    def lost(self) -> frozenset[NodeId]:
        """Peers whose connection broke, and that were not heard of since."""
        return frozenset(node for node, at_s in self._state.heard_s.items() if at_s == -NEVER)

    @property
    def neighbours(self) -> dict[NodeId, bool]:
        """Members of the roster that this node has a connection to; whether each is there.

        A leader hears all of them all the time; the others speak only when there is something to
        say, so to a follower they are there while their connection stands.
        """
        state, lost = self._state, self.lost
        near = relay.neighbours(state)
        leads = state.lead is not None
        return {
            node: state.is_live(node) if leads else node not in lost
            for node in self.roster
            if node in near
        }

    def step(self, now_s: float, event: Event) -> list[Action]:
        """Take one event; the actions are to be carried out in their order.

        Args:
            now_s: the node's own monotonic clock; never goes back.
        """
        state = self._state
        assert now_s >= state.now_s, "a monotonic clock does not go back"
        state.now_s = now_s
        state.out = []
        voters = state.voters
        _HANDLERS[type(event)](state, event)
        leading.advance(state)
        exchange.advance(state)
        if state.lead is not None:
            if state.ack_due:
                leading.advance(state)  # what this node has just accepted may be decided
            if state.beat_due:
                leading.beat(state)
            state.ack_at_s = NEVER
        elif state.leader is not None and (state.is_voter or not state.left):
            leading.answer(state)
        else:
            state.ack_at_s = NEVER
        state.ack_due = False
        if state.asked:
            relay.serve(state)
        if state.voters is not voters:
            membership.noticed(state, voters)
            stash.noticed(state)
        state.due_s = min(
            state.election_at_s,
            state.beat_at_s,
            state.repair_at_s,
            state.join_at_s,
            state.stash_at_s,
            state.ack_at_s,
        )
        out = relay.routed(state) if relay.is_sparse(state) else state.out
        return state.rules.in_order(out)


def _models(saved: Saved) -> dict[Digest, int]:
    """Round of each model on disk; -1 for old ones, whose rounds are of no use any more."""
    models = dict.fromkeys(saved.models, -1)
    for entry in (saved.accepted, saved.commit):
        if entry is not None and entry.root in models:
            models[entry.root] = entry.round_number
    return models


def _started(state: State, _: Started) -> None:
    state.out.append(Append(IncarnationRecord(state.incarnation), sync=True))
    hello = Hello(PROTOCOL_VERSION, state.settings.experiment, state.incarnation, state.commit)
    for node in state.voters:
        if node != state.me:
            state.send(node, hello)
    election.set_timer(state)
    stash.start(state)
    repair.install(state)
    membership.noticed(state, state.voters)
    if state.rules.leads_again(voted_for=state.voted_for, me=state.me):
        state.votes = {state.me: state.accepted}
        leading.start(state)


def _tick(state: State, _: Tick) -> None:
    late_s = state.now_s - state.due_s
    if late_s > state.settings.late_s:
        _stretch(state, late_s)
    election.on_tick(state)
    leading.on_tick(state)
    repair.on_tick(state)
    membership.on_tick(state)
    stash.on_tick(state)


def _stretch(state: State, late_s: float) -> None:
    """This node slept; what it did not hear meanwhile is nobody's silence (Lifeguard)."""
    for node in state.heard_s:
        state.heard_s[node] += late_s
    state.beat_heard_s += late_s
    if state.election_at_s != NEVER:
        state.election_at_s += late_s
    if state.lead is not None:
        state.lead.progress_at_s += late_s


def _received(state: State, event: Received) -> None:
    sender, message = event.sender, event.message
    state.heard_s[sender] = state.direct_s[sender] = state.now_s
    if isinstance(message, Relay):
        inner = relay.opened(state, sender, message)
        if inner is not None:
            _take(state, state.rules.author(message.origin, sender), inner)
    else:
        _take(state, sender, message)


def _take(state: State, sender: NodeId, message: Message) -> None:
    commit = getattr(message, "commit", None)
    if (
        commit is not None
        and commit.evictions != state.commit.evictions
        and eviction.separates(state, sender, message, commit)
    ):
        return
    wrong = sense.nonsense(state, sender, message)
    if wrong is not None:
        state.notice("nonsense", wrong)
        return
    _MESSAGES[type(message)](state, sender, message)


def _lost(state: State, event: Lost) -> None:
    state.heard_s[event.peer] = state.direct_s[event.peer] = -NEVER
    election.lost(state, event.peer)
    fetch.lost(state, event.peer)


def _progressed(state: State, _: Progressed) -> None:
    repair.progressed(state)


def _welcome(state: State, _: NodeId, message: Welcome) -> None:
    repair.learn(state, message.commit)
    if state.fetching:
        fetch.request(state)  # the sender may have pieces, too


def _leave_asked(state: State, event: LeaveAsked) -> None:
    membership.ask_to_leave(state, event.node)


def _evict_asked(state: State, event: EvictAsked) -> None:
    eviction.asked(state, event.nodes)


def _adjusted(state: State, event: Adjusted) -> None:
    old = state.settings
    state.settings = replace(
        old,
        stash_rounds=event.stash_rounds,
        election_max_s=max(event.election_max_s, ELECTION_SPREAD_MIN * old.election_min_s),
        straggler_floor_s=min(old.straggler_floor_s, event.straggler_cap_s),
        straggler_cap_s=event.straggler_cap_s,
        give_up_s=None if old.give_up_s is None else event.straggler_cap_s,
    )


_HANDLERS: dict[type, Callable[[State, Any], None]] = {
    Started: _started,
    Tick: _tick,
    Received: _received,
    Lost: _lost,
    Progressed: _progressed,
    Trained: exchange.on_trained,
    Declined: exchange.on_declined,
    Reduced: exchange.on_reduced,
    Assembled: exchange.on_assembled,
    Combined: fetch.on_combined,
    Packed: stash.on_packed,
    Adjusted: _adjusted,
    LeaveAsked: _leave_asked,
    EvictAsked: _evict_asked,
}
_MESSAGES: dict[type, Callable[[State, NodeId, Any], None]] = {
    Hello: membership.on_hello,
    Welcome: _welcome,
    Prevote: election.on_prevote,
    Prevoted: election.on_prevoted,
    VoteRequest: election.on_vote_request,
    Vote: election.on_vote,
    Heartbeat: leading.on_heartbeat,
    Ack: leading.on_ack,
    Want: repair.on_want,
    Data: exchange.on_data,
    Join: membership.on_join,
    Leave: membership.on_leave,
    Stashed: stash.on_stashed,
    Unstash: stash.on_unstash,
    Stashes: stash.on_stashes,
}
