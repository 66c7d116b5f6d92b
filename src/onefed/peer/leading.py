"""The leader: plan a round, watch it, try again with the survivors, commit it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from statistics import median

from onefed.peer import election, eviction, exchange, membership, repair
from onefed.peer.interface import Fail
from onefed.peer.messages import (
    Ack,
    Adopt,
    Ballot,
    Contribution,
    Entry,
    Heartbeat,
    Held,
    NodeId,
    Plan,
    Proposal,
)
from onefed.peer.state import NEVER, STAR_ROUNDS_FIRST, Lead, Role, State

READY_TIMES_MAX = 32
"""Past ready times from which the straggler deadline is made."""
STAR_EVERY = 3
"""Every third attempt goes through the leader alone: it hears a majority, whoever hears whom."""
STAR_ROUNDS_MAX = 32
"""After an attempt of live nodes that did not get on, some of them cannot reach each other, and a
link that is cut without a word would cost every round ``stall_s``. So the next rounds do it, too,
twice as many after each stall, up to these."""
CATCH_UP_ROUNDS = 3
"""A live node that was behind at so many commits in a row is waited for: with each of them it
begins to fetch another model, and where that takes longer than a round it would never be level."""
ACK_WAITS = 2
"""An ack without news waits for the so-manieth part of ``beat_s``."""
NO_PROGRESS = "no progress"


def start(state: State) -> None:
    """A majority has voted: begin at the newest commit that any of them knows."""
    reported = state.votes
    adopt = state.rules.to_adopt(state.commit.round_number, reported.values())
    holders = tuple(
        sorted(
            node
            for node, entry in reported.items()
            if adopt is not None and entry is not None and entry.root == adopt.root
        )
    )
    state.role = Role.LEADER
    state.leader = state.me
    state.told_alone = False
    state.lead = Lead(adopt, holders, round_started_s=state.now_s)
    state.election_at_s = NEVER
    for node in state.voters:
        if state.heard_s.get(node) != -NEVER:
            state.heard_s[node] = state.now_s  # each has its time to answer, but for those lost
    state.beat_at_s = state.now_s
    state.notice("leader", f"{state.me} leads term {state.term}")


def resign(state: State) -> None:
    """Stop leading; whoever is needed elects again."""
    if state.hopeless:
        state.out.append(Fail(state.hopeless))  # those that were told first are gone already
    state.lead = None
    state.role = Role.FOLLOWER
    state.leader = None
    state.beat_at_s = NEVER
    state.proposal = None
    election.set_timer(state)


def next_round(state: State) -> None:
    """The round is committed; nothing of its attempts is of use."""
    lead = _lead(state)
    _count_behind(state, lead)
    lead.adopt = None
    lead.tries = 0
    if lead.stars:
        lead.stars -= 1
    else:
        lead.stars_next = STAR_ROUNDS_FIRST
    lead.owners = ()
    lead.ready_s.clear()
    lead.round_started_s = state.now_s
    state.beat_due = True


def _count_behind(state: State, lead: Lead) -> None:
    """After a commit: who lacks the model before it, though it lives."""
    for node in (*state.voters, *lead.learners):
        ack = lead.acks.get(node)
        if ack is None or not state.is_live(node) or _is_level(state, ack):
            lead.behind.pop(node, None)
            lead.patience.pop(node, None)
            continue
        count = lead.behind[node] = lead.behind.get(node, 0) + 1
        if count > lead.patience.get(node, CATCH_UP_ROUNDS):
            lead.patience[node] = 2 * count


def _is_level(state: State, ack: Ack) -> bool:
    return ack.installed >= state.commit.round_number - 1


def _is_waited_for(lead: Lead, node: NodeId) -> bool:
    """Whether a round is held for a node that is behind for long."""
    return lead.behind.get(node, 0) >= lead.patience.get(node, CATCH_UP_ROUNDS)


def on_heartbeat(state: State, sender: NodeId, message: Heartbeat) -> None:
    """Follow the leader of the term, and answer with all that it may need."""
    repair.learn(state, message.commit)
    if message.term > state.term:
        election.raise_term(state, message.term)
    if message.term == state.term:
        assert state.role is not Role.LEADER, "two leaders in one term"
        if state.leader != sender:
            election.follow(state, sender)
        state.beat_heard_s = state.now_s
        election.set_timer(state)
        if message.proposal is not None:
            exchange.on_proposal(state, message.proposal)
        if message.hopeless and not state.hopeless:
            state.hopeless = message.hopeless
            state.out.append(Fail(state.hopeless))
        state.ack_due = True
    else:
        state.send(sender, make_ack(state))  # so that it steps down


def on_ack(state: State, sender: NodeId, message: Ack) -> None:
    """Take the follower's state, unless it is older than what is known."""
    if message.term > state.term:
        election.raise_term(state, message.term)
        return
    lead = state.lead
    if lead is None or message.term < state.term:
        return
    known = lead.acks.get(sender)
    if known is not None and (message.incarnation, message.sequence) <= (
        known.incarnation,
        known.sequence,
    ):
        return
    lead.acks[sender] = message
    if message.ready is not None and message.installed == state.commit.round_number:
        lead.ready_s.setdefault(sender, state.now_s - lead.round_started_s)


