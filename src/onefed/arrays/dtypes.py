"""Element types of a model: the twelve that numpy has, and bfloat16, which it lacks.

A bfloat16 array is an array of uint16, the upper halves of float32 numbers, with a tag: its dtype
is ``BFLOAT16``, a structure of one field of that name. numpy carries the tag through copies,
slices, ``.npy`` and ``.npz`` files, so no table beside the arrays has to say what they are::

    tagged = tensor.view(torch.uint16).numpy().view(BFLOAT16)
    tensor = torch.from_numpy(tagged["bfloat16"]).view(torch.bfloat16)
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

BFLOAT16 = np.dtype([("bfloat16", np.uint16)])
"""1 sign, 8 exponent and 7 fraction bits (bfloat16, the "brain floating point" format)."""

FLOATS = ("bfloat16", "float16", "float32", "float64")
"""Element types of parameters. All others are counters and flags."""

DTYPES = (
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *FLOATS,
)
"""Names of the element types a model may have: those that .npz and .safetensors both can carry."""

QUIET_NAN = 0x7FC0
"""The bfloat16 that every NaN becomes."""


@functools.lru_cache(maxsize=64)
def dtype_name(dtype: np.dtype[Any]) -> str:
    """``float32``, ``bfloat16`` ...: one of ``DTYPES``, or what numpy calls any other type."""
    if dtype.names == BFLOAT16.names and dtype.newbyteorder("=") == BFLOAT16:
        return "bfloat16"
    return dtype.name


def dtype_of(name: str) -> np.dtype[Any]:
    """The type of one of ``DTYPES``, in native byte order."""
    assert name in DTYPES, name
    return BFLOAT16 if name == "bfloat16" else np.dtype(name)


def is_float(dtype: np.dtype[Any]) -> bool:
    """Whether elements are parameters (``FLOATS``)."""
    return dtype_name(dtype) in FLOATS


def widened(array: NDArray[Any]) -> NDArray[Any]:
    """The same numbers in a type that numpy computes with.

    float16 and bfloat16 become float32, exactly, in a new array; all others are returned as they
    are. Works on a tile as on a whole array.
    """
    if dtype_name(array.dtype) == "bfloat16":
        upper = array["bfloat16"].astype(np.uint32)
        upper <<= 16
        return upper.view(np.float32)
    return array.astype(np.float32) if array.dtype.name == "float16" else array


def narrowed(values: NDArray[np.float64], out: NDArray[Any]) -> None:
    """Write ``values`` into ``out``, of any type of ``FLOATS``, each rounded once.

    To nearest, ties to even; above the largest number to infinity.
    """
    assert values.dtype == np.float64, values.dtype
    assert is_float(out.dtype), out.dtype
    with np.errstate(over="ignore", invalid="ignore"):
        if dtype_name(out.dtype) == "bfloat16":
            out["bfloat16"] = _bfloat16_bits(values)
        else:
            out[...] = values


def _bfloat16_bits(values: NDArray[np.float64]) -> NDArray[np.uint16]:
    """Round to nearest even, by way of a float32 that is rounded to odd.

    Two roundings to nearest can go wrong; one to odd before it cannot, as float32 has more than two
    bits more than bfloat16 (Boldo and Melquiond: When double rounding is odd, IMACS 2005).
    """
    odd = np.atleast_1d(values).astype(np.float32)
    bits = odd.view(np.uint32)
    bits -= np.abs(odd) > np.abs(values)  # towards zero: the magnitude is what counts up
    bits |= odd != values
    upper = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
    upper[np.isnan(odd)] = QUIET_NAN
    return upper.astype(np.uint16).reshape(values.shape)
