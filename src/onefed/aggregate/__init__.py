"""Rules that make the next global model out of the updates of a round: pure, deterministic, no I/O.

* ``base``: what a rule is, the update, the one order of clients
* ``check``: what happens to updates before any rule sees them
* ``fedavg``: the weighted mean

A rule is added by writing its module and its line in ``RULES``.
"""

from __future__ import annotations

import inspect
from types import MappingProxyType
from typing import TYPE_CHECKING

from onefed.aggregate.base import WEIGHT_MAX, Rule, State, Update, client_order
from onefed.aggregate.check import Checked, Rejected, check
from onefed.aggregate.fedavg import FedAvg
from onefed.errors import ExitCode, OnefedError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "RULES",
    "WEIGHT_MAX",
    "Checked",
    "FedAvg",
    "Rejected",
    "Rule",
    "RuleError",
    "State",
    "Update",
    "check",
    "client_order",
    "rule",
]

RULES: Mapping[str, type[Rule]] = MappingProxyType({kind.name: kind for kind in (FedAvg,)})
"""Every rule by its name, as in ``FL_STRATEGY``: frozen dataclasses, the fields are parameters."""


class RuleError(OnefedError):
    """There is no such rule, or it has no such parameter."""

    exit_code = ExitCode.CONFIG


def rule(name: str, **parameters: float) -> Rule:
    """Make the rule ``name`` with ``parameters``; those left out have their defaults."""
    kind = RULES.get(name)
    if kind is None:
        raise RuleError(
            f"There is no aggregation rule {name!r}.", hint=f"Choose one of: {', '.join(RULES)}."
        )
    known = list(inspect.signature(kind).parameters)
    for unknown in sorted(parameters.keys() - set(known)):
        raise RuleError(
            f"The aggregation rule {name} has no parameter {unknown!r}.",
            hint=f"Its parameters are: {', '.join(known) or 'none'}.",
        )
    return kind(**parameters)
