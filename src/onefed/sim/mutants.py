"""Seeded bugs: one for each safety rule, and for the journal. Each must be seen by the checkers.

A mutant is the rules with one of them changed, or a driver that neglects a duty.
Run with assertions off (``python -O``): the core's own would see many of them first.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from onefed.peer import journal
from onefed.peer.interface import AcceptedRecord, Action, Append, Send, VoteRecord
from onefed.peer.messages import Ack, Ballot, Entry, Member, NodeId, Parcel, Roster, Vote
from onefed.peer.safety import Rules
from onefed.peer.settings import Saved
from onefed.sim import options
from onefed.sim.checkers import OUTCOMES
from onefed.sim.run import Outcome, run
from onefed.sim.world import Compact, Replay

SCHEDULES_MAX = 2000
"""In which a mutant must be killed."""


class NoAdopt(Rules):
    """A new leader plans anew, whatever was accepted."""

    def to_adopt(self, commit_round: int, reported: Iterable[Entry | None]) -> Entry | None:
        return None


class LowestAdopt(Rules):
    """A new leader adopts what was accepted first, not last."""

    def to_adopt(self, commit_round: int, reported: Iterable[Entry | None]) -> Entry | None:
        found = [each for each in reported if each is not None and each.round_number > commit_round]
        return min(found, key=lambda entry: entry.ballot, default=None)


class BallotReuse(Rules):
    """The attempts of each round begin at 1 again."""

    def next_attempt(self, last: int, *, new_round: bool) -> int:
        return 1 if new_round else last + 1


class AckBeforeSave(Rules):
    """A node says what it holds, then saves it."""

    def in_order(self, actions: list[Action]) -> list[Action]:
        return _later(actions, AcceptedRecord, Ack)


class VoteBeforeSave(Rules):
    """A node votes, then saves its vote."""

    def in_order(self, actions: list[Action]) -> list[Action]:
        return _later(actions, VoteRecord, Vote)


class MajorityLessOne(Rules):
    """Half are enough."""

    def is_majority(self, votes: int, voters: int) -> bool:
        return votes >= max(1, voters // 2)


class StaleBallot(Rules):
    """A node accepts under an older ballot than it has seen."""

    def may_accept(self, *, round_number: int, commit_round: int, installed: int, **_: Any) -> bool:
        return round_number == commit_round + 1 and installed == commit_round


class AnyBallotCounts(Rules):
    """A leader counts what is held under any ballot."""

    def counts(self, held: Ballot, current: Ballot) -> bool:
        return True


class NoCatchUp(Rules):
    """A candidate may be behind its voters, and stays so."""

    def heeds(self) -> bool:
        return False

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
        return asked > term or (asked == term and voted_for in (None, candidate))


class TwoVotes(Rules):
    """A node gives its vote to everybody who asks."""

    def may_vote(self, *, asked: int, term: int, **rest: Any) -> bool:
        return asked >= term and bool(rest["candidate_round"] >= rest["own_round"])


class LateData(Rules):
    """Shards of another attempt count for this one."""

    def belongs(self, shard: Ballot, plan: Ballot) -> bool:
        return True


class ManyChanges(Rules):
    """All who leave and join do so in one entry."""

    def changed(self, roster: Roster, leaving: list[NodeId], joining: list[Member]) -> Roster:
        kept = [member for member in roster if member.node not in leaving] or list(roster[:1])
        return tuple(sorted((*kept, *joining), key=lambda member: member.node))


class NewRosterDecides(Rules):
    """A change of the roster counts for the decision on itself."""

    def electorate(self, committed: Roster, proposed: Roster) -> Roster:
        return proposed


class PartialAnyway(Rules):
    """Whoever is ready is enough for any rule."""

    def suffices(
        self, contributors: Iterable[NodeId], voters: Iterable[NodeId], *, whole: bool, least: int
    ) -> bool:
        return True


class MostSurvivors(Rules):
    """Without the ones that are gone, most of the others decide."""

    def are_survivors(self, votes: int, voters: int) -> bool:
        return votes >= voters // 2 + 1


class CommonTerms(Rules):
    """Terms go on as they were after a decision."""

    def term_of_decision(self, term: int) -> int:
        return term + 1


class OneHistory(Rules):
    """Who went on by itself is taken for one that is behind, or ahead."""

    def is_same_history(self, one: Entry, other: Entry) -> bool:
        return True


class LastStash(Rules):
    """A parcel replaces another, whichever is newer."""

    def replaces(self, parcel: Parcel, known: Parcel | None) -> bool:
        return True


class OldestRestored(Rules):
    """What was kept longest ago is restored."""

    def to_restore(self, offered: Sequence[Parcel]) -> Parcel | None:
        return offered[0] if offered else None


class LeadsAgain(Rules):
    """A leader that restarts resumes its term."""

    def leads_again(self, *, voted_for: NodeId | None, me: NodeId) -> bool:
        return voted_for == me


class SendersWord(Rules):
    """Whoever hands an envelope on is taken for the one that speaks."""

    def author(self, origin: NodeId, sender: NodeId) -> NodeId:
        return sender


class HandsOnNothing(Rules):
    """Envelopes end at the first node."""

    def hands_on(self) -> bool:
        return False


class AsksNobody(Rules):
    """An item that is not here is not looked for elsewhere."""

    def asks_on(self) -> bool:
        return False


def uncut(content: bytes, node: NodeId, experiment: str) -> journal.Replayed:
    """The torn tail stays, and is written after."""
    return replace(journal.replay(content, node, experiment), good_bytes=len(content))


def unchecked(content: bytes, node: NodeId, experiment: str) -> journal.Replayed:
    """Damage is always taken for a torn tail, checksums or not."""
    replayed = journal.replay(content, node, experiment)
    accepted = replayed.saved.accepted
    if replayed.good_bytes < len(content) and accepted is not None:
        # A reader without checksums takes the garbage for the record that should be there.
        damaged = replace(accepted, root=accepted.root[::-1])
        return replace(replayed, saved=replace(replayed.saved, accepted=damaged))
    return replayed


def forgetful(node: NodeId, experiment: str, saved: Saved) -> bytes:
    """A compaction that keeps what is committed, and nothing that was promised."""
    return journal.compacted(node, experiment, replace(saved, accepted=None, voted_for=None))


@dataclass(frozen=True, slots=True)
class Mutant:
    """A bug on purpose."""

    name: str
    breaks: str
    """Which rule or duty."""
    rules: Rules = field(default_factory=Rules)
    replay: Replay = journal.replay
    compact: Compact = journal.compacted
    sync: bool = True
    shown_by: Callable[[int], bool] | None = None
    """Only schedules of such seeds can show it; None: of all."""
    keeps: bool = True
    compares: bool = True


MUTANTS: tuple[Mutant, ...] = (
    Mutant("no-adopt", "a new leader finishes what was accepted", NoAdopt()),
    Mutant("lowest-adopt", "... and of several, the highest ballot", LowestAdopt()),
    Mutant("ballot-reuse", "no attempt twice in a term", BallotReuse()),
    Mutant("ack-before-save", "held is said after it is saved", AckBeforeSave()),
    Mutant("vote-before-save", "a vote is said after it is saved", VoteBeforeSave()),
    Mutant("majority-less-one", "commits and elections take a majority", MajorityLessOne()),
    Mutant("stale-ballot", "accept under the newest ballot only", StaleBallot()),
    Mutant("any-ballot-counts", "count what is held under the current ballot", AnyBallotCounts()),
    Mutant("no-catch-up", "a leader knows all commits of its voters", NoCatchUp()),
    Mutant("two-votes", "one vote a term", TwoVotes()),
    Mutant("late-data", "shards of another attempt do not count", LateData()),
    Mutant("many-changes", "the roster changes by one", ManyChanges()),
    Mutant("new-roster-decides", "the roster before a change decides on it", NewRosterDecides()),
    Mutant("partial-anyway", "no partial aggregation where the rule has none", PartialAnyway()),
    Mutant("most-survivors", "all that are left decide", MostSurvivors(), shown_by=options.loses),
    Mutant(
        "common-terms", "a decision has terms of its own", CommonTerms(), shown_by=options.loses
    ),
    Mutant("one-history", "a decision parts histories", OneHistory(), shown_by=options.loses),
    Mutant("leads-again", "a restarted leader never resumes its term", LeadsAgain()),
    Mutant("no-sync", "synced means on disk", sync=False),
    Mutant("tail-stays", "the torn tail of the journal is cut", replay=uncut),
    Mutant("no-checksum", "a torn record is no record", replay=unchecked),
    Mutant("last-stash", "the newest parcel of a node is kept", LastStash()),
    Mutant("oldest-restored", "the newest that is offered is restored", OldestRestored()),
    Mutant("stashed-unsaved", "a parcel is kept after it is saved", keeps=False),
    Mutant(
        "senders-word",
        "what is handed on is its origin's word",
        SendersWord(),
        shown_by=options.is_sparse,
    ),
    Mutant(
        "hands-on-nothing",
        "an envelope reaches all",
        HandsOnNothing(),
        shown_by=options.is_sparse,
    ),
    Mutant(
        "asks-nobody",
        "an item is pulled hop by hop",
        AsksNobody(),
        shown_by=options.is_sparse,
    ),
    Mutant(
        "pieces-unread",
        "pieces are the model whose digest they have",
        compares=False,
        shown_by=options.is_cut,
    ),
    Mutant("compaction-forgets", "a short journal says what the long one said", compact=forgetful),
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a mutant fared."""

    mutant: Mutant
    schedules: int
    """That were run, up to and with the one that killed it."""
    killed: Outcome | None


