"""Processes that are forked by a warm one (``warm_server``), seen from who asked for them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from onefed.appliance import process
from onefed.flower import forking, programs

READY_LIMIT_S = 60.0
"""It imports for two or three seconds on a quiet machine."""

FORK_LIMIT_S = 5.0
"""A fork takes some 20 ms; a warm process that takes longer is ended."""

PROGRAM = ("-m", "onefed.local.warm_server")

SHOWN = (sys.executable, "-P", *PROGRAM)
"""What ``ps`` shows of a warm process, and a request names one by."""

ROOM = "-" * 2048
"""A command line so long that those of the programs have room in it (``forking.show_as``)."""


REQUEST_BYTES_MAX = 131_072
"""An argument array and a whole environment."""

ANSWER_BYTES_MAX = 65_536


class WarmError(Exception):
    """It cannot fork: the program is started as any other."""


@dataclass(frozen=True)
class Request:
    """A program that is to be started."""

    argv: Sequence[str]
    environment: Mapping[str, str]
    """All of it."""
    folder: str
    libraries: Sequence[str] = ()
    """Modules to import first, of a program that is a warm process."""

    def to_bytes(self) -> bytes:
        """As it is sent."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def of(cls, content: bytes) -> Request:
        """As it was sent."""
        return cls(**json.loads(content))


class Child:
    """A process that it has forked; what ``asyncio.subprocess.Process`` is for one's own."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    @property
    def returncode(self) -> int | None:
        """None while it lives; negative: the signal that killed it."""
        return self._ended.result() if self._ended.done() else None

    async def wait(self) -> int:
        """Until it is dead; returns its exit code."""
        return await asyncio.shield(self._ended)

    def send_signal(self, number: signal.Signals) -> None:
        """Nothing when it is dead."""
        if not self._ended.done():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        """SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def end(self, code: int) -> None:
        """It has died."""
        if not self._ended.done():
            self._ended.set_result(code)


class Warm:
    """One warm process. Lives in one asyncio loop."""

    def __init__(self, channel: socket.socket, kill: Callable[[], None]) -> None:
        """``kill`` ends the warm process, which is a child of this one, and reaps it."""
        channel.setblocking(False)
        self._channel = channel
        self._kill = kill
        self._turn = asyncio.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        """Known from the first request on."""
        self._is_ready: asyncio.Future[None] | None = None
        self._forked: asyncio.Future[Child] | None = None
        self._children: dict[int, Child] = {}
        self._lost = ""
        """Why it cannot be used any more."""

    async def spawn(
        self, argv: Sequence[str], environment: Mapping[str, str], folder: Path, log: int
    ) -> Child:
        """Fork a process that becomes this program, in a session of its own.

        Args:
            environment: all of it.
            log: descriptor of what receives standard output and error.

        Raises:
            WarmError: it cannot be forked.
        """
        return await self._fork(Request(list(argv), dict(environment), str(folder)), [log])

    async def with_libraries(
        self, names: Sequence[str], environment: Mapping[str, str], folder: Path, log: int
    ) -> Warm:
        """Fork a process like this one that has imported more; it is ready later.

        Raises:
            WarmError: it cannot be forked.
        """
        ours, theirs = forking.pair()
        with theirs:
            request = Request(SHOWN, dict(environment), str(folder), names)
            child = await self._fork(request, [log, theirs.fileno()])
        return Warm(ours, child.kill)

    async def _fork(self, request: Request, descriptors: list[int]) -> Child:
        async with self._turn:
            try:
                await asyncio.wait_for(self._ready(), READY_LIMIT_S)
                self._forked = asyncio.get_running_loop().create_future()
                socket.send_fds(self._channel, [request.to_bytes()], descriptors)
                return await asyncio.wait_for(self._forked, FORK_LIMIT_S)
            except (OSError, TimeoutError) as error:
                self._lose(f"It does not answer: {error}")
                raise WarmError(self._lost) from error

    async def spawn_program(self, program: process.Program, log: int) -> process.Process:
        """Start a program of a machine: forked where that is possible."""
        if programs.find(program.argv) is not None and not self._lost:
            with contextlib.suppress(WarmError):
                return await self.spawn(program.argv, program.environment, program.folder, log)
        return await process.spawn_plainly(program, log)

    def close(self) -> None:
        """End it, and what it has forked."""
        self._lose("It was closed.")

    async def _ready(self) -> None:
        if self._lost:
            raise WarmError(self._lost)
        if self._is_ready is None:
            self._loop = asyncio.get_running_loop()
            self._is_ready = self._loop.create_future()
            self._loop.add_reader(self._channel, self._hear)
        await asyncio.shield(self._is_ready)

    def _hear(self) -> None:
        try:
            content = self._channel.recv(ANSWER_BYTES_MAX)
        except BlockingIOError:
            return
        except OSError as error:
            self._lose(str(error))
            return
        if content:
            self._take(json.loads(content))
        else:
            self._lose("It has ended.")

    def _take(self, said: Mapping[str, Any]) -> None:
        if "ended" in said:
            if (child := self._children.pop(said["ended"], None)) is not None:
                child.end(said["status"])
        elif "pid" in said:
            child = self._children[said["pid"]] = Child(said["pid"])
            if self._forked is not None and not self._forked.done():
                self._forked.set_result(child)
        elif "refused" in said:
            if self._forked is not None and not self._forked.done():
                self._forked.set_exception(WarmError(said["refused"]))
        elif said["hazards"]:
            self._lose(f"It does not fork well: {', '.join(said['hazards'])}")
        elif self._is_ready is not None:
            self._is_ready.set_result(None)

    def _lose(self, why: str) -> None:
        """Use it no more: what it has forked dies with it."""
        if self._lost:
            return
        self._lost = why
        if self._loop is not None and not self._loop.is_closed():
            self._loop.remove_reader(self._channel)
        self._channel.close()
        self._kill()
        for waiting in (self._is_ready, self._forked):
            if waiting is not None and not waiting.done():
                waiting.set_exception(WarmError(why))
                waiting.exception()  # perhaps nobody waits
        for child in self._children.values():
            child.end(-signal.SIGKILL)
        self._children.clear()


def kill(pid: int) -> None:
    """Of a child that is not waited for elsewhere: end it and reap it."""
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def start(environment: Mapping[str, str], folder: Path) -> Warm | None:
    """Start a warm process; None where there is no such thing. It is ready later.

    Args:
        environment: all of it; that of its programs is their own.
    """
    if sys.platform != "linux":
        return None
    ours, theirs = forking.pair()
    with theirs:
        started = subprocess.Popen(
            [
                *(sys.executable, "-P", *PROGRAM),
                *(str(theirs.fileno()), str(os.getpid()), ROOM),
            ],
            env=dict(environment),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            pass_fds=(theirs.fileno(),),
            start_new_session=True,
        )

    def end() -> None:
        started.kill()
        started.wait()

    return Warm(ours, end)
