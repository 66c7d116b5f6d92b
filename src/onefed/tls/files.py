"""Private files and folders: with their owner and mode before they have a byte of content.

A file is written beside its place and renamed, so a reader sees the old one or the new one.
Links are never followed: a container may own the folder that root writes into.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

from onefed.errors import StorageError

if TYPE_CHECKING:
    from pathlib import Path

SECRET_MODE = 0o600
PUBLIC_MODE = 0o644
FOLDER_MODE = 0o700

FILE_BYTES_MAX = 64 * 1024
"""A certificate is about 1 KiB and an operator's bundle a few; more is not ours."""


@dataclass(frozen=True, slots=True)
class Owner:
    """Whom a file is given to when root writes it. Flower's containers run as 49999:49999."""

    uid: int
    gid: int


def make_folder(path: Path, owner: Owner | None = None) -> None:
    """Make a folder that only its owner enters, or tighten the one that is there."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(mode=FOLDER_MODE, exist_ok=True)
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            found = os.fstat(fd)
            if owner is not None and (found.st_uid, found.st_gid) != (owner.uid, owner.gid):
                os.fchown(fd, owner.uid, owner.gid)
            if stat.S_IMODE(found.st_mode) != FOLDER_MODE:
                os.fchmod(fd, FOLDER_MODE)
        finally:
            os.close(fd)
    except OSError as error:
        raise StorageError(
            f"Cannot make the private folder {path}: {error.strerror}",
            hint="It must be a folder that this user owns, not a link.",
        ) from error


def read(path: Path) -> bytes | None:
    """The content of a regular file of at most FILE_BYTES_MAX bytes; None when there is none.

    Anything else of that name (a link, a pipe, a longer file) is a StorageError.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(f"Cannot read {path}: {error.strerror}") from error
    with os.fdopen(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise StorageError(f"Cannot read {path}: it is not a regular file")
        content = file.read(FILE_BYTES_MAX + 1)
    if len(content) > FILE_BYTES_MAX:
        raise StorageError(f"Cannot read {path}: it is longer than {FILE_BYTES_MAX} bytes")
    return content


def exposure(path: Path, owner: Owner | None = None) -> str | None:
    """Why a secret file is not fit to be used any more, or None."""
    found = path.lstat()
    if found.st_mode & 0o077:
        return f"{path.name} is open to other users (mode {stat.S_IMODE(found.st_mode):04o})"
    if owner is not None and (found.st_uid, found.st_gid) != (owner.uid, owner.gid):
        return f"{path.name} belongs to {found.st_uid}:{found.st_gid}"
    return None


def write_secret(path: Path, content: bytes, owner: Owner | None = None) -> None:
    """Replace a file that nobody but its owner may ever read."""
    _replace(path, content, SECRET_MODE, owner)


def write_public(path: Path, content: bytes, owner: Owner | None = None) -> None:
    """Replace a file that everybody may read, whatever the umask."""
    _replace(path, content, PUBLIC_MODE, owner)


def remove(path: Path) -> None:
    """Remove a file if it is there."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"Cannot remove {path}: {error.strerror}") from error


def _replace(path: Path, content: bytes, mode: int, owner: Owner | None) -> None:
    new = path.with_name(f".{path.name}.new")
    try:
        new.unlink(missing_ok=True)  # what a killed writer left
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
        with os.fdopen(fd, "wb") as file:
            if mode == PUBLIC_MODE:
                os.fchmod(fd, mode)  # the umask took bits away; a secret asked for none of them
            if owner is not None:
                os.fchown(fd, owner.uid, owner.gid)
            file.write(content)
            file.flush()
            os.fsync(fd)
        new.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise StorageError(f"Cannot write {path}: {error.strerror}") from error


def _sync_folder(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
