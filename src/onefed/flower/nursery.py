"""A process that has imported all that a ServerApp needs, and forks one for each task.

A ServerApp that is started as a program spends its first seconds on imports, and a run that resumes
waits for them. So the executor forks a *nursery* before it has threads or connections; that imports
Flower and our round loop once, and forks a process that becomes ``flwr-serverapp``:

    executor -> nursery -> flwr-serverapp

Where the app is known it imports the app's libraries as well, in a child that goes on in its place:
one that had better not fork afterwards, or dies of it, is forgotten.

Both stay in the process group of the executor, which a signal to it reaches as a whole. A ServerApp
dies with its nursery, the nursery with its executor.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import psutil

from onefed.errors import OnefedError
from onefed.flower import adapter_runtime, forking, randomness

FORK_LIMIT_S = 3.0
"""A fork takes milliseconds; a nursery that takes longer is stopped."""

REAP_S = 1.0
"""Between two looks of an idle nursery for ServerApps that have ended."""

DATAGRAM_BYTES_MAX = 16_384

_NOT_SHOWN = "--token"


class NurseryError(OnefedError):
    """No ServerApp can be forked."""


@dataclass(frozen=True)
class Forked:
    """A ServerApp that was forked."""

    pid: int
    started_at: float
    """Seconds since 1970, by the kernel."""


class Nursery:
    """The executor's end."""

    def __init__(self, channel: socket.socket, pid: int) -> None:
        self._channel = channel
        self._pid = pid
        self._is_ready = False

    def is_ready(self) -> bool:
        """Whether it has imported everything; asked again and again, and never waits.

        Raises:
            NurseryError: it has ended, or had better not fork.
        """
        self._channel.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            said = self._hear()
            if why := said.get("hazards"):
                raise NurseryError(f"It does not fork well: {', '.join(why)}.")
            self._is_ready = True
        return self._is_ready

    def fork(self, argv: Sequence[str]) -> Forked:
        """Fork a process that becomes the program ``flwr-serverapp`` with these arguments.

        Raises:
            NurseryError: it did not answer in time.
        """
        self._channel.settimeout(FORK_LIMIT_S)
        try:
            self._channel.send(json.dumps(list(argv)).encode())
        except OSError as error:
            raise NurseryError(f"It does not listen: {error}") from error
        said = self._hear()
        return Forked(int(said["pid"]), float(said["started_at"]))

    def close(self) -> None:
        """End it, also when it is stopped, and with it the ServerApps that still live."""
        self._channel.close()
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)

    def _hear(self) -> dict[str, Any]:
        try:
            text = self._channel.recv(DATAGRAM_BYTES_MAX)
        except BlockingIOError:
            raise
        except OSError as error:  # a timeout is one, too
            raise NurseryError(f"It does not answer: {error}") from error
        if not text:
            raise NurseryError("It has ended.")
        said = json.loads(text)
        assert isinstance(said, dict), said
        return said


def start(
    prepare: Callable[[], None] = adapter_runtime.preload_server_app,
    become: Callable[[Sequence[str]], None] = adapter_runtime.run_server_app,
    more: Callable[[], None] | None = None,
) -> Nursery:
    """Fork a nursery; this process has to be single-threaded until then.

    Args:
        prepare: imports, in the nursery.
        become: what a forked process does with its arguments.
        more: imports what may forbid forks, or may not be importable.
    """
    ours, theirs = forking.pair()
    executor = os.getpid()
    pid = os.fork()
    if pid == 0:
        ours.close()
        forking.die_with_parent(signal.SIGKILL, executor)
        # Its end is that of the executor, which first ends the ServerApps.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        prepare()
        if more is not None:
            _improve(more)
        argv = _serve(theirs)
        theirs.close()
        _grow_up(argv)
        become(argv)
        # The interpreter ends as it would have: waits for threads, runs what was registered.
        raise SystemExit(0)
    theirs.close()
    return Nursery(ours, pid)


def _improve(more: Callable[[], None]) -> None:
    """Go on as a child that has imported more; as before where that is no good."""
    nursery = os.getpid()
    told, tells = os.pipe()
    pid = os.fork()
    if pid == 0:
        forking.die_with_parent(signal.SIGKILL, nursery)
        with contextlib.suppress(BaseException):
            more()
            if not forking.hazards():
                os.write(tells, b"good")
                os.close(told)
                os.close(tells)
                return
        os._exit(1)
    os.close(tells)
    is_good = bool(os.read(told, 4))
    os.close(told)
    os.waitpid(pid, 0)
    if is_good:
        os._exit(0)  # it was the nursery, and has ended


def _serve(control: socket.socket) -> list[str]:
    """The life of a nursery; returns in each forked process, with its arguments."""
    forking.settle()
    nursery = os.getpid()
    try:
        _say(control, hazards=forking.hazards())
        while True:
            if not select.select([control], [], [], REAP_S)[0]:
                _reap()
                continue
            request = control.recv(DATAGRAM_BYTES_MAX)
            if not request:
                os._exit(0)
            pid = os.fork()
            if pid == 0:
                forking.die_with_parent(signal.SIGKILL, nursery)
                break
            # Not reaped yet, so its number is nobody else's, even if it has ended.
            _say(control, pid=pid, started_at=psutil.Process(pid).create_time())
    except OSError:
        os._exit(0)  # the executor is gone
    argv: list[str] = json.loads(request)
    return argv


def _grow_up(argv: list[str]) -> None:
    """In a forked process: be like one that was just started."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    nowhere = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    os.close(nowhere)
    randomness.refresh()
    forking.show_as(_shown(argv))


def _shown(argv: list[str]) -> list[str]:
    if _NOT_SHOWN not in argv:
        return argv
    place = argv.index(_NOT_SHOWN)
    return argv[:place] + argv[place + 2 :]


def _say(control: socket.socket, **facts: Any) -> None:
    control.send(json.dumps(facts).encode())


def _reap() -> None:
    """Of ServerApps that have ended."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG) != (0, 0):
            pass
