"""Arrays in one ``.npz`` file: plain numpy for whoever reads it, nothing evaluated when we do.

An archive is an uncompressed zip file of ``.npy`` members. Its bytes depend on the arrays and their
names alone. numpy's own ``load`` reads it; ``read`` below is stricter, since it knows what to
expect: the members, their headers and their sizes are compared with a manifest before any memory is
taken, and the elements with their digest afterwards.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import re
import struct
import sys
import zipfile
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, BinaryIO, cast

import numpy as np

from onefed import arrays as arrays_
from onefed.arrays.model import DIGEST_PREFIX
from onefed.checkpoint.files import DamagedError, UnreadableError
from onefed.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

ARRAYS_BYTES_MAX = 16 * 2**30
"""Most elements in one archive: 4e9 float32 parameters, or 1.3e9 of them with two moments."""
ARCHIVE_BYTES_MAX = ARRAYS_BYTES_MAX + 2**30
"""Longest archive that is read: the elements, headers and names."""
ARRAYS_MAX = 100_000
"""Most arrays in one archive."""
MEMBER_OVERHEAD_BYTES_MAX = 128
"""A directory entry of one member: 46 bytes, a name of 13 and 28 of sizes; less for ours."""
READ_BYTES = 2**20
"""Read and hashed at a time."""
STAT_BLOCK_BYTES = 512
"""Unit of ``st_blocks``, whatever the file system's own."""
PROVEN_FIRST_BYTES = 64 * 2**20
"""An archive with more elements is hashed once before memory is taken for them, and again then."""

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
        return math.prod(self.shape) * arrays_.dtype_of(self.dtype).itemsize


