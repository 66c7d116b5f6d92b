"""Steps of the server optimizers in numpy: what they are, the oracle of the compiled ones.

The rules that use them have the papers and the equations; the order of operations is in
docs/numerics.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from onefed import arrays
from onefed.aggregate.kernels import checks

TILE_ELEMENTS = 2**15
"""Elements that are worked on at a time: five float64 tiles are 1.25 MiB and stay in the cache,
and the calls of numpy, about a microsecond each, do not show."""

Tile: TypeAlias = NDArray[np.float64]
Column: TypeAlias = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Numbers:
    """Numbers of a step; a kind reads those that it has."""

    rate: float
    beta_1: float = 0.0
    beta_2: float = 0.0
    tau: float = 0.0

    def packed(self) -> NDArray[np.float64]:
        """All of them, in order."""
        return np.array(astuple(self), np.float64)


def advance(
    kind: str,
    numbers: Numbers,
    old: Column,
    model: Column,
    before: Sequence[Column],
    after: Sequence[Column],
    *,
    threads: int | None = None,
) -> bool:
    """Make the step ``kind``; False once a result is not finite.

    Args:
        kind: one of ``KINDS``, which says what its memories are.
        old: the model that the round started from.
        model: the mean of the updates; becomes the next model.
        before: memories, read; any layout in memory.
        after: memories, written.
    """
    checks.advance(MEMORIES[kind], old, model, before, after)
    move = MOVES[kind]
    buffers = np.empty((3 + len(before), min(TILE_ELEMENTS, old.size)), np.float64)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        for start in range(0, old.size, TILE_ELEMENTS):
            tile = slice(start, min(start + TILE_ELEMENTS, old.size))
            x, delta, scratch, *memory = buffers[:, : tile.stop - start]
            x[:] = arrays.widened(old[tile])
            np.subtract(arrays.widened(model[tile]), x, out=delta)
            for slot, source in zip(memory, before, strict=True):
                slot[:] = source[tile]
            move(numbers, delta, memory, scratch)
            x += delta
            arrays.narrowed(x, model[tile])
            finite = _is_finite(arrays.widened(model[tile]))
            for slot, target in zip(memory, after, strict=True):
                target[tile] = slot
                finite = finite and _is_finite(target[tile])
            if not finite:
                return False
    return True


def _momentum(numbers: Numbers, delta: Tile, memory: Sequence[Tile], scratch: Tile) -> None:
    (m,) = memory
    m *= numbers.beta_1
    m += delta
    np.multiply(m, numbers.rate, out=delta)


def _adagrad(numbers: Numbers, delta: Tile, memory: Sequence[Tile], scratch: Tile) -> None:
    (v,) = memory
    v *= v
    np.square(delta, out=scratch)
    v += scratch
    _scale(numbers, delta, v, scratch, out=delta)


def _adam(numbers: Numbers, delta: Tile, memory: Sequence[Tile], scratch: Tile) -> None:
    m, v = memory
    v *= v
    _blend(numbers, m, delta, scratch)
    v *= numbers.beta_2
    delta *= delta
    delta *= 1.0 - numbers.beta_2
    v += delta
    _scale(numbers, m, v, scratch, out=delta)


def _yogi(numbers: Numbers, delta: Tile, memory: Sequence[Tile], scratch: Tile) -> None:
    m, v = memory
    v *= v
    _blend(numbers, m, delta, scratch)
    delta *= delta
    np.subtract(v, delta, out=scratch)
    delta *= 1.0 - numbers.beta_2
    np.copysign(delta, scratch, out=delta)  # np.sign mispredicts, 5 ns each
    delta[scratch == 0.0] = 0.0
    v -= delta
    _scale(numbers, m, v, scratch, out=delta)


def _blend(numbers: Numbers, m: Tile, delta: Tile, scratch: Tile) -> None:
    """m = beta_1 * m + (1 - beta_1) * delta."""
    m *= numbers.beta_1
    np.multiply(delta, 1.0 - numbers.beta_1, out=scratch)
    m += scratch


def _scale(numbers: Numbers, m: Tile, v: Tile, scratch: Tile, out: Tile) -> None:
    """out = (rate * m) / (sqrt(v) + tau), and ``v`` becomes its root; ``out`` may be ``m``."""
    np.sqrt(v, out=v)
    np.add(v, numbers.tau, out=scratch)
    np.multiply(m, numbers.rate, out=out)
    out /= scratch


def _is_finite(tile: Column) -> bool:
    """Whether no element is NaN or infinite; a tile has at least one."""
    low, high = np.minimum.reduce(tile), np.maximum.reduce(tile)
    return math.isfinite(low) and math.isfinite(high)


Move: TypeAlias = Callable[[Numbers, Tile, Sequence[Tile], Tile], None]
"""Advances the memories in place and turns delta, mean - x, into x' - x; scratch holds anything."""

MOVES: dict[str, Move] = {
    "momentum": _momentum,
    "adagrad": _adagrad,
    "adam": _adam,
    "yogi": _yogi,
}
KINDS = tuple(MOVES)
"""In the order of the numbers by which the compiled kernels know them."""
MEMORIES = {"momentum": 1, "adagrad": 1, "adam": 2, "yogi": 2}
"""How many memories a kind has: m, r, or m and r."""
