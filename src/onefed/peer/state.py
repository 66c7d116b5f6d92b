"""What a node knows. Changed by the modules of this room, inside of one step, and nowhere else."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field

from onefed.peer import topology
from onefed.peer.interface import Action, Append, CommittedRecord, Notice, Send
from onefed.peer.messages import (
    Ack,
    Ballot,
    Contribution,
    Digest,
    Entry,
    Item,
    Member,
    Message,
    NodeId,
    Parcel,
    Piece,
    Plan,
    Proposal,
    Shard,
    Slice,
)
from onefed.peer.safety import Rules
from onefed.peer.settings import Settings

NEVER = float("inf")
STAR_ROUNDS_FIRST = 2
"""Rounds that go through the leader alone after a stall, the stalled one included."""


class Role(enum.Enum):
    """As in Raft; an observer is a follower without a vote."""

    FOLLOWER = "follower"
    ASKING = "asking"
    """Pre-vote: no term is raised before a majority would vote."""
    CANDIDATE = "candidate"
    LEADER = "leader"


@dataclass(slots=True)
class Lead:
    """What only a leader keeps. It dies with the term."""

    adopt: Entry | None
    """To be finished before anything is planned."""
    holders: tuple[NodeId, ...]
    round_started_s: float
    attempt: int = 0
    """Last attempt of this term."""
    tries: int = 0
    """Attempts at this round."""
    acks: dict[NodeId, Ack] = field(default_factory=dict)
    """The newest of each node."""
    ready_s: dict[NodeId, float] = field(default_factory=dict)
    """Since the start of the round, for those that are ready."""
    ready_times_s: list[float] = field(default_factory=list)
    """Of past rounds, newest last."""
    owners: tuple[NodeId, ...] = ()
    """Of the last attempt at this round that was no star."""
    stars: int = 0
    """So many rounds still go through the leader alone."""
    stars_next: int = STAR_ROUNDS_FIRST
    """So many will after the next stall."""
    withheld: dict[NodeId, tuple[int, int]] = field(default_factory=dict)
    """Who said that it has an update and did not give it: up to which round it is left out, and
    for how many after the next time."""
    progress: int = 0
    progress_at_s: float = 0.0
    fail_at_s: float = NEVER
    """When the leader ends a run that has failed: the others have been told by then."""
    learners: dict[NodeId, Member] = field(default_factory=dict)
    """Nodes off the roster that get heartbeats."""
    joining: dict[NodeId, Member] = field(default_factory=dict)
    """Those of them that want a vote."""
    leaving: set[NodeId] = field(default_factory=set)
    behind: dict[NodeId, int] = field(default_factory=dict)
    """At how many commits in a row a live node lacked the model before."""
    patience: dict[NodeId, int] = field(default_factory=dict)
    """At how many of them the next round is held for it; doubled each time that was in vain."""
    absent: dict[NodeId, int] = field(default_factory=dict)
    """At how many commits in a row a voter was silent."""


@dataclass(slots=True)
class State:
    """The machine's memory. The first block is what the journal restores."""

    settings: Settings
    rules: Rules
    jitter: Callable[[], float]
    """From 0 up to 1, another each time."""
    term: int
    voted_for: NodeId | None
    accepted: Entry | None
    commit: Entry
    incarnation: int
    models: dict[str, int]
    """Round by root, of the models on disk."""

    me: NodeId = ""
    voters: tuple[NodeId, ...] = ()
    """Of ``commit.roster``, but for those that the operator has called gone."""
    order: tuple[NodeId, ...] = ()
    """This node and all of ``commit.roster``, as ``topology`` has them."""
    evicted: frozenset[NodeId] = frozenset()
    """Those; of the roster all of them."""
    now_s: float = 0.0
    out: list[Action] = field(default_factory=list)
    role: Role = Role.FOLLOWER
    leader: NodeId | None = None
    lead: Lead | None = None
    installed: int = 0
    heard_s: dict[NodeId, float] = field(default_factory=dict)
    """When the last message of each peer came."""
    beat_heard_s: float = -NEVER
    """When the last heartbeat of ``leader`` came."""
    direct_s: dict[NodeId, float] = field(default_factory=dict)
    """When the last message of each peer came over a connection of its own."""
    envelopes: int = 0
    """Sent so far, of this incarnation."""
    relayed: dict[NodeId, tuple[int, int, set[int]]] = field(default_factory=dict)
    """By origin: incarnation, newest envelope, recent ones."""
    asked: dict[Item, dict[NodeId, None]] = field(default_factory=dict)
    """Items that others wait for, and who, in their order."""
    pulled_s: dict[Item, float] = field(default_factory=dict)
    """When an item was asked for on behalf of others."""
    hops: dict[Item, int] = field(default_factory=dict)
    """How often an item was asked for on its way, but for the first time."""
    pulled: Ballot | None = None
    """Plan all of whose items were asked for."""
    told_alone: bool = False
    """People were told that no majority answers, since a leader was heard last."""
    votes: dict[NodeId, Entry | None] = field(default_factory=dict)
    """Of this candidacy: voter, and what it had accepted."""
    proposal: Proposal | None = None
    """The newest of this term."""
    ready: Contribution | None = None
    """Own update for the round after ``installed``."""
    training: int = 0
    """Round that is being trained; 0: none."""
    declined: int = 0
    """Round for which training gave nothing; 0: none."""
    hopeless: str = ""
    """Why there will be no further round."""
    slices: set[Slice] = field(default_factory=set)
    """Of others' updates, that are kept here."""
    shards: set[Shard] = field(default_factory=set)
    sent: set[tuple[NodeId, Slice | Shard]] = field(default_factory=set)
    """What was given to whom before anybody asked."""
    offered: tuple[Ballot, Contribution | None] | None = None
    """Plan for which all slices were sent, and the update they are of."""
    reducing: set[tuple[Ballot, int]] = field(default_factory=set)
    """Started, done ones included."""
    assembling: Ballot | None = None
    sequence: int = 0
    progress: int = 0
    tries: int = 0
    """At fetching what is missing: each asks another holder."""
    pieces: dict[Piece, None] = field(default_factory=dict)
    """Of models that are not here, in the order in which they came."""
    fetching: dict[Piece, NodeId] = field(default_factory=dict)
    """Pieces that were asked for and have not come: of whom."""
    idle: set[NodeId] = field(default_factory=set)
    """Who was asked for pieces of the model that is missing, and gave none."""
    combining: Digest = ""
    """Model whose pieces are being joined."""
    misfit: Digest = ""
    """Model whose pieces did not fit together; it is fetched whole."""
    finish_by_s: float = NEVER
    """Until when a commit is not taken note of, while its bytes are on their way."""
    stashes: dict[NodeId, Parcel] = field(default_factory=dict)
    """Newest parcel of each other node that is kept here."""
    own: Parcel | None = None
    """Newest parcel of this node."""
    kept_by: set[NodeId] = field(default_factory=set)
    """Who has it on disk."""
    stash_tries: int = 0
    """At giving it away."""
    restore_by_s: float = -NEVER
    """Until when it looks for what others have kept of it; long past: it does not."""
    offers: dict[NodeId, tuple[Parcel, ...]] = field(default_factory=dict)
    """What they have answered."""
    left: bool = False
    """Left on purpose: does not ask to join again."""
    asked_to_leave: set[NodeId] = field(default_factory=set)
    ack_due: bool = False
    ack_news: tuple[object, ...] = ()
    """To whom the last ack went, and what it said that the leader may wait for."""
    ack_ready: Contribution | None = None
    beat_due: bool = False

    election_at_s: float = NEVER
    beat_at_s: float = NEVER
    repair_at_s: float = NEVER
    join_at_s: float = NEVER
    stash_at_s: float = NEVER
    ack_at_s: float = NEVER
    due_s: float = 0.0

    def send(self, to: NodeId, message: Message) -> None:
        """To a peer; never to this node."""
        assert to != self.me, "a node does not write to itself"
        self.out.append(Send(to, message))

    def notice(self, kind: str, detail: str) -> None:
        """Tell people."""
        self.out.append(Notice(kind, detail))

    @property
    def is_voter(self) -> bool:
        """On the roster that decides on the next round."""
        return self.me in self.voters

    def is_live(self, node: NodeId) -> bool:
        """Heard of lately, or this node."""
        return (
            node == self.me or self.now_s - self.heard_s.get(node, -NEVER) < self.settings.suspect_s
        )

    def has_majority(self, nodes: int) -> bool:
        """Whether so many voters decide."""
        decide = self.rules.are_survivors if self.evicted else self.rules.is_majority
        return decide(nodes, len(self.voters))

    def count_voters(self) -> None:
        """After a commit, or an operator's decision."""
        names = tuple(member.node for member in self.commit.roster)
        self.evicted &= set(names)
        self.voters = tuple(name for name in names if name not in self.evicted)
        self.order = topology.in_order((*names, self.me))

    def set_commit(self, entry: Entry) -> None:
        """Take note of a committed entry that is newer; without the follow-ups of ``repair``."""
        assert entry.round_number > self.commit.round_number, "commits never go back"
        self.commit = entry
        self.count_voters()
        self.out.append(Append(CommittedRecord(entry), sync=False))

    def has_accepted(self, ballot: Ballot) -> bool:
        """Whether a proposal is done here."""
        return self.accepted is not None and self.accepted.ballot == ballot

    @property
    def plan(self) -> Plan | None:
        """The proposal, if it is one to work on: a plan for the next round, on a model we have."""
        proposal = self.proposal
        if (
            isinstance(proposal, Plan)
            and proposal.round_number == self.commit.round_number + 1
            and self.installed == self.commit.round_number
        ):
            return proposal
        return None
