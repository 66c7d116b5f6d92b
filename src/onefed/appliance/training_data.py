"""The folder of a machine's own training data: there, and readable as a whole."""

from __future__ import annotations

import os
from pathlib import Path

from onefed.appliance import machine
from onefed.errors import ExitCode, OnefedError

UNREADABLE_SHOWN_MAX = 5


class UnreadableDataError(OnefedError):
    """Files in the data folder cannot be opened."""

    exit_code = ExitCode.DATA


def ensure(folder: Path) -> bool:
    """Make the folder where there is none; True when it was made.

    Raises:
        UnreadableDataError: it holds files that cannot be read.
    """
    is_new = not os.path.lexists(folder)
    if is_new:
        machine.make_folder(folder, 0o755)
    _require_readable(folder)
    return is_new


def _require_readable(folder: Path) -> None:
    """Raise when a file below the data folder cannot be opened; all at once."""
    unreadable: list[str] = []

    def note(error: OSError) -> None:
        unreadable.append(str(error.filename))

    for place, _, names in os.walk(folder, onerror=note):
        paths = [str(Path(place) / name) for name in names]
        unreadable += [path for path in paths if not os.access(path, os.R_OK)]
    if unreadable:
        beyond = len(unreadable) - UNREADABLE_SHOWN_MAX
        raise UnreadableDataError(
            "The data folder holds files that cannot be read: "
            + ", ".join(unreadable[:UNREADABLE_SHOWN_MAX])
            + (f" and {beyond} more." if beyond > 0 else "."),
            hint="Give the account that runs onefed permission to read them, or remove them.",
        )
