"""Rules that make the next global model out of the updates of a round: pure, deterministic, no I/O.

* ``base``: what a rule is, the update, the one order of clients
* ``check``: what happens to updates before any rule sees them
* ``parameters``, ``errors``: bounds of parameters, and what is raised
* ``fedavg``: the weighted mean and its family: ``fedprox``, ``completion`` and, by way of
  ``optimizer``, ``momentum`` and ``adaptive``
* ``robust``: the family that withstands hostile clients: ``median``, ``trimmed`` and, by way of
  ``distances``, ``krum`` and ``bulyan``
* ``stream``: the mean family one update at a time
* ``integers``: exact arithmetic for arrays that are no parameters
* ``kernels``: the arithmetic of all the others

A rule is added by writing its module and its line in ``RULES``.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from onefed.aggregate import parameters as _parameters
from onefed.aggregate.adaptive import FedAdagrad, FedAdam, FedYogi
from onefed.aggregate.base import (
    WEIGHT_MAX,
    Rule,
    State,
    Update,
    client_order,
    require_clients,
)
from onefed.aggregate.bulyan import Bulyan
from onefed.aggregate.check import Checked, Rejected, check
from onefed.aggregate.completion import FaultTolerantFedAvg
from onefed.aggregate.errors import AggregationError, RuleError
from onefed.aggregate.fedavg import FedAvg, MeanRule
from onefed.aggregate.fedprox import FedProx
from onefed.aggregate.krum import Krum, MultiKrum
from onefed.aggregate.median import FedMedian
from onefed.aggregate.momentum import FedAvgM
from onefed.aggregate.stream import Hold, MeanFold, OrderedFold
from onefed.aggregate.trimmed import FedTrimmedAvg

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "RULES",
    "WEIGHT_MAX",
    "AggregationError",
    "Bulyan",
    "Checked",
    "FaultTolerantFedAvg",
    "FedAdagrad",
    "FedAdam",
    "FedAvg",
    "FedAvgM",
    "FedMedian",
    "FedProx",
    "FedTrimmedAvg",
    "FedYogi",
    "Hold",
    "Krum",
    "MeanFold",
    "MeanRule",
    "MultiKrum",
    "OrderedFold",
    "Rejected",
    "Rule",
    "RuleError",
    "State",
    "Update",
    "check",
    "client_order",
    "parameters_of",
    "require_clients",
    "rule",
]

RULES: Mapping[str, type[Rule]] = MappingProxyType(
    {
        kind.name: kind
        for kind in (
            *(FedAvg, FedProx, FedAvgM, FedAdam, FedAdagrad, FedYogi, FaultTolerantFedAvg),
            *(FedMedian, FedTrimmedAvg, Krum, MultiKrum, Bulyan),
        )
    }
)
"""Every rule by its name, as in ``FL_STRATEGY``: frozen dataclasses, the fields are parameters."""


def rule(name: str, **parameters: float) -> Rule:
    """Make the rule ``name`` with ``parameters``; those left out have their defaults.

    Raises:
        RuleError: there is no such rule; or everything that is wrong with the parameters.
    """
    kind = _kind(name)
    found = _parameters.problems(kind, parameters)
    if found:
        raise RuleError("\n".join(found), hint=_parameters.known(kind))
    return kind(**parameters)


def parameters_of(name: str) -> dict[str, float]:
    """Names and defaults of the parameters of a rule, in order of declaration."""
    return _parameters.defaults(_kind(name))


def _kind(name: str) -> type[Rule]:
    kind = RULES.get(name)
    if kind is None:
        raise RuleError(
            f"There is no aggregation rule {name!r}.", hint=f"Choose one of: {', '.join(RULES)}."
        )
    return kind
