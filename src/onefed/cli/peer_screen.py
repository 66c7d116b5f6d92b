"""Where a group without a coordinator is shown while it lives: a picture, lines, or JSON lines."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime
from typing import Protocol

from rich.live import Live
from rich.text import Text

from onefed.cli import peer_live, screen
from onefed.cli.peer_live import Picture, Standing
from onefed.cli.screen import LogFormat
from onefed.local.peer_group import ENDED, GroupRun, is_alive
from onefed.local.peer_spec import PeerGroup, PeerSpec
from onefed.telemetry import events, lines, sentences
from onefed.telemetry.group import is_told
from onefed.telemetry.lines import Record

DRAW_S = 0.2
"""Between two pictures."""
LOOK_S = 1.0
"""Between two looks at what the nodes say of themselves, which they write about as often."""


class GroupScreen(Protocol):
    """A place to show a group."""

    def open(self) -> AbstractContextManager[object]:
        """From here to the end of the block things are shown."""
        ...

    def say(self, text: str) -> None:
        """Say one thing that is not an event."""
        ...

    def show(self, run: GroupRun, records: Sequence[Record]) -> None:
        """Show what is, after these records; called many times a second."""
        ...

    def finish(self, summary: Mapping[str, object]) -> None:
        """Say how it ended."""
        ...


def screen_for(log_format: LogFormat, place: PeerGroup, spec: PeerSpec) -> GroupScreen:
    """JSON lines if asked for; a picture on a terminal; else a line per round and trouble."""
    if log_format is LogFormat.JSON:
        return JsonLines()
    return Terminal(place, spec) if sys.stdout.isatty() else PlainLines(spec.rounds)


class Terminal:
    """A picture that is drawn anew in place."""

    def __init__(
        self, place: PeerGroup, spec: PeerSpec, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._place = place
        self._spec = spec
        self._clock = clock
        self._began_s = clock()
        self._draw_at_s = self._look_at_s = self._began_s
        self._states: Mapping[str, Mapping[str, object]] = {}
        self._console = screen.picture_console()
        self._live = Live(console=self._console, auto_refresh=False)

    def open(self) -> AbstractContextManager[object]:
        return self._live

    def say(self, text: str) -> None:
        self._console.print(Text(sentences.visible(text), style="dim"))

    def show(self, run: GroupRun, records: Sequence[Record]) -> None:
        now_s = self._clock()
        if now_s < self._draw_at_s and not run.has_ended:
            return
        self._draw_at_s = now_s + DRAW_S
        if now_s >= self._look_at_s or run.has_ended:
            self._look_at_s = now_s + LOOK_S
            self._states = self._place.states()
        self._live.update(peer_live.draw(self._picture(run, now_s)), refresh=True)

    def finish(self, summary: Mapping[str, object]) -> None:
        self._console.print(screen.outcome_panel(summary))

    def _picture(self, run: GroupRun, now_s: float) -> Picture:
        spec = self._spec
        return Picture(
            name=spec.name,
            about=(spec.app, spec.strategy, spec.topology),
            view=run.view,
            standings={
                name: _standing(
                    self._states.get(name),
                    killed=name in run.killed,
                    starts=name in spec.addresses and not run.has_ended,
                )
                for name in {**spec.addresses, **self._states}
            },
            rounds_total=spec.rounds,
            status=run.status,
            directory=str(self._place.folder),
            elapsed_seconds=now_s - self._began_s,
            restarts=run.restarts,
        )


def _standing(said: Mapping[str, object] | None, *, killed: bool, starts: bool) -> Standing:
    """What a member is.

    Args:
        starts: this run has started it, and would have ended if its process had.
    """
    if killed:
        return Standing("killed")
    if said is None:
        return Standing("starting")
    state, voters = str(said["state"]), said["voters"]
    if state not in ENDED and not is_alive(said):
        return Standing("starting" if starts else "gone")
    assert isinstance(voters, list)
    leader = said["leader"]
    return Standing(
        state=state,
        role="" if state in ("stopped", "failed") else str(said["role"]),
        leader=None if leader is None else str(leader),
        term=int(str(said["term"])),
        voters=tuple(map(str, voters)),
        round_number=int(str(said["round_number"])),
        model_sha256=None if said["model_sha256"] is None else str(said["model_sha256"]),
    )


class PlainLines:
    """A line a round, when the first node has it, one for its score, and one for what is wrong."""

    def __init__(self, rounds: int) -> None:
        self._rounds = rounds
        self._said: dict[type, int] = {}
        """Newest round of which something was said."""

    def open(self) -> AbstractContextManager[object]:
        return nullcontext()

    def say(self, text: str) -> None:
        screen.say(text)

    def show(self, run: GroupRun, records: Sequence[Record]) -> None:
        for record in records:
            event = record.event
            if isinstance(event, events.PeerRound | events.EvaluationResult):
                if event.round > self._said.get(type(event), 0):  # the others say the same
                    self._said[type(event)] = event.round
                    screen.print_line(lines.text_line(record, rounds_total=self._rounds))
            elif is_told(record):
                line = lines.text_line(record, rounds_total=self._rounds)
                screen.print_line(f"{line} ({sentences.visible(record.role)})")

    def finish(self, summary: Mapping[str, object]) -> None:
        screen.say_outcome(summary)


class JsonLines:
    """The events as they are on disk, and the summary as the last line; nothing else."""

    def open(self) -> AbstractContextManager[object]:
        return nullcontext()

    def say(self, text: str) -> None:
        notice = events.Notice("INFO", text)
        now = datetime.now(UTC)
        screen.print_line(lines.event_line(notice, timestamp=now, role="cli", source="cli"))

    def show(self, run: GroupRun, records: Sequence[Record]) -> None:
        for record in records:
            screen.print_line(lines.record_line(record))

    def finish(self, summary: Mapping[str, object]) -> None:
        screen.print_summary(summary)
