"""The one seam to the disk: writes that are whole and durable or did not happen, bounded reads.

A write goes to a temporary file in the same folder, is synced, renamed over the name, and the
folder is synced. Whatever dies in between leaves the old file; a left-over temporary file is
replaced by the next write of that name. All names are resolved inside a folder that is opened once,
and symbolic links in it are never followed, so that a link planted there leads nowhere.

One writer per folder: the caller holds the lock of the state directory.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

from onefed.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from _typeshed import ReadableBuffer

JSON_BYTES_MAX = 16 * 2**20
"""Largest JSON document read or written. Reading the worst one takes 0.6 GB and 3 s."""

BUFFER_BYTES = 64 * 2**10
"""Small writes wait until there are so many bytes of them."""

HINTS = {
    errno.ENOSPC: "Free space on that file system.",
    errno.EDQUOT: "Raise the disk quota of this user, or free space.",
    errno.EROFS: "Mount that file system for writing.",
    errno.EACCES: "Give this user access to the folder.",
    errno.EPERM: "Give this user access to the folder.",
    errno.EIO: "The disk reports errors: look at the kernel log, and use another disk.",
    errno.ENOENT: "Create the folder.",
    errno.ENOTDIR: "Choose another path: a part of this one is not a folder.",
    errno.EISDIR: "Move the folder of that name away.",
    errno.EEXIST: "Choose another path: there is a file of that name.",
    errno.ENAMETOOLONG: "Choose a shorter name.",
    errno.EMFILE: "Raise the limit of open files (ulimit -n).",
    errno.ENFILE: "Raise the limit of open files of this machine (fs.file-max).",
}
"""What to do next, by the error of the operating system."""


NOT_OURS = {
    errno.ELOOP: "it is a symbolic link",
    errno.ENOENT: "it is missing",
    errno.ENXIO: "it is not a regular file",
}
"""Why a file could not be opened, where the cause is what lies there and not the system."""


class DamagedError(StorageError):
    """A file is there, but it does not hold what was written, or it is not a file of ours."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path} is damaged: {reason}.", hint="Restore it, or move it away.")
        self.path = path
        """The file."""
        self.reason = reason
        """What is wrong with it, without a full stop."""


class UnreadableError(DamagedError):
    """A file is there, but the disk failed while it was read: a second try may succeed."""


