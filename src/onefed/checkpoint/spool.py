"""Updates that came before their turn, on disk instead of in memory.

A rule that takes one update at a time takes them in client order, and they come in any. Those that
came early wait here: a file each, of the bare elements; what they are stays in memory. Files are
numbered, so that no text of a client becomes a name.

A spool promises nothing beyond its process. Nothing is synced; what a killed process left is of no
use to the next, which removes it; and a round that was cut off is trained again.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from onefed import arrays as arrays_
from onefed.aggregate import Update
from onefed.checkpoint import files
from onefed.checkpoint.files import DamagedError
from onefed.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import TracebackType
    from typing import Self

    from numpy.typing import NDArray

BYTES_MAX = 64 * 2**30
"""Bytes that wait at a time, unless the spool is told otherwise: 400 models of 40 M float32."""
ALIGNMENT = 64
"""Places of arrays are multiples of it: a cache line, and the widest vector register."""

NAME = re.compile(r"update_[0-9]{6,}\.spool")


class SpoolFullError(StorageError):
    """More updates came early than the spool may hold."""


@dataclass(frozen=True, slots=True)
class _Place:
    """An array in a file."""

    key: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    """First byte of its elements: C order, little-endian."""


@dataclass(frozen=True, slots=True)
class _Waiting:
    """What is known of an update whose elements are on disk."""

    name: str
    """Of its file."""
    weight: int
    size_bytes: int
    """Of its file."""
    places: tuple[_Place, ...]
    """In the order of the model."""


class Spool:
    """A folder that updates wait in, each until it is taken once. One process uses it at a time."""

    def __init__(
        self, folder: Path, *, bytes_max: int = BYTES_MAX, system: files.System = files.SYSTEM
    ) -> None:
        """Make the folder, or clear it of what a killed process left."""
        self._folder = folder
        self._bytes_max = bytes_max
        self._system = system
        self._waiting: dict[str, _Waiting] = {}
        self._count = 0
        files.make_folder(folder, mode=0o700, system=system)
        with _naming(folder, "open"):
            self._descriptor = system.open_folder(folder)
        self._clear()

    def put(self, update: Update) -> None:
        """Keep an update of a client that has none waiting; its arrays are the caller's again.

        Raises ``SpoolFullError`` where ``bytes_max`` would be passed, ``StorageError`` where the
        disk refuses; the update is not kept then, and all others are.
        """
        assert update.client not in self._waiting, update.client
        places, size_bytes = _places(update.arrays)
        if self.bytes_waiting + size_bytes > self._bytes_max:
            raise SpoolFullError(
                f"{self._folder} holds {self.bytes_waiting} bytes of {len(self)} updates; with the "
                f"{size_bytes} of {arrays_.shown(update.client)} it would pass {self._bytes_max}.",
                hint="Sample fewer clients a round, or give the spool more room.",
            )
        name = f"update_{self._count:06d}.spool"
        self._count += 1
        with _naming(self._folder / name, "write"):
            descriptor = self._system.create(name, 0o600, self._descriptor)
            try:
                with os.fdopen(descriptor, "wb", buffering=0):
                    at = 0
                    for place in places:
                        self._write(descriptor, memoryview(bytes(place.start - at)))
                        elements = arrays_.raw_bytes(update.arrays[place.key])
                        self._write(descriptor, elements)
                        at = place.start + len(elements)
            except BaseException:
                with contextlib.suppress(OSError):
                    self._system.unlink(name, self._descriptor)
                raise
        self._waiting[update.client] = _Waiting(name, update.weight, size_bytes, places)

    def take(self, client: str) -> Update:
        """The update of a client that has one waiting, as it was put, and its file is gone.

        Its arrays are read-only and mapped: they come from the disk when they are read, and go when
        nothing refers to them, also after ``close``.
        """
        waiting = self._waiting.pop(client)
        path = self._folder / waiting.name
        with _naming(path, "read"), files.open_regular(path, system=self._system) as stream:
            with contextlib.suppress(OSError):  # else ``close`` removes it
                self._system.unlink(waiting.name, self._descriptor)
            if os.fstat(stream.fileno()).st_size != waiting.size_bytes:
                raise DamagedError(path, "it has not the length it was written with")
            mapped: mmap.mmap | bytes = b""
            if waiting.size_bytes:
                mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        arrays = {place.key: _array(mapped, place) for place in waiting.places}
        return Update(client=client, weight=waiting.weight, arrays=arrays)

    def close(self) -> None:
        """Remove what still waits; fine if it was done."""
        if self._descriptor < 0:
            return
        self._waiting.clear()
        try:
            self._clear()
        finally:
            self._system.close(self._descriptor)
            self._descriptor = -1

    @property
    def bytes_waiting(self) -> int:
        """Bytes of the files."""
        return sum(waiting.size_bytes for waiting in self._waiting.values())

    def __contains__(self, client: str) -> bool:
        return client in self._waiting

    def __len__(self) -> int:
        return len(self._waiting)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _write(self, descriptor: int, data: memoryview) -> None:
        while data:
            data = data[self._system.write(descriptor, data) :]

    def _clear(self) -> None:
        with _naming(self._folder, "clear"):
            for name in filter(NAME.fullmatch, files.names_in(self._folder, system=self._system)):
                with contextlib.suppress(FileNotFoundError):
                    self._system.unlink(name, self._descriptor)


def _places(arrays: arrays_.Arrays) -> tuple[tuple[_Place, ...], int]:
    """Where each array begins in the file, and how long the file is."""
    arrays_.require_supported(arrays)
    places, end = [], 0
    for key, array in arrays.items():
        start = -(-end // ALIGNMENT) * ALIGNMENT
        places.append(_Place(key, arrays_.dtype_name(array.dtype), array.shape, start))
        end = start + array.nbytes
    return tuple(places), end


def _array(mapped: mmap.mmap | bytes, place: _Place) -> NDArray[Any]:
    dtype, size = arrays_.dtype_of(place.dtype), math.prod(place.shape)
    if size == 0:
        return np.empty(place.shape, dtype)
    elements = np.frombuffer(mapped, dtype.newbyteorder("<"), size, place.start)
    return elements.reshape(place.shape).astype(dtype, copy=False)


@contextlib.contextmanager
def _naming(path: Path, verb: str) -> Iterator[None]:
    """Turn an error of the operating system into one that names the path and the next step."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"Cannot {verb} {path}: {error.strerror or error}.",
            hint=files.HINTS.get(error.errno or 0, "Look at the folder and at the kernel log."),
        ) from error
