"""What a node keeps for itself, on other nodes' disks: given away, and fetched after a loss.

Every ``stash_rounds`` rounds a node has its private state kept by the two nodes that are most
distant from it. It repeats that until both have said that it is on their disks. A node that lost
its disk comes back under another name; before it trains it asks everybody what they keep of its old
one, and takes the newest.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from onefed.peer import relay, repair, topology
from onefed.peer.interface import Pack, Packed, Restore
from onefed.peer.messages import Data, NodeId, Parcel, Stashed, Stashes, Unstash, Want
from onefed.peer.state import NEVER, State

HOLDERS = 2
"""Who keep what a node has; fewer in a smaller group."""
TRIES_TOLD = 5
"""After so many tries at giving a parcel away, people are told."""
WAITS = 4
"""Times ``join_s`` between two tries: to unpack a large parcel and write it down takes seconds."""
NODES_MAX = 256
"""Names that one ``Unstash`` may ask for, and nodes of which parcels are kept."""


def by_distance(state: State) -> list[NodeId]:
    """Who may keep this node's parcels, the most distant first.

    Of equally distant ones those come first that follow by name, from one's own on and round: so
    nobody keeps the parcels of all.
    """
    nodes = topology.in_order((*state.voters, state.me))
    start = nodes.index(state.me)
    others = _reached(state, nodes[start + 1 :] + nodes[:start])
    hops = topology.distances(state.settings.topology, nodes, state.me)
    return sorted(others, key=lambda each: -hops.get(each, 0))


def installed(state: State) -> None:
    """A round is installed: is a parcel due? Not of a node that is not yet what it was."""
    every, number = state.settings.stash_rounds, state.installed
    if every > 0 and number > 0 and number % every == 0 and not is_restoring(state):
        state.out.append(Pack(number, state.commit.root))


def on_packed(state: State, event: Packed) -> None:
    """Give it away, instead of an older one."""
    if state.own is not None and event.round_number <= state.own.round_number:
        return
    state.own = Parcel(state.me, event.round_number, event.digest, event.base)
    state.kept_by.clear()
    state.stash_tries = 0
    _give(state)


def on_data(state: State, sender: NodeId, parcel: Parcel) -> None:
    """Bytes that are on this disk now: another node's, or what this one has asked for."""
    wanted = _newest(state) if is_restoring(state) else None
    if wanted is not None and _is_same(parcel, wanted):
        _end(state)
        state.out.append(Restore(parcel))
        repair.train(state)
    known = state.stashes.get(parcel.node)
    if known is None and len(state.stashes) >= NODES_MAX:
        return
    if state.rules.replaces(parcel, known):
        state.stashes[parcel.node] = replace(parcel, base="")
    state.send(sender, Stashed(parcel))


def on_stashed(state: State, sender: NodeId, message: Stashed) -> None:
    """One more disk has it."""
    if state.own is not None and _is_same(message.parcel, state.own):
        state.kept_by.add(sender)


def on_unstash(state: State, sender: NodeId, message: Unstash) -> None:
    """Say what is kept here."""
    found = (state.stashes.get(node) for node in message.nodes[:NODES_MAX])
    state.send(sender, Stashes(tuple(each for each in found if each is not None)))


def on_stashes(state: State, sender: NodeId, message: Stashes) -> None:
    """Fetch the newest, once those who could keep it have answered."""
    if is_restoring(state):
        own = state.settings.restores
        state.offers[sender] = tuple(each for each in message.parcels if each.node in own)
        _fetch(state)


def has(state: State, parcel: Parcel) -> bool:
    """Whether the bytes can be given: as they were kept, whole."""
    known = state.stashes.get(parcel.node)
    return known is not None and _is_same(known, parcel) and not parcel.base


def start(state: State) -> None:
    """A node that lost its disk looks for what others have kept; else it sees that they do."""
    if state.settings.restores:
        state.restore_by_s = state.now_s + state.settings.restore_s
        state.stash_at_s = state.now_s
    elif state.own is not None:
        state.stash_at_s = state.now_s + state.settings.join_s  # who lives is known by then


def noticed(state: State) -> None:
    """The roster has changed: there may be others now who can keep something."""
    if state.own is not None and not is_restoring(state):
        state.stash_at_s = min(state.stash_at_s, state.now_s)


def is_restoring(state: State) -> bool:
    """Whether training waits."""
    return state.restore_by_s != -NEVER


def on_tick(state: State) -> None:
    """Repeat what was not answered."""
    if state.now_s < state.stash_at_s:
        return
    if is_restoring(state):
        if state.now_s >= state.restore_by_s:
            state.notice("not_restored", f"nobody gave what {_names(state)} has kept for itself")
            _end(state)
            repair.train(state)
            return
        for node in _reached(state, dict.fromkeys((*state.voters, *state.heard_s))):
            if node not in state.offers:
                state.send(node, Unstash(state.settings.restores))
        _fetch(state)
        state.stash_at_s = state.now_s + state.settings.repair_s
    else:
        _give(state)


def _give(state: State) -> None:
    """To those that are to keep it, first as a difference, then whole; then to the next ones."""
    parcel = state.own
    assert parcel is not None
    others = by_distance(state)
    lacking = min(HOLDERS, len(others)) - len(state.kept_by)
    if lacking <= 0:
        state.stash_at_s = NEVER
        return
    asked = [node for node in others if node not in state.kept_by]
    # Those that are gone come last, and are asked all the same: who says nothing is not heard.
    asked.sort(key=lambda node: state.heard_s.get(node) == -NEVER)
    first = state.stash_tries // 2 % max(1, len(asked))
    asked = (asked[first:] + asked[:first])[:lacking]
    for node in asked:
        # Whoever did not take the difference may not have the model that it is from.
        whole = state.stash_tries % 2 == 1
        state.send(node, Data(replace(parcel, base="") if whole else parcel))
    state.stash_tries += 1
    if state.stash_tries == TRIES_TOLD:
        who = ", ".join(asked)
        state.notice("not_stashed", f"round {parcel.round_number} is not kept by {who} yet")
    state.stash_at_s = state.now_s + WAITS * state.settings.join_s


def _fetch(state: State) -> None:
    others = _reached(state, state.voters)
    answered = sum(node in state.offers for node in others)
    newest = _newest(state)
    if newest is None or answered < len(others) - 1:
        return
    keepers = [node for node, parcels in state.offers.items() if newest in parcels]
    live = [node for node in keepers if state.is_live(node)] or keepers
    keeper = live[state.stash_tries % len(live)]
    state.send(keeper, Want(newest, keeper))
    state.stash_tries += 1
    state.stash_at_s = state.now_s + state.settings.repair_s


def _reached(state: State, nodes: Iterable[NodeId]) -> list[NodeId]:
    """Of these, those that a parcel gets to: it goes over no other node, which could read it."""
    near = relay.links(state) if relay.is_sparse(state) else None
    return [node for node in nodes if node != state.me and (near is None or node in near)]


def _newest(state: State) -> Parcel | None:
    offered = sorted(
        {parcel for parcels in state.offers.values() for parcel in parcels},
        key=lambda parcel: (parcel.round_number, parcel.node, parcel.digest),
    )
    return state.rules.to_restore(offered)


def _end(state: State) -> None:
    state.restore_by_s = -NEVER
    state.stash_at_s = NEVER if state.own is None else state.now_s
    state.stash_tries = 0
    state.offers.clear()


def _is_same(one: Parcel, other: Parcel) -> bool:
    return replace(one, base="") == replace(other, base="")


def _names(state: State) -> str:
    return ", ".join(state.settings.restores)
