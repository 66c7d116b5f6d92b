"""FaultTolerantFedAvg: FedAvg whose rounds count once enough of the asked clients have answered.

Flower's legacy strategy of that name (``flwr.server.strategy.fault_tolerant_fedavg``, 1.41.0),
which no longer has a counterpart among the strategies over messages.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from onefed.aggregate.fedavg import MeanRule
from onefed.aggregate.parameters import parameter


@dataclass(frozen=True)
class FaultTolerantFedAvg(MeanRule):
    """Weighted mean, as ``FedAvg`` to the bit, of a share of the clients that were asked.

    A round of k usable replies out of m counts if k / m >= the rate, compared in float64: of 100
    clients a rate of 0.07 asks for 7. One usable reply is needed at any rate.
    """

    name: ClassVar[str] = "FaultTolerantFedAvg"

    min_completion_rate_fit: float = parameter(0.5, at_least=0.0, at_most=1.0)
    """Share of the clients asked to train whose updates a round needs."""
    min_completion_rate_evaluate: float = parameter(0.5, at_least=0.0, at_most=1.0)
    """Share of the clients asked to evaluate whose replies a score needs."""

    def updates_needed(self, asked: int) -> int:
        """Smallest k >= 1 with k / ``asked`` >= ``min_completion_rate_fit``."""
        return fewest(self.min_completion_rate_fit, asked)

    def scores_needed(self, asked: int) -> int:
        """Smallest k >= 1 with k / ``asked`` >= ``min_completion_rate_evaluate``."""
        return fewest(self.min_completion_rate_evaluate, asked)


def fewest(rate: float, asked: int) -> int:
    """Smallest k >= 1 with k / ``asked`` >= ``rate``, ``rate`` being 0 to 1."""
    needed = max(1, int(rate * asked) - 1)  # the product may be rounded up past a whole number
    while needed < asked and needed / asked < rate:
        needed += 1
    return needed
