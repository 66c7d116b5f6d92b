"""FedProx: FedAvg on the server, a pull towards the global model on the clients.

Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith: Federated Optimization in Heterogeneous Networks,
MLSys 2020 (arXiv 1812.06127), Algorithm 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from onefed.aggregate.fedavg import MeanRule
from onefed.aggregate.parameters import parameter


@dataclass(frozen=True)
class FedProx(MeanRule):
    """Weighted mean, as ``FedAvg`` to the bit; ``proximal_mu`` is what the clients are told.

    Client k minimises F_k(w) + (mu / 2) * ||w - w_t||^2, with w_t the global model it was given.
    The app adds that term; an app that does not is plain FedAvg, and so is mu = 0. The paper's
    weights are equal and its sampling follows the example counts; here, as everywhere in practice,
    all are asked and the weights follow the counts.
    """

    name: ClassVar[str] = "FedProx"

    proximal_mu: float = parameter(1.0, at_least=0.0)
    """mu, 0 or more; typically 0.001 to 1."""

    @property
    def told(self) -> dict[str, float]:
        """What clients find in their message, under the name that Flower's own strategy uses."""
        return {"proximal-mu": float(self.proximal_mu)}
