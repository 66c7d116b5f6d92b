"""What a unit of systemd starts: becomes the program whose name it is given.

``python -P -m onefed.appliance.launch FOLDER NAME``. The process is replaced, so systemd sees the
program itself; its environment is the description's and nothing else.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from onefed.appliance import description
from onefed.appliance.commands import NOT_FOUND
from onefed.errors import ExitCode, OnefedError


def main(arguments: Sequence[str]) -> int:
    """Start a program; returns only when that is not possible."""
    if len(arguments) != 2:
        sys.stderr.write("usage: python -m onefed.appliance.launch FOLDER NAME\n")
        return ExitCode.USAGE
    folder, name = arguments
    try:
        found = description.read(Path(folder), name)
    except OnefedError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    try:
        os.chdir(found.folder)
        os.execve(found.argv[0], found.argv, dict(found.environment))  # noqa: S606
    except OSError as error:
        sys.stderr.write(f"{found.argv[0]} cannot be started: {error.strerror or error}\n")
    return NOT_FOUND


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
