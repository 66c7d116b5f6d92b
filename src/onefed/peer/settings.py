"""Settings of a node, and what it starts from."""

from __future__ import annotations

from dataclasses import dataclass

from onefed.peer.messages import Digest, Entry, Member, NodeId, Parcel
from onefed.peer.topology import Topology


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """What whoever starts a node may choose; durations are seconds of its own monotonic clock."""

    beat_s: float = 0.1
    suspect_s: float = 1.0
    """Without any message for so long, a node is suspected."""
    election_min_s: float = 1.0
    election_max_s: float = 2.0
    """A follower stands after a random time between the two without a heartbeat."""
    repair_s: float = 0.5
    """What has not come by itself after so long is asked for, again and again."""
    stall_s: float = 5.0
    """No progress for so long: a new attempt."""
    straggler_floor_s: float = 0.5
    straggler_cap_s: float = 60.0
    """The deadline of a round: median + MADs of past ready times, between floor and cap."""
    evict_after_rounds: int = 0
    """Take a voter off the roster that was silent at so many commits; 0: never."""
    topology: Topology = Topology.FULL
    """The same at all members."""
    piece_bytes: int = 2**22
    """A longer model that is missing is fetched in pieces of about that, from several nodes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings(Pace):
    """Of one node; durations as in ``Pace``."""

    member: Member
    """This node."""
    experiment: str
    """Nodes of another experiment are not talked to."""
    rounds_total: int
    rule: str = ""
    """Digest of the aggregation rule and its parameters."""
    whole_updates: bool = False
    """Robust rules that look at whole updates: contributors broadcast, everybody reduces."""
    votes: bool = True
    """Ask for a vote when not on the roster; False: observe and contribute only."""
    min_contributors: int = 1
    whole_roster: bool = False
    """The rule gives nothing without the update of every voter: no partial aggregation."""
    give_up_s: float | None = None
    """A round that lacks updates which the rule needs for so long has failed, for all; None: it
    waits."""
    straggler_mads: float = 4.0
    """So many MADs over the median is the deadline of a round."""
    catch_up_grace_s: float = 2.0
    """A live node that is behind holds a round up for no longer."""
    join_s: float = 1.0
    """How often a request to join or leave is repeated."""
    late_s: float = 0.2
    """A tick that comes later than this was late by the node's own fault: timeouts stretch."""
    stash_rounds: int = 0
    """Every so many rounds others are given what the node keeps for itself; 0 or less: never."""
    restores: tuple[NodeId, ...] = ()
    """Names under which this node was here before it lost its disk: what others have kept of them
    is fetched before it trains."""
    restore_s: float = 5.0
    """For no longer than that."""
    models_kept: int = 3
    """Committed models on disk."""

    def __post_init__(self) -> None:
        assert self.rounds_total >= 1
        assert self.min_contributors >= 1
        assert 0 < self.beat_s < self.suspect_s <= self.election_min_s < self.election_max_s
        assert self.models_kept >= 1
        assert self.piece_bytes >= 1


@dataclass(frozen=True, slots=True)
class Saved:
    """What a node is made from: its journal, read, and the models on its disk."""

    commit: Entry
    """The newest committed round known; at first round 0, the model all begin with."""
    term: int = 0
    voted_for: NodeId | None = None
    accepted: Entry | None = None
    incarnation: int = 0
    evicted: tuple[NodeId, ...] = ()
    """Voters that the operator has called gone, and that no commit has taken off yet."""
    models: tuple[Digest, ...] = ()
    """Roots of the whole models on disk."""
    parcels: tuple[Parcel, ...] = ()
    """Of other nodes, that are on disk; the newest of each."""
    own_parcel: Parcel | None = None
    """The newest of this node, whoever keeps it."""
