"""Which process is the ServerApp of which run: a small file that the executor writes.

Whoever reads it asks the kernel whether that process lives, so it is right whoever has died: the
ServerApp, the executor, or both.
"""

from __future__ import annotations

import contextlib
import json
import signal
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from onefed.checkpoint import files
from onefed.errors import StorageError

START_TOLERANCE_S = 0.05
"""The kernel gives the same start time to everybody; this only covers floating point."""


@dataclass(frozen=True)
class TaskRecord:
    """A ServerApp that was started."""

    run_id: int
    pid: int
    started_at: float
    """Seconds since 1970, by the kernel: tells the process from a later one with its id."""

    @classmethod
    def of(cls, run_id: int, pid: int) -> TaskRecord:
        """About a process that we just started and have not waited for."""
        return cls(run_id, pid, psutil.Process(pid).create_time())

    def lives(self) -> bool:
        """Whether the process still works. One that only waits to be reaped does not."""
        process = self._process()
        with contextlib.suppress(psutil.Error):
            return process is not None and process.status() != psutil.STATUS_ZOMBIE
        return False

    def kill(self) -> None:
        """End it at once, if it lives."""
        self._send(signal.SIGKILL)

    def terminate(self) -> None:
        """Ask it to end, if it lives."""
        self._send(signal.SIGTERM)

    def _send(self, signal_number: signal.Signals) -> None:
        process = self._process()
        if process is not None:
            with contextlib.suppress(psutil.Error):
                process.send_signal(signal_number)

    def _process(self) -> psutil.Process | None:
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(self.pid)
            if abs(process.create_time() - self.started_at) < START_TOLERANCE_S:
                return process
        return None


def write(path: Path, record: TaskRecord) -> None:
    """Replace the file."""
    files.write_bytes(path, json.dumps(asdict(record)).encode(), mode=0o600)


def read(path: Path) -> TaskRecord | None:
    """What was written last; None before the first ServerApp, or when it cannot be read."""
    try:
        document: Any = files.read_json(path)
        return TaskRecord(
            int(document["run_id"]), int(document["pid"]), float(document["started_at"])
        )
    except (StorageError, OSError, TypeError, KeyError, ValueError):
        return None
