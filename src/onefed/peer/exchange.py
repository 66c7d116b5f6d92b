"""The data plane: slices to the owners, shards to everybody, then accept what came out.

Reduce-scatter and all-gather, 2(n-1)/n of a model sent by each of n contributors. With whole
updates everybody owns the one shard itself: (n-1) models sent by each.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from onefed.peer import fetch, relay, repair, stash
from onefed.peer.interface import (
    AcceptedRecord,
    Append,
    Assemble,
    Assembled,
    Declined,
    Drop,
    Reduce,
    Reduced,
    Trained,
)
from onefed.peer.messages import (
    Adopt,
    Blob,
    Data,
    Entry,
    Held,
    Item,
    NodeId,
    Parcel,
    Piece,
    Plan,
    Proposal,
    Shard,
    Slice,
    Want,
)
from onefed.peer.state import NEVER, State

SHARDS_MAX = 4096
SLICES_MAX = 4096
"""Items of rounds that are not done, kept before their plan is known; later ones are dropped."""


def on_trained(state: State, event: Trained) -> None:
    """Ready; the provisional owners get their slices before there is a plan."""
    if event.round_number != state.installed + 1 or event.base != state.commit.root:
        return  # the others have gone on meanwhile
    assert event.contribution.node == state.me
    state.ready = event.contribution
    state.declined = 0
    state.ack_due = True
    if state.proposal is None and state.me in state.commit.owners:
        _send_slices(state, state.commit.owners)


def on_declined(state: State, event: Declined) -> None:
    """Tell the leader, so that nobody waits."""
    if event.round_number != state.installed + 1 or event.base != state.commit.root:
        return
    state.declined = event.round_number
    state.ack_due = True


def on_proposal(state: State, proposal: Proposal) -> None:
    """Take the newest proposal of the term."""
    known = state.proposal
    if known is not None and proposal.ballot <= known.ballot:
        return
    assert proposal.ballot.term == state.term, "a proposal is of the term of its heartbeat"
    state.proposal = proposal
    state.tries = 0  # who is to have an item is asked first


def on_data(state: State, sender: NodeId, message: Data) -> None:
    """Keep what is of use, before its plan is known too."""
    repair.progressed(state)
    item = message.item
    match item:
        case Blob(root):
            fetch.here(state, root, state.commit.round_number)
            repair.install(state)
        case Piece():
            fetch.on_data(state, sender, item)
        case Parcel():
            stash.on_data(state, sender, item)
        case Slice() if len(state.slices) < SLICES_MAX and _is_near(state, item):
            state.slices.add(item)
        case Shard() if len(state.shards) < SHARDS_MAX and _is_near(state, item):
            state.shards.add(item)
        case _:
            state.out.append(Drop(item))


def on_reduced(state: State, event: Reduced) -> None:
    """Give the shard to all receivers."""
    plan = state.plan
    if plan is None or not state.rules.belongs(event.ballot, plan.ballot):
        return
    shard = Shard(plan.round_number, event.ballot, event.index)
    state.shards.add(shard)
    if plan.owners:
        for node in plan.receivers:
            if node != state.me:
                state.sent.add((node, shard))
                state.send(node, Data(shard))


def on_assembled(state: State, event: Assembled) -> None:
    """The model is on disk: accept it, if it is still asked for."""
    plan = event.plan
    fetch.here(state, event.root, plan.round_number)
    if plan.round_number <= state.commit.round_number:
        repair.install(state)
        return
    held = Held(plan.ballot, plan.round_number, event.root, event.size_bytes)
    accept(state, entry_of(plan, held))


def entry_of(proposal: Proposal, held: Held) -> Entry:
    """What is accepted, or has been, by whom, under a proposal."""
    if isinstance(proposal, Adopt):
        return replace(proposal.entry, ballot=held.ballot)
    return Entry(
        round_number=held.round_number,
        root=held.root,
        size_bytes=held.size_bytes,
        ballot=held.ballot,
        roster=proposal.roster,
        contributors=proposal.contributors,
        owners=proposal.owners,
        evictions=proposal.evictions,
    )


def held(state: State) -> Held | None:
    """What this node last accepted, as it is told."""
    entry = state.accepted
    if entry is None:
        return None
    return Held(entry.ballot, entry.round_number, entry.root, entry.size_bytes)


def accept(state: State, entry: Entry) -> None:
    """Promise to bring this entry up in any later election. Its bytes are on disk."""
    assert entry.root in state.models, "nothing is accepted without its bytes"
    if not state.rules.may_accept(
        ballot=entry.ballot,
        round_number=entry.round_number,
        term=state.term,
        newest=None if state.proposal is None else state.proposal.ballot,
        accepted=state.accepted,
        commit_round=state.commit.round_number,
        installed=state.installed,
    ):
        return
    state.accepted = entry
    state.out.append(Append(AcceptedRecord(entry), sync=True))
    state.ack_due = True


def finishes(state: State, entry: Entry) -> bool:
    """Whether this node is about to have what was committed, and better takes note after that.

    It would else throw its shards away and fetch the whole model. Not to know of a commit yet is
    always safe; it is put off for ``repair_s`` at most.
    """
    plan = state.plan
    if (
        plan is None
        or plan.ballot != entry.ballot
        or state.me not in plan.receivers
        or (state.accepted is not None and state.accepted.ballot == plan.ballot)
    ):
        return False
    if state.assembling == plan.ballot:
        return True
    if state.finish_by_s == NEVER:
        state.finish_by_s = state.now_s + state.settings.repair_s
    return state.now_s < state.finish_by_s


def advance(state: State) -> None:
    """Do for the proposal whatever can be done now."""
    proposal = state.proposal
    if (
        proposal is None
        or proposal.round_number != state.commit.round_number + 1
        or state.installed != state.commit.round_number
        or (state.accepted is not None and state.accepted.ballot == proposal.ballot)
    ):
        return
    match proposal:
        case Adopt(ballot, entry):
            if entry.root in state.models:
                accept(state, replace(entry, ballot=ballot))
            else:
                repair.watch(state)
        case Plan():
            _work(state, proposal)


def missing(state: State, plan: Plan) -> Iterator[tuple[Item, NodeId]]:
    """What this node lacks for a plan, and who has it."""
    if state.me not in plan.receivers:
        return
    for index in range(plan.shard_count):
        shard = Shard(plan.round_number, plan.ballot, index)
        if shard in state.shards:
            continue
        owner = plan.owners[index] if plan.owners else state.me
        if owner != state.me:
            yield shard, owner
        else:
            for item in _slices(plan, index):
                if item.node != state.me and item not in state.slices:
                    yield item, item.node


def withheld(state: State, plan: Plan) -> set[NodeId]:
    """Contributors whose update has not come here, where this node was to have all of them."""
    if plan.owners not in ((), (state.me,)):
        return set()
    return {item.node for item, _ in missing(state, plan) if isinstance(item, Slice)}


def _work(state: State, plan: Plan) -> None:
    if state.offered != (plan.ballot, state.ready) and state.ready in plan.contributors:
        state.offered = (plan.ballot, state.ready)
        _send_slices(state, plan.owners or plan.receivers, whole=not plan.owners)
    if state.me not in plan.receivers:
        return
    for index, owner in enumerate(plan.owners or (state.me,)):
        part = (plan.ballot, index)
        if owner != state.me or part in state.reducing:
            continue
        if all(_is_here(state, item) for item in _slices(plan, index)):
            state.reducing.add(part)
            state.out.append(Reduce(plan, index))
    if state.assembling == plan.ballot:
        return
    mine = {
        each.index: each for each in state.shards if state.rules.belongs(each.ballot, plan.ballot)
    }
    if len(mine) >= plan.shard_count:
        state.assembling = plan.ballot
        state.out.append(Assemble(plan, tuple(mine[index] for index in range(plan.shard_count))))
    else:
        if relay.is_sparse(state) and state.pulled != plan.ballot:
            state.pulled = plan.ballot
            pushing = relay.pushing(state)
            for item, source in missing(state, plan):
                if source not in pushing:
                    state.send(source, Want(item, source))
        repair.watch(state)


def _slices(plan: Plan, index: int) -> Iterator[Slice]:
    for each in plan.contributors:
        yield Slice(plan.round_number, each.node, each.digest, index, plan.shard_count)


def _is_here(state: State, item: Slice) -> bool:
    if item.node == state.me:
        return state.ready is not None and state.ready.digest == item.digest
    return item in state.slices


def _is_near(state: State, item: Slice | Shard) -> bool:
    """Of the next round, or the one after: others may have heard of a commit sooner, and gone on.

    They give such an item once by themselves; were it not kept, it had to be asked for.
    """
    return 0 < item.round_number - state.commit.round_number <= 2


def _send_slices(state: State, to: tuple[NodeId, ...], *, whole: bool = False) -> None:
    ready = state.ready
    assert ready is not None
    for index, node in enumerate(to):
        place = (0, 1) if whole else (index, len(to))
        item = Slice(state.installed + 1, state.me, ready.digest, *place)
        if node != state.me and (node, item) not in state.sent:
            state.sent.add((node, item))
            state.send(node, Data(item))
