"""Runtime ``process``: the programs of a machine as child processes, restarted when they die.

What systemd does in a VM (``Restart=always``, a stop by SIGTERM to the whole group, a limit on how
long that may take) is done here by one small loop per program.
A program that worked is started again at once, however often it is killed; one that keeps dying
before it ever worked waits longer and longer and is given up, so that a machine never spins.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import functools
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias

RESTART_DELAY_S = 1.0
"""First pause before a restart; doubles with every early death."""

RESTART_DELAY_WORKED_S = 0.1
"""Before the restart of a program that had worked: something killed it, and others wait for it."""

RESTART_DELAY_MAX_S = 10.0
"""The units of a VM wait this long (``RestartSec=10``)."""

EARLY_DEATH_S = 10.0
"""A program that does not say when it works and lived longer than this starts again with the first
pause."""

PORT_LOOK_S = 0.5
"""How often a program's port is tried until it takes a connection, once."""

EARLY_DEATHS_MAX = 5
"""Given up after so many early deaths in a row."""

NOT_STARTED = 127
"""Exit code of a program that could not be started again; a shell uses the same."""

LOG_MODE = 0o640
"""The group may read, so that a collector needs no root."""

_LOG_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
"""Loaded here because nothing can be loaded safely between fork and exec."""


@dataclass(frozen=True)
class Program:
    """One program of a machine: what systemd or Docker would be told, too."""

    name: str
    argv: tuple[str, ...]
    environment: Mapping[str, str]
    """All of it: nothing is inherited, so a hostile context or shell cannot reach a child."""
    folder: Path
    log: Path
    """Receives standard output and error, appended."""
    stop_timeout_s: float
    """After SIGTERM, before SIGKILL."""
    inputs: tuple[Path, ...] = ()
    """Files that it reads as it starts: with other content it has to start again."""
    watches: str = ""
    """Name of a program whose processes it has to see, and to end."""
    early_deaths_more: int = 0
    """Beyond ``EARLY_DEATHS_MAX``, for a program that others refuse for a while after a crash."""
    worked_file: Path | None = None
    """It makes this file as soon as it does its work (``ONEFED_WORKED_FILE`` names it)."""
    worked_port: int | None = None
    """It does its work as soon as it takes connections on this port of 127.0.0.1."""
    is_beside: bool = False
    """No part of training: it runs on the machine itself, in a container never, it writes nothing,
    and the machine goes on without it."""


@dataclass(frozen=True)
class Restart:
    """A program died and is about to be started again, or was given up."""

    program: str
    exit_code: int
    """Negative: the signal that killed it. ``NOT_STARTED``: the start before this one failed."""
    attempt: int
    """Early deaths in a row; 1 after a death that was not early, too. One that had worked did not
    die early."""
    delay_s: float
    """Until the next start, if there is one."""
    given_up: bool
    is_beside: bool = False
    """The machine goes on without it."""


class Process(Protocol):
    """One that was started, as ``asyncio.subprocess.Process``."""

    @property
    def pid(self) -> int:
        """Its id, and that of its process group."""
        ...

    @property
    def returncode(self) -> int | None:
        """None while it lives; negative: the signal that killed it."""
        ...

    async def wait(self) -> int:
        """Until it is dead; returns its exit code."""
        ...


Spawn: TypeAlias = Callable[[Program, int], Awaitable[Process]]
"""Starts a program in a session of its own, which dies with this process; raises OSError. The
number is the descriptor of its log."""


