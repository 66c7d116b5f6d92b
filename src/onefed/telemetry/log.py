"""The event log of a federation: one file that its processes append to and others follow."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from onefed.errors import StorageError
from onefed.telemetry import lines

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime

    from onefed.telemetry.events import Event
    from onefed.telemetry.lines import Record

MODE = 0o640
"""The group may read, so that a collector needs no root."""

CHUNK_BYTES = 1024 * 1024

POLL_BYTES_MAX = 8 * 1024 * 1024
"""Of the file, in one look. About 20,000 lines, 30 MB as records."""


class EventLog:
    """Appends events; each is one write, so lines of several processes never mix.

    A line that cannot be written is lost, counted and reported once on standard error: a full disk
    does not stop training. Not for a network file system, where appends are not atomic.
    """

    def __init__(self, path: Path, role: str, clock: Callable[[], datetime]) -> None:
        """``clock`` gives aware times. The file is opened when the first event comes."""
        self.path = path
        self.role = role
        self.lost_count = 0
        """Events that could not be written."""
        self._clock = clock
        self._fd: int | None = None
        self._torn = False

    def emit(self, event: Event) -> None:
        """Append one event. Never raises for the disk's sake."""
        line = lines.event_line(
            event, timestamp=self._clock(), role=self.role, source=_caller()
        ).encode("ascii")
        try:
            self._append(line + b"\n")
        except OSError as error:
            self.lost_count += 1
            if self.lost_count == 1:
                self._report(error)

    def close(self) -> None:
        """Let go of the file. A later ``emit`` opens it again."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _append(self, line: bytes) -> None:
        if self._fd is None:
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
            self._fd = os.open(self.path, flags, MODE)
        if self._torn:
            line = b"\n" + line  # what was cut off stays a line of its own
        written = os.write(self._fd, line)
        self._torn = written < len(line)
        if self._torn:
            raise OSError(f"{written} of {len(line)} bytes were written")

    def _report(self, error: OSError) -> None:
        with contextlib.suppress(OSError, ValueError):  # standard error may be closed
            sys.stderr.write(
                f"onefed: cannot write events to {self.path}: {error.strerror or error}. "
                "Training goes on; what is lost is only counted.\n"
            )


class Follower:
    """Gives the records of a growing file. The caller decides when to look; nothing waits.

    Lines that are not ours are left out, and so is an unfinished last line until it is complete. A
    file that became shorter or was replaced is read from its beginning; one that was truncated and
    has outgrown the old position between two looks cannot be told from one that grew.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._identity: tuple[int, int] | None = None
        self._offset = 0
        self._splitter = _Splitter()

    def poll(self) -> list[Record]:
        """The records that became complete since the last call; none while there is no file.

        At most those of POLL_BYTES_MAX: after a long absence it takes a few calls to be up to date.
        """
        return [record for chunk in self._chunks() for record in self._splitter.feed(chunk)]

    def _chunks(self) -> Iterator[bytes]:
        try:
            file = self.path.open("rb")
        except FileNotFoundError:
            return
        except OSError as error:
            raise StorageError(f"Cannot read {self.path}: {error.strerror}") from error
        with file:
            found = os.fstat(file.fileno())
            identity = (found.st_dev, found.st_ino)
            if identity != self._identity or found.st_size < self._offset:
                self._identity, self._offset, self._splitter = identity, 0, _Splitter()
            file.seek(self._offset)
            end = min(found.st_size, self._offset + POLL_BYTES_MAX)
            while self._offset < end:
                chunk = file.read(min(CHUNK_BYTES, end - self._offset))
                if not chunk:
                    return
                self._offset += len(chunk)
                yield chunk


def read(path: Path) -> Iterator[Record]:
    """All records of a file, without what is torn or foreign, in constant memory."""
    splitter = _Splitter()
    try:
        file = path.open("rb")
    except OSError as error:
        raise StorageError(f"Cannot read {path}: {error.strerror}") from error
    with file:
        while chunk := file.read(CHUNK_BYTES):
            yield from splitter.feed(chunk)


class _Splitter:
    """From pieces of a file to its whole lines; a line that is too long is dropped."""

    def __init__(self) -> None:
        self._rest = b""
        self._dropping = False

    def feed(self, chunk: bytes) -> Iterator[Record]:
        *whole, rest = (self._rest + chunk).split(b"\n")
        for line in whole:
            if self._dropping:
                self._dropping = False  # the end of the long line
            elif (record := lines.parse(line)) is not None:
                yield record
        self._dropping = self._dropping or len(rest) > lines.LINE_BYTES_MAX
        self._rest = b"" if self._dropping else rest


def _caller() -> str:
    """``file:line`` of who called ``emit``."""
    frame = sys._getframe(2)
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
