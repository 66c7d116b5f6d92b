"""The coordinator's SuperExec: starts a ServerApp for each run, and writes down its process.

Flower's own forgets the process it started, so that a dead ServerApp is noticed by its missing
heartbeat only, after a minute. Ours leaves a record (``task_record``), by which the supervisor sees
the death at once.
A ServerApp ends with its executor: the supervisor submits the run again when both are gone.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from onefed.flower import adapter, adapter_runtime, task_record

POLL_S = 0.5
"""Between two questions for work; each costs about 20 ms of CPU, half of it in the SuperLink."""

POLL_FAST_S = 0.1
"""While work is likely: after our own start and after the end of a ServerApp."""

FAST_FOR_S = 10.0


class Executor:
    """Starts ServerApps. ``step`` is called again and again."""

    def __init__(
        self,
        runtime: adapter_runtime.Runtime,
        *,
        record: Path,
        spawn: Callable[[list[str]], subprocess.Popen[bytes]],
        clock: Callable[[], float],
    ) -> None:
        self._runtime = runtime
        self._record = record
        self._spawn = spawn
        self._clock = clock
        self._running: list[subprocess.Popen[bytes]] = []
        self._hurry_until = clock() + FAST_FOR_S

    def step(self) -> float:
        """Reap what has ended, start what waits; returns the pause before the next step."""
        running = [process for process in self._running if process.poll() is None]
        if len(running) < len(self._running):
            self._hurry_until = self._clock() + FAST_FOR_S
        self._running = running
        task = self._runtime.acquire()
        if task is not None:
            process = self._spawn(self._runtime.server_app_command(task, parent=os.getpid()))
            self._running.append(process)
            task_record.write(self._record, task_record.TaskRecord.of(task.run_id, process.pid))
        return POLL_FAST_S if self._clock() < self._hurry_until else POLL_S

    def end(self) -> None:
        """End the ServerApps: whatever they announced is on disk."""
        for process in self._running:
            process.terminate()


def main(arguments: Sequence[str] | None = None) -> int:
    """Start ServerApps until SIGTERM."""
    options = _options(arguments)
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    runtime = adapter_runtime.Runtime(
        options.runtime_api_address, options.root_certificates, options.superexec_auth_secret_file
    )
    executor = Executor(runtime, record=options.record, spawn=_spawn, clock=time.monotonic)
    said = ""
    while not stopping.is_set():
        pause_s = POLL_S
        try:
            pause_s = executor.step()
            said = ""
        except adapter.SuperLinkError as error:  # it may be starting
            if error.message != said:
                said = error.message
                sys.stderr.write(f"{datetime.now(UTC).isoformat(timespec='seconds')} {said}\n")
        stopping.wait(pause_s)
    executor.end()
    runtime.close()
    return 0


def _spawn(argv: list[str]) -> subprocess.Popen[bytes]:
    # What it prints goes to the SuperLink, and from there into the log of the run.
    return subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m onefed.flower.executor")
    parser.add_argument("--runtime-api-address", required=True)
    trust = parser.add_mutually_exclusive_group(required=True)
    trust.add_argument("--root-certificates", type=Path)
    trust.add_argument("--insecure", action="store_true")
    parser.add_argument("--superexec-auth-secret-file", type=Path, required=True)
    parser.add_argument("--record", type=Path, required=True)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
