"""FedAvgM: the mean with momentum on the server.

Hsu, Qi, Brown: Measuring the Effects of Non-Identical Data Distribution for Federated Visual
Classification, 2019 (arXiv 1909.06335), FedAvgM.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from onefed.aggregate import kernels
from onefed.aggregate.optimizer import ServerOptimizer
from onefed.aggregate.parameters import parameter


@dataclass(frozen=True)
class FedAvgM(ServerOptimizer):
    """m' = beta * m + Delta, x' = x + eta * m', with Delta = mean - x and m = 0 at first.

    The paper subtracts v, which is -m, and has eta = 1; Flower's class adds eta. The names are
    Flower's. So is the default of the learning rate; that of the momentum is the 0.9 with which
    the field uses the rule, since with Flower's 0 it is FedAvg. beta = 0 and eta = 1 are FedAvg up
    to one rounding of x + (mean - x) to float64, which rarely survives the rounding to float32.
    """

    name: ClassVar[str] = "FedAvgM"
    kind: ClassVar[str] = "momentum"
    slots: ClassVar[tuple[str, ...]] = ("m",)

    server_learning_rate: float = parameter(1.0, above=0.0)
    """eta, above 0. A constant Delta moves the model by eta / (1 - beta) of it a round."""
    server_momentum: float = parameter(0.9, at_least=0.0, below=1.0)
    """beta, from 0 to below 1."""

    def numbers(self, round_number: int) -> kernels.StepNumbers:
        """The same in every round."""
        return kernels.StepNumbers(self.server_learning_rate, self.server_momentum)
