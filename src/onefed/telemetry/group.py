"""What a person wants to see of a group without a coordinator: folded from its members' event logs.

Each member writes a log of its own, and says the same of a round as the others. ``onefed peer up``
decides by this view what a run has come to, and draws it, so the two cannot disagree.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from onefed.telemetry import events as ev
from onefed.telemetry import sentences
from onefed.telemetry.status import NOTICES_KEPT_MAX, RoundView, remaining_seconds

if TYPE_CHECKING:
    from onefed.telemetry.lines import Record

TOLD = frozenset({"leader"})
"""Kinds of notices that people are told although nothing is wrong."""


@dataclass(slots=True)
class MemberView:
    """One member, by its own log."""

    name: str
    round_number: int = 0
    """Of the newest model that it has installed."""
    model_sha256: str | None = None
    contributed: int = 0
    """Newest round that its update is in, by whoever knows of it; 0: none."""
    models: dict[int, str] = field(default_factory=dict)
    """Digest of the model that it has installed, by round."""
    failures: int = 0
    """Rounds that its app gave no update to."""
    reason: str | None = None
    """Why it gave none, or what it misses; None once it goes on."""


@dataclass(slots=True)
class AgreedRound:
    """A round that a majority has agreed on."""

    view: RoundView
    contributors: tuple[str, ...]
    model_sha256: str
    term: int


@dataclass(slots=True)
class GroupView:
    """All members; changed by ``read``."""

    members: dict[str, MemberView] = field(default_factory=dict)
    rounds: dict[int, AgreedRound] = field(default_factory=dict)
    notices: deque[str] = field(default_factory=lambda: deque(maxlen=NOTICES_KEPT_MAX))
    """What people are to know, oldest first."""
    split: int | None = None
    """First round of which members have different models; there must be none."""

    def read(self, records: Iterable[Record]) -> None:
        """Take what has happened since."""
        for record in records:
            self._take(record)

    @property
    def rounds_done(self) -> int:
        """The newest round that any member has; 0 before the first."""
        return max((each.round_number for each in self.members.values()), default=0)

    @property
    def failures(self) -> int:
        """Rounds that apps gave no update to."""
        return sum(each.failures for each in self.members.values())

    @property
    def history(self) -> list[RoundView]:
        """All rounds in their order."""
        return [self.rounds[number].view for number in sorted(self.rounds)]

    def left_seconds(self, rounds_total: int) -> float | None:
        """What the remaining rounds will take if they are like the last ones."""
        return remaining_seconds(self.history, rounds_total - self.rounds_done)

    def begin(self) -> None:
        """What was read so far is of earlier starts: its rounds count, its troubles do not."""
        self.notices.clear()
        for member in self.members.values():
            member.failures, member.reason = 0, None

    def _take(self, record: Record) -> None:
        event = record.event
        member = self.members.setdefault(record.role, MemberView(record.role))
        match event:
            case ev.PeerRound():
                self._agreed(member, event)
            case ev.EvaluationResult():
                found = self.rounds.get(event.round)
                if found is not None:
                    found.view = found.view.judged(event)
            case ev.ClientFailure():
                member.failures += 1
                member.reason = event.reason
                self._tell(record)
            case ev.PeerNotice() | ev.Notice() if is_told(record):
                self._tell(record)
            case _:
                pass

    def _agreed(self, member: MemberView, event: ev.PeerRound) -> None:
        member.models[event.round] = event.model_sha256
        if event.round > member.round_number:
            member.round_number, member.model_sha256 = event.round, event.model_sha256
            member.reason = None
        known = self.rounds.get(event.round)
        if known is not None:
            if known.model_sha256 != event.model_sha256:
                self.split = min(event.round, self.split or event.round)
            return
        contributors = tuple(event.contributors.split(","))
        view = RoundView(
            round=event.round,
            responded=len(contributors),
            seconds=event.round_duration_seconds,
        )
        self.rounds[event.round] = AgreedRound(view, contributors, event.model_sha256, event.term)
        for name in contributors:
            other = self.members.setdefault(name, MemberView(name))
            other.contributed = max(other.contributed, event.round)

    def _tell(self, record: Record) -> None:
        assert record.event is not None
        self.notices.append(f"{record.role}: {sentences.sentence(record.event)}")


def is_told(record: Record) -> bool:
    """Whether people are told of an event that is no round: something is wrong, or who leads."""
    event = record.event
    leads = isinstance(event, ev.PeerNotice) and event.kind in TOLD
    return leads or record.level in ("WARNING", "ERROR")