def answer(state: State) -> None:
    """Say what is new at once, and what is not a little later: by then there may be more to say.

    So a round takes two acks of a follower, and not one more for every heartbeat. That a model is
    installed is no hurry either: what the leader waits for is the update that is made of it.
    """
    assert state.leader is not None
    news = (state.leader, state.term, state.accepted, unreachable(state), state.declined)
    is_new = news != state.ack_news or state.ready not in (None, state.ack_ready)
    if state.ack_due and not is_new:
        state.ack_at_s = min(state.ack_at_s, state.now_s + state.settings.beat_s / ACK_WAITS)
    if (state.ack_due and is_new) or state.now_s >= state.ack_at_s:
        state.ack_news, state.ack_ready, state.ack_at_s = news, state.ready, NEVER
        state.send(state.leader, make_ack(state))


def unreachable(state: State) -> tuple[NodeId, ...]:
    """Whose connection broke, and who was not heard of since."""
    return tuple(node for node, at_s in state.heard_s.items() if at_s == -NEVER)


def make_ack(state: State) -> Ack:
    """All of a follower's state."""
    state.sequence += 1
    return Ack(
        term=state.term,
        incarnation=state.incarnation,
        sequence=state.sequence,
        installed=state.installed,
        ready=state.ready,
        held=exchange.held(state),
        progress=state.progress,
        unreachable=unreachable(state),
        declined=state.declined,
    )


def on_tick(state: State) -> None:
    """Beat; step down when a majority is not heard any more."""
    if state.lead is None:
        return
    if state.now_s >= state.beat_at_s:
        live = sum(state.is_live(node) for node in state.voters)
        if not state.has_majority(live):
            state.notice("no_quorum", f"{live} of {len(state.voters)} voters are heard")
            resign(state)
            return
        beat(state)
    if state.now_s >= state.lead.fail_at_s:
        state.lead.fail_at_s = NEVER
        state.out.append(Fail(state.hopeless))


def beat(state: State) -> None:
    """Tell everybody everything."""
    lead = _lead(state)
    message = Heartbeat(state.term, state.commit, state.proposal, state.hopeless)
    for node in dict.fromkeys((*state.voters, *lead.learners)):
        if node != state.me:
            state.send(node, message)
    state.beat_at_s = state.now_s + state.settings.beat_s
    state.beat_due = False


def advance(state: State) -> None:
    """Commit what a majority holds, give up what fails, plan what can be planned."""
    lead = state.lead
    if lead is None:
        return
    if state.proposal is not None:
        entry = _decided(state, state.proposal)
        if entry is not None:
            _commit(state, entry)
            return
        failure = _failure(state, lead, state.proposal)
        if failure is None:
            return
        if isinstance(state.proposal, Adopt):
            # Its holders are gone. Only a new election can say whether it is still to be adopted.
            state.notice("adoption_failed", failure)
            resign(state)
            election.set_timer(state, 0.0)
            return
        state.notice("attempt_failed", f"round {state.proposal.round_number}: {failure}")
        if failure == NO_PROGRESS:
            _without(state, lead, state.proposal)
            if state.proposal.owners == (state.me,):
                lead.stars = 0
            else:
                lead.stars = lead.stars_next
                lead.stars_next = min(2 * lead.stars_next, STAR_ROUNDS_MAX)
        state.proposal = None
    _propose(state, lead)


