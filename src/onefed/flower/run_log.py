"""What the ServerApp of a run prints: into a file, and as events where nothing else speaks for it.

Flower gives the log of a run from its beginning, so what was copied before a connection or this
program ended is counted and not told again.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from onefed.errors import OnefedError
from onefed.flower import adapter, report
from onefed.telemetry import events

LINE_LENGTH_MAX = 65_536
"""Longer lines that a ServerApp prints are broken."""


class RunLog:
    """Copies the output of one run at a time, in a thread."""

    def __init__(
        self, path: Path, control: adapter.Control, emit: Callable[[events.Event], None]
    ) -> None:
        self._path = path
        self._control = control
        self._emit = emit
        self._reader: threading.Thread | None = None

    def size(self) -> int:
        """Bytes in the file; what is copied later follows them."""
        return self._path.stat().st_size if self._path.exists() else 0

    def read(self, run_id: int, *, begins_at: int, told: bool) -> threading.Thread:
        """Copy a run's output, unless that is going on; the thread ends with the run or with the
        connection.

        Args:
            begins_at: ``size`` when the run was submitted.
            told: whether the app tells its own story; else its lines become events.
        """
        if self._reader is None or not self._reader.is_alive():
            self._reader = threading.Thread(
                target=self._copy, args=(run_id, begins_at, told), name="run-log", daemon=True
            )
            self._reader.start()
        return self._reader

    def _copy(self, run_id: int, begins_at: int, told: bool) -> None:
        reporter = report.Reporter(time.monotonic)
        with contextlib.suppress(OnefedError, OSError):
            known = _line_count(self._path, begins_at)
            with self._path.open("a", encoding="utf-8") as log:
                for index, line in enumerate(_lines(self._control.log_output(run_id))):
                    news = [] if told else reporter.read(line)
                    if index >= known:
                        log.write(f"{line}\n")
                        log.flush()
                        for event in news:
                            self._emit(event)


def _line_count(path: Path, begin: int) -> int:
    """Lines of a file after its first ``begin`` bytes."""
    if not path.exists():
        return 0
    with path.open("rb") as file:
        file.seek(begin)
        return sum(1 for _ in file)


def _lines(pieces: Iterable[str]) -> Iterator[str]:
    """Lines out of pieces of text, the same ones however the text was cut into pieces."""
    rest = ""
    for piece in pieces:
        *whole, rest = (rest + piece).split("\n")
        for line in whole:
            yield from _broken(line)
        *begun, rest = _broken(rest)
        yield from begun
    if rest:
        yield rest


def _broken(line: str) -> list[str]:
    starts = range(0, max(len(line), 1), LINE_LENGTH_MAX)
    return [line[start : start + LINE_LENGTH_MAX] for start in starts]
