"""The words of the protocol: values, items of data, and one frozen class per message.

A model update is a digest, a size and a weight here; bytes are the driver's.
Field terms and the whole picture are in docs/protocol.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

PROTOCOL_VERSION = 5

NodeId: TypeAlias = str
"""Name of a node for its whole life; a node that lost its disk comes back with another."""
Digest: TypeAlias = str
"""Of the bytes of an update or a model: equal digests, equal bytes."""


class Ballot(NamedTuple):
    """Number of a proposal; ordered. One leader per term, and no attempt twice in a term."""

    term: int
    attempt: int


@dataclass(frozen=True, slots=True)
class Member:
    """A voter."""

    node: NodeId
    contact: str
    """How the others reach it and know it: the driver's words, agreed on with the roster."""


Roster: TypeAlias = tuple[Member, ...]
"""Voters in the order of their names. Changes by one member at a time, in a committed entry."""


@dataclass(frozen=True, slots=True)
class Contribution:
    """An update that a node has trained."""

    node: NodeId
    weight: int
    """Examples it was trained on."""
    digest: Digest
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Eviction:
    """An operator's decision: voters that are gone for good, where no majority could say so."""

    round_number: int
    """Newest committed round of those who went on."""
    root: Digest
    """Of that round."""
    nodes: tuple[NodeId, ...]
    """Whom he took off."""


@dataclass(frozen=True, slots=True)
class Entry:
    """The result of a round: what is accepted by one node, and committed by a majority."""

    round_number: int
    root: Digest
    """Digest of the whole model, whoever computed which part."""
    size_bytes: int
    ballot: Ballot
    """Under which it was accepted; of equal rounds the highest counts."""
    roster: Roster
    """Voters on the next round."""
    contributors: tuple[Contribution, ...]
    owners: tuple[NodeId, ...]
    """Who reduced; provisional owners of the next round, so that slices can start early."""
    evictions: tuple[Eviction, ...] = ()
    """All decisions without a majority, up to this round, oldest first."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Proposal: reduce these updates to a new model. Contributors and receivers are sorted."""

    ballot: Ballot
    round_number: int
    base: Digest
    """Root of the round before."""
    contributors: tuple[Contribution, ...]
    owners: tuple[NodeId, ...]
    """Owner of each shard; one may own several. None: everybody reduces whole updates itself."""
    receivers: tuple[NodeId, ...]
    """Who gathers the result: the live nodes, contributors among them."""
    roster: Roster
    """Voters on the round after this one."""
    rule: str
    """Digest of the aggregation rule and its parameters."""
    evictions: tuple[Eviction, ...] = ()
    """As they will stand in the entry."""

    @property
    def shard_count(self) -> int:
        """At least 1."""
        return len(self.owners) or 1


@dataclass(frozen=True, slots=True)
class Adopt:
    """Proposal: finish a result that an earlier leader may have committed."""

    ballot: Ballot
    entry: Entry
    """As it was accepted, under its old ballot."""
    holders: tuple[NodeId, ...]
    """Who reported it, so has its bytes on disk."""

    @property
    def round_number(self) -> int:
        """Round of the entry."""
        return self.entry.round_number


Proposal: TypeAlias = Plan | Adopt


@dataclass(frozen=True, slots=True)
class Slice:
    """A range of one update: part ``index`` of ``count`` nearly equal ones."""

    round_number: int
    node: NodeId
    digest: Digest
    """Of the whole update; a slice is named by content, so no attempt can mistake it."""
    index: int
    count: int


@dataclass(frozen=True, slots=True)
class Shard:
    """A range of the new model, reduced under one ballot by its owner."""

    round_number: int
    ballot: Ballot
    index: int


@dataclass(frozen=True, slots=True)
class Blob:
    """A whole model."""

    root: Digest


@dataclass(frozen=True, slots=True)
class Piece:
    """A range of a model's bytes: part ``index`` of ``count`` nearly equal ones."""

    root: Digest
    """Of the whole model: what the pieces must have together."""
    index: int
    count: int


@dataclass(frozen=True, slots=True)
class Parcel:
    """What a node keeps for itself after a round, on its way to or from another node's disk."""

    node: NodeId
    """Whose it is."""
    round_number: int
    digest: Digest
    """Of what is in it, however it is packed."""
    base: Digest
    """Root of the model that it is packed as the difference from; empty: it is whole."""