class ProcessRuntime:
    """Keeps programs running until ``stop``. Lives in one asyncio loop.

    That loop has to run in the main thread: the kernel ends the programs with the thread that
    started them.
    """

    def __init__(self, on_restart: Callable[[Restart], None], spawn: Spawn | None = None) -> None:
        """``spawn`` starts programs in another way than ``spawn_plainly``."""
        self._on_restart = on_restart
        self._spawn = spawn or spawn_plainly
        self._programs: dict[str, Program] = {}
        self._processes: dict[str, Process] = {}
        """Without those whose death was dealt with: their ids may be somebody else's by now."""
        self._keepers: dict[str, asyncio.Task[None]] = {}
        self._answered: set[str] = set()
        """Programs whose living process has taken a connection."""

    async def start(self, program: Program) -> None:
        """Start a program and keep it running.

        Raises:
            OSError: the program cannot be started at all.
        """
        assert program.name not in self._keepers, f"{program.name} was started twice"
        self._processes[program.name] = await self._start(program)
        self._programs[program.name] = program
        self._keepers[program.name] = asyncio.create_task(self._keep(program))

    def running(self, name: str) -> bool:
        """Whether the program has a live process at this moment."""
        process = self._processes.get(name)
        return process is not None and process.returncode is None

    def given_up(self, name: str) -> bool:
        """Whether the program died too often, too early."""
        keeper = self._keepers.get(name)
        return keeper is not None and keeper.done()

    def restart(self, name: str) -> None:
        """End a program by SIGTERM; it is started again like one that died. Nothing if unknown."""
        process = self._processes.get(name)
        if process is not None and process.returncode is None:
            _signal_group(process.pid, signal.SIGTERM)

    async def stop(self) -> None:
        """Stop all programs, the last started first: SIGTERM to the group, then SIGKILL."""
        for name in reversed(list(self._keepers)):
            keeper = self._keepers.pop(name)
            keeper.cancel()
            await asyncio.wait([keeper])
            process = self._processes.pop(name, None)
            if process is not None:
                await _end(process, self._programs[name].stop_timeout_s)

    async def _keep(self, program: Program) -> None:
        loop = asyncio.get_running_loop()
        deaths = 0
        while True:
            started = loop.time()
            self._answered.discard(program.name)  # that was the process before
            async with asyncio.TaskGroup() as group:
                trying = group.create_task(self._try_port(program))
                exit_code = await self._death(program.name)
                trying.cancel()
            worked = self._has_worked(program)
            early = not worked and loop.time() - started <= EARLY_DEATH_S
            deaths = deaths + 1 if early else 0
            attempt = max(1, deaths)
            delay_s = min(RESTART_DELAY_S * 2 ** (attempt - 1), RESTART_DELAY_MAX_S)
            if worked:
                delay_s = RESTART_DELAY_WORKED_S
            given_up = deaths >= EARLY_DEATHS_MAX + program.early_deaths_more
            self._on_restart(
                Restart(program.name, exit_code, attempt, delay_s, given_up, program.is_beside)
            )
            if given_up:
                return
            await asyncio.sleep(delay_s)
            with contextlib.suppress(OSError):  # its log says why; it counts as an early death
                self._processes[program.name] = await self._start(program)

    async def _try_port(self, program: Program) -> None:
        """Connect to the program's port until it takes a connection."""
        if program.worked_port is None:
            return
        while True:
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", program.worked_port)
                writer.close()
                self._answered.add(program.name)
                return
            await asyncio.sleep(PORT_LOOK_S)

    def _has_worked(self, program: Program) -> bool:
        """Whether the process that has just died had done its work."""
        told = program.worked_file is not None and program.worked_file.exists()
        return told or program.name in self._answered

    async def _start(self, program: Program) -> Process:
        program.log.parent.mkdir(parents=True, exist_ok=True)
        if program.worked_file is not None:
            program.worked_file.unlink(missing_ok=True)  # of the process before
        log = os.open(program.log, _LOG_FLAGS, LOG_MODE)
        try:
            return await self._spawn(program, log)
        except OSError as error:
            os.write(log, f"{program.argv[0]} cannot be started: {error}\n".encode())
            raise
        finally:
            os.close(log)

    async def _death(self, name: str) -> int:
        """Wait until the program is dead, and end what it left behind; returns its exit code."""
        if name not in self._processes:
            return NOT_STARTED
        process = self._processes[name]
        exit_code = await process.wait()
        del self._processes[name]
        _signal_group(process.pid, signal.SIGKILL)
        return exit_code


def die_with_parent(signal_number: int) -> None:
    """Have the kernel send this process a signal when its parent dies. Linux only; else nothing."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal_number)


async def spawn_plainly(program: Program, log: int) -> Process:
    """Start a program as a child of this process.

    Raises:
        OSError: it cannot be started.
    """
    return await asyncio.create_subprocess_exec(
        *program.argv,
        env=dict(program.environment),
        cwd=program.folder,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        start_new_session=True,
        preexec_fn=functools.partial(_die_with, os.getpid()),
    )


def _die_with(parent: int) -> None:
    """Runs in the child, before the program: end it with the machine that starts it."""
    die_with_parent(signal.SIGKILL)
    if os.getppid() != parent:  # it died before the kernel was told
        os.kill(os.getpid(), signal.SIGKILL)


async def _end(process: Process, timeout_s: float) -> None:
    _signal_group(process.pid, signal.SIGTERM)
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(process.wait(), timeout_s)
    _signal_group(process.pid, signal.SIGKILL)
    await process.wait()


def _signal_group(group: int, signal_number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal_number)
