"""Who leads: terms, pre-votes, votes. A leader that is heard is not challenged."""

from __future__ import annotations

from onefed.peer import leading, repair
from onefed.peer.interface import Append, VoteRecord
from onefed.peer.messages import Entry, NodeId, Prevote, Prevoted, Vote, VoteRequest
from onefed.peer.state import NEVER, Role, State

RETRY_SHARE = 0.2
"""Of the election timeout, after a candidacy that ended by learning something."""


def set_timer(state: State, share: float = 1.0) -> None:
    """Stand after a random time without a heartbeat."""
    low, high = state.settings.election_min_s, state.settings.election_max_s
    state.election_at_s = state.now_s + share * (low + state.jitter() * (high - low))


def on_tick(state: State) -> None:
    """Ask for pre-votes when no leader was heard for long enough."""
    if state.now_s < state.election_at_s or state.role is Role.LEADER:
        return
    set_timer(state)
    if not state.is_voter:
        return
    if state.role is Role.ASKING and not state.told_alone:
        state.told_alone = True
        state.notice("no_quorum", f"{len(state.votes)} of {len(state.voters)} voters answer")
    state.role = Role.ASKING
    state.leader = None
    state.votes = {state.me: state.accepted}
    _to_voters(state, Prevote(state.term + 1, state.commit))
    _count(state)


def raise_term(state: State, term: int) -> None:
    """Follow a newer term. Not synced: only a vote or an acceptance promises anything."""
    assert term > state.term, "terms never go back"
    state.term = term
    state.voted_for = None
    state.proposal = None
    state.out.append(Append(VoteRecord(term, None), sync=False))
    follow(state, None)


def follow(state: State, leader: NodeId | None) -> None:
    """Be a follower."""
    if state.lead is not None:
        leading.resign(state)
    state.role = Role.FOLLOWER
    state.leader = leader
    if leader is not None:
        state.told_alone = False
    state.votes = {}


def lost(state: State, peer: NodeId) -> None:
    """The leader's connection was reset: stand soon, and vote for who does."""
    if peer == state.leader and state.role is Role.FOLLOWER:
        state.beat_heard_s = -NEVER
        set_timer(state, RETRY_SHARE)


def on_prevote(state: State, sender: NodeId, message: Prevote) -> None:
    """Refuse while a live leader is heard, unless it is the leader who asks."""
    heard = state.now_s - state.beat_heard_s < state.settings.election_min_s
    led = state.role is Role.LEADER or (heard and state.leader not in (None, sender))
    ok = not led and state.rules.may_vote(
        asked=message.term,
        candidate=sender,
        term=state.term,
        voted_for=state.voted_for,
        candidate_round=message.commit.round_number,
        own_round=state.commit.round_number,
    )
    _heed(state, message.commit)
    state.send(sender, Prevoted(message.term, ok, state.term, state.commit))


def on_prevoted(state: State, sender: NodeId, message: Prevoted) -> None:
    """Stand when a majority would vote."""
    if message.term > state.term:
        raise_term(state, message.term)
    if _heed(state, message.commit):
        return
    if state.role is Role.ASKING and message.ok and message.asked == state.term + 1:
        state.votes[sender] = None
        _count(state)


def on_vote_request(state: State, sender: NodeId, message: VoteRequest) -> None:
    """Vote, at most once a term; the vote is on disk before it is said."""
    if message.term < state.term:
        state.send(sender, Vote(state.term, False, state.commit, None))
        return
    ok = state.rules.may_vote(
        asked=message.term,
        candidate=sender,
        term=state.term,
        voted_for=state.voted_for,
        candidate_round=message.commit.round_number,
        own_round=state.commit.round_number,
    )
    if message.term > state.term:
        raise_term(state, message.term)
    if ok:
        assert state.role is not Role.LEADER, "a leader voted for itself"
        follow(state, None)
        state.voted_for = sender
        state.out.append(Append(VoteRecord(state.term, sender), sync=True))
        set_timer(state)
    _heed(state, message.commit)
    state.send(sender, Vote(state.term, ok, state.commit, state.accepted))


def on_vote(state: State, sender: NodeId, message: Vote) -> None:
    """Lead when a majority of the roster has voted."""
    if message.term > state.term:
        raise_term(state, message.term)
    if _heed(state, message.commit):
        return
    if state.role is Role.CANDIDATE and message.ok and message.term == state.term:
        state.votes[sender] = message.accepted
        _count(state)


def abandon(state: State) -> None:
    """A candidate has learned of a commit: its roster and its round are not what it asked with."""
    if state.role in (Role.ASKING, Role.CANDIDATE):
        follow(state, None)
        set_timer(state, RETRY_SHARE)


def _heed(state: State, commit: Entry) -> bool:
    """Learn a commit from a voter or a candidate; whether it was news."""
    return state.rules.heeds() and repair.learn(state, commit)


def _count(state: State) -> None:
    if not state.has_majority(sum(node in state.votes for node in state.voters)):
        return
    if state.role is Role.CANDIDATE:
        leading.start(state)
        return
    raise_term(state, state.term + 1)
    state.role = Role.CANDIDATE
    state.voted_for = state.me
    state.votes = {state.me: state.accepted}
    state.out.append(Append(VoteRecord(state.term, state.me), sync=True))
    set_timer(state)
    _to_voters(state, VoteRequest(state.term, state.commit))
    _count(state)


def _to_voters(state: State, message: Prevote | VoteRequest) -> None:
    for node in state.voters:
        if node != state.me:
            state.send(node, message)
