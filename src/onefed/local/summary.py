"""The outcome of a start of a federation, as a document for programs (docs/summary.md)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from onefed import arrays
from onefed.appliance.paths import Paths
from onefed.checkpoint import RecoveryStore, Snapshot, files
from onefed.errors import ExitCode, OnefedError
from onefed.local.state import SUPERLINK, Spec, StateDir
from onefed.telemetry import events
from onefed.telemetry.status import FederationView

FORMAT = 1

RUN_ENDED = frozenset({"completed", "failed", "stopped"})
"""What ``run_status`` says when the supervisor has nothing left to do."""

Status = Literal["finished", "stopped", "failed"]

EXIT_CODES: Mapping[Status, ExitCode] = {
    "finished": ExitCode.OK,
    "stopped": ExitCode.INTERRUPTED,
    "failed": ExitCode.FAILED,
}


@dataclass(frozen=True)
class Summary:
    """How a federation ended; the same in every topology."""

    status: Status
    """``finished``: all rounds are done. ``stopped``: by the user, to be resumed. ``failed``."""
    name: str
    rounds_done: int
    """Committed rounds, those of earlier starts included."""
    rounds_total: int
    accuracy: float | None
    """Of the last committed model; null when nobody measured it."""
    loss: float | None
    model_sha256: str | None
    """``arrays.digest`` of the last committed model; null for an app that is not managed."""
    checkpoint: str | None
    """The newest checkpoint file of this start."""
    restarts: int
    """Programs and runs that died and were started again."""
    failures: int
    """Replies that were lost or could not be used."""
    seconds: float
    """Duration of this start, boot and shutdown included."""
    nodes: int
    strategy: str
    app: str
    seed: int
    topology: Literal["hub", "peer"]
    directory: str
    error: str | None
    """What went wrong and what to do next; null unless ``failed`` or ``stopped``."""
    exit_code: int
    format: int = FORMAT


def make(
    directory: StateDir, spec: Spec, view: FederationView, *, error: str | None, seconds: float
) -> Summary:
    """From what the recovery store holds, and for the rest from the events."""
    rounds_total = spec.rounds if spec.managed else view.rounds_total or spec.rounds
    last = last_snapshot(directory) if spec.managed else None
    done = view.rounds_done if last is None else last.round_number
    record = last.history[-1] if last is not None and last.history else None
    completed = view.run_status == "completed" or (spec.managed and done >= rounds_total)
    status: Status = "finished" if completed else "failed"
    if not completed and (error is None and view.run_status == "stopped"):
        status = "stopped"
    return Summary(
        status=status,
        name=spec.name,
        rounds_done=done,
        rounds_total=rounds_total,
        accuracy=view.accuracy if record is None else record.accuracy,
        loss=view.loss if record is None else record.loss,
        model_sha256=None if last is None else arrays.digest(last.arrays),
        checkpoint=view.checkpoint,
        restarts=view.restarts,
        failures=view.failures,
        seconds=round(seconds, 2),
        nodes=spec.nodes,
        strategy=spec.strategy,
        app=spec.app,
        seed=spec.seed,
        topology="hub",
        directory=str(directory.folder),
        error=error or (view.details if status == "failed" else None),
        exit_code=int(EXIT_CODES[status]),
    )


def with_exit_code(summary: Summary, code: ExitCode) -> Summary:
    """The summary of a federation that ended with this code."""
    status = summary.status
    if code is ExitCode.INTERRUPTED:
        status = "stopped"
    elif code is not ExitCode.OK:
        status = "failed"
    return replace(summary, status=status, exit_code=int(code))


def last_snapshot(directory: StateDir) -> Snapshot | None:
    """The last committed round in the recovery store, or None when there is none that is whole."""
    store = RecoveryStore(Paths(directory.root(SUPERLINK)).recovery)
    try:
        runs = store.runs()
        loaded = store.load(runs[0]) if runs else None
    except OnefedError:
        return None
    return None if loaded is None else loaded.snapshot


def as_event(summary: Summary) -> events.FederationEnd:
    """The last event of a start."""
    return events.FederationEnd(
        status=summary.status,
        rounds_done=summary.rounds_done,
        rounds_total=summary.rounds_total,
        loss=summary.loss,
        accuracy=summary.accuracy,
        model_sha256=summary.model_sha256,
        checkpoint=summary.checkpoint,
        restarts=summary.restarts,
        failures=summary.failures,
        seconds=summary.seconds,
    )


def write(summary: Summary, path: Path) -> None:
    """Write the document, whole or not at all."""
    files.write_bytes(path, json.dumps(asdict(summary), indent=1, allow_nan=False).encode() + b"\n")


def read(path: Path) -> dict[str, object]:
    """A summary as it was written."""
    document: dict[str, object] = json.loads(path.read_text(encoding="utf-8"))
    return document
