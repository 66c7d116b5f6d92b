"""The one door to programs that a boot runs and waits for: argument arrays, bounded in time."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass

TIMEOUT_S = 120.0
"""Long enough for systemctl to stop a unit that drains."""

PULL_TIMEOUT_S = 1800.0
"""An image has a gigabyte, and a site may have 1 MB/s."""

OUTPUT_CHARS_MAX = 4000
"""Of what a program wrote, the end."""

NOT_FOUND = 127
TIMED_OUT = 124
"""As a shell and timeout(1) say it."""


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    output: str
    """Standard output and error together, the end of it."""

    @property
    def ok(self) -> bool:
        return self.code == 0

    @property
    def last_line(self) -> str:
        """What it said last, for a message on one line."""
        lines = [line.strip() for line in self.output.splitlines() if line.strip()]
        last = lines[-1] if lines else f"exit code {self.code}"
        return last if last.isprintable() else ascii(last)


Run = Callable[..., Done]
"""``run(argv, timeout_s=...)``: never raises for what the program did."""


def run(argv: Sequence[str], *, timeout_s: float = TIMEOUT_S) -> Done:
    """Run a program to its end, without input."""
    try:
        ended = subprocess.run(
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Done(TIMED_OUT, f"{argv[0]} did not end within {timeout_s:.0f} s")
    except OSError as error:
        return Done(NOT_FOUND, f"{argv[0]} cannot be started: {error.strerror or error}")
    return Done(ended.returncode, ended.stdout.decode(errors="replace")[-OUTPUT_CHARS_MAX:])
