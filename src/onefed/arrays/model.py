"""The digest of a model, and how two models differ."""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from onefed.arrays.dtypes import DTYPES, dtype_name, widened
from onefed.errors import OnefedError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

Arrays: TypeAlias = dict[str, NDArray[Any]]
"""A model, or the state of a rule: ordered named tensors in native byte order."""

DIGEST_PREFIX = b"onefed model 1\n"
"""First bytes of every encoding under ``model_sha256``; the number is its version."""

NAMED_MAX = 3
"""Differences that one sentence spells out; the rest is counted."""
SHOWN_CHARACTERS_MAX = 60
"""Characters of a name from outside that a sentence repeats."""


class ArraysError(OnefedError):
    """An array cannot be part of a model."""


def digest(arrays: Mapping[str, NDArray[Any]]) -> str:
    """``model_sha256``: lower-case hex SHA-256 of a model. A public contract.

    The hash runs over ``DIGEST_PREFIX`` and then, for each array in the order of its key (by code
    point), four fields: the key in UTF-8; the name of the dtype in ASCII (``float32``); the shape,
    each dimension as an unsigned 64-bit little-endian integer; the elements in C order,
    little-endian. Each field comes after its length in bytes, again an unsigned 64-bit
    little-endian integer. So no two different models share an encoding, and neither the order of
    the keys, the memory layout nor the byte order of the machine shows.

    Elements are compared as bytes: 0.0 and -0.0 differ, and so do two NaNs of different payload.
    """
    require_supported(arrays)
    model = hashlib.sha256(DIGEST_PREFIX)
    for key in sorted(arrays):
        _put(model, key.encode())
        _put_array(model, arrays[key])
    return model.hexdigest()


def array_digest(array: NDArray[Any]) -> str:
    """SHA-256 (hex) of one array: the last three fields of ``digest``, without key and prefix."""
    single = hashlib.sha256()
    _put_array(single, array)
    return single.hexdigest()


def mismatch(arrays: Mapping[str, object], template: Mapping[str, NDArray[Any]]) -> str | None:
    """Say in words how ``arrays`` differ from ``template`` in names, shapes or dtypes.

    None where they agree. Order and memory layout may differ; byte order may not.
    Never raises, whatever the values are; the answer is short, whatever the names are.
    """
    differences = [f"{shown(key)} is missing" for key in template if key not in arrays]
    for key, value in arrays.items():
        expected = template.get(key)
        if expected is None:
            differences.append(f"{shown(key)} is not part of the model")
        elif not isinstance(value, np.ndarray):
            differences.append(f"{shown(key)} is a {type(value).__name__}, not an array")
        elif dtype_name(value.dtype) not in DTYPES:
            differences.append(f"{shown(key)} has the unsupported dtype {shown(value.dtype)}")
        elif value.dtype != expected.dtype:
            differences.append(
                f"{shown(key)} has dtype {_dtype(value)}, expected {_dtype(expected)}"
            )
        elif value.shape != expected.shape:
            differences.append(f"{shown(key)} has shape {value.shape}, expected {expected.shape}")
    return _sentence(differences)


def is_finite(arrays: Mapping[str, NDArray[Any]]) -> bool:
    """Whether no array holds NaN or an infinity."""
    return all(math.isfinite(magnitude(array)) for array in arrays.values())


def magnitude(array: NDArray[Any]) -> float:
    """Largest absolute value; NaN where the array holds one, 0.0 where it is empty.

    Two reductions in any memory layout, and no temporary array but for bfloat16.
    """
    if array.size == 0:
        return 0.0
    array = widened(array)
    low, high = float(array.min()), float(array.max())
    return math.nan if math.isnan(low) else max(abs(low), abs(high))


def nbytes(arrays: Mapping[str, NDArray[Any]]) -> int:
    """Bytes of all elements."""
    return sum(array.nbytes for array in arrays.values())


def require_supported(arrays: Mapping[str, NDArray[Any]]) -> None:
    """Raise ``ArraysError`` where a dtype is not one of ``DTYPES``, or a name is not text."""
    for key, array in arrays.items():
        if dtype_name(array.dtype) not in DTYPES:
            raise ArraysError(
                f"The array {shown(key)} has the dtype {shown(array.dtype)}.",
                hint=f"Convert it to one of: {', '.join(DTYPES)}.",
            )
        if not _is_text(key):
            raise ArraysError(
                f"The array name {shown(key)} cannot be written in UTF-8.",
                hint="Rename the array in the app.",
            )


def raw_bytes(array: NDArray[Any]) -> memoryview:
    """Elements in C order, little-endian, as flat bytes: a view where the array is so already."""
    assert dtype_name(array.dtype) in DTYPES, array.dtype
    ordered = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    return ordered.reshape(-1).view(np.uint8).data


def shown(name: object) -> str:
    """Quote a name that came from outside for a sentence: one line, escaped, cut when long."""
    text = str(name)
    if len(text) > SHOWN_CHARACTERS_MAX:
        text = f"{text[: SHOWN_CHARACTERS_MAX - 3]}..."
    return ascii(text)


def _put(target: hashlib._Hash, field: bytes | memoryview) -> None:
    target.update(len(field).to_bytes(8, "little"))
    target.update(field)


def _put_array(target: hashlib._Hash, array: NDArray[Any]) -> None:
    _put(target, dtype_name(array.dtype).encode())
    _put(target, b"".join(length.to_bytes(8, "little") for length in array.shape))
    _put(target, raw_bytes(array))


def _is_text(key: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in key)


def _dtype(array: NDArray[Any]) -> str:
    name = dtype_name(array.dtype)
    return name if array.dtype.isnative else f"{name}, bytes swapped"


def _sentence(differences: Iterable[str]) -> str | None:
    named = list(differences)
    more = len(named) - NAMED_MAX
    if more > 0:
        named[NAMED_MAX:] = [f"and {more} more"]
    return "; ".join(named) or None
