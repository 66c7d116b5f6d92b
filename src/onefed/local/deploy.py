"""State directories of federations: made for a request, started from, discarded."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from onefed.checkpoint import files
from onefed.errors import InUseError, StorageError
from onefed.local import ownership, state
from onefed.local.request import Prepared, Request
from onefed.local.state import StateDir

NAMING_TRIES_MAX = 10
"""Others may take the next free name at the same moment."""


def create(prepared: Prepared, request: Request, environ: Mapping[str, str]) -> StateDir:
    """Make the state directory of a new federation.

    Raises:
        InUseError: the name or the folder is taken, and ``replace`` was not asked for.
        StorageError: there is no room.
    """
    base = state.home(environ)
    name = request.federation_name()
    if name is not None and request.replace:
        place = base / name if request.folder is None else request.folder
        old = StateDir(Path(os.path.realpath(place)))
        if old.spec_file.exists():
            remove(old, base)
    directory, name = _claim(base, name, request.folder)
    try:
        if prepared.packed is not None:
            files.write_bytes(directory.bundle, prepared.packed.fab)
        directory.write_spec(replace(prepared.spec, name=name))
    except BaseException:
        _discard(directory, base)  # nothing half-made stays
        raise
    return directory


def remove(directory: StateDir, base: Path) -> None:
    """Discard a federation that does not run, and everything it trained.

    Training data of the user's own, which it only links to, stays.

    Raises:
        InUseError: it runs.
        StorageError: its folder cannot be deleted.
    """
    with ownership.hold(directory):
        ownership.end_processes(directory)
        _discard(directory, base)


def start(
    directory: StateDir,
    environ: Mapping[str, str],
    *,
    attached: bool,
    summary: Path | None = None,
) -> subprocess.Popen[bytes]:
    """Start the cloud of a federation, in a session of its own.

    Args:
        attached: it ends with our process; else it lives on by itself.
        summary: where to write the summary, too, once the federation has ended.
    """
    with directory.log.open("ab") as log:
        return subprocess.Popen(
            # -P: no module in the folder that the user works in is taken for one of Python's.
            [
                *(sys.executable, "-P", "-m", "onefed.local.host", str(directory.folder)),
                *([] if summary is None else [str(summary.absolute())]),
            ],
            env={
                **environ,
                ownership.STATE_VARIABLE: str(directory.folder),
                "ONEFED_ATTACHED": str(os.getpid()) if attached else "",
            },
            cwd=directory.folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def _claim(base: Path, name: str | None, folder: Path | None) -> tuple[StateDir, str]:
    if name is not None:
        return state.claim(base, name, folder), name
    for tries_left in reversed(range(NAMING_TRIES_MAX)):
        name = state.free_name(base)
        try:
            return state.claim(base, name, None), name
        except InUseError:
            if not tries_left:
                raise
    raise AssertionError("the last try returns or raises")


def _discard(directory: StateDir, base: Path) -> None:
    try:
        shutil.rmtree(directory.folder)
        for link in base.iterdir():
            if link.is_symlink() and os.path.realpath(link) == str(directory.folder):
                link.unlink()
    except OSError as error:
        raise StorageError(
            f"{directory.folder} cannot be deleted: {error.strerror}.",
            hint="Delete that folder by hand.",
        ) from error
