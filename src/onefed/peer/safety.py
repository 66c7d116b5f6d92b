"""The safety rules: every decision on which agreement depends, each as one small pure function.

The rest of the room asks here. The simulator proves that it notices when one of them is wrong:
its mutants are subclasses of ``Rules`` with one rule changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from onefed.peer.interface import Action
from onefed.peer.messages import Ballot, Entry, Member, NodeId, Parcel, Roster

DECISION_TERMS = 2**20
"""Elections that a majority will not hold while an operator makes up his mind."""


class Rules:
    """The rules as they must be."""

    def is_majority(self, votes: int, voters: int) -> bool:
        """Any two majorities of one roster, or of two that differ by one member, meet."""
        return votes >= voters // 2 + 1

    def are_survivors(self, votes: int, voters: int) -> bool:
        """Without those that the operator has called gone, all others decide, and not most of them.

        They meet every majority of which one lives: what it may have chosen is heard of.
        """
        return votes >= voters

    def may_vote(
        self,
        *,
        asked: int,
        candidate: NodeId,
        term: int,
        voted_for: NodeId | None,
        candidate_round: int,
        own_round: int,
    ) -> bool:
        """One vote a term, and only for a candidate that knows all commits that the voter knows.

        The second half makes a leader start at the newest committed round of its majority, and
        keeps old rosters from electing once they are superseded.
        """
        free = asked > term or (asked == term and voted_for in (None, candidate))
        return free and candidate_round >= own_round

    def may_accept(
        self,
        *,
        ballot: Ballot,
        round_number: int,
        term: int,
        newest: Ballot | None,
        accepted: Entry | None,
        commit_round: int,
        installed: int,
    ) -> bool:
        """Only under the newest ballot of the node's own term, and only on top of its commit."""
        return (
            ballot.term == term
            and ballot == newest
            and (accepted is None or accepted.ballot <= ballot)
            and round_number == commit_round + 1
            and installed == commit_round
        )

    def heeds(self) -> bool:
        """Whether a candidate learns what its voters know to be committed."""
        return True

    def counts(self, held: Ballot, current: Ballot) -> bool:
        """A leader counts what is held under its current ballot, and nothing else."""
        return held == current

    def next_attempt(self, last: int, *, new_round: bool) -> int:
        """No attempt twice in a term, across rounds too."""
        return last + 1

    def to_adopt(self, commit_round: int, reported: Iterable[Entry | None]) -> Entry | None:
        """What a new leader must finish: the highest ballot accepted on top of its commit."""
        candidates = [
            entry for entry in reported if entry is not None and entry.round_number > commit_round
        ]
        return max(candidates, key=lambda entry: entry.ballot, default=None)

    def belongs(self, shard: Ballot, plan: Ballot) -> bool:
        """Shards of another attempt are not part of this one."""
        return shard == plan

    def changed(self, roster: Roster, leaving: list[NodeId], joining: list[Member]) -> Roster:
        """The next roster: at most one member less or one more, and never empty."""
        gone = next((node for node in leaving if len(roster) > 1), None)
        if gone is not None:
            return tuple(member for member in roster if member.node != gone)
        return tuple(sorted((*roster, *joining[:1]), key=lambda member: member.node))

    def term_of_decision(self, term: int) -> int:
        """Terms after an operator's decision begin far above those of a majority.

        Should the ones that were called gone still go on by themselves, no ballot, vote or shard
        of theirs has a number that is used here.
        """
        return (term // DECISION_TERMS + 1) * DECISION_TERMS

    def without(self, roster: Roster, gone: frozenset[NodeId]) -> Roster:
        """The next roster after an operator's decision: his alone, and nothing else changes."""
        return tuple(member for member in roster if member.node not in gone)

    def is_same_history(self, one: Entry, other: Entry) -> bool:
        """Whether two commits can be of one history, by the decisions without a majority in it.

        Who was called gone and was not may have gone on by itself: from the round of the decision
        on there are two histories then, and nothing may be taken over from the one to the other.
        """
        short, long = sorted((one, other), key=lambda entry: len(entry.evictions))
        known = len(short.evictions)
        if long.evictions[:known] != short.evictions:
            return False
        if len(long.evictions) == known:
            return short.round_number != long.round_number or short.root == long.root
        parting = long.evictions[known]
        return short.round_number < parting.round_number or (
            (short.round_number, short.root) == (parting.round_number, parting.root)
        )

    def electorate(self, committed: Roster, proposed: Roster) -> Roster:
        """Who decides on a proposal: the roster before it, whatever the next one is."""
        return committed

    def suffices(
        self, contributors: Iterable[NodeId], voters: Iterable[NodeId], *, whole: bool, least: int
    ) -> bool:
        """A rule without partial aggregation is given the updates of all voters, or none."""
        found = set(contributors)
        return len(found) >= least and not (whole and set(voters) - found)

    def replaces(self, parcel: Parcel, known: Parcel | None) -> bool:
        """Of each node the newest parcel is kept, in whatever order they come."""
        return known is None or parcel.round_number > known.round_number

    def to_restore(self, offered: Sequence[Parcel]) -> Parcel | None:
        """The newest of what is offered; ``offered`` is sorted by round."""
        return offered[-1] if offered else None

    def leads_again(self, *, voted_for: NodeId | None, me: NodeId) -> bool:
        """A restarted leader never resumes its term: it does not know its attempts."""
        return False

    def author(self, origin: NodeId, sender: NodeId) -> NodeId:
        """Who says what is in an envelope: its origin, whoever hands it on."""
        return origin

    def hands_on(self) -> bool:
        """Whether an envelope that is new goes on to all other neighbours."""
        return True

    def asks_on(self) -> bool:
        """Whether a node that is asked for what it lacks asks the next one on the way."""
        return True

    def in_order(self, actions: list[Action]) -> list[Action]:
        """What is said comes after what was saved."""
        return actions
