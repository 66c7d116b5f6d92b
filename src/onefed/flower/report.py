"""What a ServerApp that is not ours reports: Flower's own log lines, read as events.

Flower's strategies print their progress and tell nobody else.
The lines are those of flwr 1.41.0, ``serverapp/strategy/strategy.py`` and ``fedavg.py``; every line
is passed on as well, without what would move a terminal's cursor.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from onefed.flower.exchange import STALL_REPORT_S, bounded
from onefed.flower.payload import ACCURACY_KEYS, LOSS_KEYS
from onefed.telemetry import events

LINE_LENGTH_MAX = 4096
"""Characters of a line that are read; an app may print anything."""

_CONTROL = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Control sequences of a terminal, colours among them, and characters that are none to see."""
_LEVEL = re.compile(r"^(?:DEBUG|INFO|WARNING|ERROR)\s*:\s{2,}")
_STRATEGY = re.compile(r"^Starting (\w+) strategy:")
_ROUNDS = re.compile(r"Number of rounds: (\d+)$")
_ROUND = re.compile(r"^\[ROUND (\d+)/(\d+)\]$")
_SAMPLED = re.compile(r"^configure_train: Sampled (\d+) nodes")
_RECEIVED = re.compile(r"^aggregate_train: Received (\d+) results and \d+ failures")
_ERROR = re.compile(r"^> Received error in reply from node (\d+): (.*)$")
_WAITING = re.compile(r"^Waiting for nodes to connect: (\d+) connected \(minimum required: (\d+)\)")
_METRICS = re.compile(r"MetricRecord: \{(.*)\}$")
_METRIC = re.compile(r"'([\w-]+)': (-?(?:\d+\.?\d*(?:e[+-]?\d+)?|inf)|nan)\b")
_FINISHED = re.compile(r"^Strategy execution finished in (\d+\.\d+)s")


class Reporter:
    """Turns the lines of one run into events, in order."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        """Monotonic seconds."""
        self._strategy = "unknown"
        self._round = 0
        self._started = clock()
        self._stall_told: float | None = None
        """When a wait for nodes was last told; None when none is going on."""
        self._waiting_since = 0.0
        self._responded = 0
        self._loss: float | None = None
        self._accuracy: float | None = None

    def read(self, line: str) -> list[events.Event]:
        """The events in one line; the line itself is the last of them unless it is blank."""
        text = _LEVEL.sub("", _CONTROL.sub("", line[:LINE_LENGTH_MAX])).strip()
        if found := _WAITING.match(text):
            return self._stalled(int(found[1]), int(found[2]))
        if text:
            self._stall_told = None
        return [*self._progress(text), *([events.AppLog(text)] if text else [])]

    def _progress(self, text: str) -> list[events.Event]:
        if found := _STRATEGY.match(text):
            self._strategy = found[1]
        elif found := _ROUNDS.search(text):
            return [events.TrainingStart(self._strategy, int(found[1]), 0)]
        elif found := _ROUND.match(text):
            ended = self._end_round()
            self._round = int(found[1])
            return ended
        elif found := _SAMPLED.match(text):
            return [events.RoundStart(self._round, int(found[1]), self._strategy)]
        elif found := _RECEIVED.match(text):
            self._responded = int(found[1])
        elif found := _ERROR.match(text):
            reason = bounded(found[2])
            return [events.ClientFailure(self._round, found[1], "error_reply", reason=reason)]
        elif found := _METRICS.search(text):
            self._note(dict(_METRIC.findall(found[1])))
        elif found := _FINISHED.match(text):
            loss, accuracy = self._loss, self._accuracy
            end = events.TrainingEnd(self._round, loss, accuracy, float(found[1]))
            return [*self._end_round(), end]
        return []

    def _stalled(self, connected: int, required: int) -> list[events.Event]:
        """Flower says every second that it waits for nodes, without end; we say it less often."""
        now = self._clock()
        if self._stall_told is None:
            self._waiting_since = self._stall_told = now
        if now - self._stall_told < STALL_REPORT_S:
            return []
        self._stall_told = now
        waited = now - self._waiting_since
        return [events.TrainingStalled(max(1, self._round), waited, connected, required)]

    def _note(self, metrics: dict[str, str]) -> None:
        """Keep what a line measured; a later one of the same round is the better one."""
        for key in LOSS_KEYS:
            if key in metrics:
                self._loss = float(metrics[key])
                break
        for key in ACCURACY_KEYS:
            if key in metrics:
                self._accuracy = float(metrics[key])
                break

    def _end_round(self) -> list[events.Event]:
        """The end of the round at hand, if there is one; it shows in the line that comes next."""
        number, responded, loss, accuracy = self._round, self._responded, self._loss, self._accuracy
        seconds, self._started = self._clock() - self._started, self._clock()
        self._round, self._responded, self._loss, self._accuracy = 0, 0, None, None
        if number == 0:
            return []
        return [events.RoundEnd(number, responded, loss, accuracy, seconds)]
