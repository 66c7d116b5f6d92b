"""What goes into the machine and what comes out: events, actions, and the duties of the driver.

The driver carries out actions in their order. Its duties:

1. ``Append`` with ``sync``: that record and all before it are on disk before any later action.
2. ``Assemble``: the bytes are on disk, under their name, before ``Assembled`` is handed in.
3. ``Data`` received: the bytes are kept under the item before the message is handed in; those of a
   ``Blob`` hash to its root and are on disk, and so is what is in a ``Parcel``, unpacked. ``Data``
   to send: the bytes go along, cut and paced as the wire likes.
4. After a crash, a new machine gets what ``journal.replay`` gave, and the models and parcels that
   are on disk.
5. ``Combine``: pieces that do not have the digest together are no model, whoever gave them.
6. After every step, ``Tick`` is handed in at ``due_s`` (the same monotonic clock as ``now``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from onefed.peer.messages import (
    Ballot,
    Contribution,
    Digest,
    Entry,
    Item,
    Message,
    NodeId,
    Parcel,
    Piece,
    Plan,
    Shard,
)


@dataclass(frozen=True, slots=True)
class Started:
    """The first event."""


@dataclass(frozen=True, slots=True)
class Tick:
    """``due_s`` has come."""


@dataclass(frozen=True, slots=True)
class Received:
    """A message, from a peer that the driver has authenticated."""

    sender: NodeId
    message: Message


@dataclass(frozen=True, slots=True)
class Lost:
    """The connection to a peer was reset, and a second one could not be made."""

    peer: NodeId


@dataclass(frozen=True, slots=True)
class Progressed:
    """Part of an item arrived."""


@dataclass(frozen=True, slots=True)
class Trained:
    """``Train`` is done."""

    round_number: int
    base: Digest
    contribution: Contribution


@dataclass(frozen=True, slots=True)
class Declined:
    """``Train`` gave no update. One may still come, and is used if it is not too late."""

    round_number: int
    base: Digest


@dataclass(frozen=True, slots=True)
class Reduced:
    """``Reduce`` is done; the shard is kept under its item."""

    ballot: Ballot
    index: int


@dataclass(frozen=True, slots=True)
class Assembled:
    """``Assemble`` is done and the model is on disk."""

    plan: Plan
    root: Digest
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Combined:
    """``Combine`` is done: the model is on disk, if its pieces fit together."""

    root: Digest
    fits: bool
    """The bytes have the digest."""


@dataclass(frozen=True, slots=True)
class Packed:
    """``Pack`` is done: what the node keeps for itself after a round is on its own disk."""

    round_number: int
    base: Digest
    digest: Digest


@dataclass(frozen=True, slots=True)
class Adjusted:
    """The operator has changed settings of this node, which count from now on."""

    stash_rounds: int
    election_max_s: float
    straggler_cap_s: float


@dataclass(frozen=True, slots=True)
class LeaveAsked:
    """The operator wants a node off the roster: this one, or one that will not come back."""

    node: NodeId


@dataclass(frozen=True, slots=True)
class EvictAsked:
    """The operator says that voters are gone for good, and that the others go on without them."""

    nodes: tuple[NodeId, ...]


Event: TypeAlias = (
    Started
    | Tick
    | Received
    | Lost
    | Progressed
    | Trained
    | Declined
    | Reduced
    | Assembled
    | Combined
    | Packed
    | Adjusted
    | LeaveAsked
    | EvictAsked
)


@dataclass(frozen=True, slots=True)
class VoteRecord:
    """Term, and for whom the node voted in it."""

    term: int
    voted_for: NodeId | None


@dataclass(frozen=True, slots=True)
class AcceptedRecord:
    """The node holds the bytes of this entry."""

    entry: Entry


@dataclass(frozen=True, slots=True)
class CommittedRecord:
    """A majority accepted this entry."""

    entry: Entry


@dataclass(frozen=True, slots=True)
class IncarnationRecord:
    """Which start of the node this is, from 1."""

    incarnation: int


@dataclass(frozen=True, slots=True)
class EvictionRecord:
    """Voters that the operator has called gone, until a commit takes them off."""

    nodes: tuple[NodeId, ...]


Record: TypeAlias = (
    VoteRecord | AcceptedRecord | CommittedRecord | IncarnationRecord | EvictionRecord
)


@dataclass(frozen=True, slots=True)
class Append:
    """Add a record to the journal."""

    record: Record
    sync: bool


@dataclass(frozen=True, slots=True)
class Send:
    """Send a message; it may be lost, doubled, late or overtaken."""

    to: NodeId
    message: Message


@dataclass(frozen=True, slots=True)
class Train:
    """Train the model ``base`` for a round; a training that runs is of no more use."""

    round_number: int
    base: Digest


@dataclass(frozen=True, slots=True)
class Reduce:
    """Apply the rule to one part of the contributors' updates, whose slices are all there."""

    plan: Plan
    index: int


@dataclass(frozen=True, slots=True)
class Assemble:
    """Join the shards of a plan to a model and write it to disk."""

    plan: Plan
    shards: tuple[Shard, ...]
    """In their order."""


@dataclass(frozen=True, slots=True)
class Combine:
    """Join the pieces of a model, compare it with its digest, and write it to disk."""

    root: Digest
    pieces: tuple[Piece, ...]
    """In their order."""


@dataclass(frozen=True, slots=True)
class Install:
    """The committed model of a round, the bytes of which are on disk."""

    entry: Entry


@dataclass(frozen=True, slots=True)
class Pack:
    """Make ready what other nodes are to keep of this one; after ``Install`` of that round."""

    round_number: int
    base: Digest


@dataclass(frozen=True, slots=True)
class Restore:
    """Take for this node's own what another one has kept of it; ``Train`` comes after that."""

    parcel: Parcel


@dataclass(frozen=True, slots=True)
class Release:
    """Slices and shards of rounds up to this one are not needed any more."""

    round_number: int


@dataclass(frozen=True, slots=True)
class Drop:
    """An item that came is of no use."""

    item: Item


@dataclass(frozen=True, slots=True)
class Forget:
    """A model on disk is not needed any more."""

    root: Digest


@dataclass(frozen=True, slots=True)
class Notice:
    """Something a person may want to know: leader elected, no quorum, a new attempt, left."""

    kind: str
    detail: str


@dataclass(frozen=True, slots=True)
class Fail:
    """The run has failed: the node ends, with nothing lost. The others are told or will be."""

    reason: str


Action: TypeAlias = (
    Append
    | Send
    | Train
    | Reduce
    | Assemble
    | Combine
    | Install
    | Pack
    | Restore
    | Release
    | Drop
    | Forget
    | Notice
    | Fail
)
