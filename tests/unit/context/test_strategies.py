"""The strategies of the table are those of the engine: the same names, the same needs."""

from __future__ import annotations

import pytest

from onefed import aggregate
from onefed.context import STRATEGIES, VARIABLES


def test_every_rule_can_be_chosen() -> None:
    assert list(STRATEGIES) == list(aggregate.RULES)


@pytest.mark.parametrize("hostile", [1, 2, 5])
@pytest.mark.parametrize(
    "name", [name for name, strategy in STRATEGIES.items() if strategy.nodes_per_hostile]
)
def test_nodes_needed_are_those_of_the_rule(name: str, hostile: int) -> None:
    rule = aggregate.rule(name, num_malicious=hostile)
    assert STRATEGIES[name].nodes_needed(hostile) == rule.clients_min


@pytest.mark.parametrize("name", STRATEGIES)
def test_parameters_are_variables_of_the_run_config(name: str) -> None:
    strategy = STRATEGIES[name]
    for variable in strategy.reads + strategy.reads_if_set:
        assert VARIABLES[variable].run_config_key
