"""status, list, logs and model export: looking at what runs or has run."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from rich.table import Table
from rich.text import Text

from onefed import __version__, arrays
from onefed.appliance.paths import Paths
from onefed.checkpoint import model_file
from onefed.cli import live
from onefed.cli.screen import error_console, picture_console, say, table_console
from onefed.errors import ExitCode, NotFoundError, OnefedError
from onefed.local import ownership, state, summary
from onefed.local.state import SUPERLINK, StateDir
from onefed.telemetry import lines, sentences
from onefed.telemetry import log as event_log
from onefed.telemetry.status import FederationView, fold

FOLLOW_POLL_S = 0.3

UNDER_WAY = ("waiting", "booting", "training", "stalled")
"""What a federation whose cloud lives may be."""

LINE_BYTES_MAX = 65_536
"""Of a log file; a longer one is shown in pieces."""

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
"""What Flower's programs write into their logs."""


class PartError(OnefedError):
    """Not a part of a federation that has logs."""

    exit_code = ExitCode.USAGE


def view_of(directory: StateDir) -> FederationView:
    """A federation as its events tell it; one whose cloud was killed is stopped."""
    view = fold(event_log.read(directory.events)) if directory.events.exists() else FederationView()
    began = view.started_at is not None and view.status in UNDER_WAY
    if began and ownership.owner(directory) is None:
        view = dataclasses.replace(
            view, status="stopped", details="Its cloud was killed; onefed resume continues it."
        )
    return view


def status(name: str | None, *, as_json: bool) -> None:
    """Show one federation."""
    directory = state.find(state.home(os.environ), name)
    view = view_of(directory)
    row = _row(directory, view)
    if as_json:
        _print_json({**dataclasses.asdict(row), "machines": _machines(view)})
    else:
        picture_console().print(live.draw(view, datetime.now(UTC)))


def list_all(*, as_json: bool) -> None:
    """Show every federation in one line each."""
    rows = [_row_or_reason(each) for each in state.all_of(state.home(os.environ))]
    if as_json:
        _print_json([dataclasses.asdict(row) for row in rows])
        return
    if not rows:
        say("There is no federation yet. Start one with: onefed up")
        return
    table = Table(box=None, header_style="dim")
    for column in ("name", "status", "app", "nodes", "rounds", "accuracy", "folder"):
        table.add_column(column, overflow="fold")
    for row in rows:
        cells = (
            row.name,
            row.status,
            row.app or "",
            "" if row.nodes is None else str(row.nodes),
            "" if row.nodes is None else f"{row.rounds_done} of {row.rounds_total}",
            "" if row.accuracy is None else f"{row.accuracy:.4f}",
            row.directory,
        )
        # Text: a bracket in a path is no mark-up.
        table.add_row(*(Text(sentences.visible(cell)) for cell in cells))
    table_console().print(table)


def logs(part: str | None, name: str | None, *, follow: bool) -> None:
    """Print the events, or the log files of machines."""
    directory = state.find(state.home(os.environ), name)
    if part is None:
        _print_events(directory, follow=follow)
    else:
        _print_files(directory, _machines_named(directory, part), follow=follow)


def export(name: str, output: Path, *, overwrite: bool) -> None:
    """Write the last saved model to a file for people."""
    directory = state.find(state.home(os.environ), name)
    spec = directory.read_spec()
    saved = summary.last_saved(directory)
    if saved is None:
        raise NotFoundError(
            f"The federation {name!r} has no saved model.",
            hint=f"It has one after its first round: onefed resume {name}"
            if spec.managed
            else "This app runs its own ServerApp, which keeps the model to itself.",
        )
    for damaged in saved.damaged:
        error_console().print(
            Text(sentences.visible(f"Passed over {damaged.path}: {damaged.reason}."))
        )
    last = saved.snapshot
    record = last.history[-1] if last.history else None
    metadata = {
        "format": "onefed-model-1",
        "federation": spec.name,
        "app": spec.app,
        "strategy": last.rule,
        "round": str(last.round_number),
        "rounds_total": str(last.rounds_total),
        "seed": str(last.seed),
        "model_sha256": arrays.digest(last.arrays),
        "onefed": __version__,
        **({"accuracy": str(record.accuracy), "loss": str(record.loss)} if record else {}),
    }
    size_bytes = model_file.write_model(output, last.arrays, metadata, overwrite=overwrite)
    say(
        f"Wrote {output}: {len(last.arrays)} arrays of round {last.round_number}, "
        f"{size_bytes} bytes, sha256 of the arrays {metadata['model_sha256']}"
    )


