"""Disks behind the seam of the stores: one in memory, one that records, one that fails."""

from __future__ import annotations

import errno
import io
import itertools
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

from onefed.checkpoint import files


@dataclass(eq=False, slots=True)
class File:
    """Content without a name."""

    content: bytearray = field(default_factory=bytearray)


@dataclass(frozen=True, slots=True)
class Link:
    """A symbolic link."""

    target: str


@dataclass(eq=False, slots=True)
class Folder:
    """Names, each of a file, a link or a folder."""

    names: dict[str, Node] = field(default_factory=dict)


Node: TypeAlias = File | Link | Folder


class MemoryDisk(files.System):
    """A file system in memory with the errors of the real one. The root is there."""

    def __init__(self, root: Folder | None = None) -> None:
        self.root = Folder() if root is None else root
        self._descriptors = itertools.count(3)
        self._open: dict[int, File | Folder] = {}

    def at(self, path: Path) -> Node:
        """What a path leads to; links are not followed."""
        node: Node = self.root
        for name in path.parts[1:]:
            if not isinstance(node, Folder):
                raise _error(errno.ENOTDIR)
            if name not in node.names:
                raise _error(errno.ENOENT)
            node = node.names[name]
        return node

    def open_folder(self, path: Path) -> int:
        return self._opened(self._folder(path))

    def close(self, descriptor: int) -> None:
        del self._open[descriptor]

    def make_folder(self, path: Path, mode: int) -> None:
        self._enter(self._folder(path.parent), path.name, Folder())

    def create(self, name: str, mode: int, folder: int) -> int:
        new = File()
        self._enter(self._opened_folder(folder), name, new)
        return self._opened(new)

    def write(self, descriptor: int, data: memoryview) -> int:
        file = self._open[descriptor]
        assert isinstance(file, File)
        file.content += data
        return len(data)

    def sync(self, descriptor: int) -> None:
        assert descriptor in self._open

    def rename(self, source: str, target: str, folder: int) -> None:
        names = self._opened_folder(folder).names
        if source not in names:
            raise _error(errno.ENOENT)
        if isinstance(names.get(target), Folder):
            raise _error(errno.EISDIR)
        names[target] = names.pop(source)

    def symlink(self, target: str, name: str, folder: int) -> None:
        self._enter(self._opened_folder(folder), name, Link(target))

    def unlink(self, name: str, folder: int) -> None:
        names = self._opened_folder(folder).names
        if name not in names:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        if isinstance(names[name], Folder):
            raise _error(errno.EISDIR)
        del names[name]

    def open(self, path: Path) -> BinaryIO:
        match self.at(path):
            case File(content):
                return io.BytesIO(content)
            case Link():
                raise _error(errno.ELOOP)
            case _:
                raise _error(errno.ENXIO)

    def names(self, path: Path) -> list[str]:
        return list(self._folder(path).names)

    def is_folder(self, path: Path) -> bool:
        try:
            return isinstance(self.at(path), Folder)
        except OSError:
            return False

    def link_target(self, path: Path) -> str:
        match self.at(path):
            case Link(target):
                return target
            case _:
                raise _error(errno.EINVAL)

    def _folder(self, path: Path) -> Folder:
        node = self.at(path)
        if not isinstance(node, Folder):
            raise _error(errno.ENOTDIR)
        return node

    def _opened_folder(self, descriptor: int) -> Folder:
        folder = self._open[descriptor]
        assert isinstance(folder, Folder)
        return folder

    def _opened(self, node: File | Folder) -> int:
        descriptor = next(self._descriptors)
        self._open[descriptor] = node
        return descriptor

    def _enter(self, folder: Folder, name: str, node: Node) -> None:
        if name in folder.names:
            raise _error(errno.EEXIST)
        folder.names[name] = node


@dataclass(frozen=True, slots=True)
class Wrote:
    """Bytes went to the end of a file."""

    file: File
    data: bytes


@dataclass(frozen=True, slots=True)
class Named:
    """Names in one folder changed in one step; None: the name is free now."""

    folder: Folder
    changes: dict[str, Node | None]


@dataclass(frozen=True, slots=True)
class Synced:
    """The content of a file, or the names in a folder, are on the disk."""

    node: File | Folder


@dataclass(frozen=True, slots=True)
class Announced:
    """The program above said that something is saved."""

    what: Any


Event: TypeAlias = Wrote | Named | Synced | Announced


