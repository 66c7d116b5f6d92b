"""From the run_config to the rule that both engines call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onefed import aggregate

OWN_DEFAULT = -1.0
"""In the run_config: the rule's own default counts. No parameter can be negative, and Flower's
config can hold no missing value."""

_ADAPTIVE = {"server-lr": "eta", "beta-1": "beta_1", "beta-2": "beta_2", "tau": "tau"}

PARAMETERS: Mapping[str, Mapping[str, str]] = {
    "FedProx": {"proximal-mu": "proximal_mu"},
    "FedAvgM": {"server-lr": "server_learning_rate", "server-momentum": "server_momentum"},
    "FedAdam": {**_ADAPTIVE, "bias-correction": "bias_correction"},
    "FedAdagrad": {"server-lr": "eta", "tau": "tau"},
    "FedYogi": _ADAPTIVE,
    "FedTrimmedAvg": {"trim-beta": "beta"},
    "Krum": {"num-malicious": "num_malicious"},
    "MultiKrum": {"num-malicious": "num_malicious", "num-to-keep": "num_to_keep"},
    "Bulyan": {"num-malicious": "num_malicious"},
    "FaultTolerantFedAvg": {
        "min-completion-rate-fit": "min_completion_rate_fit",
        "min-completion-rate-evaluate": "min_completion_rate_evaluate",
    },
}
"""Parameter of the rule by key of the run_config, by strategy; the others have none."""

DEFAULTS: Mapping[str, bool | int | float] = {
    **dict.fromkeys(
        (
            *("server-lr", "server-momentum", "beta-1", "beta-2", "tau", "trim-beta"),
            *("min-completion-rate-fit", "min-completion-rate-evaluate"),
        ),
        OWN_DEFAULT,
    ),
    "bias-correction": False,
    "num-malicious": 0,
    "num-to-keep": 0,
}
"""What a managed app's run_config has of them. ``proximal-mu`` is not here: it is the app's, whose
clients read it."""


def rule(run_config: Mapping[str, Any]) -> aggregate.Rule:
    """The rule that ``strategy`` names, with its parameters.

    Raises:
        RuleError: there is none of that name, or its parameters are not valid.
    """
    name = str(run_config["strategy"])
    given = {
        parameter: run_config[key]
        for key, parameter in PARAMETERS.get(name, {}).items()
        if run_config.get(key, OWN_DEFAULT) != OWN_DEFAULT
    }
    return aggregate.rule(name, **given)
