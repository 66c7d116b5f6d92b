"""How a program of a machine writes its log: lines for people, or JSON for collectors.

The machine says which (``FL_LOG_FORMAT``), in the program's environment.
"""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING

from onefed.telemetry import lines
from onefed.telemetry.log import Follower

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from typing import TextIO

VARIABLE = "ONEFED_LOG_FORMAT"
"""``text``, which it is without it, or ``json``."""

OTHERS = ("flwr",)
"""Loggers that write to the console by themselves."""


def wants_json(environ: Mapping[str, str]) -> bool:
    """Whether this program is to write JSON."""
    return environ.get(VARIABLE) == "json"


def configure(logger: logging.Logger, role: str, environ: Mapping[str, str]) -> None:
    """Let a logger of ours write: text to standard error, JSON to standard output.

    The root logger is left to the app.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(_level(environ))
    logger.propagate = False
    if wants_json(environ):
        for each in (logger, *map(logging.getLogger, OTHERS)):
            lines.use_json(each, role, sys.stdout)


class Relay:
    """Writes the events of a role into the log of the program that has it, for its collector.

    What was there before is left out. ``look`` is called again and again.
    """

    def __init__(self, events: Path, role: str, stream: TextIO) -> None:
        self._follower = Follower(events)
        self._role = role
        self._stream = stream
        while self._follower.poll():
            pass

    def look(self) -> None:
        """Write what came since the last look."""
        for record in self._follower.poll():
            if record.event is not None and record.role == self._role:
                self._stream.write(lines.record_line(record) + "\n")
        self._stream.flush()


def _level(environ: Mapping[str, str]) -> int:
    level = logging.getLevelName(environ.get("FLWR_LOG_LEVEL", "INFO").upper())
    return level if isinstance(level, int) else logging.INFO
