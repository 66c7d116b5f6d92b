"""checkpoint diff: two models, array by array."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onefed import arrays as arrays_
from onefed.arrays import Arrays
from onefed.checkpoint.inspect import Series
from onefed.cli import tables
from onefed.cli.screen import say, table_console

PART_ELEMENTS = 2**18
"""Elements that are computed with at a time: 2 MiB as float64."""


@dataclass(frozen=True)
class Model:
    series: Series
    round_number: int
    arrays: Arrays

    @property
    def name(self) -> str:
        return f"round {self.round_number} in {self.series.folder}"

    def as_document(self) -> dict[str, object]:
        return {
            "kind": self.series.kind,
            "folder": str(self.series.folder),
            "round": self.round_number,
            "model_sha256": arrays_.digest(self.arrays),
        }


@dataclass(frozen=True)
class _Distance:
    """How far two arrays of one shape and type are from each other."""

    max_abs: float
    """Largest absolute difference; elements of equal bits differ by 0, NaNs too."""
    relative_l2: float
    """Euclidean norm of the difference over that of the first."""
    equal_share: float
    """Share of the elements whose bits are equal, 0 to 1."""


def compare(one: Model, two: Model) -> dict[str, Any]:
    shared = [key for key in one.arrays if key in two.arrays]
    return {
        "a": one.as_document(),
        "b": two.as_document(),
        "equal": arrays_.digest(one.arrays) == arrays_.digest(two.arrays),
        "only_in_a": [key for key in one.arrays if key not in two.arrays],
        "only_in_b": [key for key in two.arrays if key not in one.arrays],
        "arrays": [_compare_arrays(key, one.arrays[key], two.arrays[key]) for key in shared],
    }


def _compare_arrays(key: str, a: NDArray[Any], b: NDArray[Any]) -> dict[str, Any]:
    comparable = a.dtype == b.dtype and a.shape == b.shape
    return {
        "key": key,
        "dtype_a": arrays_.dtype_name(a.dtype),
        "dtype_b": arrays_.dtype_name(b.dtype),
        "shape_a": list(a.shape),
        "shape_b": list(b.shape),
        **(
            dataclasses.asdict(_distance(a, b))
            if comparable
            else {field.name: None for field in dataclasses.fields(_Distance)}
        ),
    }


def _distance(a: NDArray[Any], b: NDArray[Any]) -> _Distance:
    """In float64, whatever the type; 64-bit integers are rounded to it."""
    largest, square, norm_square, equal_count = 0.0, 0.0, 0.0, 0
    with np.errstate(all="ignore"):
        for one, two in zip(_parts(a), _parts(b), strict=True):
            bits = np.dtype(f"u{one.dtype.itemsize}")
            equal = one.view(bits) == two.view(bits)
            x = _doubles(one)
            difference = np.where(equal, 0.0, x - _doubles(two))
            largest = float(np.maximum(largest, np.abs(difference).max()))
            square += float(np.dot(difference, difference))
            norm_square += float(np.dot(x, x))
            equal_count += int(equal.sum())
    relative = math.sqrt(square) / math.sqrt(norm_square) if norm_square else math.inf
    return _Distance(
        max_abs=largest,
        relative_l2=relative if square else 0.0,
        equal_share=equal_count / a.size if a.size else 1.0,
    )


def draw(one: Model, two: Model, comparison: Mapping[str, Any]) -> None:
    if comparison["equal"]:
        say(f"Equal, bit by bit: {one.name} and {two.name}")
        say(f"model sha256 {comparison['a']['model_sha256']}")
        return
    say(f"a  {one.name}")
    say(f"b  {two.name}")
    for letter in "ab":
        for key in comparison[f"only_in_{letter}"][: tables.ROWS_SHOWN]:
            say(f"only in {letter}: {key}")
        tables.say_more(len(comparison[f"only_in_{letter}"]))
    table = tables.table("array", "largest", "relative L2", "equal", "", numbers=(1, 2, 3))
    for row in comparison["arrays"][: tables.ROWS_SHOWN]:
        cells = ("", "", "")
        note = ""
        if row["max_abs"] is not None:
            cells = (
                f"{row['max_abs']:.3g}",
                f"{row['relative_l2']:.3g}",
                f"{row['equal_share']:.1%}",
            )
        else:
            sides = [f"{row[f'dtype_{side}']} {tuple(row[f'shape_{side}'])}" for side in "ab"]
            note = " and ".join(sides)
        tables.add_row(table, row["key"], *cells, note)
    table_console().print(table)
    tables.say_more(len(comparison["arrays"]))


def _parts(array: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """The elements in C order, some at a time, flat."""
    flat = np.asarray(array, order="C").reshape(-1)
    for start in range(0, flat.size, PART_ELEMENTS):
        yield flat[start : start + PART_ELEMENTS]


def _doubles(array: NDArray[Any]) -> NDArray[np.float64]:
    return arrays_.widened(array).astype(np.float64)


def norm(array: NDArray[Any]) -> float:
    """Euclidean norm."""
    with np.errstate(all="ignore"):
        squares = (float(np.dot(part, part)) for part in map(_doubles, _parts(array)))
        return math.sqrt(sum(squares))
