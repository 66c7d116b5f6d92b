"""FedAdagrad, FedAdam and FedYogi: a learning rate for each parameter, from its own past.

Reddi, Charles, Zaheer, Garrett, Rush, Konecny, Kumar, McMahan: Adaptive Federated Optimization,
ICLR 2021 (arXiv 2003.00295), Algorithm 2. With Delta = mean - x, all per coordinate:

    m' = beta_1 * m + (1 - beta_1) * Delta                  m = 0 before round 1
    v' = v + Delta^2                                        FedAdagrad
    v' = beta_2 * v + (1 - beta_2) * Delta^2                FedAdam
    v' = v - (1 - beta_2) * Delta^2 * sign(v - Delta^2)     FedYogi
    x' = x + eta * m' / (sqrt(v') + tau)                    v = tau^2 before round 1

What is stored of v is its root r = sqrt(v), tau before round 1: v is r * r, and r' is sqrt(v'). The
square of a float32 may leave float32, its root may not, so a client that sends huge values cannot
end the run; and r is what the step divides by.

A step has the sign of m', is 0 where nothing has moved, and for beta_1 = 0 is below
eta * |Delta| / tau. Where Flower 1.41 differs: v starts at 0, and FedAdam's bias correction, which
the paper does not have, is always on and one round ahead.

In the order of operations, products and sums are taken from left to right as they are written, in
float64 with a rounding after each; 1 - beta is rounded first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from onefed.aggregate import kernels
from onefed.aggregate.optimizer import ServerOptimizer
from onefed.aggregate.parameters import parameter

TAU_MAX = 1e6
"""Far above all that adapts: steps are those of plain averaging with eta / tau from 1 or so on."""


class AdaptiveRule(ServerOptimizer):
    """What the three share: the memory before round 1. A dataclass has the two fields."""

    eta: float
    tau: float

    def initial(self, slot: str) -> float:
        """r = tau, m = 0."""
        return self.tau if slot == "r" else 0.0


@dataclass(frozen=True)
class FedAdagrad(AdaptiveRule):
    """Every round counts alike, so that the steps only shrink. beta_1 = 0, as in the paper."""

    name: ClassVar[str] = "FedAdagrad"
    kind: ClassVar[str] = "adagrad"
    slots: ClassVar[tuple[str, ...]] = ("r",)

    eta: float = parameter(0.1, above=0.0)
    """Server learning rate, above 0."""
    tau: float = parameter(1e-9, above=0.0, at_most=TAU_MAX)
    """How little it adapts, 0 < tau <= ``TAU_MAX``; a large one makes plain steps of eta / tau."""

    def numbers(self, round_number: int) -> kernels.StepNumbers:
        """The same in every round."""
        return kernels.StepNumbers(self.eta, tau=self.tau)


@dataclass(frozen=True)
class FedAdam(AdaptiveRule):
    """Recent rounds count more: v is a moving average.

    With ``bias_correction``, eta of round t becomes eta * sqrt(1 - beta_2^t) / (1 - beta_1^t), as
    Kingma and Ba do (Adam, ICLR 2015, arXiv 1412.6980, end of section 2) for averages that begin
    at 0. t is the round of the run, over all restarts. (Flower 1.41 corrects with t + 1.)
    """

    name: ClassVar[str] = "FedAdam"
    kind: ClassVar[str] = "adam"
    slots: ClassVar[tuple[str, ...]] = ("m", "r")

    eta: float = parameter(0.1, above=0.0)
    """Server learning rate, above 0."""
    beta_1: float = parameter(0.9, at_least=0.0, below=1.0)
    """Share of the past in m, from 0 to below 1."""
    beta_2: float = parameter(0.99, at_least=0.0, below=1.0)
    """Share of the past in v, from 0 to below 1."""
    tau: float = parameter(1e-9, above=0.0, at_most=TAU_MAX)
    """How little it adapts, 0 < tau <= ``TAU_MAX``; a large one makes plain steps of eta / tau."""
    bias_correction: bool = parameter(False)
    """Whether the first rounds are corrected for averages that began at 0."""

    def numbers(self, round_number: int) -> kernels.StepNumbers:
        """eta is corrected for the bias of the round where that is asked for."""
        eta = self.eta
        if self.bias_correction:
            of_v = math.sqrt(1.0 - self.beta_2**round_number)
            eta = eta * of_v / (1.0 - self.beta_1**round_number)
        return kernels.StepNumbers(eta, self.beta_1, self.beta_2, self.tau)


@dataclass(frozen=True)
class FedYogi(AdaptiveRule):
    """v follows Delta^2 by at most (1 - beta_2) * Delta^2 a round: it forgets more slowly."""

    name: ClassVar[str] = "FedYogi"
    kind: ClassVar[str] = "yogi"
    slots: ClassVar[tuple[str, ...]] = ("m", "r")

    eta: float = parameter(0.01, above=0.0)
    """Server learning rate, above 0."""
    beta_1: float = parameter(0.9, at_least=0.0, below=1.0)
    """Share of the past in m, from 0 to below 1."""
    beta_2: float = parameter(0.99, at_least=0.0, below=1.0)
    """1 minus the share of Delta^2 by which v moves, from 0 to below 1."""
    tau: float = parameter(1e-3, above=0.0, at_most=TAU_MAX)
    """How little it adapts, 0 < tau <= ``TAU_MAX``; a large one makes plain steps of eta / tau."""

    def numbers(self, round_number: int) -> kernels.StepNumbers:
        """The same in every round."""
        return kernels.StepNumbers(self.eta, self.beta_1, self.beta_2, self.tau)
