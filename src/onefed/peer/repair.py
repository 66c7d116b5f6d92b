"""Catching up: learn what was committed, fetch what is missing, install it, go on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from onefed.peer import election, eviction, exchange, fetch, leading, membership, relay, stash
from onefed.peer.interface import Forget, Install, Release, Train
from onefed.peer.messages import (
    Blob,
    Data,
    Entry,
    Item,
    NodeId,
    Parcel,
    Piece,
    Shard,
    Slice,
    Want,
)
from onefed.peer.state import NEVER, State

WANTS_MAX = 64
"""Items asked for at once."""


def learn(state: State, entry: Entry) -> bool:
    """Take note of a commit, from whoever knows it: commits are facts. Whether it was done."""
    if entry.round_number <= state.commit.round_number:
        assert entry.round_number < state.commit.round_number or entry.root == state.commit.root, (
            "two models were committed in one round"
        )
        return False
    if exchange.finishes(state, entry):
        return False
    told = entry.evictions[len(state.commit.evictions) :]
    mine = state.proposal is not None and state.proposal.ballot == entry.ballot
    if told and state.lead is not None and not mine:
        state.notice("superseded", "the operator has let others go on")
        leading.resign(state)
    state.finish_by_s = NEVER
    election.abandon(state)
    before = state.commit.roster
    state.set_commit(entry)
    if state.proposal is not None and state.proposal.round_number <= entry.round_number:
        state.proposal = None
    state.ready = None
    state.slices = {each for each in state.slices if each.round_number > entry.round_number}
    state.shards = {each for each in state.shards if each.round_number > entry.round_number}
    state.sent.clear()
    relay.forget(state)
    fetch.forget(state, entry.root)
    state.reducing.clear()
    state.assembling = None
    state.out.append(Release(entry.round_number))
    for each in told:
        eviction.tell(state, each)
    if state.lead is not None:
        leading.next_round(state)
        membership.committed(state, before)
    install(state)
    return True


def install(state: State) -> None:
    """Install the committed model if its bytes are here, else ask for them."""
    if state.installed == state.commit.round_number:
        return
    if state.commit.root in state.models:
        state.installed = state.commit.round_number
        state.models[state.commit.root] = state.installed
        state.out.append(Install(state.commit))
        state.repair_at_s = NEVER
        state.ack_due = True
        _forget(state)
        stash.installed(state)
        train(state)
    else:
        ask(state)


def train(state: State) -> None:
    """Train for the next round, on the model that was just installed."""
    wanted = state.installed + 1
    gone = state.left and not state.is_voter
    if stash.is_restoring(state) or state.installed != state.commit.round_number:
        return
    if state.training != wanted <= state.settings.rounds_total and not gone:
        state.training = wanted
        state.out.append(Train(wanted, state.commit.root))


def watch(state: State) -> None:
    """Ask for what is missing if it doesn't come by itself."""
    if state.repair_at_s == NEVER:
        state.repair_at_s = state.now_s + state.settings.repair_s


def progressed(state: State) -> None:
    """Something has come: what is missing may be behind it, and is not asked for yet."""
    state.progress += 1
    if state.repair_at_s != NEVER:
        state.repair_at_s = state.now_s + state.settings.repair_s


def on_tick(state: State) -> None:
    """Ask again, and somebody else where there is a choice."""
    if state.now_s >= state.repair_at_s:
        fetch.late(state)
        ask(state)


def ask(state: State) -> None:
    """Ask for everything that is missing now."""
    state.repair_at_s = NEVER
    for count, (item, source) in enumerate(_missing(state)):
        if count == WANTS_MAX:
            break
        if source is not None:
            state.send(source, Want(item, source))
        watch(state)
    fetch.request(state)
    state.tries += 1


def on_want(state: State, sender: NodeId, message: Want) -> None:
    """Give what is here."""
    if has(state, message.item):
        state.send(sender, Data(message.item))
    else:
        relay.pull(state, sender, message)


def has(state: State, item: Item) -> bool:
    """Whether an item can be given."""
    match item:
        case Blob(root):
            return root in state.models
        case Piece(root):
            return root in state.models or item in state.pieces
        case Slice(_, node, digest):
            own = node == state.me and state.ready is not None and state.ready.digest == digest
            return own or item in state.slices
        case Shard():
            return item in state.shards
        case Parcel():
            return stash.has(state, item)


def _missing(state: State) -> Iterator[tuple[Item, NodeId | None]]:
    model = fetch.missing(state)
    if model is not None and model.count == 1:
        yield Blob(model.root), _choose(state, model.everyone)
    plan = state.plan
    if plan is not None and not state.has_accepted(plan.ballot):
        for item, source in exchange.missing(state, plan):
            # Whoever has received a part can give it, and the leader hears a majority.
            yield item, _choose(state, (source, state.leader))


def _choose(state: State, nodes: Iterable[NodeId | None]) -> NodeId | None:
    """One after the other, at each try; the live ones if there are any."""
    others = list(dict.fromkeys(node for node in nodes if node not in (None, state.me)))
    live = [node for node in others if node is not None and state.is_live(node)]
    if not live or relay.is_sparse(state):  # there, who is silent is not heard by everybody
        live = [node for node in others if node is not None]
    return live[state.tries % len(live)] if live else None


def _forget(state: State) -> None:
    """Keep the newest committed models, and what was accepted on top of them."""
    oldest = state.installed - state.settings.models_kept
    for root, round_number in list(state.models.items()):
        if round_number <= oldest:
            del state.models[root]
            state.out.append(Forget(root))
