"""The numbers that a monitoring system asks for: a fold of the event log. Pure.

It reads the whole log, so a counter goes on where it was when who folds is started again.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import IntEnum

from onefed.context.strategies import STRATEGIES
from onefed.telemetry import events as ev
from onefed.telemetry.lines import Record

DURATION_BUCKETS_S = (1, 5, 10, 30, 60, 120, 300, 600)
"""Upper bounds, included; above the last one there is ``+Inf``."""

NODES_MAX = 4096
"""More are not counted."""

OTHER = "other"
"""Label of a strategy that is none of ours: an app may call its own anything."""


class TrainingStatus(IntEnum):
    """``fl_training_status``."""

    IDLE = 0
    RUNNING = 1
    COMPLETE = 2
    FAILED = 3


@dataclass
class Durations:
    """A histogram of rounds."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(DURATION_BUCKETS_S) + 1))
    """Rounds in each bucket, without those of the buckets below it; the last one is ``+Inf``."""
    total_s: float = 0.0

    def add(self, seconds: float) -> None:
        """One more round."""
        self.counts[bisect.bisect_left(DURATION_BUCKETS_S, seconds)] += 1
        self.total_s += seconds


@dataclass
class Metrics:
    """What is known of a federation's training; begins with what its context says."""

    strategy: str
    """One of ``STRATEGIES``, or ``OTHER``."""
    round_total: int
    round_current: int = 0
    loss: float = 0.0
    """Of the last round that has one, as the accuracy; 0 before."""
    accuracy: float = 0.0
    selected: int = 0
    responded: int = 0
    failed: int = 0
    """Rounds that clients lost, since the log began."""
    checkpoints: int = 0
    """Since the log began."""
    status: TrainingStatus = TrainingStatus.IDLE
    durations: dict[str, Durations] = field(default_factory=dict)
    """By strategy: no more than there are, and ``OTHER``."""
    _connected: set[str] = field(default_factory=set)

    @property
    def connected(self) -> int:
        """Nodes that the coordinator hears."""
        return len(self._connected)

    def fold(self, records: Iterable[Record]) -> None:
        """Take more records."""
        for record in records:
            self._take(record.event)

    def _take(self, event: ev.Event | ev.Unknown | None) -> None:
        match event:
            case ev.FederationStart():
                self._connected.clear()
                self._begin(event.strategy, event.rounds)
                self.status = TrainingStatus.IDLE
            case ev.RunSubmitted(attempt=1):
                self._begin(self.strategy, self.round_total)
                self.status = TrainingStatus.IDLE
            case ev.TrainingStart():
                self.strategy, self.round_total = label(event.strategy), event.num_rounds
                self.status = TrainingStatus.RUNNING
            case ev.TrainingEnd():
                self.status = TrainingStatus.COMPLETE
            case ev.RunStatus():
                self.status = _STATUS.get(event.status, self.status)
            case ev.FederationEnd():
                self._connected.clear()
                self.status = _STATUS[event.status]
            case ev.RoundStart():
                self.status = TrainingStatus.RUNNING
                self.strategy, self.round_current = label(event.strategy), event.round
                self.selected, self.responded = event.num_clients_selected, 0
            case ev.RoundEnd():
                self._end_round(event)
            case ev.EvaluationResult():
                self._measured(event.loss, event.accuracy)
            case ev.ClientReply(phase="train"):
                self.responded += 1
            case ev.ClientJoin():
                if len(self._connected) < NODES_MAX:
                    self._connected.add(event.node_id)
            case ev.ClientLeave():
                self._connected.discard(event.node_id)
            case ev.ClientFailure():
                self.failed += 1
            case ev.CheckpointSaved():
                self.checkpoints += 1
            case _:
                pass  # of machines and processes

    def _begin(self, strategy: str, rounds: int) -> None:
        """Another run, or another look at it: nothing of it has happened yet."""
        self.strategy, self.round_total = label(strategy), rounds
        self.round_current = self.selected = self.responded = 0
        self.loss = self.accuracy = 0.0

    def _end_round(self, event: ev.RoundEnd) -> None:
        self.status = TrainingStatus.RUNNING
        self.round_current, self.responded = event.round, event.num_clients_responded
        self._measured(event.aggregated_loss, event.aggregated_accuracy)
        if event.round_duration_seconds is not None:
            self.durations.setdefault(self.strategy, Durations()).add(event.round_duration_seconds)

    def _measured(self, loss: float | None, accuracy: float | None) -> None:
        self.loss = self.loss if loss is None else loss
        self.accuracy = self.accuracy if accuracy is None else accuracy


_STATUS = {
    "waiting": TrainingStatus.IDLE,
    "running": TrainingStatus.RUNNING,
    "completed": TrainingStatus.COMPLETE,
    "finished": TrainingStatus.COMPLETE,
    "failed": TrainingStatus.FAILED,
    "stopped": TrainingStatus.IDLE,
}
"""Of the words of ``RunStatus`` and ``FederationEnd``."""


def label(strategy: str) -> str:
    """A strategy as a label: as many values as there are rules, whatever an app says."""
    return strategy if strategy in STRATEGIES else OTHER
