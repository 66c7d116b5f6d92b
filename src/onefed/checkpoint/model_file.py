"""The trained model as one file for people: ``.npz`` or ``.safetensors``, as its name says.

Both keep the arrays under their names and carry metadata as text. In an ``.npz`` it is a JSON
object in the array ``__metadata__``, which ``numpy.load`` reads without pickle. bfloat16 is
``BF16`` in a ``.safetensors`` and the tagged uint16 of ``arrays.dtypes`` in an ``.npz``.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from onefed.arrays import dtype_name, raw_bytes, require_supported, shown
from onefed.checkpoint import archive, files
from onefed.errors import ExitCode, InUseError, OnefedError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from onefed.arrays import Arrays

METADATA = "__metadata__"
"""Name of what is not an array of the model, in both formats."""

NAME_BYTES_MAX = 2**16 - len("0.npy")
"""Longest array name that a zip file holds."""


class ModelFileError(OnefedError):
    """A model cannot be written into a file of that name."""

    exit_code = ExitCode.USAGE


def write_model(
    path: Path,
    arrays: Arrays,
    metadata: Mapping[str, str],
    *,
    overwrite: bool = False,
    system: files.System = files.SYSTEM,
) -> int:
    """Write a model in the format of the suffix of ``path``; the answer is its size in bytes.

    The file is whole or not there. Raises ``InUseError`` where there is one already, unless
    ``overwrite``; ``ModelFileError`` for another suffix, or for an array name it cannot hold.
    """
    write = FORMATS.get(path.suffix)
    if write is None:
        raise ModelFileError(
            f"Cannot write a model to {path}: no format is known for the suffix {path.suffix!r}.",
            hint=f"Use one of: {', '.join(FORMATS)}.",
        )
    if not overwrite and os.path.lexists(path):
        raise InUseError(
            f"{path} exists already.", hint="Choose another name, or ask to overwrite it."
        )
    require_supported(arrays)
    if METADATA in arrays:
        raise _unusable(METADATA)
    return files.write_atomically(
        path, lambda stream: write(stream, arrays, metadata), system=system
    )


def _write_npz(stream: BinaryIO, arrays: Arrays, metadata: Mapping[str, str]) -> None:
    for key in arrays:
        # numpy takes the suffix off member names, so that `a` and `a.npy` would be one array.
        if "\0" in key or key.endswith(".npy") or len(key.encode()) > NAME_BYTES_MAX:
            raise _unusable(key)
    members = {**arrays, METADATA: np.array(json.dumps(dict(metadata)))}
    archive.write(stream, members)


def _write_safetensors(stream: BinaryIO, arrays: Arrays, metadata: Mapping[str, str]) -> None:
    from safetensors import TensorSpec, serialize

    flat = {key: np.asarray(raw_bytes(array)) for key, array in arrays.items()}
    specs = {
        key: TensorSpec(
            dtype=dtype_name(array.dtype),
            shape=array.shape,
            data_ptr=flat[key].ctypes.data,  # lives as long as `flat`
            data_len=array.nbytes,
        )
        for key, array in arrays.items()
    }
    stream.write(serialize(specs, metadata=dict(metadata)))


def _unusable(key: str) -> ModelFileError:
    return ModelFileError(
        f"An array named {shown(key)} cannot be written to this file.",
        hint="Rename the array in the app, or write the other format.",
    )


FORMATS: Mapping[str, Callable[[BinaryIO, Arrays, Mapping[str, str]], None]] = {
    ".npz": _write_npz,
    ".safetensors": _write_safetensors,
}
"""Writers by suffix."""
