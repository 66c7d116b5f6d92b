"""The file format of ``delta``: a model, or the difference of one from another, byte by byte.

A file is a header and then the elements, array after array in tiles of ``TILE_ELEMENTS``. A tile is
combined with that of the base by exclusive or, its bytes are grouped by their place in the element
(a byte shuffle: sign and exponent apart from the low mantissa), and each such plane is a zstd
frame, or as it is where that is no shorter. Consecutive global models share sign and exponent, so
most of what is left is mantissa that nothing can compress.

::

    prefix    8 bytes MAGIC, version and header length as uint32, SHA-256 of the header
    header    JSON: base, target, arrays with key, dtype, shape and sha256
    tile      for each plane its length as uint32, then the planes
    tail      of a full model: zeros up to 1/EXPANSION_MAX of the elements

All numbers are little-endian. Nothing is evaluated, and nothing is believed: what a file claims is
held against its base or its own length before memory is taken, and against digests afterwards.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import struct
import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

import numpy as np
import zstandard

from onefed import arrays as arrays_
from onefed.checkpoint import archive, files
from onefed.checkpoint.archive import Entry
from onefed.checkpoint.files import DamagedError, UnreadableError
from onefed.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from onefed.arrays import Arrays

TILE_ELEMENTS = 2**17
"""One plane is one zstd block of 128 KiB; a float32 tile is 512 KiB and stays in the cache."""
LEVEL = 1
"""Of zstd. Level 3 is no smaller on these planes, which leave nothing but entropy to code."""
SAMPLED_EVERY = 32
"""Of so many tiles one is encoded both ways to see whether the base helps. Costs 1/16."""
EXPANSION_MAX = 64
"""A full model is at least 1/64 of its elements long, so that a short file cannot claim many."""
HEADER_BYTES_MAX = files.JSON_BYTES_MAX
"""Longest header: about 80,000 arrays with names of 64 characters."""
AHEAD_TILES = 16
"""Tiles in flight; about 1.5 MiB each of float32, with its planes."""

MAGIC = b"1fdelta\n"
VERSION = 1
"""Raised with every change that an older program would misread."""
PREFIX = struct.Struct("<8sII32s")

DIGEST = re.compile(r"[0-9a-f]{64}")

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says of itself."""

    base: str | None
    """Digest of the model that the elements are the difference from; None for a full model."""
    target: str
    """Digest of the model."""
    entries: tuple[Entry, ...]
    """Its arrays, in its order."""


@dataclass(frozen=True, slots=True)
class Tile:
    """A part of one array; places are bytes of its elements in C order, little-endian."""

    key: str
    start: int
    stop: int
    itemsize: int


def entry_of(named: tuple[str, NDArray[Any]]) -> Entry:
    """What the header says about an array, from its name and itself."""
    key, array = named
    dtype = arrays_.dtype_name(array.dtype)
    return Entry(key, dtype, array.shape, arrays_.array_digest(array))


def plain(array: NDArray[Any]) -> NDArray[Any]:
    """In C order and native byte order: itself, or a copy."""
    return np.asarray(array, dtype=array.dtype.newbyteorder("="), order="C")


def _itemsize(entry: Entry) -> int:
    return arrays_.dtype_of(entry.dtype).itemsize


def _nbytes(entries: Iterable[Entry]) -> int:
    return sum(entry.nbytes for entry in entries)


def _tiles(entries: Iterable[Entry]) -> Iterator[Tile]:
    for entry in entries:
        itemsize, nbytes = _itemsize(entry), entry.nbytes
        for start in range(0, nbytes, TILE_ELEMENTS * itemsize):
            stop = min(start + TILE_ELEMENTS * itemsize, nbytes)
            yield Tile(entry.key, start, stop, itemsize)


def part(arrays: Arrays, tile: Tile) -> NDArray[np.uint8]:
    """The bytes of a tile; a view where the array is in C order and little-endian."""
    elements = np.frombuffer(arrays_.raw_bytes(arrays[tile.key]), np.uint8)
    return elements[tile.start : tile.stop]


def difference(tile: Tile, arrays: Arrays, below: Arrays) -> NDArray[np.uint8]:
    """The bytes of a tile, combined with those of the base where there is one."""
    elements = part(arrays, tile)
    return np.bitwise_xor(elements, part(below, tile)) if below else elements


class _Zstd(threading.local):
    """Contexts of zstd: one per thread, since they cannot be shared."""

    def __init__(self) -> None:
        self.compressor = zstandard.ZstdCompressor(level=LEVEL)
        self.decompressor = zstandard.ZstdDecompressor()