@dataclasses.dataclass(frozen=True)
class _Row:
    """A federation as ``list`` and ``status`` show it to programs."""

    name: str
    status: str
    running: bool
    directory: str
    details: str | None = None
    """Why, where the status alone would not do: what it waits for, why it failed."""
    app: str | None = None
    nodes: int | None = None
    strategy: str | None = None
    rounds_done: int | None = None
    rounds_total: int | None = None
    accuracy: float | None = None
    loss: float | None = None
    model_sha256: str | None = None
    checkpoint: str | None = None
    failures: int | None = None
    restarts: int | None = None


def _row(directory: StateDir, view: FederationView) -> _Row:
    spec = directory.read_spec()
    return _Row(
        name=spec.name,
        status=view.status,
        running=ownership.owner(directory) is not None,
        directory=str(directory.folder),
        details=view.details,
        app=spec.app,
        nodes=spec.nodes,
        strategy=spec.strategy,
        rounds_done=view.rounds_done,
        rounds_total=view.rounds_total or spec.rounds,
        accuracy=view.accuracy,
        loss=view.loss,
        model_sha256=view.model_sha256,
        checkpoint=view.checkpoint,
        failures=view.failures,
        restarts=view.restarts,
    )


def _row_or_reason(directory: StateDir) -> _Row:
    """One that cannot be read is no reason not to list the others."""
    try:
        return _row(directory, view_of(directory))
    except OnefedError as error:
        return _Row(
            name=directory.folder.name,
            status=f"unreadable: {error.message}",
            running=ownership.owner(directory) is not None,
            directory=str(directory.folder),
        )


def _machines(view: FederationView) -> list[dict[str, object]]:
    return [
        {
            "name": node.vm,
            "role": node.role,
            "state": node.state,
            "partition": node.partition,
            "last_reply_round": node.last_reply_round,
            "reason": node.reason,
        }
        for node in view.nodes.values()
    ]


def _machines_named(directory: StateDir, part: str) -> list[str]:
    """The machines that ``superlink``, ``supernode`` or ``supernode/2`` means."""
    every = (SUPERLINK, *state.supernodes(directory.read_spec().nodes))
    names = [each for each in every if each == part or each.startswith(f"{part}/")]
    if not names:
        raise PartError(
            f"This federation has no machine {part!r}.", hint=f"It has: {', '.join(every)}."
        )
    return names


def _print_events(directory: StateDir, *, follow: bool) -> None:
    follower = event_log.Follower(directory.events)
    while True:
        alive = ownership.owner(directory) is not None  # before reading, so that nothing is missed
        while records := follower.poll():
            for record in records:
                sys.stdout.write(lines.text_line(record) + "\n")
        sys.stdout.flush()
        if not follow or not alive:
            return
        time.sleep(FOLLOW_POLL_S)


def _print_files(directory: StateDir, machines: list[str], *, follow: bool) -> None:
    """The log files of machines, each line after the program that wrote it."""
    offsets: dict[Path, int] = {}
    while True:
        alive = ownership.owner(directory) is not None
        go_on = follow and alive
        for machine in machines:
            for path in sorted(Paths(directory.root(machine)).logs.glob("*.log")):
                prefix = f"{machine} {path.stem} | "
                for line in _new_lines(path, offsets, to_the_end=not go_on):
                    sys.stdout.write(prefix + line + "\n")
        sys.stdout.flush()
        if not go_on:
            return
        time.sleep(FOLLOW_POLL_S)


def _new_lines(path: Path, offsets: dict[Path, int], *, to_the_end: bool) -> Iterator[str]:
    """Lines that a file has got since the last look, harmless on a terminal.

    A last line without its break waits for the rest of it, but ``to_the_end``.
    """
    with path.open("rb") as log:
        log.seek(offsets.get(path, 0))
        while line := log.readline(LINE_BYTES_MAX):
            if not (line.endswith(b"\n") or len(line) == LINE_BYTES_MAX or to_the_end):
                return
            offsets[path] = log.tell()
            text = line.decode(errors="replace").rstrip("\r\n").expandtabs()
            yield sentences.visible(_COLOURS.sub("", text))


def _print_json(document: object) -> None:
    sys.stdout.write(json.dumps(document, indent=1) + "\n")
