"""What an operator sets reaches the rule; what nobody set is the rule's own choice."""

from __future__ import annotations

from typing import Any

import pytest

from onefed import aggregate, context
from onefed.flower import bundle, strategy


def of(name: str, **given: str) -> aggregate.Rule:
    """The rule of a managed app that is started with these context variables."""
    resolved = context.resolve(context.Role.SUPERLINK, explicit={"FL_STRATEGY": name, **given})
    run_config = context.run_config(context.superlink_settings(resolved))
    return strategy.rule({**bundle.RUN_CONFIG_DEFAULTS, **run_config})


@pytest.mark.parametrize("name", context.STRATEGIES)
def test_without_variables_a_rule_has_its_own_defaults(name: str) -> None:
    assert of(name) == aggregate.rule(name)


@pytest.mark.parametrize(
    ("name", "given", "parameters"),
    [
        ("FedProx", {"FL_PROXIMAL_MU": "0.5"}, {"proximal_mu": 0.5}),
        ("FedAvgM", {"FL_SERVER_LR": "0.5"}, {"server_learning_rate": 0.5}),
        ("FedAdam", {"FL_SERVER_LR": "0.5", "FL_FEDADAM_TAU": "1e-3"}, {"eta": 0.5, "tau": 1e-3}),
        (
            "FedYogi",
            {"FL_SERVER_LR": "0.5", "FL_RUN_CONFIG": "beta-1=0.5"},
            {"eta": 0.5, "beta_1": 0.5},
        ),
        ("FedAdagrad", {"FL_SERVER_LR": "0.5"}, {"eta": 0.5}),
        ("FedTrimmedAvg", {"FL_TRIM_BETA": "0.1"}, {"beta": 0.1}),
        ("Krum", {"FL_NUM_MALICIOUS": "1", "FL_MIN_AVAILABLE_CLIENTS": "5"}, {"num_malicious": 1}),
        (
            "FaultTolerantFedAvg",
            {"FL_RUN_CONFIG": "min-completion-rate-fit=0.75"},
            {"min_completion_rate_fit": 0.75},
        ),
    ],
)
def test_variables_and_keys_reach_the_rule(
    name: str, given: dict[str, str], parameters: dict[str, Any]
) -> None:
    assert of(name, **given) == aggregate.rule(name, **parameters)


def test_parameters_of_other_rules_are_left_alone() -> None:
    run_config = {"strategy": "FedAvg", "beta-1": 7.0, "num-malicious": 3}
    assert strategy.rule(run_config) == aggregate.rule("FedAvg")


def test_every_key_is_one_that_a_submission_may_override() -> None:
    keys = {key for parameters in strategy.PARAMETERS.values() for key in parameters}
    assert keys - {"proximal-mu"} == strategy.DEFAULTS.keys()


def test_a_parameter_out_of_bounds_is_refused() -> None:
    with pytest.raises(aggregate.RuleError, match="beta"):
        strategy.rule({"strategy": "FedTrimmedAvg", "trim-beta": 0.5})