def _without(state: State, lead: Lead, plan: Plan) -> None:
    """Go on without what was promised and does not come, or fail where the rule cannot."""
    withheld = exchange.withheld(state, plan)
    if not state.settings.whole_roster:
        for node in withheld:
            _leave_out(state, lead, node)
    elif withheld:
        # It is asked for again in the next attempt: left out, it would be missed for ever.
        names = [each.node for each in plan.contributors if each.node not in withheld]
        _despair(state, lead, names)


def _leave_out(state: State, lead: Lead, node: NodeId) -> None:
    """Without the update that it promised, for twice as many rounds each time."""
    _, count = lead.withheld.get(node, (0, 1))
    wanted = state.commit.round_number + 1
    lead.withheld[node] = (wanted + count - 1, min(2 * count, STAR_ROUNDS_MAX))
    state.notice("left_out", f"{node} does not give its update of round {wanted}")


def _is_left_out(state: State, lead: Lead, node: NodeId) -> bool:
    return state.commit.round_number < lead.withheld.get(node, (0, 0))[0]


def _commit(state: State, entry: Entry) -> None:
    if not repair.learn(state, entry):
        return
    state.notice("committed", f"round {entry.round_number}: {len(entry.contributors)} updates")
    beat(state)
    if state.me not in state.voters:
        resign(state)  # it has taken itself off the roster; the others elect


def _decided(state: State, proposal: Proposal) -> Entry | None:
    """The entry that a majority holds under the current ballot."""
    lead = _lead(state)
    roster = proposal.roster if isinstance(proposal, Plan) else proposal.entry.roster
    voters = [each.node for each in state.rules.electorate(state.commit.roster, roster)]
    decide = state.rules.is_majority
    if state.evicted:
        voters = [node for node in voters if node not in state.evicted]
        decide = state.rules.are_survivors
    roots: dict[str, list[Held]] = {}
    for node in voters:
        held = exchange.held(state) if node == state.me else _held(lead, node)
        if (
            held is not None
            and held.round_number == proposal.round_number
            and state.rules.counts(held.ballot, proposal.ballot)
            and (isinstance(proposal, Plan) or held.root == proposal.entry.root)
        ):
            roots.setdefault(held.root, []).append(held)
    for found in roots.values():
        if decide(len(found), len(voters)):
            return exchange.entry_of(proposal, found[0])
    return None


def _held(lead: Lead, node: NodeId) -> Held | None:
    ack = lead.acks.get(node)
    return None if ack is None else ack.held


def _failure(state: State, lead: Lead, proposal: Proposal) -> str | None:
    """Why the proposal will not be accepted, as far as can be known."""
    if isinstance(proposal, Plan):
        for each in proposal.contributors:
            if not state.is_live(each.node):
                return f"{each.node} is suspected"
            now = _ready(state, lead, each.node)
            if now is not None and now.digest != each.digest:
                return f"{each.node} has trained again"
        for owner in proposal.owners:
            if not state.is_live(owner):
                return f"{owner} is suspected"
        if proposal.owners not in ((), (state.me,)):
            cut_off = _cut_off(state, lead, [each.node for each in proposal.contributors])
            if cut_off is not None:
                return f"{cut_off} is not reached by all"
    progress = state.progress + sum(ack.progress for ack in lead.acks.values())
    if progress != lead.progress:
        lead.progress, lead.progress_at_s = progress, state.now_s
    if state.now_s - lead.progress_at_s > state.settings.stall_s:
        return NO_PROGRESS
    return None


def _ready(state: State, lead: Lead, node: NodeId) -> Contribution | None:
    """The update of a node for the round after the committed one."""
    if node == state.me:
        return state.ready if state.installed == state.commit.round_number else None
    ack = lead.acks.get(node)
    return ack.ready if ack is not None and ack.installed == state.commit.round_number else None


