"""Whether a process lives, told by a lock on a file that dies with it, and asked without taking it.

A process id means nothing across containers, and in a hardened unit no other process is seen; the
lock of a file is seen by whoever may open it. The lock is Linux's own kind, of an open file: it
works between two openings in one process as well, and asking changes nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
from collections.abc import Iterator
from pathlib import Path

from onefed.errors import InUseError

_FLAGS = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
MODE = 0o600

NAME = "alive.lock"
"""In the folder of a node of a peer group."""

_FLOCK = "hhqqi"
"""``struct flock`` of 64-bit Linux: type, whence, start, length, process."""


@contextlib.contextmanager
def hold(path: Path) -> Iterator[None]:
    """Live, for others, until the end of this or of the process.

    Raises:
        InUseError: somebody else lives there.
    """
    descriptor = os.open(path, _FLAGS, MODE)
    try:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _whole_file(fcntl.F_WRLCK))
        yield
    except (BlockingIOError, PermissionError):  # POSIX allows either
        raise InUseError(f"Another process holds {path}.", hint="Stop it first.") from None
    finally:
        os.close(descriptor)


def is_held(path: Path) -> bool:
    """Whether somebody lives there now."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        answer = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, _whole_file(fcntl.F_WRLCK))
    finally:
        os.close(descriptor)
    return bool(struct.unpack(_FLOCK, answer)[0] != fcntl.F_UNLCK)


def _whole_file(kind: int) -> bytes:
    return struct.pack(_FLOCK, kind, os.SEEK_SET, 0, 0, 0)
