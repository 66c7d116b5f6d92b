"""Kills on purpose: which processes of a federation die in which rounds, and what came of it.

Everything that is drawn comes from one seed. When a kill falls inside of its round is up to the
machine, and no bit of the model may depend on it.
"""

from __future__ import annotations

import contextlib
import functools
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar

import psutil

from onefed.appliance.paths import Paths
from onefed.local import state, summary, victims
from onefed.local.state import SUPERLINK, StateDir
from onefed.telemetry import events
from onefed.telemetry.log import EventLog

POLL_S = 0.02

DELAY_S_MAX = 0.5
"""After the beginning of its round; a round of the built-in app takes about as long."""

KILLS_MAX = 100

Found = TypeVar("Found")


@dataclass(frozen=True)
class Kill:
    """One process is to die."""

    victim: str
    """One of ``victims.names``."""
    round: int
    delay_s: float
    """From the first beginning of that round."""


def draw(seed: int, *, kills: int, rounds: int, nodes: int) -> tuple[Kill, ...]:
    """Which processes die, spread over the rounds; the ServerApp is among them.

    Every kind is drawn before one is drawn again, so five kills show five of them.
    """
    assert 1 <= kills <= KILLS_MAX
    assert rounds > kills, "each kill has its round, and training goes on after the last one"
    # Not for anything secret: the same seed has to give the same kills.
    chance = random.Random(seed)  # noqa: S311
    drawn: list[str] = []
    while len(drawn) < kills:
        every = list(victims.names(nodes))
        chance.shuffle(every)
        drawn += every
    drawn = drawn[:kills]
    if victims.SERVER_APP not in drawn:
        drawn[chance.randrange(kills)] = victims.SERVER_APP
    return tuple(
        Kill(victim, 1 + index * rounds // kills, round(chance.uniform(0, DELAY_S_MAX), 3))
        for index, victim in enumerate(drawn)
    )


@dataclass(frozen=True)
class _End:
    """A round was announced."""

    round: int
    at: datetime


class Killer:
    """Carries out the kills of one federation, one at a time: the next one after a recovery."""

    def __init__(self, directory: StateDir, kills: Sequence[Kill]) -> None:
        self._directory = directory
        self._kills = kills
        self._news = state.news(directory.events)
        self._log = EventLog(directory.events, "chaos", lambda: datetime.now(UTC))
        self._over = threading.Event()
        self._begun: set[int] = set()
        """Rounds."""
        self._ends: list[_End] = []

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """Kill while the block runs."""
        thread = threading.Thread(target=self._work, name="chaos", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()
            self._log.close()

    def _work(self) -> None:
        for number, kill in enumerate(self._kills, start=1):
            if self._until(functools.partial(self._has_begun, kill.round)) is None:
                return
            self._over.wait(kill.delay_s)
            victim = self._until(functools.partial(victims.find, self._directory, kill.victim))
            if victim is None:
                return
            killed_at = datetime.now(UTC)
            with contextlib.suppress(psutil.NoSuchProcess):
                victim.kill()
            now_in = max(self._begun)
            self._log.emit(events.ProcessKilled(kill.victim, now_in, number, len(self._kills)))
            ended = self._until(functools.partial(self._ended_after, killed_at))
            if ended is None:
                return
            seconds = (ended.at - killed_at).total_seconds()
            self._log.emit(events.ProcessRecovered(kill.victim, ended.round, number, seconds))

    def _has_begun(self, number: int) -> bool | None:
        return number in self._begun or None

    def _ended_after(self, moment: datetime) -> _End | None:
        return next((end for end in self._ends if end.at > moment), None)

    def _until(self, ask: Callable[[], Found | None]) -> Found | None:
        """Ask until there is an answer; None when the federation ended, or is stopped, before."""
        while not self._over.is_set() and not self._stopping():
            self._look()
            found = ask()
            if found is not None:
                return found
            self._over.wait(POLL_S)
        return None

    def _stopping(self) -> bool:
        """Whether somebody wants it to end."""
        return Paths(self._directory.root(SUPERLINK)).stop_request.exists()

    def _look(self) -> None:
        for record in self._news.poll():
            if isinstance(record.event, events.RoundStart):
                self._begun.add(record.event.round)
            elif isinstance(record.event, events.RoundEnd):
                self._ends.append(_End(record.event.round, record.timestamp))


def digests(directory: StateDir) -> tuple[str, ...]:
    """SHA-256 of the model after each round, as the recovery store has them."""
    saved = summary.last_saved(directory)
    if saved is None:
        return ()
    return tuple(record.model_sha256 for record in saved.snapshot.history)
