"""A checkpoint on its way to another node's disk: the lossless difference from a committed model.

The difference is bitwise, so base and difference give the very bits (``checkpoint.delta_file``).

::

    lengths   of the metadata, of what the app keeps for itself, both as uint32
    metadata  JSON, zstd
    private   zstd, or nothing
    arrays    as in ``checkpoint.delta_file``
"""

from __future__ import annotations

import io
import json
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import zstandard

from onefed import arrays
from onefed.arrays import Arrays
from onefed.checkpoint import delta_file, files
from onefed.node.checkpoints import file
from onefed.node.checkpoints.file import Checkpoint
from onefed.node.codec import CodecError

PRIVATE_BYTES_MAX = 2**28
"""Of what an app keeps for itself, where others are to keep it, too."""
LEVEL = 1

_LENGTHS = struct.Struct("<II")
_PLACE = Path("parcel")
"""Stands for a file where an error names one."""


def pack(checkpoint: Checkpoint, base: Arrays | None) -> bytes:
    """The bytes; ``base`` None: the arrays whole."""
    about = json.dumps(file.document(checkpoint.about), separators=(",", ":")).encode()
    compressor = zstandard.ZstdCompressor(level=LEVEL)
    about = compressor.compress(about)
    private = b"" if checkpoint.private is None else compressor.compress(checkpoint.private)
    model = {key: delta_file.plain(array) for key, array in checkpoint.model.items()}
    entries = tuple(delta_file.entry_of(named) for named in model.items())
    below = base or {}
    header = delta_file.Header(
        arrays.digest(below) if below else None, arrays.digest(model), entries
    )
    stream = io.BytesIO()
    with ThreadPoolExecutor(1) as pool:
        delta_file.encode(pool, stream, header, model, below)
    return b"".join((_LENGTHS.pack(len(about), len(private)), about, private, stream.getvalue()))


def unpack(content: bytes, like: Arrays, base: Arrays | None) -> Checkpoint:
    """What was packed.

    Args:
        like: a model of the group: no other names, shapes and dtypes are taken.
        base: the model that it is the difference from; None: it is whole.

    Raises:
        CodecError: it is none, or of another model.
    """
    try:
        about_bytes, private_bytes = _LENGTHS.unpack_from(content)
        start, rest = _LENGTHS.size + about_bytes, _LENGTHS.size + about_bytes + private_bytes
        if about_bytes > file.HEADER_BYTES_MAX or rest > len(content):
            raise ValueError("its lengths do not fit")
        document = _inflated(content[_LENGTHS.size : start], file.HEADER_BYTES_MAX)
        about = file.read_document(json.loads(document))
        private = None if start == rest else _inflated(content[start:rest], PRIVATE_BYTES_MAX)
        model = _model(io.BytesIO(content[rest:]), like, base)
    except (ValueError, TypeError, KeyError, struct.error, zstandard.ZstdError) as error:
        raise CodecError(f"A parcel that cannot be read: {error}.") from error
    except (files.DamagedError, RecursionError) as error:
        raise CodecError(f"A parcel that cannot be read: {error}") from error
    return Checkpoint(about, model, private)


def _inflated(content: bytes, bytes_max: int) -> bytes:
    if not 0 <= zstandard.frame_content_size(content) <= bytes_max:
        raise ValueError("it claims too many bytes")
    return zstandard.ZstdDecompressor().decompress(content, allow_extra_data=False)


def _model(stream: io.BytesIO, like: Arrays, base: Arrays | None) -> Arrays:
    target = _target(stream)
    header = delta_file.read_header(_PLACE, stream, target)
    if (header.base is None) != (base is None):
        raise ValueError("it is packed in another way than it says")
    expected = {key: (arrays.dtype_name(each.dtype), each.shape) for key, each in like.items()}
    if {each.key: (each.dtype, each.shape) for each in header.entries} != expected:
        raise ValueError("it is of another model")
    found = delta_file.allocate(_PLACE, header.entries)
    with ThreadPoolExecutor(1) as pool:
        for tile, difference in delta_file.decoded(pool, _PLACE, stream, header):
            part = delta_file.part(found, tile)
            below = difference if base is None else difference ^ delta_file.part(base, tile)
            np.copyto(part, below)
    if arrays.digest(found) != target:
        raise ValueError("it has not the digest that it names")
    return found


def _target(stream: io.BytesIO) -> str:
    """What the header says; ``read_header`` wants to be told, and proves the header itself."""
    prefix = stream.read(delta_file.PREFIX.size)
    length = delta_file.PREFIX.unpack(prefix)[2]
    if length > delta_file.HEADER_BYTES_MAX:
        raise ValueError("its header is too long")
    target = json.loads(stream.read(length))["target"]
    stream.seek(0)
    if type(target) is not str:
        raise TypeError("it names no digest")
    return target
