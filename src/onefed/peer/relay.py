"""Groups whose members are not all connected: messages are flooded, data is pulled hop by hop.

A message to somebody without a connection goes to all neighbours in an envelope; each hands it on
once, by origin and number. Data is never pushed over a node: who lacks an item asks the next hop on
the way to its source, which gives it, or asks on and remembers who asked. So an item that several
want crosses each connection once.
"""

from __future__ import annotations

from onefed.peer import repair, topology
from onefed.peer.interface import Action, Send
from onefed.peer.messages import Control, Data, Item, NodeId, Relay, Want
from onefed.peer.state import NEVER, State
from onefed.peer.topology import Topology

RECENT_MAX = 1024
"""Envelopes of one origin that are remembered; an older one is not handed on."""
ASKED_MAX = 4096
"""Items that others wait for; further ones are asked for again by those who want them."""


def is_sparse(state: State) -> bool:
    """Whether members may have no connection to each other."""
    return state.settings.topology is not Topology.FULL


def neighbours(state: State) -> frozenset[NodeId]:
    """Whom this node has a connection to, by the topology."""
    return topology.neighbours(state.settings.topology, state.order, state.me)


def pushing(state: State) -> frozenset[NodeId]:
    """Who gives what it has for this node without being asked, its connection being up."""
    return frozenset(node for node in neighbours(state) if _is_up(state, node))


def links(state: State) -> frozenset[NodeId]:
    """Neighbours, and whoever has spoken over a connection of its own lately: it may be joining."""
    return neighbours(state) | {node for node in state.direct_s if _is_up(state, node)}


def opened(state: State, sender: NodeId, envelope: Relay) -> Control | None:
    """Hand an envelope on; its message, if it is new and for this node."""
    if envelope.origin == state.me or not _is_new(state, envelope):
        return None
    state.heard_s[envelope.origin] = state.now_s
    if set(envelope.to) - {state.me} and state.rules.hands_on():
        for node in sorted(links(state) - {sender, envelope.origin}):
            state.send(node, envelope)
    return envelope.message if state.me in envelope.to else None


def pull(state: State, sender: NodeId, message: Want) -> None:
    """An item that is not here: it is given when it comes, and asked for where it is."""
    item, source = message.item, message.source
    if not is_sparse(state) or (item not in state.asked and len(state.asked) >= ASKED_MAX):
        return
    state.asked.setdefault(item, {})[sender] = None
    again_s = state.pulled_s.get(item, -NEVER) + state.settings.repair_s / 2
    if source not in (state.me, sender) and state.now_s >= again_s and state.rules.asks_on():
        state.pulled_s[item] = state.now_s
        state.send(source, message)


def serve(state: State) -> None:
    """Give what others wait for and what is here by now."""
    for item in [item for item in state.asked if repair.has(state, item)]:
        for node in state.asked.pop(item):
            if (node, item) not in state.sent:
                state.send(node, Data(item))


def routed(state: State) -> list[Action]:
    """The actions of a step, with what is sent to nodes without a connection on its way."""
    near = links(state)
    out: list[Action] = []
    floods: dict[int, tuple[int, Control, list[NodeId]]] = {}
    for action in state.out:
        if not isinstance(action, Send) or action.to in near:
            out.append(action)
            continue
        match action.message:
            case Data() | Relay():
                pass  # who wants it asks for it; who was a neighbour has the envelope from another
            case Want() as message:
                # Not back to who waits for it here: that one has no other way.
                waiting = state.asked.get(message.item, {}).keys()
                hop = _next_hop(state, near - waiting or near, action.to, message.item)
                if hop is not None:
                    out.append(Send(hop, message))
            case message:
                if id(message) not in floods:
                    floods[id(message)] = (len(out), message, [])
                floods[id(message)][2].append(action.to)
    # From the last one on, so that the places of the others stay.
    for place, message, to in reversed(floods.values()):
        state.envelopes += 1
        envelope = Relay(state.me, state.incarnation, state.envelopes, tuple(to), message)
        out[place:place] = [Send(node, envelope) for node in sorted(near)]
    return out


def forget(state: State) -> None:
    """After a commit: who still wants something asks again."""
    state.asked.clear()
    state.pulled_s.clear()
    state.hops.clear()


def _is_up(state: State, node: NodeId) -> bool:
    return state.now_s - state.direct_s.get(node, -NEVER) < state.settings.suspect_s


def _is_new(state: State, envelope: Relay) -> bool:
    incarnation, newest, recent = state.relayed.get(envelope.origin, (0, 0, set()))
    if envelope.incarnation < incarnation:
        return False
    if envelope.incarnation > incarnation:
        newest, recent = 0, set()
    if envelope.sequence in recent or envelope.sequence <= newest - RECENT_MAX:
        return False
    newest = max(newest, envelope.sequence)
    recent.add(envelope.sequence)
    if len(recent) > 2 * RECENT_MAX:
        recent = {each for each in recent if each > newest - RECENT_MAX}
    state.relayed[envelope.origin] = (envelope.incarnation, newest, recent)
    return True


def _next_hop(state: State, near: frozenset[NodeId], to: NodeId, item: Item) -> NodeId | None:
    """The neighbour that is nearest to a node, around those that are silent if there is a way.

    An item that was asked for before is asked for another way round: somewhere along the first one
    a link may be cut.
    """
    order = state.order
    if to not in order:  # it joins: its connections are those that it would have as a member
        order = topology.in_order((*order, to))
    tries = state.hops[item] = state.hops.get(item, -1) + 1
    silent = {node for node in near if not _is_up(state, node)}
    unheard = {node for node in order if not state.is_live(node)}
    for without in (unheard, silent, frozenset[NodeId]()):
        hops = topology.distances(state.settings.topology, order, to, {*without, state.me})
        reached = sorted((hops[node], node) for node in near - without if node in hops)
        if reached:
            return reached[tries % len(reached)][1]
    return None
