"""Where things are shown: the consoles, and for a federation that lives a terminal, plain lines, or
JSON lines."""

from __future__ import annotations

import enum
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime
from typing import Protocol

from rich.console import Console
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from onefed.cli import live
from onefed.telemetry import events, lines, sentences
from onefed.telemetry.lines import Record
from onefed.telemetry.status import FederationView

QUIET = (events.RecoverySaved, events.ClientReply, events.EvaluationResult)
"""Not worth a line for people: what they say is in the line of the round."""

STEPS_SAID = frozenset({"done", "failed"})
"""Boot steps that are worth a line; ``onefed logs`` has the skipped and unchanged ones, too."""


PICTURE_WIDTH_MIN = 20
"""A terminal may say that it has fewer columns; nothing can be drawn in them."""

TABLE_WIDTH = 1000
"""Of tables for a pipe or a file: wide enough that nothing in them is cut."""


class LogFormat(enum.StrEnum):
    """What ``--log-format`` takes."""

    TEXT = "text"
    JSON = "json"


class _Console(Console):
    """Says that its reader has gone with the error that everything else says it with."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def say(text: str) -> None:
    """One line on standard output."""
    print_line(sentences.visible(text))


def picture_console() -> Console:
    """For what is drawn: as wide as the terminal, or COLUMNS, or 80."""
    found = _Console(highlight=False)
    if found.width >= PICTURE_WIDTH_MIN:
        return found
    return _Console(highlight=False, width=PICTURE_WIDTH_MIN)


def table_console() -> Console:
    """For tables: in a pipe or a file they are as wide as they are, so that nothing is cut."""
    return _Console(highlight=False, width=None if sys.stdout.isatty() else TABLE_WIDTH)


def error_console() -> Console:
    """For what went wrong; lines are not wrapped."""
    return _Console(stderr=True, soft_wrap=True, highlight=False)


class Screen(Protocol):
    """A place to show a federation while it lives."""

    def open(self) -> AbstractContextManager[object]:
        """Hold the place while the federation is shown."""
        ...

    def say(self, text: str) -> None:
        """Say one thing that is not an event."""
        ...

    def show(self, view: FederationView, records: Sequence[Record]) -> None:
        """Show what is, after these records."""
        ...

    def finish(self, summary: Mapping[str, object]) -> None:
        """Say how it ended."""
        ...


def screen_for(log_format: LogFormat) -> Screen:
    """JSON lines if asked for; a live view on a terminal; else a line per event."""
    if log_format is LogFormat.JSON:
        return JsonLines()
    return Terminal() if sys.stdout.isatty() else PlainLines()


class Terminal:
    """A picture that is drawn anew in place."""

    def __init__(self) -> None:
        self._console = picture_console()
        self._live = Live(console=self._console, refresh_per_second=5, transient=False)

    def open(self) -> AbstractContextManager[object]:
        return self._live

    def say(self, text: str) -> None:
        self._console.print(Text(sentences.visible(text), style="dim"))

    def show(self, view: FederationView, records: Sequence[Record]) -> None:
        del records
        self._live.update(live.draw(view, datetime.now(UTC)))

    def finish(self, summary: Mapping[str, object]) -> None:
        self._console.print(outcome_panel(summary))


class PlainLines:
    """One line per event, for a pipe or a file."""

    def open(self) -> AbstractContextManager[object]:
        return nullcontext()

    def say(self, text: str) -> None:
        say(text)

    def show(self, view: FederationView, records: Sequence[Record]) -> None:
        for record in records:
            event = record.event
            if isinstance(event, QUIET):
                continue
            if isinstance(event, events.BootStep) and event.status not in STEPS_SAID:
                continue
            print_line(lines.text_line(record, rounds_total=view.rounds_total))

    def finish(self, summary: Mapping[str, object]) -> None:
        say_outcome(summary)


class JsonLines:
    """The events as they are on disk, and the summary as the last line; nothing else."""

    def open(self) -> AbstractContextManager[object]:
        return nullcontext()

    def say(self, text: str) -> None:
        notice = events.Notice("INFO", text)
        now = datetime.now(UTC)
        print_line(lines.event_line(notice, timestamp=now, role="cli", source="cli"))

    def show(self, view: FederationView, records: Sequence[Record]) -> None:
        del view
        for record in records:
            print_line(lines.record_line(record))

    def finish(self, summary: Mapping[str, object]) -> None:
        print_summary(summary)


def outcome_panel(summary: Mapping[str, object]) -> Panel:
    """How a federation ended, framed."""
    table = Table.grid(padding=(0, 2))
    for name, text in _outcome(summary):
        table.add_row(Text(name, style="dim"), Text(text, overflow="fold"))
    style = live.STATE_STYLES.get(str(summary["status"]), "")
    title = Text(_headline(summary), style=style)
    return Panel(table, title=title, title_align="left", expand=False)


def say_outcome(summary: Mapping[str, object]) -> None:
    """The same as lines."""
    say(_headline(summary))
    for name, text in _outcome(summary):
        for line in text.splitlines():
            say(f"  {name:14}{line}")
            name = ""


def print_summary(summary: Mapping[str, object]) -> None:
    """The same for programs."""
    print_line(lines.encode({"event": "summary", "data": dict(summary)}))


def print_line(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _headline(summary: Mapping[str, object]) -> str:
    return f"{summary['name']}: {summary['status']}"


def _outcome(summary: Mapping[str, object]) -> list[tuple[str, str]]:
    """What people want to read of a summary: names and texts; what is not known is left out."""
    found: list[tuple[str, object]] = [
        ("rounds", f"{summary['rounds_done']} of {summary['rounds_total']}"),
        ("accuracy", _number(summary["accuracy"])),
        ("loss", _number(summary["loss"])),
        ("model sha256", summary["model_sha256"]),
        ("checkpoint", summary["checkpoint"]),
        ("nodes", _nodes(summary["nodes"])),
        ("failures", summary["failures"]),
        ("restarts", summary["restarts"]),
        ("seconds", summary["seconds"]),
        ("state", summary["directory"]),
        ("why", summary["error"]),
        *_chaos(summary.get("chaos")),
    ]
    if summary["status"] != "finished":
        verb = "peer resume --name" if summary.get("topology") == "peer" else "resume"
        found.append(("next", f"onefed {verb} {summary['name']}"))
    return [
        (name, "\n".join(map(sentences.visible, str(value).splitlines())))
        for name, value in found
        if value is not None
    ]


def _nodes(found: object) -> object:
    """How many; of a group without a coordinator also those that did not end well."""
    if not isinstance(found, dict):
        return found
    others = [
        f"{name} {each['state']}" for name, each in found.items() if each["state"] != "finished"
    ]
    return ", ".join((str(len(found)), *others))


def _chaos(found: object) -> list[tuple[str, object]]:
    """What was killed, and whether it shows in the model."""
    if not isinstance(found, dict):
        return []
    kills = found["kills"]
    lines = [
        f"{kill['victim']} in round {kill['round']}: "
        + ("no round after it" if kill["recovered_s"] is None else _later(kill["recovered_s"]))
        for kill in kills
    ]
    verdicts = {True: "the same bits in every round", False: "DIFFERENT", None: "not compared"}
    return [
        ("kills", "\n".join(lines) or None),
        ("undisturbed", found["undisturbed_sha256"]),
        ("compared", f"{verdicts[found['equal']]} ({len(kills)} kills, seed {found['seed']})"),
    ]


def _later(seconds: float) -> str:
    return f"the next round was done {seconds:.1f} s later"


def _number(value: object) -> str | None:
    return f"{value:.4f}" if isinstance(value, float) else None