def judge(
    mutant: Mutant,
    seeds: Iterator[int],
    schedules_max: int,
    only: frozenset[str] | None = None,
) -> Verdict:
    """Run schedules until one kills the mutant, by one of the promises in ``only``."""
    if mutant.shown_by is not None:
        seeds = filter(mutant.shown_by, seeds)
    for count in range(1, schedules_max + 1):
        outcome = run(
            options.draw(next(seeds)),
            rules=mutant.rules,
            replay=mutant.replay,
            compact=mutant.compact,
            sync=mutant.sync,
            keeps=mutant.keeps,
            compares=mutant.compares,
            only=only,
        )
        if outcome.violation is not None:
            return Verdict(mutant, count, outcome)
    return Verdict(mutant, schedules_max, None)


def _later(actions: list[Action], record: type, message: type) -> list[Action]:
    """Move records of a kind behind the messages of a kind."""
    said: Callable[[Action], bool] = lambda each: (  # noqa: E731
        isinstance(each, Send) and isinstance(each.message, message)
    )
    if not any(said(each) for each in actions):
        return actions
    saved = [
        each for each in actions if isinstance(each, Append) and isinstance(each.record, record)
    ]
    return [each for each in actions if each not in saved] + saved


def table(schedules_max: int, only: frozenset[str] | None = None) -> Iterator[str]:
    """Judge all mutants, line by line; the first is the head of the table."""
    yield f"{'mutant':20} {'schedules':>9}  {'seen by':12} what it breaks"
    for mutant in MUTANTS:
        verdict = judge(mutant, itertools.count(), schedules_max, only)
        violation = None if verdict.killed is None else verdict.killed.violation
        seen = "SURVIVES" if violation is None else violation.promise
        yield f"{mutant.name:20} {verdict.schedules:9}  {seen:12} {mutant.breaks}"


def main() -> None:
    """Print the table; exit 1 where a mutant survives."""
    parser = argparse.ArgumentParser(prog="python -O -m onefed.sim.mutants", description=__doc__)
    parser.add_argument("--schedules", type=int, default=SCHEDULES_MAX, help="at most, for each")
    parser.add_argument("--outcomes", action="store_true", help="watch only what comes out")
    options_ = parser.parse_args()
    if __debug__:
        parser.error("switch assertions off: python -O")
    survived = False
    for line in table(options_.schedules, OUTCOMES if options_.outcomes else None):
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()
        survived |= " SURVIVES " in line
    sys.exit(1 if survived else 0)


if __name__ == "__main__":
    main()
