"""The checkers: they watch every node, and know what is said, what is saved, and nothing else.

None of them is an assertion of the core, and none of them asks a machine what it thinks.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from onefed.peer.messages import (
    Ack,
    Adopt,
    Ballot,
    Digest,
    Entry,
    Heartbeat,
    Held,
    Message,
    NodeId,
    Parcel,
    Piece,
    Proposal,
    Relay,
    Roster,
    Stashed,
    Stashes,
    Vote,
    VoteRequest,
)
from onefed.sim.content import Content, Matter
from onefed.sim.disk import Disk
from onefed.sim.violation import Violation

KEPT_BY = 2
"""Others that keep what a node has given away, where there are so many."""

OUTCOMES = frozenset({"agreement", "order", "reference", "bytes"})
"""Promises about what comes out, not about what is said on the way."""


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
    matter: Matter
    whole_roster: bool = False
    """The rule has no partial aggregation."""
    only: frozenset[str] | None = None
    """Promises that are watched; None: all."""
    disks: dict[NodeId, Disk] = field(default_factory=dict)
    committed: dict[int, Entry] = field(default_factory=dict)
    models: dict[Digest, Content] = field(default_factory=dict)
    """Every model that was on a disk once."""
    updates: dict[Digest, Trained] = field(default_factory=dict)
    votes: dict[tuple[NodeId, int], NodeId] = field(default_factory=dict)
    proposals: dict[Ballot, Proposal] = field(default_factory=dict)
    newest: dict[int, Ballot] = field(default_factory=dict)
    """Proposal, by term."""
    leaders: dict[int, NodeId] = field(default_factory=dict)
    sent_bytes: dict[NodeId, int] = field(default_factory=dict)
    pieces: dict[tuple[NodeId, Piece], list[NodeId]] = field(default_factory=dict)
    """To whom each was given, and by whom."""
    installed: dict[NodeId, Entry] = field(default_factory=dict)
    """The newest model of each node."""
    gone: frozenset[NodeId] = frozenset()
    """Whom the operator has called gone, without a majority."""
    doubtful: dict[int, Entry] = field(default_factory=dict)
    """Rounds that were committed before, and that none of the others had accepted: they may be
    lost, and decided anew."""
    packed: dict[NodeId, tuple[int, Digest]] = field(default_factory=dict)
    """What each node has last made ready for others to keep, and after which round."""

    def __post_init__(self) -> None:
        self.committed[self.start.round_number] = self.start

    def _break(self, promise: str, detail: str) -> None:
        if self.only is None or promise in self.only:
            raise Violation(promise, detail)

    def on_commit(self, node: NodeId, entry: Entry) -> None:
        """A node takes an entry for committed; everybody must take the same one.

        Whoever does so first is its leader: it was the leader's newest proposal, it is on a
        majority of disks, and it is what the rule makes of the updates that it names.
        """
        number = entry.round_number
        known = self.committed.get(number)
        doubtful = self.doubtful.get(number)
        if doubtful is not None and _value(doubtful) == _value(entry):
            if node in self.gone:
                return  # among themselves, those who were called gone know it
            if known is None:
                self.committed[number] = entry  # it was not lost after all
                return
        if known is not None:
            if _value(known) != _value(entry):
                self._break(
                    "agreement", f"round {number}: {node} has {entry.root}, {known.root} before"
                )
            return
        if number - 1 not in self.committed and number - 1 in self.doubtful:
            self.committed[number - 1] = self.doubtful[number - 1]  # one of them knew it
        before = self.committed.get(number - 1)
        if before is None:
            self._break("order", f"round {number} is committed, the round before is not")
            return
        if entry.evictions != before.evictions:
            self._on_eviction(entry, before)
        elif len(set(before.roster) ^ set(entry.roster)) > 1:
            self._break("roster", f"round {number} changes more than one member")
        if self.newest.get(entry.ballot.term, entry.ballot) > entry.ballot:
            self._break("newest", f"round {number} is committed under an older ballot")
        holders = self._holders(before.roster, entry.root)
        voters = {each.node for each in before.roster} - self.gone
        went_on = self.gone and voters <= set(holders)
        if not went_on and not _is_majority(holders, before.roster):
            self._break("durability", f"round {number} is on the disks of {holders} only")
        absent = voters - {each.node for each in entry.contributors}
        if self.whole_roster and absent:
            self._break("partial", f"round {number} is without {sorted(absent)}")
        self._reference(entry, before)
        self.committed[number] = entry

    def on_decision(self, gone: frozenset[NodeId]) -> None:
        """The operator goes on without some. What one of the others has accepted is not lost.

        Accepted under the ballot that was committed, or under a later one: an older one may have
        been overtaken by another of the others, and nobody of them can tell.
        """
        self.gone = gone
        kept = 0
        for node, disk in self.disks.items():
            held = disk.accepted
            if node not in gone and held is not None:
                known = self.committed.get(held.round_number)
                same = known is not None and held.ballot >= known.ballot
                kept = max(kept, held.round_number if same else held.round_number - 1)
        for number in [number for number in self.committed if number > max(kept, 0)]:
            self.doubtful[number] = self.committed.pop(number)

    def is_beyond_help(self) -> bool:
        """Whether a model is wanted for ever: less than half is left, and only the lost had it."""
        left = [disk for node, disk in self.disks.items() if node not in self.gone]
        roots = {entry.root for entry in self.doubtful.values()}
        known = {disk.known.commit.root for disk in left if disk.known is not None}
        return len(left) < len(self.gone) and any(
            not any(root in disk.models for disk in left) for root in roots & known
        )

    def _on_eviction(self, entry: Entry, before: Entry) -> None:
        """An operator's decision says what it was, changes nothing else, and was really made."""
        *earlier, decision = entry.evictions or (None,)
        left = tuple(each for each in before.roster if each.node not in self.gone)
        if (
            decision is None
            or tuple(earlier) != before.evictions
            or (decision.round_number, decision.root) != (before.round_number, before.root)
            or not set(decision.nodes) <= self.gone
            or entry.roster != left
        ):
            self._break("eviction", f"round {entry.round_number} takes off what nobody decided")

    def _holders(self, roster: Roster, root: Digest) -> list[NodeId]:
        return [each.node for each in roster if root in self.disks[each.node].models]

    def _reference(self, entry: Entry, before: Entry) -> None:
        matter, trained = self.matter, []
        for each in entry.contributors:
            update = self.updates[each.digest]
            if (update.round_number, update.base) != (entry.round_number, before.root):
                self._break("reference", f"{each.node} trained another model")
            trained.append(update.content)
        base = self.models[before.root]
        expected = matter.digest(matter.reduce(base, trained, entry.contributors))
        if entry.root != expected:
            self._break(
                "reference",
                f"round {entry.round_number} is {entry.root}, the rule gives {expected}",
            )

    def on_install(self, node: NodeId, entry: Entry) -> None:
        """A node uses a model: a committed one, whose bytes it has."""
        known = self.committed.get(entry.round_number)
        if known is None or (node in self.gone and known.root != entry.root):
            known = self.doubtful.get(entry.round_number, known)
        if known is None or known.root != entry.root:
            self._break("agreement", f"{node} installs {entry.root}, which is not committed")
        model = self.disks[node].models.get(entry.root)
        if model is None or self.matter.digest(model) != entry.root:
            self._break("bytes", f"{node} installs {entry.root} without its bytes")
        before = self.installed.get(node)
        if before is not None and known is self.committed.get(entry.round_number):
            there = self.committed.get(before.round_number, before)
            if entry.round_number > before.round_number and there.root != before.root:
                self._break("history", f"{node} leaves its history for another one")
        self.installed[node] = entry

    def on_accept(self, node: NodeId, entry: Entry) -> None:
        """A node promises an entry: never under an older ballot than it has promised before."""
        disk = self.disks[node]
        if disk.accepted is not None and entry.ballot < disk.accepted.ballot:
            self._break("promise", f"{node} accepts {tuple(entry.ballot)} after a newer one")
        if disk.vote is not None and entry.ballot.term < disk.vote.term:
            self._break("promise", f"{node} accepts {tuple(entry.ballot)} after a newer vote")
        if entry.root not in disk.models:
            self._break("held", f"{node} accepts {entry.root} without its bytes")

    def on_send(self, node: NodeId, to: NodeId, message: Message) -> None:
        """What a node says about itself is on its disk, and it does not contradict itself."""
        match message:
            case Relay(origin, _, _, receivers, inner):
                for each in receivers if origin == node else ():
                    self.on_send(node, each, inner)
            case Ack(held=Held() as held):
                entry = self.disks[node].accepted
                if entry is None or (entry.ballot, entry.round_number, entry.root) != (
                    held.ballot,
                    held.round_number,
                    held.root,
                ):
                    self._break("held", f"{node} says it accepted what is not on its disk")
            case Heartbeat(term, _, proposal):
                if self.leaders.setdefault(term, node) != node:
                    self._break("leader", f"{node} leads term {term}, as does another")
                if proposal is not None and self.proposals.get(proposal.ballot) is not proposal:
                    self._on_proposal(proposal)
            case Vote(term, True):
                vote = self.disks[node].vote
                if vote is None or (vote.term, vote.voted_for) != (term, to):
                    self._break("vote", f"{node} gives a vote that is not on its disk")
                self._once(node, term, to)
            case VoteRequest(term):
                self._once(node, term, node)
            case Stashed(parcel):
                if replace(parcel, base="") not in self.disks[node].parcels:
                    self._break("stashed", f"{node} says it keeps what is not on its disk")
            case Stashes(parcels):
                newest = self.disks[node].told
                if any(newest.get(each.node) != each for each in parcels):
                    self._break("stashed", f"{node} offers an older parcel than it keeps")
            case _:
                pass

    def on_pack(self, node: NodeId, round_number: int, digest: Digest) -> None:
        """A node wants others to keep something of it."""
        self.packed[node] = (round_number, digest)

    def on_restore(self, node: NodeId, parcel: Parcel, offered: list[Parcel]) -> None:
        """A node takes the newest of what it was offered, and what was offered did exist."""
        newest = max((each.round_number for each in offered), default=-1)
        if parcel.round_number != newest:
            self._break("restored", f"{node} restores {parcel.round_number}, not {newest}")
        root = self.committed[parcel.round_number].root
        if parcel.digest != f"{parcel.node} {parcel.round_number} {root}":
            self._break("restored", f"{node} restores what {parcel.node} never was")

    def not_kept(self, living: dict[NodeId, bool]) -> list[NodeId]:
        """Nodes of which too few others keep what they have given away.

        Args:
            living: those that want to be kept, and whether they vote: voters keep.
        """
        found = []
        for node, (_, digest) in self.packed.items():
            others = sum(votes for other, votes in living.items() if other != node)
            kept = [
                other
                for other, disk in self.disks.items()
                if any(parcel.digest == digest for parcel in disk.parcels)
            ]
            if node in living and len(kept) < min(KEPT_BY, others):
                found.append(node)
        return found

    def _once(self, voter: NodeId, term: int, candidate: NodeId) -> None:
        if self.votes.setdefault((voter, term), candidate) != candidate:
            self._break("vote", f"{voter} votes twice in term {term}")

    def _on_proposal(self, proposal: Proposal) -> None:
        ballot = proposal.ballot
        if self.proposals.setdefault(ballot, proposal) != proposal:
            self._break("ballot", f"{tuple(ballot)} names two proposals")
        self.newest[ballot.term] = max(ballot, self.newest.get(ballot.term, ballot))
        chosen = self._chosen(proposal.round_number)
        if chosen is None or chosen.ballot.term >= ballot.term:
            return
        if not isinstance(proposal, Adopt) or proposal.entry.root != chosen.root:
            self._break(
                "chosen",
                f"{tuple(ballot)} proposes anew where a majority holds {tuple(chosen.ballot)}",
            )

    def _chosen(self, round_number: int) -> Entry | None:
        """What a majority of disks hold under one ballot, where no disk holds a newer one."""
        before = self.committed.get(round_number - 1)
        if before is None:
            return None
        held = [
            accepted
            for each in before.roster
            if (accepted := self.disks[each.node].accepted) is not None
            and accepted.round_number == round_number
        ]
        newest = max(held, key=lambda entry: entry.ballot, default=None)
        if newest is None:
            return None
        same = [entry for entry in held if entry.ballot == newest.ballot]
        if not _is_majority(same, before.roster):
            return None
        lost = not any(
            self.disks[each.node].accepted in same
            for each in before.roster
            if each.node not in self.gone
        )
        return None if self.gone and lost else newest


def _is_majority(some: list[NodeId] | list[Entry], roster: Roster) -> bool:
    return len(some) > len(roster) // 2


def _value(entry: Entry) -> tuple[object, ...]:
    """What agreement is about; ballots differ where an entry was adopted."""
    return (entry.root, entry.roster, entry.contributors, entry.evictions)
