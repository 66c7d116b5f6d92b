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

from rich.console import Console
from rich.table import Table

from onefed import __version__, arrays
from onefed.appliance.paths import Paths
from onefed.checkpoint import model_file
from onefed.cli import live
from onefed.errors import ExitCode, NotFoundError, OnefedError
from onefed.local import state, summary
from onefed.local.state import SUPERLINK, StateDir
from onefed.telemetry import lines
from onefed.telemetry import log as event_log
from onefed.telemetry.status import FederationView, fold

FOLLOW_POLL_S = 0.3

CHUNK_BYTES = 65_536

_PART = re.compile(r"(superlink|supernode)(?:/(\d{1,4}))?")


class PartError(OnefedError):
    """Not a part of a federation that has logs."""

    exit_code = ExitCode.USAGE


def view_of(directory: StateDir) -> FederationView:
    """A federation as its events tell it; one whose cloud was killed is stopped."""
    view = fold(event_log.read(directory.events)) if directory.events.exists() else FederationView()
    if state.owner(directory) is None and view.status in ("booting", "training", "stalled"):
        view = dataclasses.replace(
            view, status="stopped", details="Its cloud was killed; onefed resume continues it."
        )
    return view


def status(name: str | None, *, as_json: bool) -> None:
    """Show one federation."""
    directory = state.find(state.home(os.environ), name)
    view = view_of(directory)
    if as_json:
        _print_json({**_row(directory, view), "machines": _machines(view)})
    else:
        Console().print(live.draw(view, datetime.now(UTC)))


def list_all(*, as_json: bool) -> None:
    """Show every federation in one line each."""
    found = [(each, view_of(each)) for each in state.all_of(state.home(os.environ))]
    if as_json:
        _print_json([_row(directory, view) for directory, view in found])
        return
    if not found:
        Console().print("There is no federation yet. Start one with: onefed up")
        return
    table = Table(box=None, header_style="dim")
    for column in ("name", "status", "app", "nodes", "rounds", "accuracy", "folder"):
        table.add_column(column)
    for directory, view in found:
        row = _row(directory, view)
        accuracy = "" if view.accuracy is None else f"{view.accuracy:.4f}"
        rounds = f"{row['rounds_done']} of {row['rounds_total']}"
        values = (row["name"], row["status"], row["app"], row["nodes"], rounds, accuracy)
        table.add_row(*(str(value) for value in values), str(directory.folder))
    Console(soft_wrap=True).print(table)


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
    last = summary.last_snapshot(directory)
    if last is None:
        raise NotFoundError(
            f"The federation {name!r} has no saved model.",
            hint="It has one after its first round; an app with its own ServerApp saves its own."
            if spec.managed
            else "This app runs its own ServerApp, which keeps the model to itself.",
        )
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
    Console(soft_wrap=True).print(
        f"Wrote {output}: {len(last.arrays)} arrays of round {last.round_number}, "
        f"{size_bytes} bytes, sha256 of the arrays {metadata['model_sha256']}",
        highlight=False,
    )


def _row(directory: StateDir, view: FederationView) -> dict[str, object]:
    spec = directory.read_spec()
    return {
        "name": spec.name,
        "status": view.status,
        "running": state.owner(directory) is not None,
        "app": spec.app,
        "nodes": spec.nodes,
        "strategy": spec.strategy,
        "rounds_done": view.rounds_done,
        "rounds_total": view.rounds_total or spec.rounds,
        "accuracy": view.accuracy,
        "loss": view.loss,
        "model_sha256": view.model_sha256,
        "checkpoint": view.checkpoint,
        "failures": view.failures,
        "restarts": view.restarts,
        "directory": str(directory.folder),
    }


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
    found = _PART.fullmatch(part)
    every = (SUPERLINK, *state.supernodes(directory.read_spec().nodes))
    names = [each for each in every if each == part or each.startswith(f"{part}/")]
    if found is None or not names:
        raise PartError(
            f"This federation has no machine {part!r}.", hint=f"It has: {', '.join(every)}."
        )
    return names


def _print_events(directory: StateDir, *, follow: bool) -> None:
    follower = event_log.Follower(directory.events)
    while True:
        alive = state.owner(directory) is not None
        for record in follower.poll():
            sys.stdout.write(lines.text_line(record) + "\n")
        sys.stdout.flush()
        if not follow or not alive:
            return
        time.sleep(FOLLOW_POLL_S)


def _print_files(directory: StateDir, machines: list[str], *, follow: bool) -> None:
    """The log files of machines, each line after the program that wrote it."""
    offsets: dict[Path, int] = {}
    while True:
        alive = state.owner(directory) is not None
        for machine in machines:
            for path in sorted(Paths(directory.root(machine)).logs.glob("*.log")):
                prefix = f"{machine} {path.stem} | "
                for line in _new_lines(path, offsets):
                    sys.stdout.write(prefix + line + "\n")
        sys.stdout.flush()
        if not follow or not alive:
            return
        time.sleep(FOLLOW_POLL_S)


def _new_lines(path: Path, offsets: dict[Path, int]) -> Iterator[str]:
    """Lines that a file has got since the last look; terminal control characters are taken out."""
    with path.open("rb") as log:
        log.seek(offsets.get(path, 0))
        while chunk := log.readlines(CHUNK_BYTES):
            for line in chunk:
                yield _CONTROL.sub("", line.decode(errors="replace"))
        offsets[path] = log.tell()


_CONTROL = re.compile(r"\x1b\[[0-9;]*[A-Za-z]|[\x00-\x08\x0a-\x1f\x7f]")


def _print_json(document: object) -> None:
    sys.stdout.write(json.dumps(document, indent=1) + "\n")
