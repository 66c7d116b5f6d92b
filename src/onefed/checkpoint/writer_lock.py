"""One process writes a recovery store at a time: a lock that dies with its holder.

A ServerApp that was stopped for a while, or cut off, may come back to life beside the one that was
started in its place. The rounds of both belong to the same run, so the claim on the folder does not
tell them apart; this does.

A record lock of POSIX, not ``flock``: a process that the holder has forked does not inherit it, and
so cannot keep it when the holder is dead.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

from onefed.checkpoint import files
from onefed.errors import InUseError

NAME = "writer.lock"

WAIT_S = 20.0
"""A holder that was killed is gone at once, unless the disk holds it up."""

LOOK_S = 0.05

_FLAGS = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
_PID_BYTES = 16


def take(
    folder: Path,
    *,
    clock: Callable[[], float],
    sleep: Callable[[float], None],
    waiting: Callable[[int], None],
) -> None:
    """Take the lock of a store until this process dies; it is never given back before.

    Args:
        clock: monotonic seconds.
        waiting: told once, with the process id of the holder (0: unknown), before a wait.

    Raises:
        InUseError: somebody held it for all of ``WAIT_S``.
    """
    files.make_folder(folder, mode=0o700)
    descriptor = os.open(folder / NAME, _FLAGS, 0o600)
    ends_s, told = clock() + WAIT_S, False
    while not _try(descriptor):
        holder = _holder(descriptor)
        if clock() >= ends_s:
            os.close(descriptor)
            raise InUseError(
                f"Process {holder or 'unknown'} has been writing {folder} for {WAIT_S:.0f} s.",
                hint="Two ServerApps of one run must not write at once: end that process.",
            )
        if not told:
            told = True
            waiting(holder)
        sleep(LOOK_S)
    os.pwrite(descriptor, str(os.getpid()).encode().ljust(_PID_BYTES), 0)


def _try(descriptor: int) -> bool:
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # POSIX allows either
        return False
    return True


def _holder(descriptor: int) -> int:
    text = os.pread(descriptor, _PID_BYTES, 0).strip()
    return int(text) if text.isdigit() else 0
