"""Bulyan: Krum again and again, then the middle of what it chose.

El Mhamdi, Guerraoui, Rouault: The Hidden Vulnerability of Distributed Learning in Byzantium,
ICML 2018 (arXiv 1802.07927), section 4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from onefed.aggregate import base, integers, kernels
from onefed.aggregate.distances import Candidates, squared_distances
from onefed.aggregate.parameters import parameter
from onefed.aggregate.robust import SelectingRule

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from onefed.arrays import Arrays


@dataclass(frozen=True)
class Bulyan(SelectingRule):
    """Per coordinate, the mean of the values nearest to the median of a chosen set.

    1. Choose theta = n - 2f updates: by Krum among those left (n' of them, of each the n' - f - 2
       closest others, at least 1), remove the winner, repeat.
    2. Per coordinate, the plain mean of the beta = theta - 2f chosen values that are nearest to the
       chosen ones' median; of two windows of values that are equally near, the lower.

    For f hostile clients among n >= 4f + 3, no coordinate can be moved further than the honest
    values spread, where Krum alone leaves a single coordinate of a close update unguarded. Flower
    1.41 chooses by one pass of MultiKrum instead of the repetition. f = 0 is the plain mean.
    """

    name: ClassVar[str] = "Bulyan"
    clients_per_malicious: ClassVar[int] = 4

    num_malicious: int = parameter(0, at_least=0)
    """f, the hostile clients to withstand."""

    def combine(self, arrays: Arrays, updates: Sequence[base.Update]) -> Arrays:
        """Middle of the chosen; integer and bool arrays: median of all."""
        chosen = self.choose(arrays, updates)
        keep = len(chosen) - 2 * self.num_malicious

        def of_floats(columns: Sequence[NDArray[Any]], out: NDArray[Any]) -> None:
            selected = [columns[index] for index in chosen]
            if self.num_malicious:
                kernels.middle_mean(selected, keep, out)
            else:
                kernels.weighted_mean(selected, [1] * keep, out)

        return base.by_array(updates, arrays, floats=of_floats, integers=integers.median)

    def choose(self, arrays: Arrays, updates: Sequence[base.Update]) -> list[int]:
        """The theta updates of step 1, by their index, in client order."""
        if not self.num_malicious:
            return list(range(len(updates)))
        candidates = Candidates(squared_distances(updates, arrays), self.num_malicious)
        theta = len(updates) - 2 * self.num_malicious
        return sorted(candidates.take() for _ in range(theta))
