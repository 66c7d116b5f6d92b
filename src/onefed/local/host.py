"""The process of a federation on this machine: owns its state directory, and runs its cloud.

``python -P -m onefed.local.host DIR [SUMMARY]``. What the programs of the federation import is
imported by a warm process (``warm_server``) while this one imports the cloud.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from onefed.appliance import programs
from onefed.appliance.process import die_with_parent
from onefed.errors import ExitCode, OnefedError
from onefed.local import ownership, warm
from onefed.local.state import StateDir


def main(arguments: Sequence[str]) -> int:
    """Own the state directory until its federation has ended; the exit code says how."""
    directory = StateDir(Path(arguments[0]))
    copy = Path(arguments[1]) if len(arguments) > 1 else None
    attached_to = os.environ.get("ONEFED_ATTACHED")
    if attached_to:
        die_with_parent(signal.SIGTERM)
        if os.getppid() != int(attached_to):
            return int(ExitCode.INTERRUPTED)  # it died before the kernel was told
    try:
        with ownership.hold(directory):
            ownership.end_processes(directory)  # of a cloud that was killed
            forks = warm.start(environment(directory.folder, os.environ), directory.folder)
            try:
                # Late: meanwhile the warm process imports, too.
                cloud = importlib.import_module("onefed.local.cloud")
                return int(cloud.run(directory, forks, os.environ, copy))
            finally:
                if forks is not None:
                    forks.close()
    except OnefedError as error:
        sys.stderr.write(f"{error}\n")
        return int(error.exit_code)


def environment(folder: Path, environ: Mapping[str, str]) -> dict[str, str]:
    """Of a machine, and all of it; its programs get what ``appliance.programs`` says."""
    return {**programs.common(environ), ownership.STATE_VARIABLE: str(folder)}


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
