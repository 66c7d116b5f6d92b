"""How many clients a rule needs, what it has to say about them, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from onefed import aggregate
from onefed.aggregate import AggregationError, RuleError, Update, base
from onefed.errors import ExitCode

UpdatesOf = Callable[..., list[Update]]

NEEDS = [
    ("Krum", {"num_malicious": 1}, 5),
    ("Krum", {"num_malicious": 3}, 9),
    ("MultiKrum", {"num_malicious": 2}, 7),
    ("MultiKrum", {"num_malicious": 2, "num_to_keep": 1}, 7),
    ("MultiKrum", {"num_malicious": 2, "num_to_keep": 3}, 7),
    ("MultiKrum", {"num_malicious": 2, "num_to_keep": 5}, 9),
    ("Bulyan", {"num_malicious": 1}, 7),
    ("Bulyan", {"num_malicious": 2}, 11),
]


@pytest.mark.parametrize(("name", "parameters", "need"), NEEDS)
def test_a_rule_that_withstands_f_clients_needs_enough_others(
    name: str, parameters: dict[str, Any], need: int, updates_of: UpdatesOf
) -> None:
    rule = aggregate.rule(name, **parameters)
    assert rule.clients_min == need
    assert rule.updates_needed(1) == rule.updates_needed(need + 7) == need
    aggregate.require_clients(rule, need)
    with pytest.raises(RuleError) as refused:
        aggregate.require_clients(rule, need - 1)
    assert f"num_malicious={parameters['num_malicious']}" in refused.value.message
    assert f"at least {need} clients; there are {need - 1}." in refused.value.message
    assert refused.value.exit_code == ExitCode.CONFIG

    model = {"w": np.zeros(2, np.float32)}
    rows = [[float(index), 1.0] for index in range(need)]
    rule.step({}, model, updates_of(rows), 1)
    with pytest.raises(AggregationError, match=rf"{name}.* at least {need} updates") as failed:
        rule.step({}, model, updates_of(rows[1:]), 1)
    assert failed.value.exit_code == ExitCode.FAILED


@pytest.mark.parametrize("name", aggregate.RULES)
def test_by_default_one_client_will_do(name: str, updates_of: UpdatesOf) -> None:
    """But for the share that FaultTolerantFedAvg asks for, of which one client is all."""
    rule = aggregate.rule(name)
    assert rule.clients_min == rule.updates_needed(1) == rule.scores_needed(1) == 1
    aggregate.require_clients(rule, 1)
    model = {"w": np.zeros(2, np.float32)}
    rule.step(rule.init(model), model, updates_of([[1.0, 2.0]]), 1)


@pytest.mark.parametrize("name", sorted(aggregate.RULES.keys() - {"FaultTolerantFedAvg"}))
def test_a_score_needs_one_reply(name: str) -> None:
    assert [aggregate.rule(name).scores_needed(asked) for asked in (1, 2, 1000)] == [1, 1, 1]


@pytest.mark.parametrize("name", ["Krum", "MultiKrum", "Bulyan"])
def test_a_rule_against_nobody_says_so(name: str) -> None:
    (remark,) = aggregate.rule(name).remarks(20)
    assert remark.startswith(f"{name} with num_malicious = 0 withstands no hostile client")
    assert f"from {7 if name == 'Bulyan' else 5} clients on" in remark
    assert aggregate.rule(name, num_malicious=1).remarks(20) == ()


@pytest.mark.parametrize(
    "name", sorted(aggregate.RULES.keys() - {"Krum", "MultiKrum", "Bulyan", "FedTrimmedAvg"})
)
def test_the_others_have_nothing_to_say(name: str) -> None:
    assert [aggregate.rule(name).remarks(clients) for clients in (1, 4, 100)] == [(), (), ()]


@pytest.mark.parametrize("name", aggregate.RULES)
def test_a_state_of_another_rule_or_model_is_refused(name: str, updates_of: UpdatesOf) -> None:
    rule = aggregate.rule(name)
    model = {"w": np.zeros(2, np.float32)}
    updates = updates_of([[1.0, 2.0]])
    other = aggregate.rule("FedAdam").init({"w": np.zeros(3, np.float32)})
    for wrong in (other, {**rule.init(model), "x": np.zeros(1, np.float32)}):
        with pytest.raises(AggregationError, match=f"does not fit {name} and this model"):
            rule.step(wrong, model, updates, 1)
    for key in rule.init(model):
        lacking = {k: array for k, array in rule.init(model).items() if k != key}
        with pytest.raises(AggregationError, match=f"'{key}' is missing"):
            rule.step(lacking, model, updates, 1)


def test_a_client_cannot_count_twice(updates_of: UpdatesOf) -> None:
    (update,) = updates_of([[1.0]])
    with pytest.raises(AssertionError, match="once"):
        base.in_client_order([update, update])


def test_a_column_is_a_view_where_the_array_lies_well() -> None:
    plain = np.arange(6.0, dtype=np.float32).reshape(2, 3)
    assert np.shares_memory(base.flat(plain), plain)
    bytes_ = np.zeros(25, np.uint8)
    odd = bytes_[1:].view(np.float32).reshape(2, 3)
    assert not odd.flags.aligned
    odd[:] = plain
    for array in (np.asfortranarray(plain), odd, plain[::1, ::-1][:, ::-1]):
        column = base.flat(array)
        assert column.flags.aligned
        assert column.flags.c_contiguous
        assert column.tolist() == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
