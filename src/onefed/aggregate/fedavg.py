"""FedAvg: the mean of the client models, weighted by their example counts.

McMahan, Moore, Ramage, Hampson, Aguera y Arcas: Communication-Efficient Learning of Deep Networks
from Decentralized Data, AISTATS 2017 (arXiv 1602.05629), Algorithm 1, server side.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from onefed.aggregate import base

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from onefed.arrays import Arrays

TILE_ELEMENTS = 2**16
"""Elements that are accumulated at a time. Two float64 tiles are 1 MiB and stay in the cache."""


@dataclass(frozen=True)
class FedAvg:
    r"""Next model = sum over clients k of (n_k / n) * w_k, with n the sum of the n_k. No state."""

    name: ClassVar[str] = "FedAvg"

    def init(self, arrays: Arrays) -> base.State:
        """No state."""
        return {}

    def step(
        self,
        state: base.State,
        arrays: Arrays,
        updates: Sequence[base.Update],
        round_number: int,
    ) -> tuple[base.State, Arrays]:
        """Weighted mean; the model the round started from gives only keys, shapes and dtypes."""
        return state, weighted_mean(updates, arrays)


def weighted_mean(updates: Sequence[base.Update], template: Arrays) -> Arrays:
    """Mean of the updates, weighted by their weights: the normative arithmetic.

    *Floats.* Per coordinate, in client order: s = n_1 * w_1, then s = s + n_k * w_k, all in float64
    with a rounding after each operation (no fused multiply-add), then s / n in float64, then one
    rounding to the dtype. A product of float32 or float16 is exact, and where the sum is exact too
    and n < 2**27, the float32 result is the correctly rounded mean.

    *Integers and bools.* The exact mean, rounded half to even. A bool is the majority by weight;
    a tie is False. Sums are exact, in int64 where they fit and in Python integers where they do
    not; the latter cost about 0.1 microseconds per element and client.

    Takes the result and two tiles of memory, and a copy of one array of each client whose memory
    is not in C order.
    """
    assert updates, "a rule is called with at least one update"
    ordered = base.in_client_order(updates)
    weights = [update.weight for update in ordered]
    mean: Arrays = {}
    for key, like in template.items():
        columns = [np.ascontiguousarray(update.arrays[key]).reshape(-1) for update in ordered]
        flat = np.empty(like.size, like.dtype)
        if like.dtype.kind == "f":
            _float_mean(columns, weights, flat)
        else:
            _integer_mean(columns, weights, flat)
        mean[key] = flat.reshape(like.shape)
    return mean


def _float_mean(
    columns: Sequence[NDArray[Any]], weights: Sequence[int], result: NDArray[Any]
) -> None:
    weight_sum = float(sum(weights))
    sums, products = np.empty((2, min(TILE_ELEMENTS, result.size)), np.float64)
    for start in range(0, result.size, TILE_ELEMENTS):
        tile = slice(start, min(start + TILE_ELEMENTS, result.size))
        total, product = sums[: tile.stop - start], products[: tile.stop - start]
        total[:] = columns[0][tile]
        total *= weights[0]
        for column, weight in zip(columns[1:], weights[1:], strict=True):
            product[:] = column[tile]
            product *= weight
            total += product
        total /= weight_sum
        result[tile] = total


def _integer_mean(
    columns: Sequence[NDArray[Any]], weights: Sequence[int], result: NDArray[Any]
) -> None:
    weight_sum = sum(weights)
    for start in range(0, result.size, TILE_ELEMENTS):
        tile = slice(start, start + TILE_ELEMENTS)
        values = [column[tile] for column in columns]
        largest = max(max(-int(value.min()), int(value.max())) for value in values)
        exact: type = np.int64 if (largest + 1) * weight_sum < 2**62 else object
        total: NDArray[Any] = values[0].astype(exact) * weights[0]
        for value, weight in zip(values[1:], weights[1:], strict=True):
            total += value.astype(exact) * weight
        below, rest = total // weight_sum, total % weight_sum
        up = (2 * rest > weight_sum) | ((2 * rest == weight_sum) & (below % 2 == 1))
        result[tile] = (below + up.astype(exact)).astype(result.dtype)
