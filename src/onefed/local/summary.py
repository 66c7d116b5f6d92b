"""The outcome of a start of a federation, as a document for programs (docs/summary.md)."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from onefed import arrays
from onefed.appliance.paths import Paths
from onefed.checkpoint import Loaded, RecoveryStore, files
from onefed.errors import ExitCode, OnefedError
from onefed.local.spec import Spec
from onefed.local.state import SUPERLINK, StateDir
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
    """How a federation ended; the same in every topology. docs/summary.md describes each field."""

    status: Status
    name: str
    rounds_done: int
    rounds_total: int
    accuracy: float | None
    loss: float | None
    model_sha256: str | None
    checkpoint: str | None
    restarts: int
    failures: int
    seconds: float
    nodes: int
    strategy: str
    app: str
    seed: int
    topology: Literal["hub", "peer"]
    directory: str
    error: str | None
    exit_code: int
    format: int = FORMAT


def make(
    directory: StateDir, spec: Spec, view: FederationView, *, error: str | None, seconds: float
) -> Summary:
    """From what the recovery store holds, and for the rest from the events."""
    known = spec.managed and not spec.waits
    rounds_total = spec.rounds if known else view.rounds_total or spec.rounds
    last = None
    if spec.managed:
        with contextlib.suppress(OnefedError):  # a damaged store is for a resume to report
            saved = last_saved(directory)
            last = None if saved is None else saved.snapshot
    done = view.rounds_done if last is None else last.round_number
    record = last.history[-1] if last is not None and last.history else None
    completed = view.run_status == "completed" or (known and done >= rounds_total)
    status: Status = "finished" if completed else "failed"
    if not completed and (error is None and view.run_status == "stopped"):
        status = "stopped"
    return Summary(
        status=status,
        name=spec.name,
        rounds_done=done,
        rounds_total=rounds_total,
        accuracy=_finite(view.accuracy if record is None else record.accuracy),
        loss=_finite(view.loss if record is None else record.loss),
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


def last_saved(directory: StateDir) -> Loaded | None:
    """The last committed round that the recovery store has whole; None before the first.

    Raises:
        StorageError: there are snapshots, and none is whole.
    """
    store = RecoveryStore(Paths(directory.root(SUPERLINK)).recovery)
    runs = store.runs()
    return store.load(runs[0] if runs else "")  # without a readable one, load says what is wrong


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
    """A summary as it was written.

    Raises:
        StorageError: there is none, or it is damaged.
    """
    document = files.read_json(path)
    if not isinstance(document, dict):
        raise files.DamagedError(path, "it is not a summary")
    return document


def _finite(number: float | None) -> float | None:
    """JSON knows no NaN: the loss of a run that diverged is null."""
    return number if number is not None and math.isfinite(number) else None
