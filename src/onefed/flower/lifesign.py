"""How a program tells whoever keeps it running that it does its work: it makes a file, once.

A program that did its work is started again at once when something kills it; one that never does
waits longer and longer, and is given up (``appliance.process``).
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path

VARIABLE = "ONEFED_WORKED_FILE"
"""Names the file; a program that is started by hand has none."""


class LifeSign:
    """Given once; asked for it again and again, it does nothing more."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        path = environ.get(VARIABLE)
        self._path = None if path is None else Path(path)

    def give(self) -> None:
        """This program does its work."""
        if self._path is not None:
            with contextlib.suppress(OSError):  # it is then taken for one that did nothing
                self._path.touch(mode=0o600)
            self._path = None
