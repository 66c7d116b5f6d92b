"""The checkers: they watch every node and know no protocol state but what is said and saved.

None of them is an assertion of the core, and none of them asks the machine what it thinks.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from onefed.peer.messages import (
    Ack,
    Ballot,
    Digest,
    Entry,
    Heartbeat,
    Message,
    NodeId,
    Proposal,
    Vote,
    VoteRequest,
)
from onefed.sim import content
from onefed.sim.content import Content
from onefed.sim.disk import Disk
from onefed.sim.violation import Violation


@dataclass(frozen=True, slots=True)
class Trained:
    """An update that exists."""

    content: Content
    round_number: int
    base: Digest


@dataclass(slots=True)
class Checkers:
    """What has been seen so far. Every method raises ``Violation``."""

    start: Entry
    whole: bool
    committed: dict[int, Entry] = field(default_factory=dict)
    updates: dict[Digest, Trained] = field(default_factory=dict)
    votes: dict[tuple[NodeId, int], NodeId] = field(default_factory=dict)
    proposals: dict[Ballot, Proposal] = field(default_factory=dict)
    leaders: dict[int, NodeId] = field(default_factory=dict)
    sent_bytes: dict[NodeId, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.committed[self.start.round_number] = self.start

    def on_commit(self, node: NodeId, entry: Entry, disks: dict[NodeId, Disk]) -> None:
        """A node takes an entry for committed.

        Agreement: the same entry as anybody else's for that round. The first to say so has a
        majority of disks behind it, and the entry is what the rule makes of the named updates.
        """
        known = self.committed.get(entry.round_number)
        if known is not None:
            same = (known.root, known.roster, known.contributors) == (
                entry.root,
                entry.roster,
                entry.contributors,
            )
            if not same:
                raise Violation(
                    "agreement",
                    f"round {entry.round_number}: {node} has {entry.root}, {known.root} before",
                )
            return
        before = self.committed.get(entry.round_number - 1)
        if before is None:
            raise Violation("order", f"round {entry.round_number} without the round before")
        self._reference(entry, before)
        holders = [
            member.node
            for member in before.roster
            if member.node in disks and entry.root in disks[member.node].models
        ]
        if len(holders) <= len(before.roster) // 2:
            raise Violation(
                "durability",
                f"round {entry.round_number} is on the disks of {holders} only",
            )
        if len(set(before.roster) ^ set(entry.roster)) > 1:
            raise Violation("roster", f"round {entry.round_number} changes more than one member")
        self.committed[entry.round_number] = entry

    def _reference(self, entry: Entry, before: Entry) -> None:
        trained = []
        for each in entry.contributors:
            update = self.updates[each.digest]
            if (update.round_number, update.base) != (entry.round_number, before.root):
                raise Violation("reference", f"{each.node} trained another model")
            trained.append(update.content)
        expected = content.digest(content.reduce(trained, entry.contributors, whole=self.whole))
        if entry.root != expected:
            raise Violation(
                "reference",
                f"round {entry.round_number} is {entry.root}, the rule gives {expected}",
            )

    def on_install(self, node: NodeId, entry: Entry, disk: Disk) -> None:
        """A node uses a model: a committed one, whose bytes it has."""
        known = self.committed.get(entry.round_number)
        if known is None or known.root != entry.root:
            raise Violation("agreement", f"{node} installs {entry.root}, which is not committed")
        model = disk.models.get(entry.root)
        if model is None or content.digest(model) != entry.root:
            raise Violation("bytes", f"{node} installs {entry.root} without its bytes")

    def on_send(self, node: NodeId, to: NodeId, message: Message, disk: Disk) -> None:
        """What a node says about itself must be on its disk, and must not contradict itself."""
        match message:
            case Ack(held=Entry() as held):
                if held.root not in disk.models and held.round_number > max(self.committed):
                    raise Violation("held", f"{node} says it holds {held.root}, and does not")
            case Heartbeat(term, _, proposal):
                if self.leaders.setdefault(term, node) != node:
                    raise Violation("leader", f"{node} leads term {term}, as does another")
                if proposal is not None:
                    self._once(proposal)
            case Vote(term, True):
                self.vote(node, term, to)
            case VoteRequest(term):
                self.vote(node, term, node)
            case _:
                pass

    def _once(self, proposal: Proposal) -> None:
        known = self.proposals.setdefault(proposal.ballot, proposal)
        if known is not proposal and known != proposal:
            raise Violation("ballot", f"{tuple(proposal.ballot)} names two proposals")

    def vote(self, voter: NodeId, term: int, candidate: NodeId) -> None:
        """One vote a term."""
        if self.votes.setdefault((voter, term), candidate) != candidate:
            raise Violation("vote", f"{voter} votes twice in term {term}")
