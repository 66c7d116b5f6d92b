"""Named tensors: what a model is between rooms, and what makes two of them the same.

A model is a plain ``dict`` from name to numpy array, in the order the app gave.
Names carry the identity of a tensor; its place in the dict and its memory layout do not.

* ``dtypes``: the element types, bfloat16 among them
* ``model``: the digest, and how two models differ
"""

from __future__ import annotations

from onefed.arrays.dtypes import (
    BFLOAT16,
    DTYPES,
    FLOATS,
    dtype_name,
    dtype_of,
    is_float,
    narrowed,
    widened,
)
from onefed.arrays.model import (
    Arrays,
    ArraysError,
    array_digest,
    digest,
    is_finite,
    magnitude,
    mismatch,
    nbytes,
    raw_bytes,
    require_supported,
    shown,
)

__all__ = [
    "BFLOAT16",
    "DTYPES",
    "FLOATS",
    "Arrays",
    "ArraysError",
    "array_digest",
    "digest",
    "dtype_name",
    "dtype_of",
    "is_finite",
    "is_float",
    "magnitude",
    "mismatch",
    "narrowed",
    "nbytes",
    "raw_bytes",
    "require_supported",
    "shown",
    "widened",
]
