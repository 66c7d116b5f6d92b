"""Which share of the asked clients makes a round, or a score."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onefed.aggregate import FaultTolerantFedAvg, FedAvg, FedProx, Update

RATES = st.floats(0, 1)


@given(RATES, RATES, st.integers(1, 2000))
def test_the_fewest_that_reach_the_rate_are_needed(fit: float, evaluate: float, asked: int) -> None:
    rule = FaultTolerantFedAvg(fit, evaluate)
    for rate, needed in ((fit, rule.updates_needed(asked)), (evaluate, rule.scores_needed(asked))):
        assert 1 <= needed <= asked
        assert needed / asked >= rate
        assert needed == 1 or (needed - 1) / asked < rate


@pytest.mark.parametrize(
    ("rate", "asked", "needed"),
    [(0.07, 100, 7), (0.5, 3, 2), (0.5, 4, 2), (0.0, 9, 1), (1.0, 9, 9), (0.29, 100, 29)],
)
def test_a_share_that_is_meant_as_a_whole_number_is_one(
    rate: float, asked: int, needed: int
) -> None:
    """0.07 * 100 is 7.000000000000001, whose ceiling would ask for an eighth client."""
    rule = FaultTolerantFedAvg(rate, rate)
    assert rule.updates_needed(asked) == rule.scores_needed(asked) == needed


def test_nobody_asked_is_nobody_enough() -> None:
    assert FaultTolerantFedAvg().updates_needed(0) == 1


def test_training_and_evaluation_have_rates_of_their_own() -> None:
    rule = FaultTolerantFedAvg(min_completion_rate_fit=0.9, min_completion_rate_evaluate=0.1)
    assert (rule.updates_needed(10), rule.scores_needed(10)) == (9, 1)


@pytest.mark.parametrize("rule", [FaultTolerantFedAvg(), FedProx(0.1)], ids=lambda r: r.name)
def test_the_mean_is_that_of_fedavg_to_the_bit(
    rule: FaultTolerantFedAvg | FedProx, updates_of: Callable[..., list[Update]]
) -> None:
    rng = np.random.default_rng(3)
    model = {"w": np.zeros(50, np.float32)}
    updates = updates_of(rng.standard_normal((7, 50)), weights=[5, 1, 9, 2, 40, 3, 8])
    plain, other = (each.step({}, model, updates, 4) for each in (FedAvg(), rule))
    assert plain[1]["w"].tobytes() == other[1]["w"].tobytes()