_ZSTD = _Zstd()


def encode(
    pool: ThreadPoolExecutor, stream: BinaryIO, header: Header, arrays: Arrays, below: Arrays
) -> None:
    """Write the whole file. Takes a few tiles of memory."""
    text = _encode_header(header)
    stream.write(PREFIX.pack(MAGIC, VERSION, len(text), hashlib.sha256(text).digest()))
    stream.write(text)
    size_bytes = 0
    for record in _ahead(pool, lambda tile: _pack(tile, arrays, below), _tiles(header.entries)):
        size_bytes += len(record)
        stream.write(record)
    if header.base is None:
        stream.write(bytes(_tail_bytes(header.entries, size_bytes)))


def _pack(tile: Tile, arrays: Arrays, below: Arrays) -> bytes:
    """The record of a tile: the lengths of its planes, then the planes."""
    elements = difference(tile, arrays, below).reshape(-1, tile.itemsize)
    planes = np.ascontiguousarray(elements.T)
    frames: list[bytes | memoryview] = []
    for plane in planes:
        frame = _ZSTD.compressor.compress(plane.data)
        frames.append(frame if len(frame) < len(plane) else plane.data)
    lengths = np.array([len(frame) for frame in frames], "<u4")
    return b"".join((lengths.tobytes(), *frames))


def helps(
    pool: ThreadPoolExecutor, entries: tuple[Entry, ...], arrays: Arrays, below: Arrays
) -> bool:
    """Whether the delta is shorter than a full model, as a sample of the tiles tells."""
    sample = list(_tiles(entries))[::SAMPLED_EVERY]
    delta = pool.map(lambda tile: len(_pack(tile, arrays, below)), sample)
    full = pool.map(lambda tile: len(_pack(tile, arrays, {})), sample)
    return sum(delta) < sum(full)