def _propose(state: State, lead: Lead) -> None:
    if lead.adopt is not None:
        _publish(state, lead, Adopt(_ballot(state, lead), lead.adopt, lead.holders))
        return
    if (
        state.installed < state.commit.round_number
        or state.commit.round_number >= state.settings.rounds_total
        or state.hopeless
    ):
        return
    live = [node for node in dict.fromkeys((*state.voters, *lead.learners)) if state.is_live(node)]
    asked = [node for node in sorted(live) if not _is_left_out(state, lead, node)]
    contributors = tuple(
        ready for node in asked if (ready := _ready(state, lead, node)) is not None
    )
    if not state.has_majority(sum(node in live for node in state.voters)):
        return
    names = [each.node for each in contributors]
    if not contributors or not state.rules.suffices(
        names,
        state.voters,
        whole=state.settings.whole_roster,
        least=state.settings.min_contributors,
    ):
        _despair(state, lead, names)
        return
    behind = [node for node in asked if node not in names and not _declines(state, lead, node)]
    if behind and state.now_s < _deadline(state, lead, behind):
        return  # the next beat looks again
    if lead.tries == 0:
        lead.ready_times_s += lead.ready_s.values()
        del lead.ready_times_s[:-READY_TIMES_MAX]
    lead.tries += 1
    plan = Plan(
        ballot=_ballot(state, lead),
        round_number=state.commit.round_number + 1,
        base=state.commit.root,
        contributors=contributors,
        owners=_owners(state, lead, contributors),
        receivers=tuple(sorted(live)),
        roster=membership.next_roster(state),
        rule=state.settings.rule,
        evictions=eviction.recorded(state),
    )
    _publish(state, lead, plan)


def _despair(state: State, lead: Lead, ready: list[NodeId]) -> None:
    """Call the run failed, and tell everybody, where too few updates have come for too long."""
    give_up_s = state.settings.give_up_s
    if give_up_s is None or state.now_s - lead.round_started_s < give_up_s:
        return
    gone = ", ".join(node for node in state.voters if node not in ready)
    state.hopeless = (
        f"Round {state.commit.round_number + 1} has {len(ready)} updates after {give_up_s:g} s, "
        f"which are too few for its rule; none of {gone}."
    )
    lead.fail_at_s = state.now_s + state.settings.suspect_s
    state.beat_due = True


def _declines(state: State, lead: Lead, node: NodeId) -> bool:
    """Whether a node has said that it has no update to give to this round."""
    wanted = state.commit.round_number + 1
    if node == state.me:
        return state.declined == wanted
    ack = lead.acks.get(node)
    return ack is not None and ack.declined == wanted


def _publish(state: State, lead: Lead, proposal: Proposal) -> None:
    state.proposal = proposal
    lead.progress_at_s = state.now_s
    state.notice("proposal", f"{type(proposal).__name__} {tuple(proposal.ballot)}")
    exchange.advance(state)
    state.beat_due = True


def _ballot(state: State, lead: Lead) -> Ballot:
    lead.attempt = state.rules.next_attempt(lead.attempt, new_round=lead.tries <= 1)
    return Ballot(state.term, lead.attempt)


def _owners(state: State, lead: Lead, contributors: tuple[Contribution, ...]) -> tuple[NodeId, ...]:
    """Owner of each shard: the contributors; in a later attempt survivors take over the dead's.

    The number of shards stays, so that slices which have arrived keep their use.
    """
    if state.settings.whole_updates:
        return ()
    nodes = [each.node for each in contributors]
    if lead.tries % STAR_EVERY == 0 or lead.stars or _cut_off(state, lead, nodes):
        return (state.me,)
    if lead.owners:
        heirs = itertools.cycle(nodes)
        lead.owners = tuple(owner if owner in nodes else next(heirs) for owner in lead.owners)
    else:
        lead.owners = tuple(nodes)
    return lead.owners


def _cut_off(state: State, lead: Lead, nodes: Sequence[NodeId]) -> NodeId | None:
    """One of the nodes that another live one cannot reach."""
    for node, ack in lead.acks.items():
        if state.is_live(node):
            for other in ack.unreachable:
                if other in nodes and state.is_live(other):
                    return other
    return None


def _deadline(state: State, lead: Lead, behind: list[NodeId]) -> float:
    """Until when the round waits for those that are not ready."""
    settings = state.settings
    started_s = lead.round_started_s
    if any(_is_waited_for(lead, node) for node in behind):
        return started_s + settings.straggler_cap_s
    if not any(_is_caught_up(state, lead, node) for node in behind):
        return started_s + settings.catch_up_grace_s
    wait_s = settings.straggler_cap_s
    if lead.ready_times_s:
        middle = median(lead.ready_times_s)
        spread = median(abs(each - middle) for each in lead.ready_times_s)
        wait_s = min(wait_s, middle + settings.straggler_mads * spread)
    return started_s + max(settings.straggler_floor_s, wait_s)


def _is_caught_up(state: State, lead: Lead, node: NodeId) -> bool:
    if node == state.me:
        return True
    ack = lead.acks.get(node)
    return ack is not None and ack.installed == state.commit.round_number


def _lead(state: State) -> Lead:
    assert state.lead is not None
    return state.lead