def manifest(arrays: Mapping[str, NDArray[Any]]) -> tuple[Entry, ...]:
    """One entry per array, in the order of the dict."""
    arrays_.require_supported(arrays)
    return tuple(
        Entry(key, arrays_.dtype_name(array.dtype), array.shape, arrays_.array_digest(array))
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
    the memory of the arrays and little more, never more than the file is long, and for more than
    ``PROVEN_FIRST_BYTES`` not before every digest was right.
    """
    with _judged(path):
        archive, members = _opened(path, stream, entries)
        for member in members:
            del member.CRC  # zipfile then spares its check sum: the digest proves more
        with archive:
            if sum(entry.nbytes for entry in entries) > PROVEN_FIRST_BYTES:
                for member, entry in zip(members, entries, strict=True):
                    for _ in _elements(path, archive, member, entry):
                        pass
            return [
                _read_member(path, archive, member, entry)
                for member, entry in zip(members, entries, strict=True)
            ]


def problems(path: Path, stream: BinaryIO, entries: Sequence[Entry]) -> list[str]:
    """What ``read`` would refuse: all that is wrong, array by array; the memory is constant."""
    found = []
    try:
        with _judged(path):
            archive, members = _opened(path, stream, entries)
            with archive:
                for member, entry in zip(members, entries, strict=True):
                    try:
                        with _judged(path):
                            for _ in _elements(path, archive, member, entry):
                                pass
                    except DamagedError as error:
                        found.append(error.reason)
    except DamagedError as error:
        found.append(error.reason)
    return found


def describe(path: Path, stream: BinaryIO, keys: Sequence[str] | None = None) -> tuple[Entry, ...]:
    """Entries for an archive of ours that comes without them, from its own headers and elements.

    Proves the structure and the check sums, and nothing else: what the arrays should be, the
    archive cannot know. ``keys`` name them; ``arr_0`` and on without. Constant memory.
    """
    with _judged(path):
        archive, members = _opened(path, stream, keys)
        named = [f"arr_{index}" for index in range(len(members))] if keys is None else keys
        with archive:
            return tuple(
                _describe_member(path, archive, member, key)
                for member, key in zip(members, named, strict=True)
            )


def digest_of(path: Path, stream: BinaryIO, entries: Sequence[Entry]) -> str:
    """``arrays.digest`` of the whole archive, in constant memory.

    Each byte is hashed twice, for its array and for the model: side by side, in two threads.
    """
    with _judged(path):
        archive, members = _opened(path, stream, entries)
        model = hashlib.sha256(DIGEST_PREFIX)
        with archive, ThreadPoolExecutor(1) as pool:
            behind: Future[None] | None = None
            for entry, member in sorted(
                zip(entries, members, strict=True), key=lambda pair: pair[0].key
            ):
                if behind is not None:
                    behind.result()
                _put(model, entry.key.encode())
                _put_header(model, entry)
                for part in _elements(path, archive, member, entry):
                    if behind is not None:
                        behind.result()
                    behind = pool.submit(model.update, part)
        return model.hexdigest()


@contextlib.contextmanager
def _judged(path: Path) -> Iterator[None]:
    """Turn whatever zipfile and the disk raise into a verdict on the file."""
    try:
        yield
    except (zipfile.BadZipFile, EOFError) as error:
        raise DamagedError(path, "it is not a whole .npz archive") from error
    except OSError as error:
        raise UnreadableError(path, f"reading it failed: {error.strerror}") from error
    except (ValueError, RuntimeError, OverflowError, struct.error) as error:
        raise DamagedError(path, "it is not an .npz archive of ours") from error


def _opened(
    path: Path, stream: BinaryIO, expected: Sequence[object] | None
) -> tuple[zipfile.ZipFile, list[zipfile.ZipInfo]]:
    """The archive and its members, which are ``arr_0`` and on, as many as expected."""
    size_bytes = stream.seek(0, 2)
    if size_bytes > ARCHIVE_BYTES_MAX:
        raise DamagedError(path, f"it is longer than {ARCHIVE_BYTES_MAX} bytes")
    count_max = ARRAYS_MAX if expected is None else len(expected)
    directory_bytes_max = READ_BYTES + MEMBER_OVERHEAD_BYTES_MAX * count_max
    archive = zipfile.ZipFile(cast("BinaryIO", _Bounded(path, stream, directory_bytes_max)))
    members = archive.infolist()
    count = len(members) if expected is None else len(expected)
    if [member.filename for member in members] != [f"arr_{i}.npy" for i in range(count)]:
        raise DamagedError(path, f"it does not hold exactly the {count} arrays it should")
    for member in members:
        if member.compress_type != zipfile.ZIP_STORED:
            raise DamagedError(path, f"{member.filename} is compressed")
    if sum(member.file_size for member in members) > size_bytes:
        raise DamagedError(path, "it claims more bytes than it has")
    return archive, members


def _read_member(
    path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo, entry: Entry
) -> NDArray[Any]:
    array: NDArray[Any] | None = None
    start = 0
    for part in _elements(path, archive, member, entry):
        if array is None:  # not before the header and the size were compared
            array = _empty(entry)
        array.reshape(-1).view(np.uint8)[start : start + len(part)] = np.frombuffer(part, np.uint8)
        start += len(part)
    array = _empty(entry) if array is None else array
    return array.byteswap(inplace=True) if sys.byteorder == "big" else array


def _empty(entry: Entry) -> NDArray[Any]:
    # Native, and not "<" where that is the same: numpy shows the two apart in a buffer's format.
    return np.empty(entry.shape, arrays_.dtype_of(entry.dtype))


def _elements(
    path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo, entry: Entry
) -> Iterator[bytes]:
    """The elements of a member, part by part; ``DamagedError`` at the end for a wrong digest."""
    with _member(path, archive, member, entry.key) as stream:
        prefix, header = _header_in(stream)
        # The text is compared and not evaluated; numpy pads it with spaces to a multiple of 64.
        if prefix[: len(MAGIC)] != MAGIC or header.rstrip(b" \n") != _header(entry):
            raise DamagedError(path, f"{member.filename} is not a {entry.dtype}{entry.shape} array")
        if member.file_size != len(prefix) + len(header) + entry.nbytes:
            raise DamagedError(path, f"{member.filename} has not the size of its array")
        single = hashlib.sha256()
        _put_header(single, entry)
        for part in _parts(stream, entry.nbytes):
            single.update(part)
            yield part
    if single.hexdigest() != entry.sha256:
        raise DamagedError(path, f"{arrays_.shown(entry.key)} has not the digest it was saved with")


def _describe_member(
    path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo, key: str
) -> Entry:
    with _member(path, archive, member, key) as stream:
        prefix, header = _header_in(stream)
        match = HEADER.fullmatch(header.rstrip(b" \n"))
        dtype = None if match is None else DTYPE_NAMES.get(match[1].decode())
        if prefix[: len(MAGIC)] != MAGIC or match is None or dtype is None:
            raise DamagedError(path, f"{member.filename} is not an array of a supported dtype")
        shape = tuple(int(length) for length in match[2].replace(b" ", b"").split(b",") if length)
        entry = Entry(key, dtype, shape, "")
        if member.file_size != len(prefix) + len(header) + entry.nbytes:
            raise DamagedError(path, f"{member.filename} has not the size of its array")
        single = hashlib.sha256()
        _put_header(single, entry)
        for part in _parts(stream, entry.nbytes):
            single.update(part)
        return Entry(key, dtype, shape, single.hexdigest())


def _header_in(stream: IO[bytes]) -> tuple[bytes, bytes]:
    prefix = stream.read(len(MAGIC) + 2)
    return prefix, stream.read(int.from_bytes(prefix[len(MAGIC) :], "little"))


def _parts(stream: IO[bytes], size_bytes: int) -> Iterator[bytes]:
    rest = size_bytes
    while rest:
        part = stream.read(min(READ_BYTES, rest))
        if not part:
            raise EOFError
        rest -= len(part)
        yield part
    stream.read(1)  # the end: zipfile compares the check sum here at the latest


@contextlib.contextmanager
def _member(
    path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo, key: str
) -> Iterator[IO[bytes]]:
    with archive.open(member) as stream:
        try:
            yield stream
        except zipfile.BadZipFile as error:
            reason = f"{arrays_.shown(key)} has not the check sum it was saved with"
            raise DamagedError(path, reason) from error


def _header(entry: Entry) -> bytes:
    descr = _descr(entry.dtype)
    return f"{{'descr': {descr}, 'fortran_order': False, 'shape': {entry.shape!r}, }}".encode()


def _descr(dtype: str) -> str:
    """What numpy writes for an element type: ``'<f4'``, or ``[('bfloat16', '<u2')]``."""
    little = arrays_.dtype_of(dtype).newbyteorder("<")
    return repr(np.lib.format.dtype_to_descr(little))


DTYPE_NAMES = {_descr(name): name for name in arrays_.DTYPES}
"""Element types by the text of their header."""
HEADER = re.compile(
    rb"\{'descr': ([^{}]{1,40}), 'fortran_order': False, 'shape': \(([0-9, ]{0,1400})\), \}"
)
"""Header of a member of ours, up to its padding."""


def _put(target: hashlib._Hash, field: bytes) -> None:
    target.update(len(field).to_bytes(8, "little"))
    target.update(field)


def _put_header(target: hashlib._Hash, entry: Entry) -> None:
    """The fields before the elements, as ``arrays.digest`` lays them down."""
    _put(target, entry.dtype.encode())
    _put(target, b"".join(length.to_bytes(8, "little") for length in entry.shape))
    target.update(entry.nbytes.to_bytes(8, "little"))


class _Bounded:
    """A file that refuses a single read above ``read_bytes_max``, and says when the disk fails.

    zipfile reads its directory in one go, as long as the file claims it to be, and takes some
    twenty times that much memory for it. An error of the disk it takes for a file of another kind.
    """

    def __init__(self, path: Path, stream: BinaryIO, read_bytes_max: int) -> None:
        self._path = path
        self._stream = stream
        self._read_bytes_max = read_bytes_max
        self._sparse = _sparse(stream)
        self.seek, self.tell, self.seekable = stream.seek, stream.tell, stream.seekable

    def read(self, size: int = -1) -> bytes:
        too_many = self._read_bytes_max + 1
        try:
            data = self._stream.read(too_many if size < 0 else min(size, too_many))
        except OSError as error:
            reason = f"reading it failed: {error.strerror}"
            raise UnreadableError(self._path, reason) from error
        if len(data) == too_many:
            raise ValueError("more bytes at once than a directory of these members has")
        if self._sparse is not None:
            # From the start each time: a folio that a range covers in part is kept.
            os.posix_fadvise(self._sparse, 0, self._stream.tell(), os.POSIX_FADV_DONTNEED)
        return data


def _sparse(stream: BinaryIO) -> int | None:
    """The descriptor of a file with holes; None for any other.

    What a hole reads as is not kept in the page cache: it costs no disk to read again, and 16 GiB
    of it would drive out what other programs need (that took more time than the digest).
    """
    try:
        descriptor = stream.fileno()
        status = os.fstat(descriptor)
    except OSError:  # not a file of the system
        return None
    has_holes = status.st_blocks * STAT_BLOCK_BYTES < status.st_size
    return descriptor if has_holes and hasattr(os, "posix_fadvise") else None
