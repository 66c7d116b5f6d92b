"""The registry, and the bounds of every parameter."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from onefed import aggregate
from onefed.aggregate import RuleError
from onefed.errors import ExitCode

NAMES = [
    *("FedAvg", "FedProx", "FedAvgM", "FedAdam", "FedAdagrad", "FedYogi", "FaultTolerantFedAvg"),
    *("FedMedian", "FedTrimmedAvg", "Krum", "MultiKrum", "Bulyan"),
]

BAD = [
    *(
        ("FedProx", "proximal_mu", bad)
        for bad in (-0.1, math.nan, math.inf, 10**400, "1", None, True)
    ),
    *(("FedAvgM", "server_learning_rate", bad) for bad in (0.0, -1.0, math.inf)),
    *(("FedAvgM", "server_momentum", bad) for bad in (-0.1, 1.0)),
    *(
        (name, parameter, bad)
        for name in ("FedAdam", "FedYogi")
        for parameter, bad in (
            ("eta", 0.0),
            ("tau", 0.0),
            ("tau", 2e6),
            ("beta_1", 1.0),
            ("beta_2", -0.1),
        )
    ),
    *(("FedAdam", "bias_correction", bad) for bad in (1, 0.0, "yes")),
    *(("FedAdagrad", name, bad) for name in ("eta", "tau") for bad in (0.0, -1.0, math.nan)),
    *(("FedTrimmedAvg", "beta", bad) for bad in (-0.1, 0.5, 1.0, math.nan)),
    *(
        (name, "num_malicious", bad)
        for name in ("Krum", "MultiKrum", "Bulyan")
        for bad in (-1, 1.0, True, "1")
    ),
    ("MultiKrum", "num_to_keep", -1),
    *(
        ("FaultTolerantFedAvg", name, bad)
        for name in ("min_completion_rate_fit", "min_completion_rate_evaluate")
        for bad in (-0.1, 1.1, math.nan)
    ),
]


def test_all_rules_are_there_by_the_names_of_the_field() -> None:
    assert list(aggregate.RULES) == NAMES
    for name, kind in aggregate.RULES.items():
        assert kind.name == kind.__name__ == name
        assert aggregate.rule(name) == kind()


@pytest.mark.parametrize("name", NAMES)
def test_a_rule_is_a_value(name: str) -> None:
    """Equal parameters are equal rules, its text can be pasted, and nothing can be changed."""
    rule = aggregate.rule(name)
    assert rule == eval(repr(rule), vars(aggregate))
    assert {field.name: field.default for field in dataclasses.fields(rule)} == (  # type: ignore[arg-type]
        aggregate.parameters_of(name)
    )
    for parameter in aggregate.parameters_of(name):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(rule, parameter, 0)


@pytest.mark.parametrize(("name", "parameter", "bad"), BAD)
def test_a_value_out_of_bounds_is_refused_both_ways(name: str, parameter: str, bad: Any) -> None:
    wanted = rf"The parameter {parameter} of {name} is .*; it must be "
    with pytest.raises(RuleError, match=wanted) as caught:
        aggregate.rule(name, **{parameter: bad})
    assert caught.value.exit_code == ExitCode.CONFIG
    with pytest.raises(RuleError, match=wanted):
        aggregate.RULES[name](**{parameter: bad})


def test_the_bounds_are_said() -> None:
    with pytest.raises(RuleError, match=r"finite number at least 0 and below 0\.5\.") as caught:
        aggregate.rule("FedTrimmedAvg", beta=0.5)
    assert caught.value.hint == "Its parameters are: beta (0.2)."


@pytest.mark.parametrize("value", [0, 0.25, 2])
def test_a_whole_number_is_a_fine_float(value: float) -> None:
    assert aggregate.FedProx(proximal_mu=value).proximal_mu == value


def test_everything_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(RuleError) as caught:
        aggregate.rule("FedAdam", eta=-1.0, beta_2=1.5, momentum=0.9, lr=0.1, tau=1e-3)
    assert str(caught.value).splitlines() == [
        "The aggregation rule FedAdam has no parameter 'lr'.",
        "The aggregation rule FedAdam has no parameter 'momentum'.",
        "The parameter eta of FedAdam is -1.0; it must be a finite number above 0.",
        "The parameter beta_2 of FedAdam is 1.5; "
        "it must be a finite number at least 0 and below 1.",
        "Its parameters are: eta (0.1), beta_1 (0.9), beta_2 (0.99), tau (1e-09), "
        "bias_correction (False).",
    ]


def test_unknown_rule_is_answered_with_the_known_ones() -> None:
    for ask in (aggregate.rule, aggregate.parameters_of):
        with pytest.raises(RuleError, match="no aggregation rule 'FedAvgg'") as caught:
            ask("FedAvgg")
        assert all(name in str(caught.value.hint) for name in NAMES)


def test_unknown_parameter_is_named() -> None:
    with pytest.raises(RuleError, match="FedAvg has no parameter 'beta'") as caught:
        aggregate.rule("FedAvg", beta=0.2)
    assert caught.value.hint == "Its parameters are: none."
