"""Arrays of any element type from numbers, and exact numbers from arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from onefed import arrays
from onefed.aggregate import Update

ArrayOf = Callable[..., NDArray[Any]]
ExactOf = Callable[[NDArray[Any]], list[Fraction]]
UpdatesOf = Callable[..., list[Update]]


@pytest.fixture(scope="session")
def array_of() -> ArrayOf:
    """An array of an element type by its name, each float rounded once."""

    def make(values: Any, dtype: str) -> NDArray[Any]:
        if dtype != "bfloat16":
            return np.array(values, dtype)
        wide = np.array(values, np.float64)
        out = np.empty(wide.shape, arrays.BFLOAT16)
        arrays.narrowed(wide, out)
        return out

    return make


@pytest.fixture(scope="session")
def exact_of() -> ExactOf:
    """The elements of an array, in C order, as fractions."""

    def exact(array: NDArray[Any]) -> list[Fraction]:
        return [Fraction(value) for value in arrays.widened(array).reshape(-1).tolist()]

    return exact


@pytest.fixture(scope="session")
def nearest() -> Callable[[Fraction, str], Fraction]:
    """The number of a float type that is nearest to a fraction, ties to the even one.

    Found among the neighbours of a first guess, by comparing fractions.
    """

    def around(guess: float, dtype: str) -> list[NDArray[Any]]:
        near = np.empty(1, arrays.dtype_of(dtype))
        arrays.narrowed(np.array([guess]), near)
        bits = near.view(f"i{near.itemsize}")
        return [np.array([b], bits.dtype).view(near.dtype) for b in bits[0] + np.arange(-1, 2)]

    def find(value: Fraction, dtype: str) -> Fraction:
        if value == 0:
            return Fraction(0)
        wide = [(n, arrays.widened(n)[0].item()) for n in around(float(abs(value)), dtype)]
        size = min(
            ((n, Fraction(v)) for n, v in wide if np.isfinite(v)),
            key=lambda each: (
                abs(each[1] - abs(value)),
                each[0].view(f"u{each[0].itemsize}")[0] & 1,
            ),
        )[1]
        return size if value > 0 else -size

    return find


@pytest.fixture(scope="session")
def updates_of(array_of: ArrayOf) -> UpdatesOf:
    """One update per row, with the clients "0", "1" ... and the single array "w"."""

    def make(
        rows: Sequence[Any], dtype: str = "float32", weights: Sequence[int] | None = None
    ) -> list[Update]:
        counts = weights or [1] * len(rows)
        return [
            Update(str(index), weight, {"w": array_of(row, dtype)})
            for index, (row, weight) in enumerate(zip(rows, counts, strict=True))
        ]

    return make
