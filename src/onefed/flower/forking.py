"""What a process needs that forks others for a living: a channel, manners, a look at itself.

``node.forks`` forks a process for each message of an app, ``nursery`` one for each ServerApp.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

DEVICES = ("/dev/nvidia", "/dev/kfd", "/dev/dri", "/dev/accel")
"""A process that has one of these open cannot fork a child that uses it, too."""

BENIGN_THREADS = ("jemalloc_bg_thd",)
"""Names of threads that a fork does no harm: jemalloc, in pyarrow for one, begins them anew."""

_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_NAME_BYTES_MAX = 15
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
"""Loaded here because nothing should be loaded between fork and prctl."""


def pair() -> tuple[socket.socket, socket.socket]:
    """Two ends of a channel that keeps datagrams apart and tells when the other end is gone."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def settle() -> None:
    """Before the first fork: a garbage collection in a child would copy every page."""
    gc.collect()
    gc.freeze()


def die_with_parent(signal_number: int, parent: int) -> None:
    """Have the kernel end this process when its parent dies. Linux only; else nothing."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal_number)
    if os.getppid() != parent:  # it died before the kernel was told
        os._exit(1)


def kill_group(group: int) -> None:
    """End every process of a group, if there is one."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)


def hazards() -> list[str]:
    """Why this process had better not fork; empty where nothing speaks against it."""
    found = []
    names = [(each / "comm").read_text().strip() for each in Path("/proc/self/task").iterdir()]
    threads = sum(name not in BENIGN_THREADS for name in names)
    if threads > 1:
        found.append(f"{threads - 1} threads run in it")
    devices = set()
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # the one that lists the folder is closed by now
            if (target := str(entry.readlink())).startswith(DEVICES):
                devices.add(target)
    if devices:
        found.append(f"it has {', '.join(sorted(devices))} open")
    return found


def show_as(argv: Sequence[str]) -> None:
    """Have ``ps`` show another command line, cut where the one that we were started with ends.

    Linux only; else nothing. The environment that ``ps`` shows stays.
    """
    if _LIBC is None:
        return
    _LIBC.prctl(_PR_SET_NAME, Path(argv[0]).name.encode()[:_NAME_BYTES_MAX])
    # Of proc(5): fields 48 and 49, counted here from the third, behind the name in brackets.
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    start, end = int(fields[45]), int(fields[46])
    if 0 < start < end:
        # The last byte stays zero, or the kernel would go on into the environment.
        text = "\0".join(argv).encode()[: end - start - 1]
        ctypes.memmove(start, text.ljust(end - start, b"\0"), end - start)