class RecordingDisk(MemoryDisk):
    """A disk in memory that remembers every change, in order, since a state that was synced."""

    def __init__(self, root: Folder | None = None) -> None:
        super().__init__(root)
        self.events: list[Event] = list(_durable(self.root))

    def announce(self, what: Any) -> None:
        """Note that from here on ``what`` must be found."""
        self.events.append(Announced(what))

    def write(self, descriptor: int, data: memoryview) -> int:
        file = self._open[descriptor]
        assert isinstance(file, File)
        self.events.append(Wrote(file, bytes(data)))
        return super().write(descriptor, data)

    def sync(self, descriptor: int) -> None:
        self.events.append(Synced(self._open[descriptor]))

    def rename(self, source: str, target: str, folder: int) -> None:
        super().rename(source, target, folder)
        opened = self._opened_folder(folder)
        self.events.append(Named(opened, {source: None, target: opened.names[target]}))

    def unlink(self, name: str, folder: int) -> None:
        super().unlink(name, folder)
        self.events.append(Named(self._opened_folder(folder), {name: None}))

    def _enter(self, folder: Folder, name: str, node: Node) -> None:
        super()._enter(folder, name, node)
        self.events.append(Named(folder, {name: node}))


def _durable(node: Node) -> Iterator[Event]:
    """Events that make what is there, for good."""
    match node:
        case Folder(names):
            yield Named(node, dict(names))
            yield Synced(node)
            for below in names.values():
                yield from _durable(below)
        case File(content):
            yield Wrote(node, bytes(content))
            yield Synced(node)
        case Link():
            pass


class Killed(BaseException):
    """The process is gone: no handler of ours runs after it."""


def sigkill() -> BaseException:
    """A fault that ends this process for real."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("still alive")


@dataclass
class Fault:
    """What happens at the ``at``-th call, counted from 1, and at later ones where it lasts."""

    at: int
    error: Any
    """An ``errno``, an exception to raise, or a function that gives one."""
    lasts: bool = False

    def __post_init__(self) -> None:
        self.calls = 0

    def call(self) -> None:
        """Count a call, and fail when it is its turn."""
        self.calls += 1
        if self.calls == self.at or (self.lasts and self.calls > self.at):
            raise self._exception()

    def is_next(self) -> bool:
        """Whether the next call fails."""
        return self.calls + 1 == self.at

    def _exception(self) -> BaseException:
        match self.error:
            case int(number):
                return OSError(number, os.strerror(number))
            case BaseException() as exception:
                return exception
            case function:
                return function()  # type: ignore[no-any-return]


class FaultyDisk(files.System):
    """Another disk, of which one call fails; a write that fails has written half of its bytes."""

    def __init__(self, inner: files.System, fault: Fault) -> None:
        self.inner = inner
        self.fault = fault

    def open_folder(self, path: Path) -> int:
        self.fault.call()
        return self.inner.open_folder(path)

    def close(self, descriptor: int) -> None:
        self.inner.close(descriptor)

    def make_folder(self, path: Path, mode: int) -> None:
        self.fault.call()
        self.inner.make_folder(path, mode)

    def create(self, name: str, mode: int, folder: int) -> int:
        self.fault.call()
        return self.inner.create(name, mode, folder)

    def write(self, descriptor: int, data: memoryview) -> int:
        if self.fault.is_next():
            self.inner.write(descriptor, data[: len(data) // 2])
        self.fault.call()
        return self.inner.write(descriptor, data)

    def sync(self, descriptor: int) -> None:
        self.fault.call()
        self.inner.sync(descriptor)

    def rename(self, source: str, target: str, folder: int) -> None:
        self.fault.call()
        self.inner.rename(source, target, folder)

    def symlink(self, target: str, name: str, folder: int) -> None:
        self.fault.call()
        self.inner.symlink(target, name, folder)

    def unlink(self, name: str, folder: int) -> None:
        self.fault.call()
        self.inner.unlink(name, folder)

    def open(self, path: Path) -> BinaryIO:
        self.fault.call()
        return self.inner.open(path)

    def names(self, path: Path) -> list[str]:
        self.fault.call()
        return self.inner.names(path)

    def is_folder(self, path: Path) -> bool:
        return self.inner.is_folder(path)

    def link_target(self, path: Path) -> str:
        self.fault.call()
        return self.inner.link_target(path)


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))
