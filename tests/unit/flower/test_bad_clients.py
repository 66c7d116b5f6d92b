"""Goal R11 on every kind of malformed reply, and that each attack is one.

The campaign (``python -m campaigns.bad_clients``) adds accuracies, and stock Flower beside ours.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[3]))  # campaigns lie beside src

from campaigns import attacks, bad_clients, malformed

KNOWS = attacks.Knowledge(
    start={"w": np.zeros(400, np.float32)},
    own={"w": np.full(400, 1.5, np.float32)},
    honest=[
        {"w": np.random.default_rng(seed).normal(1.0, 0.1, 400).astype(np.float32)}
        for seed in range(9)
    ],
    clients=11,
    partition=9,
    round_number=1,
    seed=5,
)


def test_there_are_twenty_kinds_and_more() -> None:
    assert len({kind.name for kind in malformed.KINDS}) >= 20


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
@pytest.mark.parametrize("kind", malformed.KINDS, ids=lambda kind: kind.name)
def test_a_malformed_reply_costs_its_client_and_nobody_else(
    kind: malformed.Kind, packed: bool
) -> None:
    ours, expected = bad_clients.under_ours(kind, packed=packed)

    assert bad_clients.complaints(kind, ours, expected) == []
    assert all(failure.reason for failure in ours.failures)


class TestAttacks:
    def test_sign_flip_goes_back_ten_times(self) -> None:
        assert attacks.sign_flip(KNOWS)["w"] == pytest.approx(-15.0)

    def test_a_little_is_enough_stays_inside_of_the_spread(self) -> None:
        honest = np.stack([model["w"] for model in KNOWS.honest])
        sent = attacks.a_little_is_enough(KNOWS)["w"]

        assert np.all(sent < honest.mean(axis=0))
        assert np.mean((sent >= honest.min(axis=0)) & (sent <= honest.max(axis=0))) > 0.3

    def test_inner_product_points_against_the_honest_step(self) -> None:
        assert attacks.inner_product(KNOWS)["w"].mean() == pytest.approx(-attacks.INNER, rel=0.1)

    def test_mimic_is_an_honest_update(self) -> None:
        assert np.array_equal(attacks.mimic(KNOWS)["w"], KNOWS.honest[0]["w"])

    def test_gaussian_and_same_value_have_nothing_of_the_model(self) -> None:
        assert attacks.gaussian(KNOWS)["w"].std() == pytest.approx(attacks.NOISE, rel=0.2)
        assert set(attacks.same_value(KNOWS)["w"]) == {1.0}

    @pytest.mark.parametrize("attack", attacks.ATTACKS)
    def test_every_attack_passes_the_check_and_is_left_to_the_rule(self, attack: str) -> None:
        assert bad_clients.attack_run("FedMedian", attack, stock=False, rounds=1) > 60

    def test_an_attack_that_a_mean_falls_to_leaves_a_robust_rule_alone(self) -> None:
        fallen, stands = (
            bad_clients.attack_run(rule, "sign flip x10", stock=False, rounds=2)
            for rule in ("FedAvg", "Krum")
        )

        assert fallen < 50
        assert stands > 80
