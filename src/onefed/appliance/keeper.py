"""Who keeps a machine without systemd running: found by a lock that dies with its holder."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from onefed.checkpoint import files
from onefed.errors import InUseError

_FLAGS = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC

CONTENT_BYTES_MAX = 4096


@dataclass(frozen=True)
class Keeper:
    """What the holder of the lock says of itself."""

    pid: int
    state: str
    """Of the machine: ``booting``, ``running``, ``stopping``."""
    context_sha256: str
    """Of the context that it booted with."""


@contextlib.contextmanager
def hold(path: Path) -> Iterator[Callable[[Keeper], None]]:
    """Hold the lock; gives what tells others who holds it.

    Raises:
        InUseError: somebody else keeps this machine.
    """
    files.make_folder(path.parent)
    descriptor = os.open(path, _FLAGS, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InUseError(
                f"This machine runs already: somebody holds {path}.",
                hint="Stop it with onefed appliance drain, or boot another root.",
            ) from None

        def tell(keeper: Keeper) -> None:
            content = json.dumps(asdict(keeper)).encode()
            os.pwrite(descriptor, content.ljust(CONTENT_BYTES_MAX), 0)

        yield tell
    finally:
        os.close(descriptor)


def find(path: Path) -> Keeper | None:
    """Who holds the lock now; None when nobody does."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _said(os.pread(descriptor, CONTENT_BYTES_MAX, 0))
    finally:
        os.close(descriptor)
    return None


def renewed(keeper: Keeper) -> None:
    """Tell the holder that there is a new server certificate."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(keeper.pid, signal.SIGHUP)


def stop(keeper: Keeper) -> None:
    """Ask the holder to drain and end."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(keeper.pid, signal.SIGTERM)


def _said(content: bytes) -> Keeper | None:
    try:
        found = json.loads(content)
        return Keeper(int(found["pid"]), str(found["state"]), str(found["context_sha256"]))
    except (ValueError, KeyError, TypeError):
        return None  # it has the lock and has not spoken yet
