"""Going on without a majority, because an operator says so: what is lost for ever is his to know.

He names the voters that are gone for good, to one of the others or to several. Whoever was told
may lead with the votes of *all* the others, and the first entry that these commit takes the named
ones off and records the decision. What it keeps and what it cannot is in docs/protocol.md.
"""

from __future__ import annotations

from onefed.peer import election
from onefed.peer.interface import Append, EvictionRecord
from onefed.peer.messages import Entry, Eviction, Message, NodeId, Welcome
from onefed.peer.state import Role, State

EVICTIONS_MAX = 64
"""Decisions in the history of a run; every heartbeat carries them."""


def asked(state: State, nodes: tuple[NodeId, ...]) -> None:
    """Take the operator at his word, unless this node knows better; then stand at once."""
    gone = frozenset(nodes) & set(state.voters)
    problem = _problem(state, gone)
    if problem is not None:
        state.notice("evict_refused", problem)
        return
    election.raise_term(state, state.rules.term_of_decision(state.term))
    state.evicted |= gone
    state.out.append(Append(EvictionRecord(tuple(sorted(state.evicted))), sync=True))
    state.count_voters()
    state.election_at_s = state.now_s
    state.notice("evicting", f"{', '.join(sorted(gone))}: the operator says they are gone")


def _problem(state: State, gone: frozenset[NodeId]) -> str | None:
    """Why the decision is not taken over."""
    alive = [node for node in sorted(gone) if state.is_live(node)]
    heard = state.now_s - state.beat_heard_s < state.settings.suspect_s
    if state.role is Role.LEADER or (heard and state.leader is not None):
        return f"{state.leader} leads with a majority, which can take members off safely"
    if not state.is_voter:
        return "this node has no vote"
    if alive:
        return f"{', '.join(alive)} is alive"
    if not gone:
        return "none of them is on the roster"
    if len(state.commit.evictions) >= EVICTIONS_MAX:
        return f"there were {EVICTIONS_MAX} such decisions"
    return None


def recorded(state: State) -> tuple[Eviction, ...]:
    """The decisions that the next entry carries."""
    commit = state.commit
    if not state.evicted:
        return commit.evictions
    gone = tuple(sorted(state.evicted))
    return (*commit.evictions, Eviction(commit.round_number, commit.root, gone))


def tell(state: State, decision: Eviction) -> None:
    """Every node that learns of it tells people."""
    names = ", ".join(decision.nodes)
    after = decision.round_number
    state.notice("unsafe_eviction", f"the operator took off {names} after round {after}")


def separates(state: State, sender: NodeId, message: Message, commit: Entry) -> bool:
    """Whether a message is not for this node, its sender knowing of other decisions than it does.

    Who knows of fewer is told, and counts for nothing before it has learned of them.
    """
    known, theirs = len(state.commit.evictions), len(commit.evictions)
    if theirs > known:
        if state.rules.is_same_history(state.commit, commit):
            return False
        state.notice("estranged", f"{sender} goes on from another round {commit.round_number}")
        return True
    if not isinstance(message, Welcome):
        state.send(sender, Welcome(state.commit))
    return True
