"""FedTrimmedAvg: the coordinate-wise mean without the extremes.

Yin, Chen, Ramchandran, Bartlett: Byzantine-Robust Distributed Learning: Towards Optimal Statistical
Rates, ICML 2018 (arXiv 1803.01498), Definition 2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, ClassVar

from onefed.aggregate import base, integers, kernels
from onefed.aggregate.parameters import parameter
from onefed.aggregate.robust import RobustRule

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from onefed.arrays import Arrays


@dataclass(frozen=True)
class FedTrimmedAvg(RobustRule):
    """Per coordinate, drop the k smallest and the k largest of n values; plain mean of the rest.

    k is the largest count with k / n <= ``beta``, compared in float64: of 100 clients a beta of
    0.29 drops 29 at each end. (Flower 1.41 computes ``int(beta * n)``, which is 28 there.) With at
    most k hostile clients, each coordinate stays between the smallest and the largest honest value.
    Floats are added in ascending order in float64 and rounded once; integers and bools are the
    exact mean of the kept values, rounded half to even.
    """

    name: ClassVar[str] = "FedTrimmedAvg"

    beta: float = parameter(0.2, at_least=0.0, below=0.5)
    """Share of the clients that is dropped at each end."""

    def cut(self, clients: int) -> int:
        """k: how many of so many values are dropped at each end. Less than half of them."""
        count = int(self.beta * clients)  # the product may be off by a rounding, either way
        while count / clients > self.beta:
            count -= 1
        while (count + 1) / clients <= self.beta:
            count += 1
        return count

    def remarks(self, clients: int) -> tuple[str, ...]:
        """That nothing is dropped with so few clients."""
        if clients < 1 or self.cut(clients):
            return ()
        if self.beta == 0.0:
            advice = "beta above 0 drops the extremes"
        else:
            advice = f"from {self._clients_to_cut()} clients on it drops the extremes"
        return (
            f"FedTrimmedAvg with beta = {self.beta:g} is a plain mean "
            f"of {clients} clients; {advice}.",
        )

    def combine(self, arrays: Arrays, updates: Sequence[base.Update]) -> Arrays:
        """Trimmed mean of each coordinate."""
        low = self.cut(len(updates))
        high = len(updates) - low

        def of_floats(columns: Sequence[NDArray[Any]], out: NDArray[Any]) -> None:
            kernels.sorted_mean(columns, low, high, out)

        def of_integers(columns: Sequence[NDArray[Any]], out: NDArray[Any]) -> None:
            integers.sorted_mean(columns, low, high, out)

        return base.by_array(updates, arrays, floats=of_floats, integers=of_integers)

    def _clients_to_cut(self) -> int:
        """Smallest n with 1 / n <= ``beta`` in float64, where 1 / n is rounded to nearest."""
        halfway = (Fraction(self.beta) + Fraction(math.nextafter(self.beta, 1.0))) / 2
        clients = math.ceil(1 / halfway)
        return clients if self.cut(clients) else clients + 1
