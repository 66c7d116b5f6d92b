"""Who owns a federation, and which processes are part of it.

One process at a time owns a state directory: the cloud, which keeps a lock on it as long as it
lives.
Every process of the federation carries the folder in ``ONEFED_STATE_DIR``, so all of them can be
found, whoever their parent is by now.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol, TypeVar

import psutil

from onefed.errors import InUseError, StorageError

STATE_VARIABLE = "ONEFED_STATE_DIR"

END_WAIT_S = 3.0
"""Between SIGTERM and SIGKILL when left-over processes are ended, and again after it."""

END_POLL_S = 0.05

END_PASSES_MAX = 3
"""A process may be born while the others are ended; so they are looked for again."""

HOLD_TRIES_MAX = 100
HOLD_POLL_S = 0.01
"""Others who look at the lock hold it for microseconds, and one may be asleep just then."""


class Ownable(Protocol):
    """What is needed of a state directory here; ``state.StateDir`` is one."""

    @property
    def folder(self) -> Path:
        """Without links on the way: it is compared with what processes carry."""

    @property
    def lock_file(self) -> Path:
        """Held by the cloud; holds its process id."""


AnyOwnable = TypeVar("AnyOwnable", bound=Ownable)


@contextlib.contextmanager
def hold(state: Ownable) -> Iterator[None]:
    """Own the federation while the block runs; the lock ends with the process at the latest.

    Raises:
        InUseError: another process owns it.
        StorageError: the folder is gone, or not ours.
    """
    try:
        descriptor = os.open(state.lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StorageError(
            f"{state.lock_file} cannot be opened: {error.strerror}.",
            hint="Look at the owner of that folder.",
        ) from error
    try:
        if not _lock(descriptor):
            raise InUseError(
                f"{state.folder} is in use: its federation is running.",
                hint="Look at it with: onefed status; stop it with: onefed down",
            )
        os.ftruncate(descriptor, 0)
        os.write(descriptor, str(os.getpid()).encode())
        yield
    finally:
        os.close(descriptor)


def owner(state: Ownable) -> int | None:
    """Process id of the cloud that owns the federation, or None when nobody does.

    0 while its id is not written yet. An earlier owner's id may still be there at that moment, so
    nobody is signalled by this number alone: see ``signal_owner``.
    """
    try:
        descriptor = os.open(state.lock_file, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        # Shared: two that look at the same time do not take each other for the owner.
        if _try_lock(descriptor, fcntl.LOCK_SH):
            return None
        text = os.read(descriptor, 32)
        return int(text) if text.isdigit() else 0
    finally:
        os.close(descriptor)


def running(states: Iterable[AnyOwnable]) -> list[AnyOwnable]:
    """Those whose cloud lives."""
    return [each for each in states if owner(each) is not None]


def signal_owner(state: Ownable, number: signal.Signals) -> bool:
    """Send the cloud a signal; False when there is none, or none that is surely ours."""
    pid = owner(state)
    if not pid:
        return False
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        if _carries(process, state):
            process.send_signal(number)
            return True
    return False


def processes(state: Ownable) -> list[psutil.Process]:
    """Every process that carries this state directory in its environment.

    Left out are our own process and those above it, such as a shell that has the variable set.
    """
    mine = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    return [
        process
        for process in psutil.process_iter()
        if process.pid not in mine and _carries(process, state)
    ]


def end_processes(state: Ownable) -> int:
    """End what is left of a federation whose cloud is gone; returns how many there were."""
    ended = 0
    for _ in range(END_PASSES_MAX):
        left = processes(state)
        if not left:
            break
        ended += len(left)
        for number in (signal.SIGTERM, signal.SIGKILL):
            for process in left:
                with contextlib.suppress(psutil.Error):
                    process.send_signal(number)
            left = _wait(left)
    return ended


def _wait(left: list[psutil.Process]) -> list[psutil.Process]:
    """Those that live on after END_WAIT_S; one that nobody reaps is as good as gone."""
    limit = time.monotonic() + END_WAIT_S
    while (left := [each for each in left if _lives(each)]) and time.monotonic() < limit:
        time.sleep(END_POLL_S)
    return left


def _lives(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def _carries(process: psutil.Process, state: Ownable) -> bool:
    """Whether a process belongs to this federation."""
    with contextlib.suppress(psutil.Error, OSError):
        return process.environ().get(STATE_VARIABLE) == str(state.folder)
    return False


def _lock(descriptor: int) -> bool:
    """Take the lock for good. Those who only look at it, for a moment, are no reason to fail."""
    for _ in range(HOLD_TRIES_MAX):
        if _try_lock(descriptor, fcntl.LOCK_EX):
            return True
        if not _try_lock(descriptor, fcntl.LOCK_SH):
            return False
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        time.sleep(HOLD_POLL_S)
    return False


def _try_lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