class System:
    """The calls of the operating system under the stores: all that they change, and all they read.

    Changes name files inside ``folder``, a folder that is open; reads name them by path. Every one
    raises ``OSError``. Tests hand in one that fails, dies or forgets at the k-th call, or a disk
    in memory.
    """

    def open_folder(self, path: Path) -> int:
        """Open a folder, to change what is in it."""
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def close(self, descriptor: int) -> None:
        """Close a file or a folder. It never fails: nothing is announced before a sync."""
        os.close(descriptor)

    def make_folder(self, path: Path, mode: int) -> None:
        """Make one folder; the name must be free."""
        path.mkdir(mode=mode)

    def create(self, name: str, mode: int, folder: int) -> int:
        """Open a new file for writing; the name must be free. The umask takes from ``mode``."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(name, flags, mode, dir_fd=folder)

    def open_to_append(self, name: str, folder: int) -> int:
        """Open a file that is there, to add to its end."""
        flags = os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(name, flags, dir_fd=folder)

    def write(self, descriptor: int, data: memoryview) -> int:
        """Write some of ``data``; how many bytes is the answer."""
        return os.write(descriptor, data)

    def sync(self, descriptor: int) -> None:
        """Make a file's content, or a folder's names, survive a power cut."""
        os.fsync(descriptor)

    def rename(self, source: str, target: str, folder: int) -> None:
        """Give a file its name, in place of whatever file or link has it."""
        os.rename(source, target, src_dir_fd=folder, dst_dir_fd=folder)

    def symlink(self, target: str, name: str, folder: int) -> None:
        """Make a symbolic link; the name must be free."""
        os.symlink(target, name, dir_fd=folder)

    def unlink(self, name: str, folder: int) -> None:
        """Remove a file or a link."""
        os.unlink(name, dir_fd=folder)

    def open(self, path: Path) -> BinaryIO:
        """Open a regular file for reading; ELOOP where it is a link, ENXIO where it is no file."""
        # Without O_NONBLOCK, opening a planted pipe would wait for somebody to write to it.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(path, flags)
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return os.fdopen(descriptor, "rb")
        os.close(descriptor)
        raise OSError(errno.ENXIO, os.strerror(errno.ENXIO))

    def names(self, path: Path) -> list[str]:
        """Names in a folder, in no order."""
        return [entry.name for entry in path.iterdir()]

    def is_folder(self, path: Path) -> bool:
        """Whether a path leads to a folder."""
        return path.is_dir()

    def link_target(self, path: Path) -> str:
        """What a symbolic link says; EINVAL where it is none."""
        return str(path.readlink())


SYSTEM = System()
"""The real one."""


def write_atomically(
    path: Path, write: Callable[[BinaryIO], None], *, mode: int = 0o644, system: System = SYSTEM
) -> int:
    """Make ``path`` a file with exactly what ``write`` puts out; the answer is its size in bytes.

    The stream takes ``write`` only: no seek, no read. Whatever ``write`` raises leaves the old file
    and is raised again, an ``OSError`` as a ``StorageError`` that names ``path``.
    """
    partial = _partial(path)
    with _folder_of(path, "write", system) as folder:
        _discard(partial, folder, system)
        descriptor = system.create(partial, mode, folder)
        try:
            with _closing(descriptor, system):
                stream = _Stream(descriptor, system)
                write(cast("BinaryIO", stream))
                stream.drain()
                system.sync(descriptor)
            system.rename(partial, path.name, folder)
        except BaseException:
            with contextlib.suppress(OSError):
                system.unlink(partial, folder)
            raise
        system.sync(folder)
    return stream.size_bytes


def write_bytes(
    path: Path, content: ReadableBuffer, *, mode: int = 0o644, system: System = SYSTEM
) -> None:
    """Make ``path`` a file with exactly ``content``."""

    def write(stream: BinaryIO) -> None:
        stream.write(content)

    write_atomically(path, write, mode=mode, system=system)


class Appender:
    """A file that only grows. What was added is durable once ``sync`` has returned.

    After an error the file may end in a part of what was to be added: its reader has to know.
    """

    def __init__(self, path: Path, *, system: System = SYSTEM) -> None:
        """Open a file that is there."""
        self._path = path
        self._system = system
        with _folder_of(path, "write", system) as folder:
            self._descriptor = system.open_to_append(path.name, folder)

    def append(self, data: bytes) -> None:
        """Add to the end."""
        rest = memoryview(data)
        with _naming(self._path, "write"):
            while rest:
                rest = rest[self._system.write(self._descriptor, rest) :]

    def sync(self) -> None:
        """Make all of it survive a power cut."""
        with _naming(self._path, "write"):
            self._system.sync(self._descriptor)

    def close(self) -> None:
        """Without a sync."""
        self._system.close(self._descriptor)


def replace_symlink(path: Path, target: str, *, system: System = SYSTEM) -> None:
    """Make ``path`` a symbolic link to ``target``, relative to its folder, in one step."""
    partial = _partial(path)
    with _folder_of(path, "write", system) as folder:
        _discard(partial, folder, system)
        system.symlink(target, partial, folder)
        system.rename(partial, path.name, folder)
        system.sync(folder)


def remove(path: Path, *, system: System = SYSTEM) -> None:
    """Remove a file or link; fine if there is none. Durable with the next write in the folder."""
    with _folder_of(path, "remove", system) as folder:
        _discard(path.name, folder, system)


def sync_folder(folder: Path, *, system: System = SYSTEM) -> None:
    """Make the names in a folder survive a power cut: what was removed stays removed."""
    with _naming(folder, "write"):
        _sync(folder, system)


def make_folder(folder: Path, *, mode: int = 0o755, system: System = SYSTEM) -> None:
    """Make a folder and what is missing above it, durably; fine if it is there."""
    with _naming(folder, "create"):
        missing = []
        for path in (folder, *folder.parents):
            if system.is_folder(path):
                # Whoever made it may have died before it was synced.
                with contextlib.suppress(PermissionError):
                    _sync(path.parent, system)
                break
            missing.append(path)
        for path in reversed(missing):
            try:
                system.make_folder(path, mode)
            except FileExistsError:
                if not system.is_folder(path):
                    raise
            _sync(path.parent, system)


def open_regular(path: Path, *, system: System = SYSTEM) -> BinaryIO:
    """Open a regular file for reading: no link, no pipe to hang on, no device, no folder."""
    with _naming(path, "read"):
        try:
            return system.open(path)
        except OSError as error:
            if error.errno in NOT_OURS:
                raise DamagedError(path, NOT_OURS[error.errno]) from error
            raise


def read_json(path: Path, *, system: System = SYSTEM) -> object:
    """Read a JSON document of at most ``JSON_BYTES_MAX`` from a regular file."""
    with open_regular(path, system=system) as stream:
        try:
            data = stream.read(JSON_BYTES_MAX + 1)
            if len(data) > JSON_BYTES_MAX:
                raise DamagedError(path, f"it is longer than {JSON_BYTES_MAX} bytes")
            document: object = json.loads(data)
        except OSError as error:
            raise UnreadableError(path, f"reading it failed: {error.strerror}") from error
        except (ValueError, RecursionError) as error:
            raise DamagedError(path, "it is not a JSON document") from error
    return document


def write_json(path: Path, document: object, *, mode: int = 0o644, system: System = SYSTEM) -> None:
    """Write what ``read_json`` will read back; a document too long for it is refused."""
    data = json.dumps(document, allow_nan=False, separators=(",", ":")).encode() + b"\n"
    if len(data) > JSON_BYTES_MAX:
        raise StorageError(
            f"{path} would have {len(data)} bytes; at most {JSON_BYTES_MAX} can be read back.",
            hint="Start a new run from the model so far: this one has too long a history.",
        )

    def write(stream: BinaryIO) -> None:
        stream.write(data)

    write_atomically(path, write, mode=mode, system=system)


def names_in(folder: Path, *, system: System = SYSTEM) -> list[str]:
    """Sorted names in a folder; none where there is no such folder."""
    with _naming(folder, "read"):
        try:
            return sorted(system.names(folder))
        except (FileNotFoundError, NotADirectoryError):
            return []


def link_target(path: Path, *, system: System = SYSTEM) -> str | None:
    """What a symbolic link says, unfollowed; None where there is none of that name."""
    with _naming(path, "read"):
        try:
            return system.link_target(path)
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.ENOENT, errno.ENOTDIR):
                return None
            raise


class _Stream(io.RawIOBase):
    """What ``write_atomically`` hands out: every write is complete, and counted.

    An archive is many small pieces around a few large ones; the small ones go out together.
    """

    def __init__(self, descriptor: int, system: System) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._system = system
        self._waiting = bytearray()
        self.size_bytes = 0

    def writable(self) -> bool:
        return True

    def write(self, data: ReadableBuffer, /) -> int:
        rest = memoryview(data).cast("B")
        self.size_bytes += len(rest)
        if len(self._waiting) + len(rest) <= BUFFER_BYTES:
            self._waiting += rest
        else:
            self.drain()
            self._put(rest)
        return len(rest)

    def drain(self) -> None:
        """Write out what waits."""
        self._put(memoryview(bytes(self._waiting)))
        self._waiting.clear()

    def _put(self, rest: memoryview) -> None:
        while rest:
            rest = rest[self._system.write(self._descriptor, rest) :]


def _partial(path: Path) -> str:
    return f".{path.name}.partial"


def _discard(name: str, folder: int, system: System) -> None:
    with contextlib.suppress(FileNotFoundError):
        system.unlink(name, folder)


def _sync(folder: Path, system: System) -> None:
    with _opened_folder(folder, system) as opened:
        system.sync(opened)


@contextlib.contextmanager
def _closing(descriptor: int, system: System) -> Iterator[None]:
    try:
        yield
    finally:
        system.close(descriptor)


@contextlib.contextmanager
def _opened_folder(folder: Path, system: System) -> Iterator[int]:
    descriptor = system.open_folder(folder)
    with _closing(descriptor, system):
        yield descriptor


@contextlib.contextmanager
def _folder_of(path: Path, verb: str, system: System) -> Iterator[int]:
    with _naming(path, verb), _opened_folder(path.parent, system) as folder:
        yield folder


@contextlib.contextmanager
def _naming(path: Path, verb: str) -> Iterator[None]:
    """Turn an error of the operating system into one that names the path and the next step."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"Cannot {verb} {path}: {error.strerror or error}.",
            hint=HINTS.get(error.errno or 0, "Look at the folder and at the kernel log."),
        ) from error
