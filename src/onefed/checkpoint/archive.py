"""Arrays in one ``.npz`` file: plain numpy for whoever reads it, nothing evaluated when we do.

An archive is an uncompressed zip file of ``.npy`` members. Its bytes depend on the arrays and their
names alone. numpy's own ``load`` reads it; ``read`` below is stricter, since it knows what to
expect: the members, their headers and their sizes are compared with a manifest before any memory is
taken, and the elements with their digest afterwards.
"""

from __future__ import annotations

import math
import struct
import zipfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from onefed import arrays as arrays_
from onefed.checkpoint.files import DamagedError
from onefed.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

ARRAYS_BYTES_MAX = 16 * 2**30
"""Most elements in one archive: 4e9 float32 parameters, or 1.3e9 of them with two moments."""
ARCHIVE_BYTES_MAX = ARRAYS_BYTES_MAX + 2**30
"""Longest archive that is read: the elements, headers and names."""
ARRAYS_MAX = 100_000
"""Most arrays in one archive."""
MEMBER_OVERHEAD_BYTES_MAX = 512
"""A directory entry of one member: 46 bytes, its name and its sizes; about 100 for ours."""
READ_BYTES = 2**20
"""Read and hashed at a time."""

MAGIC = b"\x93NUMPY\x01\x00"
"""First bytes of a member: format 1.0, whose header is ASCII of at most 64 KiB."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What a manifest says about one array."""

    key: str
    """Its name in the model."""
    dtype: str
    """Name of the element type, one of ``arrays.DTYPES``."""
    shape: tuple[int, ...]
    """Its dimensions."""
    sha256: str
    """``arrays.array_digest`` of it."""

    @property
    def nbytes(self) -> int:
        """Bytes of its elements."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


def manifest(arrays: Mapping[str, NDArray[Any]]) -> tuple[Entry, ...]:
    """One entry per array, in the order of the dict."""
    arrays_.require_supported(arrays)
    return tuple(
        Entry(key, array.dtype.name, array.shape, arrays_.array_digest(array))
        for key, array in arrays.items()
    )


def positional(arrays: Iterable[NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Name arrays by position, ``arr_0`` and on, as ``numpy.savez`` does."""
    return {f"arr_{index}": array for index, array in enumerate(arrays)}


def write(stream: BinaryIO, members: Mapping[str, NDArray[Any]]) -> None:
    """Write an archive. Any dtype with a fixed width; elements in C order, little-endian."""
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        for name, array in members.items():
            # A ZipInfo made by hand carries the date 1980-01-01: no clock in the bytes.
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                np.lib.format.write_array(
                    member,
                    np.asarray(array, dtype=array.dtype.newbyteorder("<"), order="C"),
                    version=(1, 0),
                    allow_pickle=False,
                )


def check_size(path: Path, arrays: Sequence[NDArray[Any]]) -> None:
    """Refuse to write what ``read`` would refuse to read."""
    size_bytes = sum(array.nbytes for array in arrays)
    if len(arrays) > ARRAYS_MAX or size_bytes > ARRAYS_BYTES_MAX:
        raise StorageError(
            f"{path} would hold {len(arrays)} arrays of {size_bytes} bytes; at most {ARRAYS_MAX} "
            f"of {ARRAYS_BYTES_MAX} bytes can be stored.",
            hint="Train fewer parameters, for example adapters instead of the whole model.",
        )


def read(path: Path, stream: BinaryIO, entries: Sequence[Entry]) -> list[NDArray[Any]]:
    """Read the arrays that ``entries`` describe, in their order, from an archive with these only.

    Raises ``DamagedError`` for anything that ``write`` did not put there in just this way. Takes
    the memory of the arrays and little more, never more than the file is long.
    """
    try:
        return _read(path, stream, entries)
    except (zipfile.BadZipFile, EOFError) as error:
        raise DamagedError(path, "it is not a whole .npz archive") from error
    except OSError as error:
        raise DamagedError(path, f"reading it failed: {error.strerror}") from error
    except (ValueError, RuntimeError, OverflowError, struct.error) as error:
        raise DamagedError(path, "it is not an .npz archive of ours") from error


def _read(path: Path, stream: BinaryIO, entries: Sequence[Entry]) -> list[NDArray[Any]]:
    size_bytes = stream.seek(0, 2)
    if size_bytes > ARCHIVE_BYTES_MAX:
        raise DamagedError(path, f"it is longer than {ARCHIVE_BYTES_MAX} bytes")
    directory_bytes_max = READ_BYTES + MEMBER_OVERHEAD_BYTES_MAX * len(entries)
    with zipfile.ZipFile(_Bounded(stream, directory_bytes_max)) as archive:
        members = archive.infolist()
        if [member.filename for member in members] != [f"arr_{i}.npy" for i in range(len(entries))]:
            raise DamagedError(
                path, f"it does not hold exactly the {len(entries)} arrays it should"
            )
        if sum(member.file_size for member in members) > size_bytes:
            raise DamagedError(path, "it claims more bytes than it has")
        return [
            _read_member(path, archive, member, entry)
            for member, entry in zip(members, entries, strict=True)
        ]


def _read_member(
    path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo, entry: Entry
) -> NDArray[Any]:
    if member.compress_type != zipfile.ZIP_STORED:
        raise DamagedError(path, f"{member.filename} is compressed")
    with archive.open(member) as stream:
        prefix = stream.read(len(MAGIC) + 2)
        header = stream.read(int.from_bytes(prefix[len(MAGIC) :], "little"))
        # The text is compared and not evaluated; numpy pads it with spaces to a multiple of 64.
        if prefix[: len(MAGIC)] != MAGIC or header.rstrip(b" \n") != _header(entry):
            raise DamagedError(path, f"{member.filename} is not a {entry.dtype}{entry.shape} array")
        if member.file_size != len(prefix) + len(header) + entry.nbytes:
            raise DamagedError(path, f"{member.filename} has not the size of its array")
        array = np.empty(entry.shape, np.dtype(entry.dtype).newbyteorder("<"))
        elements = array.reshape(-1).view(np.uint8).data
        for start in range(0, len(elements), READ_BYTES):
            part = elements[start : start + READ_BYTES]
            part[:] = stream.read(len(part))  # a ValueError where there are fewer
        stream.read(1)  # the end: zipfile compares the check sum here
    if arrays_.array_digest(array) != entry.sha256:
        raise DamagedError(path, f"{arrays_.shown(entry.key)} has not the digest it was saved with")
    return array.astype(entry.dtype, copy=False)


def _header(entry: Entry) -> bytes:
    descr = np.dtype(entry.dtype).newbyteorder("<").str
    text = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {entry.shape!r}, }}"
    return text.encode()


class _Bounded:
    """A file that refuses a single read above ``read_bytes_max``.

    zipfile reads its directory in one go, as long as the file claims it to be, and takes some
    twenty times that much memory for it.
    """

    def __init__(self, stream: BinaryIO, read_bytes_max: int) -> None:
        self._stream = stream
        self._read_bytes_max = read_bytes_max
        self.seek, self.tell, self.seekable = stream.seek, stream.tell, stream.seekable

    def read(self, size: int = -1) -> bytes:
        too_many = self._read_bytes_max + 1
        data = self._stream.read(too_many if size < 0 else min(size, too_many))
        if len(data) == too_many:
            raise ValueError("more bytes at once than a directory of these members has")
        return data