Item: TypeAlias = Slice | Shard | Blob | Piece | Parcel


@dataclass(frozen=True, slots=True)
class Hello:
    """First message to every peer after a start."""

    version: int
    experiment: str
    incarnation: int
    commit: Entry


@dataclass(frozen=True, slots=True)
class Welcome:
    """Answer to ``Hello`` of the same experiment."""

    commit: Entry


@dataclass(frozen=True, slots=True)
class Prevote:
    """Would you vote for me? Promises nothing and raises no term."""

    term: int
    """The term that the sender would stand in: its own + 1."""
    commit: Entry


@dataclass(frozen=True, slots=True)
class Prevoted:
    """Answer to ``Prevote``."""

    asked: int
    """Term of the question."""
    ok: bool
    term: int
    commit: Entry


@dataclass(frozen=True, slots=True)
class VoteRequest:
    """Vote for me in this term."""

    term: int
    commit: Entry


@dataclass(frozen=True, slots=True)
class Vote:
    """Answer to ``VoteRequest``."""

    term: int
    ok: bool
    commit: Entry
    accepted: Entry | None
    """What the voter last accepted: whatever may have been committed is among the votes."""


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """All the leader's state, every beat and at once on change."""

    term: int
    commit: Entry
    proposal: Proposal | None
    hopeless: str = ""
    """Why there will be no further round: updates that the rule needs did not come."""


@dataclass(frozen=True, slots=True)
class Held:
    """An accepted entry, as far as its leader does not know it: the rest is in the proposal."""

    ballot: Ballot
    round_number: int
    root: Digest
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Ack:
    """All a follower's state: at once where it has news, and soon after every heartbeat."""

    term: int
    incarnation: int
    sequence: int
    """Grows within an incarnation: an older ack that comes later counts for nothing."""
    installed: int
    """Round of the newest model it has installed."""
    ready: Contribution | None
    """Update for the round after ``installed``."""
    held: Held | None
    """What it last accepted: bytes and record are on its disk."""
    progress: int
    """Grows with every item or part of one that arrives."""
    unreachable: tuple[NodeId, ...]
    declined: int = 0
    """Round to which it has no update to give; 0: none. Nobody waits for it."""


@dataclass(frozen=True, slots=True)
class Want:
    """Send me this item, if you have it; or get it, where not all members are connected."""

    item: Item
    source: NodeId
    """Who should have it."""


@dataclass(frozen=True, slots=True)
class Data:
    """An item. The driver sends its bytes along, and keeps them before it hands this in."""

    item: Item


@dataclass(frozen=True, slots=True)
class Join:
    """A node asks for heartbeats, and for a vote unless it only observes."""

    member: Member
    votes: bool


@dataclass(frozen=True, slots=True)
class Leave:
    """A node, or an operator for it, asks that it be taken off the roster."""

    node: NodeId


@dataclass(frozen=True, slots=True)
class Stashed:
    """The parcel is on the sender's disk."""

    parcel: Parcel


@dataclass(frozen=True, slots=True)
class Unstash:
    """A node that lost its disk asks: what do you keep of these?"""

    nodes: tuple[NodeId, ...]


@dataclass(frozen=True, slots=True)
class Stashes:
    """Answer to ``Unstash``: the newest parcel of each, none of some."""

    parcels: tuple[Parcel, ...]


Control: TypeAlias = (
    Hello
    | Welcome
    | Prevote
    | Prevoted
    | VoteRequest
    | Vote
    | Heartbeat
    | Ack
    | Join
    | Leave
    | Stashed
    | Unstash
    | Stashes
)
"""What may travel over other members."""


@dataclass(frozen=True, slots=True)
class Relay:
    """A message on its way over other members, each of which hands it on once."""

    origin: NodeId
    incarnation: int
    sequence: int
    """Grows within an incarnation."""
    to: tuple[NodeId, ...]
    message: Control


Message: TypeAlias = (
    Hello
    | Welcome
    | Prevote
    | Prevoted
    | VoteRequest
    | Vote
    | Heartbeat
    | Ack
    | Want
    | Data
    | Join
    | Leave
    | Relay
    | Stashed
    | Unstash
    | Stashes
)
