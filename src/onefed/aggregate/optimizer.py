"""The server's step after the mean: an optimizer over pseudo-gradients.

Reddi, Charles, Zaheer, Garrett, Rush, Konecny, Kumar, McMahan: Adaptive Federated Optimization,
ICLR 2021 (arXiv 2003.00295): what the clients did to the model in a round, Delta = mean - x, stands
where an optimizer expects a negative gradient. The steps are kernels (``kernels.steps``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from onefed import arrays as tensors
from onefed.aggregate import base, kernels
from onefed.aggregate.errors import AggregationError
from onefed.aggregate.fedavg import MeanRule

if TYPE_CHECKING:
    from onefed.arrays import Arrays


class ServerOptimizer(MeanRule):
    """Mean of the updates, then x' = x + move(Delta) with some memory of earlier rounds.

    The memory is one array per float array of the model and slot, under the key ``<slot>/<name>``:
    float64 for float64, float32 for all narrower ones. Everything is computed in float64 and
    rounded once, when it is stored; the move is made of the values before that rounding. Integer
    and bool arrays have no memory: they take the mean as in ``FedAvg``.
    """

    kind: ClassVar[str]
    """Of the step, one of ``kernels.steps.KINDS``."""
    slots: ClassVar[tuple[str, ...]]
    """Names of its memories, without a slash."""

    def initial(self, slot: str) -> float:
        """What a memory holds before round 1."""
        return 0.0

    def numbers(self, round_number: int) -> kernels.StepNumbers:
        """Numbers of the step of a round."""
        raise NotImplementedError

    def init(self, arrays: Arrays) -> base.State:
        """Memory before round 1: one element for each array, seen at every index, read-only."""
        return {
            key: np.broadcast_to(
                np.array(self.initial(key.split("/", 1)[0]), like.dtype), like.shape
            )
            for key, like in self._state_like(arrays).items()
        }

    def step_mean(
        self, state: base.State, arrays: Arrays, mean: Arrays, round_number: int
    ) -> tuple[base.State, Arrays]:
        """Move from ``arrays`` by what the optimizer makes of ``mean - arrays``."""
        like = self._state_like(arrays)
        base.require_state(self, state, like)
        assert round_number >= 1, "rounds count from 1"
        numbers = self.numbers(round_number)
        after = {key: np.empty(each.shape, each.dtype) for key, each in like.items()}
        model: Arrays = {}
        for key, old in arrays.items():
            new = base.flat(mean[key])
            if tensors.is_float(old.dtype) and old.size:
                memory = [_key(slot, key) for slot in self.slots]
                read, written = ([of[k].reshape(-1) for k in memory] for of in (state, after))
                if not kernels.advance(self.kind, numbers, base.flat(old), new, read, written):
                    raise self._out_of_range(key)
            model[key] = new.reshape(old.shape)
        return after, model

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
