# The functions of c/module.c. `kind` counts the names of `instruction_sets()`.
from typing import Any, TypeAlias

from numpy.typing import NDArray

Buffer: TypeAlias = NDArray[Any]

def instruction_sets() -> tuple[str, ...]: ...
def weighted_mean(
    kind: int, columns: tuple[Buffer, ...], weights: Buffer, divisor: float, out: Buffer, /
) -> None: ...
def fold(kind: int, total: Buffer, column: Buffer, weight: float, /) -> None: ...
def divide(kind: int, total: Buffer, divisor: float, out: Buffer, /) -> None: ...
def sorted_mean(
    kind: int, columns: tuple[Buffer, ...], network: Buffer, low: int, high: int, out: Buffer, /
) -> None: ...
def middle_mean(
    kind: int, columns: tuple[Buffer, ...], network: Buffer, keep: int, out: Buffer, /
) -> None: ...
def gram(kind: int, columns: tuple[Buffer, ...], centre: Buffer, out: Buffer, /) -> None: ...
def advance(
    kind: int,
    step: int,
    numbers: Buffer,
    old: Buffer,
    model: Buffer,
    memories: tuple[Buffer, ...],
    /,
) -> bool: ...
