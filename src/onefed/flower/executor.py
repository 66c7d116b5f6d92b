"""The coordinator's SuperExec: starts a ServerApp for each run, and writes down its process.

Flower's own forgets the process it started, so that a dead ServerApp is noticed by its missing
heartbeat only, after a minute. Ours leaves a record (``task_record``), by which the supervisor sees
the death at once.
A ServerApp ends with its executor: the supervisor submits the run again when both are gone.
"""

from __future__ import annotations

import argparse
import functools
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from onefed.flower import adapter, adapter_runtime, libraries, nursery, task_record
from onefed.flower.launcher import Launcher, NurseryDiedError
from onefed.flower.lifesign import LifeSign
from onefed.telemetry import events, voice
from onefed.telemetry.log import EventLog

_LOG = logging.getLogger("onefed")

POLL_S = 0.5
"""Between two questions for work; each costs about 20 ms of CPU, half of it in the SuperLink."""

POLL_WORKING_S = 2.0
"""While a ServerApp of ours lives: another run may begin beside it, and nothing waits for it."""

POLL_FAST_S = 0.1
"""While work is likely: after our own start and after the end of a ServerApp."""

FAST_FOR_S = 10.0

REFUSED_REPORT_S = 10.0
SILENT_REPORT_S = 60.0
"""A SuperLink that refuses us, or does not answer, for so long is told as an event. One that starts
may take a quarter of a minute to answer, and answers right from then on."""

DEATH_LOOK_S = 0.05
"""Between two questions for work, the kernel is asked whether the ServerApps live: 0.1 ms."""

END_LIMIT_S = 2.0
"""ServerApps that are asked to end may say their last words for so long."""


class Executor:
    """Starts ServerApps. ``step`` is called again and again."""

    def __init__(
        self,
        runtime: adapter_runtime.Runtime,
        *,
        record: Path,
        launcher: Launcher,
        clock: Callable[[], float],
        sleep: Callable[[float], None],
    ) -> None:
        self._runtime = runtime
        self._record = record
        self._launcher = launcher
        self._clock = clock
        self._sleep = sleep
        self._running: list[task_record.TaskRecord] = []
        self._hurry_until = clock() + FAST_FOR_S
        self.asks = False
        """Whether the last step asked for a task; before, no ServerApp could be started."""

    def step(self) -> float:
        """Reap what has ended, start what waits; returns the pause before the next step."""
        if self.has_died():
            self._hurry_until = self._clock() + FAST_FOR_S
            self._running = [record for record in self._running if record.lives()]
        self.asks = self._launcher.is_ready()
        if not self.asks:
            return POLL_FAST_S
        task = self._runtime.acquire()
        if task is not None:
            command = self._runtime.server_app_command(task, parent=os.getpid())
            record = self._launcher.start(task.run_id, command)
            self._running.append(record)
            task_record.write(self._record, record)
        if self._running:
            return POLL_WORKING_S
        return POLL_FAST_S if self._clock() < self._hurry_until else POLL_S

    def has_died(self) -> bool:
        """Whether a ServerApp has ended since the last step; asks only the kernel."""
        return not all(record.lives() for record in self._running)

    def end(self) -> None:
        """End the ServerApps: whatever they announced is on disk."""
        for record in self._running:
            record.terminate()
        limit_s = self._clock() + END_LIMIT_S
        while any(record.lives() for record in self._running) and self._clock() < limit_s:
            self._sleep(DEATH_LOOK_S)


class Complaint:
    """Tells people of a SuperLink that hands out no tasks for long; asking goes on meanwhile."""

    def __init__(
        self, emit: Callable[[events.Event], None], *, clock: Callable[[], float], address: str
    ) -> None:
        self._emit = emit
        self._clock = clock
        self._address = address
        self._since_s: float | None = None
        self._told = False

    def hear(self, error: adapter.SuperLinkError) -> None:
        """One more try was in vain."""
        if self._since_s is None:
            self._since_s = self._clock()
        waited_s = self._clock() - self._since_s
        limit_s = SILENT_REPORT_S if error.status is None else REFUSED_REPORT_S
        if waited_s >= limit_s and not self._told:
            self._told = True
            self._emit(
                events.Notice(
                    "ERROR",
                    f"No run can start: for {waited_s:.0f} s the SuperLink at {self._address} has "
                    f"given its executor no tasks. {error} It goes on asking.",
                )
            )

    def over(self) -> None:
        """The SuperLink has answered."""
        if self._told:
            self._emit(events.Notice("INFO", "The SuperLink hands out tasks again."))
        self._since_s, self._told = None, False


def main(arguments: Sequence[str] | None = None) -> int:
    """Start ServerApps until SIGTERM, or until none can be forked any more."""
    options = _options(arguments)
    # Before anything else: the nursery has to come from a process without threads.
    forks = nursery.start(more=functools.partial(_load_libraries, options.app))
    voice.configure(_LOG, "superlink", os.environ)
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    launcher = Launcher(forks, clock=time.monotonic, say=_LOG.info)
    address = options.runtime_api_address
    runtime = adapter_runtime.Runtime(
        address, options.root_certificates, options.superexec_auth_secret_file
    )
    executor = Executor(
        runtime, record=options.record, launcher=launcher, clock=time.monotonic, sleep=time.sleep
    )
    complaint = Complaint(_emitter(os.environ), clock=time.monotonic, address=address)
    sign = LifeSign(os.environ)
    try:
        _work(executor, complaint, sign, stopping)
    except NurseryDiedError as error:
        _LOG.error("%s", error)
        return int(error.exit_code)
    finally:
        executor.end()
        launcher.close()
        runtime.close()
    return 0


def _work(
    executor: Executor, complaint: Complaint, sign: LifeSign, stopping: threading.Event
) -> None:
    said = ""
    while not stopping.is_set():
        pause_s = POLL_S
        try:
            pause_s = executor.step()
            said = ""
            if executor.asks:
                complaint.over()
                sign.give()
        except adapter.SuperLinkError as error:  # it may be starting
            complaint.hear(error)
            if error.message != said:
                said = error.message
                _LOG.warning("%s", said)
        _wait(executor, stopping, pause_s)


def _wait(executor: Executor, stopping: threading.Event, pause_s: float) -> None:
    """A pause; a ServerApp that dies ends it, as its run comes again in a moment."""
    for _ in range(round(pause_s / DEATH_LOOK_S)):
        if stopping.wait(DEATH_LOOK_S) or executor.has_died():
            return


def _load_libraries(app: Path | None) -> None:
    """Import what the app imports: a ServerApp of it begins so much sooner."""
    if app is not None and app.exists():
        libraries.load(libraries.of(app.read_bytes()))


def _emitter(environ: Mapping[str, str]) -> Callable[[events.Event], None]:
    path = environ.get("ONEFED_EVENTS")
    if path is None:
        return lambda _: None
    return EventLog(Path(path), "superlink", lambda: datetime.now(UTC)).emit


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m onefed.flower.executor")
    parser.add_argument("--runtime-api-address", required=True)
    trust = parser.add_mutually_exclusive_group(required=True)
    trust.add_argument("--root-certificates", type=Path)
    trust.add_argument("--insecure", action="store_true")
    parser.add_argument("--superexec-auth-secret-file", type=Path, required=True)
    parser.add_argument("--record", type=Path, required=True)
    parser.add_argument("--app", type=Path, help="bundle that runs here, where there is one")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
