"""A model that is missing, in pieces, from several nodes at once.

Each of those who should have it is asked for ``AHEAD`` pieces, and as one comes for the next: so
the fast give more, and a node that dies costs the pieces that it was asked for. Those that have
come stay until the model is here, or a newer one is committed. A model that is no longer than a
piece is asked for whole, of one after the other (``repair``).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from onefed.peer import relay, repair
from onefed.peer.interface import Combine, Combined, Drop
from onefed.peer.messages import Adopt, Digest, Entry, NodeId, Piece, Want
from onefed.peer.state import NEVER, State

AHEAD = 2
"""Pieces that one node is asked for at a time: one on its way, and one behind it."""
PIECES_MAX = 4096
"""Of a model; and so many are kept for others."""


@dataclass(frozen=True, slots=True)
class Missing:
    """A model, and where it may be."""

    root: Digest
    count: int
    """Of its pieces; 1: it is fetched whole."""
    holders: tuple[NodeId | None, ...]
    """Who should have it."""
    everyone: tuple[NodeId | None, ...]
    """Who may, those among them."""

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """In their order."""
        return tuple(Piece(self.root, index, self.count) for index in range(self.count))


def missing(state: State) -> Missing | None:
    """The model without which this node does not get on."""
    commit, proposal = state.commit, state.proposal
    if state.installed < commit.round_number:
        known = {*state.voters, *state.heard_s}
        contributors = (each.node for each in commit.contributors if each.node in known)
        return Missing(
            commit.root,
            _count(state, commit),
            (state.leader, *contributors),
            (state.leader, *state.voters, *state.heard_s),
        )
    if (
        isinstance(proposal, Adopt)
        and proposal.round_number == commit.round_number + 1
        and proposal.entry.root not in state.models
        and not state.has_accepted(proposal.ballot)
    ):
        entry, holders = proposal.entry, proposal.holders
        return Missing(entry.root, _count(state, entry), holders, (*holders, state.leader))
    return None


def request(state: State) -> None:
    """Ask for pieces, as far as that is not done; join them when all are here."""
    model = missing(state)
    if model is None or model.count == 1 or state.combining == model.root:
        return
    fetching = state.fetching = {
        piece: node for piece, node in state.fetching.items() if piece.root == model.root
    }
    lacking = [piece for piece in model.pieces if piece not in state.pieces]
    if not lacking:
        state.combining = model.root
        state.out.append(Combine(model.root, model.pieces))
        return
    holders, loads = _holders(state, model), Counter(fetching.values())
    for piece in lacking:
        if piece in fetching:
            continue
        node = min(holders, key=loads.__getitem__, default=None)
        if node is None or loads[node] == AHEAD or len(fetching) >= repair.WANTS_MAX:
            break
        loads[node] += 1
        fetching[piece] = node
        state.send(node, Want(piece, node))
    repair.watch(state)


def on_data(state: State, sender: NodeId, piece: Piece) -> None:
    """Keep it once, if this node needs it or another one waits for it."""
    state.fetching.pop(piece, None)
    state.idle.discard(sender)
    model = missing(state)
    own = model is not None and (piece.root, piece.count) == (model.root, model.count)
    others = piece in state.asked and len(state.pieces) < PIECES_MAX
    if piece not in state.pieces and (own or others):
        state.pieces[piece] = None
    else:
        state.out.append(Drop(piece))
    request(state)


def on_combined(state: State, event: Combined) -> None:
    """The model is on disk; or its pieces are of no use, and it is fetched in one."""
    if state.combining == event.root:
        state.combining = ""
    if event.fits:
        here(state, event.root, state.commit.round_number)
        repair.install(state)
    else:
        _drop(state, [piece for piece in state.pieces if piece.root == event.root])
        state.misfit = event.root
        repair.ask(state)


def here(state: State, root: Digest, round_number: int) -> None:
    """A model is on disk, so its pieces are not needed any more."""
    state.models.setdefault(root, round_number)
    for piece in [piece for piece in state.fetching if piece.root == root]:
        del state.fetching[piece]
    _drop(state, [piece for piece in state.pieces if piece.root == root])


def late(state: State) -> None:
    """Nothing has come for long: what was asked for is asked of others."""
    state.idle.update(state.fetching.values())
    state.fetching.clear()


def lost(state: State, peer: NodeId) -> None:
    """A node is gone: what it was asked for is asked of others at once."""
    gone = [piece for piece, node in state.fetching.items() if node == peer]
    for piece in gone:
        del state.fetching[piece]
    if gone:
        request(state)


def forget(state: State, root: Digest) -> None:
    """A model was committed: pieces of others are of no use."""
    _drop(state, [piece for piece in state.pieces if piece.root != root])
    state.fetching = {piece: node for piece, node in state.fetching.items() if piece.root == root}
    state.idle.clear()


def _count(state: State, entry: Entry) -> int:
    if state.misfit == entry.root:
        return 1
    return min(max(1, -(-entry.size_bytes // state.settings.piece_bytes)), PIECES_MAX)


def _holders(state: State, model: Missing) -> list[NodeId]:
    """Those that are there and were not asked in vain; if there are none, all once more."""
    for nodes in (model.holders, model.everyone):
        found = [node for node in _there(state, nodes) if node not in state.idle]
        if found:
            return found
    state.idle.clear()
    return _there(state, model.everyone)


def _there(state: State, nodes: tuple[NodeId | None, ...]) -> list[NodeId]:
    """Whose connection stands, if there are any: a follower hears little of the others."""
    others = [node for node in dict.fromkeys(nodes) if node is not None and node != state.me]
    if relay.is_sparse(state):  # there, a connection says nothing about who is behind it
        return others
    return [node for node in others if state.heard_s.get(node, -NEVER) > -NEVER] or others


def _drop(state: State, pieces: list[Piece]) -> None:
    for piece in pieces:
        del state.pieces[piece]
        state.out.append(Drop(piece))