def _tail_bytes(entries: Iterable[Entry], size_bytes: int) -> int:
    """Zeros after the tiles of a full model, which take ``size_bytes``."""
    return max(0, -(-_nbytes(entries) // EXPANSION_MAX) - size_bytes)


def _encode_header(header: Header) -> bytes:
    document = {
        "base": header.base,
        "target": header.target,
        "arrays": [
            {"key": each.key, "dtype": each.dtype, "shape": each.shape, "sha256": each.sha256}
            for each in header.entries
        ],
    }
    text = json.dumps(document, separators=(",", ":")).encode()
    if len(text) > HEADER_BYTES_MAX:
        raise StorageError(
            f"The names and shapes of this model take {len(text)} bytes; at most "
            f"{HEADER_BYTES_MAX} can be stored.",
            hint="Shorten the names of the arrays in the app.",
        )
    return text


def read_header(path: Path, stream: BinaryIO, digest: str) -> Header:
    """Read the header of the model ``digest`` and leave ``stream`` at its first tile."""
    prefix = _read(path, stream, PREFIX.size)
    magic, version, size_bytes, sha256 = PREFIX.unpack(prefix)
    if magic != MAGIC:
        raise DamagedError(path, "it is not a delta of ours")
    if version != VERSION:
        raise DamagedError(path, f"it has format version {version}, this program reads {VERSION}")
    if size_bytes > HEADER_BYTES_MAX:
        raise DamagedError(path, f"its header is longer than {HEADER_BYTES_MAX} bytes")
    text = _read(path, stream, size_bytes)
    if hashlib.sha256(text).digest() != sha256:
        raise DamagedError(path, "its header has not the digest it was saved with")
    try:
        header = _decode_header(json.loads(text))
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise DamagedError(path, "its header is not one of ours") from error
    if header.target != digest:
        raise DamagedError(path, f"it holds the model {header.target}")
    return header


def _decode_header(document: Any) -> Header:
    """Read the document of ``_encode_header``; raises one of several errors for any other."""
    base, target = document["base"], document["target"]
    if DIGEST.fullmatch(target) is None or (base is not None and DIGEST.fullmatch(base) is None):
        raise ValueError("a digest is none")
    entries = {}
    for each in document["arrays"]:
        key, shape = each["key"], tuple(each["shape"])
        if type(key) is not str or key in entries or any(type(n) is not int for n in shape):
            raise ValueError("an array without a name and a shape of its own")
        # numpy is the judge of shapes, without taking memory for the elements.
        np.broadcast_to(np.empty((), arrays_.dtype_of(_known(each["dtype"]))), shape)
        key.encode()
        entries[key] = Entry(key, each["dtype"], shape, each["sha256"])
    if len(entries) > archive.ARRAYS_MAX or _nbytes(entries.values()) > archive.ARRAYS_BYTES_MAX:
        raise ValueError("more than is ever stored")
    return Header(base, target, tuple(entries.values()))


def _known(dtype: object) -> str:
    if dtype not in arrays_.DTYPES:
        raise ValueError("an unknown element type")
    return str(dtype)


def check_claim(
    path: Path, stream: BinaryIO, header: Header, below: tuple[Entry, ...] | None
) -> None:
    """Before memory is taken: a full model by the length of its file, a delta by its base."""
    if below is None:
        here = stream.tell()
        length = stream.seek(0, os.SEEK_END)
        stream.seek(here)
        if _nbytes(header.entries) > EXPANSION_MAX * length:
            raise DamagedError(path, "it claims more elements than its length allows")
    elif _layout(header.entries) != _layout(below):
        raise DamagedError(path, "its arrays are not those of its base")


def _layout(entries: Iterable[Entry]) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {entry.key: (entry.dtype, entry.shape) for entry in entries}


def allocate(path: Path, entries: Iterable[Entry]) -> Arrays:
    """Zeros, little-endian: the base of a full model."""
    try:
        return {
            entry.key: np.zeros(entry.shape, arrays_.dtype_of(entry.dtype).newbyteorder("<"))
            for entry in entries
        }
    except MemoryError as error:
        raise DamagedError(path, "there is not the memory for its elements") from error


def decoded(
    pool: ThreadPoolExecutor, path: Path, stream: BinaryIO, header: Header
) -> Iterator[tuple[Tile, NDArray[np.uint8]]]:
    """Each tile with its bytes, from a stream at the first of them to its end."""
    size_bytes = 0

    def records() -> Iterator[tuple[Tile, list[bytes]]]:
        nonlocal size_bytes
        for tile in _tiles(header.entries):
            frames = _read_record(path, stream, tile)
            size_bytes += sum(map(len, frames)) + 4 * len(frames)
            yield tile, frames

    yield from _ahead(pool, lambda record: (record[0], _unpack(path, *record)), records())
    tail_bytes = _tail_bytes(header.entries, size_bytes) if header.base is None else 0
    for start in range(0, tail_bytes, archive.READ_BYTES):
        if any(_read(path, stream, min(archive.READ_BYTES, tail_bytes - start))):
            raise DamagedError(path, "its tail is not empty")
    if stream.read(1):
        raise DamagedError(path, "it is longer than it should be")


def _read_record(path: Path, stream: BinaryIO, tile: Tile) -> list[bytes]:
    plane_bytes = (tile.stop - tile.start) // tile.itemsize
    lengths = np.frombuffer(_read(path, stream, 4 * tile.itemsize), "<u4").tolist()
    if max(lengths) > plane_bytes:
        raise DamagedError(path, f"a plane of {arrays_.shown(tile.key)} is too long")
    return [_read(path, stream, length) for length in lengths]


def _unpack(path: Path, tile: Tile, frames: list[bytes]) -> NDArray[np.uint8]:
    plane_bytes = (tile.stop - tile.start) // tile.itemsize
    elements = np.empty((plane_bytes, tile.itemsize), np.uint8)
    for place, frame in enumerate(frames):
        plane = frame if len(frame) == plane_bytes else _inflate(path, tile, frame, plane_bytes)
        elements[:, place] = np.frombuffer(plane, np.uint8)
    return elements.reshape(-1)


def _inflate(path: Path, tile: Tile, frame: bytes, plane_bytes: int) -> bytes:
    try:
        # Memory is taken by this number, so it is compared first.
        if zstandard.frame_content_size(frame) == plane_bytes:
            return _ZSTD.decompressor.decompress(frame, allow_extra_data=False)
    except zstandard.ZstdError:
        pass
    raise DamagedError(path, f"a plane of {arrays_.shown(tile.key)} cannot be decompressed")


def _read(path: Path, stream: BinaryIO, size_bytes: int) -> bytes:
    try:
        data = stream.read(size_bytes)
    except OSError as error:
        raise UnreadableError(path, f"reading it failed: {error.strerror}") from error
    if len(data) != size_bytes:
        raise DamagedError(path, "it is cut short")
    return data


def _ahead(
    pool: ThreadPoolExecutor, work: Callable[[_Item], _Result], items: Iterable[_Item]
) -> Iterator[_Result]:
    """Results in the order of the items, of which a few at a time are under way."""
    under_way: deque[Future[_Result]] = deque()
    try:
        for item in items:
            under_way.append(pool.submit(work, item))
            if len(under_way) > AHEAD_TILES:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()
    finally:
        for future in under_way:
            future.cancel()
