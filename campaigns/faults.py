"""A real federation on this machine, and what is done to its processes at named points.

The processes are held at the points of ``onefed.failpoints``, so that a fault falls exactly there.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import psutil

from onefed import failpoints
from onefed.local import summary, victims
from onefed.local.state import StateDir
from onefed.telemetry import events
from onefed.telemetry.log import Follower

NODES = 3
SEED = 11
"""Of every model, so that one undisturbed run of a strategy is enough."""

ONEFED = Path(sys.executable).with_name("onefed")

POLL_S = 0.02

LOOK_AT_ALL_S = 0.5
"""Between two looks at every process of the machine."""

STEP_LIMIT_S = 200.0
"""Whatever takes longer has hung: 90 s without a SuperLink are the longest fault."""

WORKER = "worker"
"""The process of a ClientApp: who is held at the point ``working``."""

EVERYTHING = "everything"
"""All processes at once; then the federation is started again with ``onefed resume``."""

MESSAGES_MAX = 100
"""Numbers of ``working`` that are prepared: which message of a node comes next is not known."""

Found = TypeVar("Found")


class StuckError(Exception):
    """Something did not come in time, or the federation ended before."""


@dataclass(frozen=True)
class Fault:
    """What is done to whom."""

    who: tuple[str, ...]
    """Names of ``victims``, ``WORKER`` or ``EVERYTHING``."""
    kind: str = "kill"
    """``kill``, ``pause`` (SIGSTOP, then SIGCONT) or ``outage`` (killed, and kept from coming back:
    of the SuperLink only)."""
    seconds: float = 0.0
    """Of a pause or an outage."""

    def __str__(self) -> str:
        lasting = f" {self.seconds:g} s" if self.seconds else ""
        return f"{self.kind}{lasting}: {' + '.join(self.who)}"


class Federation:
    """One federation in a home of its own; all of it is gone when the block ends."""

    def __init__(self, *, strategy: str, rounds: int) -> None:
        self._folder = Path(os.path.realpath(tempfile.mkdtemp(prefix="kills-")))
        self.points = self._folder / "points"
        self.points.mkdir()
        self.directory = StateDir(self._folder / "home/rough")
        self.ends: list[tuple[int, datetime]] = []
        """Rounds as they were announced, and when."""
        self._environment = {
            **os.environ,
            "ONEFED_HOME": str(self._folder / "home"),
            failpoints.VARIABLE: str(self.points),
        }
        self._news = Follower(self.directory.events)
        self._arguments = (
            *("up", "--name", "rough", "--nodes", str(NODES), "--seed", str(SEED)),
            *("--rounds", str(rounds), "--strategy", strategy),
        )
        self._program: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Federation:
        self._start(*self._arguments)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._program is not None, "it was started"
        self._program.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._program.wait(60)
        self._program.kill()
        done = [str(ONEFED), "down", "rough", "--now"]
        subprocess.run(done, env=self._environment, capture_output=True, check=False, timeout=180)
        shutil.rmtree(self._folder, ignore_errors=True)

    def hold(self, point: str) -> None:
        """Have the next process that passes a point, such as ``saving.2``, wait there."""
        if point.startswith("working."):
            for number in range(1, MESSAGES_MAX):
                (self.points / f"working.{number}").touch()
        else:
            (self.points / point).touch()

    def release(self, point: str) -> None:
        """Let go who is held there, and hold nobody else."""
        name, _, _ = point.partition(".")
        for path in self.points.glob("working.*" if name == "working" else f"{point}*"):
            path.unlink(missing_ok=True)

    def held(self, point: str) -> int | None:
        """Process id of who is held at a point now."""
        name, _, _ = point.partition(".")
        for path in self.points.glob("working.*.hit" if name == "working" else f"{point}.hit"):
            with contextlib.suppress(OSError):
                if text := path.read_text():
                    return int(text)
        return None

    def wait_until_whole(self) -> None:
        """Until every process is there."""
        every = victims.names(NODES)

        def is_whole() -> bool | None:
            return all(victims.find(self.directory, name) for name in every) or None

        self.wait_for("every process", is_whole, pause_s=LOOK_AT_ALL_S)

    def has_ended(self) -> bool:
        """Whether ``onefed`` itself has."""
        assert self._program is not None, "it was started"
        return self._program.poll() is not None

    def announced_after(self, moment: datetime) -> tuple[int, datetime] | None:
        """The first round that was announced then."""
        self._look()
        return next(((number, at) for number, at in self.ends if at > moment), None)

    def wait_for(
        self, what: str, ask: Callable[[], Found | None], *, pause_s: float = POLL_S
    ) -> Found:
        """The first answer that is one; ``StuckError`` where none comes."""
        limit = time.monotonic() + STEP_LIMIT_S
        while True:
            ended = self.has_ended()
            found = ask()
            if found is not None:
                return found
            if ended:
                raise StuckError(f"it ended while it was waited for {what}: {self.outcome()}")
            if time.monotonic() > limit:
                raise StuckError(f"{what} did not come in {STEP_LIMIT_S:.0f} s")
            time.sleep(pause_s)

    def wait_for_end(self) -> str:
        """``finished``, or what else the summary says."""
        self.wait_for("its end", lambda: self.has_ended() or None)
        return self.outcome()

    def outcome(self) -> str:
        """What the summary says."""
        try:
            document = summary.read(self.directory.summary)
        except Exception as error:  # noqa: BLE001 - whatever is wrong, it is the outcome
            return f"no summary: {error}"
        why = document["error"]
        return str(document["status"]) + (f": {why}" if why else "")

    def strike(self, fault: Fault, point: str) -> datetime:
        """Do it while somebody is held at a point, and let him go; returns when all of it was over:
        from then on the federation can recover."""
        if fault.who == (EVERYTHING,):
            return self._strike_everything(point)
        held = self.held(point)
        processes = [self._process(name, held) for name in fault.who]
        struck_at = datetime.now(UTC)
        if fault.kind == "pause":
            _signal(processes, signal.SIGSTOP)
            self.release(point)
            time.sleep(fault.seconds)
            _signal(processes, signal.SIGCONT)
            return datetime.now(UTC)
        keepers = []
        if fault.kind == "outage":
            assert fault.who == ("superlink",), fault
            keepers = [self._process("machine superlink", held)]
            _signal(keepers, signal.SIGSTOP)
        _signal(processes, signal.SIGKILL)
        self.release(point)
        if not keepers:
            return struck_at
        time.sleep(fault.seconds)
        _signal(keepers, signal.SIGCONT)
        return datetime.now(UTC)

    def _strike_everything(self, point: str) -> datetime:
        assert self._program is not None, "it was started"
        cloud = self._process(victims.CLOUD, None)
        _signal([cloud], signal.SIGKILL)
        self._program.wait(60)
        self.release(point)
        struck_at = datetime.now(UTC)
        self._start("resume", "rough")
        return struck_at

    def _process(self, name: str, held: int | None) -> psutil.Process:
        if name == WORKER:
            assert held is not None, "a worker is who is held"
            return psutil.Process(held)
        return self.wait_for(name, lambda: victims.find(self.directory, name))

    def _look(self) -> None:
        for record in self._news.poll():
            if isinstance(record.event, events.RoundEnd):
                self.ends.append((record.event.round, record.timestamp))

    def _start(self, *arguments: str) -> None:
        self._program = subprocess.Popen(
            [ONEFED, *arguments],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )


def _signal(processes: list[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)
