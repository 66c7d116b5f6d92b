"""The server's step after the mean: an optimizer over pseudo-gradients.

Reddi, Charles, Zaheer, Garrett, Rush, Konecny, Kumar, McMahan: Adaptive Federated Optimization,
ICLR 2021 (arXiv 2003.00295): what the clients did to the model in a round, Delta = mean - x, stands
where an optimizer expects a negative gradient. One float array after the other, tile by tile.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray

from onefed import arrays as tensors
from onefed.aggregate import base
from onefed.aggregate.errors import AggregationError
from onefed.aggregate.fedavg import MeanRule

if TYPE_CHECKING:
    from onefed.arrays import Arrays

TILE_ELEMENTS = 2**15
"""Elements that are worked on at a time: five float64 tiles are 1.25 MiB and stay in the cache,
and the calls of numpy, about a microsecond each, do not show."""

Tile: TypeAlias = NDArray[np.float64]


class ServerOptimizer(MeanRule):
    """Mean of the updates, then x' = x + move(Delta) with some memory of earlier rounds.

    The memory is one array per float array of the model and slot, under the key ``<slot>/<name>``:
    float64 for float64, float32 for all narrower ones. Everything is computed in float64 and
    rounded once, when it is stored; the move is made of the values before that rounding. Integer
    and bool arrays have no memory: they take the mean as in ``FedAvg``.
    """

    slots: ClassVar[tuple[str, ...]]
    """Names of the memories, without a slash."""

    def initial(self, slot: str) -> float:
        """What a memory holds before round 1."""
        return 0.0

    def rate(self, round_number: int) -> float:
        """Server learning rate of a round."""
        raise NotImplementedError

    def move(self, delta: Tile, memory: tuple[Tile, ...], scratch: Tile, rate: float) -> None:
        """Advance ``memory`` by a round, in place, and turn ``delta`` into x' - x, in place.

        ``memory`` is in the order of ``slots``; ``scratch`` holds anything, before and after.
        """
        raise NotImplementedError

    def init(self, arrays: Arrays) -> base.State:
        """Memory before round 1."""
        return {
            key: np.full(like.shape, self.initial(key.split("/", 1)[0]), like.dtype)
            for key, like in self._state_like(arrays).items()
        }

    def step_mean(
        self, state: base.State, arrays: Arrays, mean: Arrays, round_number: int
    ) -> tuple[base.State, Arrays]:
        """Move from ``arrays`` by what the optimizer makes of ``mean - arrays``."""
        like = self._state_like(arrays)
        base.require_state(self, state, like)
        assert round_number >= 1, "rounds count from 1"
        rate = self.rate(round_number)
        after = {key: np.empty(each.shape, each.dtype) for key, each in like.items()}
        model: Arrays = {}
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            for key, old in arrays.items():
                new = base.flat(mean[key])
                if tensors.is_float(old.dtype):
                    memory = [_key(slot, key) for slot in self.slots]
                    flats = [(base.flat(state[k]), after[k].reshape(-1)) for k in memory]
                    if not self._advance(base.flat(old), new, flats, rate):
                        raise self._out_of_range(key)
                model[key] = new.reshape(old.shape)
        return after, model

    def _advance(
        self,
        old: NDArray[Any],
        new: NDArray[Any],
        memory: list[tuple[NDArray[Any], NDArray[Any]]],
        rate: float,
    ) -> bool:
        """Move one flat array; False once a result is not finite.

        Args:
            old: the model the round started from.
            new: the mean of the updates; becomes the next model.
            memory: for each slot, what it holds (read) and what it will hold (written).
        """
        native = old.dtype in (np.float32, np.float64)
        buffers = np.empty((3 + len(memory), min(TILE_ELEMENTS, old.size)), np.float64)
        for start in range(0, old.size, TILE_ELEMENTS):
            tile = slice(start, min(start + TILE_ELEMENTS, old.size))
            mean = new[tile]
            x, delta, scratch, *slots = buffers[:, : tile.stop - start]
            x[:] = old[tile] if native else tensors.widened(old[tile])
            delta[:] = mean if native else tensors.widened(mean)
            delta -= x
            for slot, (before, _) in zip(slots, memory, strict=True):
                slot[:] = before[tile]
            self.move(delta, tuple(slots), scratch, rate)
            x += delta
            if native:
                mean[:] = x
            else:
                tensors.narrowed(x, mean)
            finite = _is_finite(mean if native else tensors.widened(mean))
            for slot, (_, after) in zip(slots, memory, strict=True):
                after[tile] = slot
                finite = finite and _is_finite(after[tile])
            if not finite:
                return False
        return True

    def _state_like(self, arrays: Arrays) -> Arrays:
        """Keys, shapes and dtypes of the state; takes no memory for elements."""
        return {
            _key(slot, key): np.broadcast_to(np.empty((), _memory_dtype(like.dtype)), like.shape)
            for slot in self.slots
            for key, like in arrays.items()
            if tensors.is_float(like.dtype)
        }

    def _out_of_range(self, key: str) -> AggregationError:
        return AggregationError(
            f"{self} made the array {tensors.shown(key)} or its state infinite or NaN.",
            hint="Lower the server's learning rate; if a hostile client sends huge values, "
            "choose a robust rule.",
        )


def _key(slot: str, key: str) -> str:
    return f"{slot}/{key}"


def _memory_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return np.dtype(np.float64 if dtype == np.float64 else np.float32)


def _is_finite(tile: NDArray[Any]) -> bool:
    """Whether no element is NaN or infinite; a tile has at least one."""
    low, high = np.minimum.reduce(tile), np.maximum.reduce(tile)
    return math.isfinite(low) and math.isfinite(high)
