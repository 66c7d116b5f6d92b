"""Krum and MultiKrum: the updates that have the closest company.

Blanchard, El Mhamdi, Guerraoui, Stainer: Machine Learning with Adversaries: Byzantine Tolerant
Gradient Descent, NeurIPS 2017 (arXiv 1703.02757), section 4; how many MultiKrum may keep:
Damaskinos, El Mhamdi, Guerraoui, Guirguis, Rouault: AggregaThor: Byzantine Machine Learning via
Robust Gradient Aggregation, MLSys 2019.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from onefed import arrays as tensors
from onefed.aggregate import base, integers, kernels
from onefed.aggregate.distances import Candidates, squared_distances
from onefed.aggregate.parameters import parameter
from onefed.aggregate.robust import SelectingRule

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from onefed.arrays import Arrays


@dataclass(frozen=True)
class Krum(SelectingRule):
    """The model of the client with the smallest score.

    The score of client i is the sum of its squared distances to its n - f - 2 closest others (at
    least 1). Ties go to the first in client order. For f hostile clients among n >= 2f + 3 the
    chosen model is as close to the honest ones as they are to each other, up to a factor that
    depends on n and f; with fewer, the hostile may be each other's company and win.
    """

    name: ClassVar[str] = "Krum"
    clients_per_malicious: ClassVar[int] = 2

    num_malicious: int = parameter(0, at_least=0)
    """f, the hostile clients to withstand."""

    def kept(self, updates: int) -> int:
        """How many of so many updates are averaged: 1."""
        return 1

    def combine(self, arrays: Arrays, updates: Sequence[base.Update]) -> Arrays:
        """Plain mean of the chosen; integer and bool arrays: median of all.

        The mean of one is that client's arrays as they are, no copy: nobody changes arrays.
        """
        candidates = Candidates(squared_distances(updates, arrays), self.num_malicious)
        chosen = candidates.best(self.kept(len(updates)))
        if len(chosen) == 1:
            return _of_one(updates[chosen[0]], updates, arrays)

        def of_floats(columns: Sequence[NDArray[Any]], out: NDArray[Any]) -> None:
            kernels.weighted_mean([columns[index] for index in chosen], [1] * len(chosen), out)

        return base.by_array(updates, arrays, floats=of_floats, integers=integers.median)


@dataclass(frozen=True)
class MultiKrum(Krum):
    """The plain mean of the m models with the smallest scores, as in ``Krum``.

    Claimed example counts do not weigh (in Flower 1.41 they do, so that one chosen liar decides).
    Any m up to n - f - 2 is proven to withstand f hostile clients among n >= 2f + 3.
    """

    name: ClassVar[str] = "MultiKrum"

    num_to_keep: int = parameter(0, at_least=0)
    """m; 0 keeps n - f - 2, at least 1. With f > 0, a round needs m + f + 2 updates."""

    @property
    def clients_min(self) -> int:
        """2f + 3, and m + f + 2 where m is given; 1 for f = 0."""
        if not self.num_malicious:
            return 1
        return max(super().clients_min, self.num_to_keep + self.num_malicious + 2)

    def kept(self, updates: int) -> int:
        """m, but not more than there are."""
        if self.num_to_keep:
            return min(self.num_to_keep, updates)
        return max(1, updates - self.num_malicious - 2)


def _of_one(chosen: base.Update, updates: Sequence[base.Update], model: Arrays) -> Arrays:
    """The float arrays of one update, in C order; integer and bool arrays: median of all."""
    counters = {key: like for key, like in model.items() if not tensors.is_float(like.dtype)}
    medians = base.by_array(updates, counters, floats=integers.median, integers=integers.median)
    return {
        key: medians[key] if key in medians else base.flat(chosen.arrays[key]).reshape(like.shape)
        for key, like in model.items()
    }
