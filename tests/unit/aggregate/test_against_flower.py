"""The rules beside Flower 1.41's own classes: equal where those are right, pinned where not.

Flower's strategies are asked as its server asks them: ``configure_train`` with the global model,
replies to the messages that it made, ``aggregate_train``.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.common import Code, FitRes, Status, ndarrays_to_parameters, parameters_to_ndarrays
from flwr.server.strategy import FaultTolerantFedAvg as LegacyFaultTolerantFedAvg
from flwr.serverapp import strategy as flower
from flwr.serverapp.exception import InconsistentMessageReplies
from flwr.supercore.task_identity import TaskIdentity

from onefed import aggregate
from onefed.aggregate import Update, distances
from onefed.arrays import Arrays

SHAPES = {"conv": (3, 4), "bias": (5,), "scale": ()}


@pytest.fixture(autouse=True)
def identity(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower stamps every message with the task of its process."""
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


def model_of(rng: np.random.Generator, dtype: Any = np.float32) -> Arrays:
    return {key: np.array(rng.standard_normal(shape), dtype) for key, shape in SHAPES.items()}


def updates_near(
    model: Arrays, rng: np.random.Generator, count: int, size: float = 0.5
) -> list[Update]:
    return [
        Update(
            str(client),
            int(rng.integers(1, 1000)),
            {
                k: np.array(a + size * rng.standard_normal(a.shape), a.dtype)
                for k, a in model.items()
            },
        )
        for client in range(count)
    ]


def record(model: Arrays) -> ArrayRecord:
    return ArrayRecord({key: Array(np.asarray(array)) for key, array in model.items()})


def ask(strategy: Any, model: Arrays, updates: Sequence[Update], number: int = 1) -> Any:
    """What Flower's strategy makes of the updates, in that order of arrival; None: it skips."""
    grid: Any = SimpleNamespace(get_node_ids=lambda: range(2, 2 + len(updates)))
    messages = list(strategy.configure_train(number, record(model), ConfigRecord(), grid))
    replies = [
        Message(
            RecordDict(
                {
                    "arrays": record(update.arrays),
                    "metrics": MetricRecord({"num-examples": update.weight}),
                }
            ),
            reply_to=message,
        )
        for message, update in zip(messages, updates, strict=True)
    ]
    arrays, _ = strategy.aggregate_train(number, replies)
    return None if arrays is None else {key: array.numpy() for key, array in arrays.items()}


def ours(rule: aggregate.Rule, model: Arrays, updates: Sequence[Update]) -> Arrays:
    return rule.step(rule.init(model), model, updates, 1)[1]


def assert_close(one: Arrays, other: Arrays) -> None:
    assert one.keys() == other.keys()
    for key, array in one.items():
        np.testing.assert_allclose(array, other[key], rtol=2e-5, atol=2e-6)


SAME = [
    (aggregate.FedAvg(), lambda: flower.FedAvg()),
    (aggregate.FedProx(0.3), lambda: flower.FedProx(proximal_mu=0.3)),
    (aggregate.FedMedian(), lambda: flower.FedMedian()),
    (aggregate.FedTrimmedAvg(0.3), lambda: flower.FedTrimmedAvg(beta=0.3)),
    (aggregate.Krum(2), lambda: flower.Krum(num_malicious_nodes=2)),
    (
        aggregate.MultiKrum(2, num_to_keep=1),
        lambda: flower.MultiKrum(num_malicious_nodes=2, num_nodes_to_select=1),
    ),
]


@pytest.mark.parametrize(("rule", "strategy"), SAME, ids=lambda value: getattr(value, "name", ""))
@pytest.mark.parametrize("seed", range(3))
def test_equal_where_flower_is_right(rule: aggregate.Rule, strategy: Any, seed: int) -> None:
    rng = np.random.default_rng(seed)
    model = model_of(rng)
    updates = updates_near(model, rng, 8 + seed)
    assert_close(ask(strategy(), model, updates), ours(rule, model, updates))


def test_bulyan_agrees_where_one_pass_chooses_as_the_repetition_does() -> None:
    """Two far ones that neither chooses, on different sides; the other nine are all there is."""
    rng = np.random.default_rng(2)
    model = model_of(rng)
    updates = updates_near(model, rng, 11, size=1e-2)
    for client, value in ((3, 50.0), (8, -90.0)):
        far = {key: np.full_like(array, value) for key, array in model.items()}
        updates[client] = Update(str(client), 1, far)
    rule = aggregate.Bulyan(1)
    assert 3 not in rule.choose(model, updates)
    assert 8 not in rule.choose(model, updates)
    assert_close(
        ask(flower.Bulyan(num_malicious_nodes=1), model, updates), ours(rule, model, updates)
    )


OPTIMIZERS = [
    (aggregate.FedYogi(eta=0.03, tau=1e-2), lambda: flower.FedYogi(eta=0.03, tau=1e-2), 0),
    (aggregate.FedAdagrad(tau=1e-2), lambda: flower.FedAdagrad(tau=1e-2), 0),
    (aggregate.FedAdam(tau=1e-2, bias_correction=True), lambda: flower.FedAdam(tau=1e-2), 1),
    (
        aggregate.FedAvgM(0.7, 0.9),
        lambda: flower.FedAvgM(server_learning_rate=0.7, server_momentum=0.9),
        0,
    ),
]


@pytest.mark.parametrize(
    ("rule", "strategy", "ahead"), OPTIMIZERS, ids=lambda value: getattr(value, "name", "")
)
def test_server_optimizers_agree_but_for_where_v_begins_and_the_round_of_the_correction(
    rule: aggregate.Rule, strategy: Any, ahead: int
) -> None:
    """Flower begins with v = 0, the paper with tau^2; FedAdam corrects round t as if it were t + 1.

    With both taken away the numbers agree, round after round.
    """
    rng = np.random.default_rng(31)
    start = model_of(rng)
    peer, theirs, mine = strategy(), start, start
    state = {key: np.zeros_like(array) for key, array in rule.init(start).items()}
    for number in range(1, 6):
        updates = updates_near(start, rng, 5)
        theirs = ask(peer, theirs, updates, number)
        state, mine = rule.step(state, mine, updates, number + ahead)
        assert_close(theirs, mine)


def test_fedadam_as_the_paper_has_it_moves_further_at_first_than_flower_lets_it() -> None:
    """Round 1 from 0 to a mean of 1: the paper moves by eta * 0.1 / 0.1, Flower by less."""
    model = {"w": np.zeros(1, np.float32)}
    updates = [Update(str(n), 1, {"w": np.ones(1, np.float32)}) for n in range(2)]
    paper = ours(aggregate.FedAdam(eta=0.1, tau=1e-9), model, updates)["w"].item()
    theirs = ask(flower.FedAdam(eta=0.1, tau=1e-9), model, updates)["w"].item()
    assert paper == pytest.approx(0.1)
    assert theirs == pytest.approx(0.1 * np.sqrt(1 - 0.99**2) / (1 - 0.9**2))
    corrected = aggregate.FedAdam(eta=0.1, tau=1e-9, bias_correction=True)
    assert ours(corrected, model, updates)["w"].item() == pytest.approx(
        0.1 * np.sqrt(1 - 0.99) / (1 - 0.9), rel=1e-5
    )


def test_flowers_momentum_is_off_by_default() -> None:
    rng = np.random.default_rng(1)
    model = model_of(rng)
    updates = updates_near(model, rng, 4)
    assert_close(ask(flower.FedAvgM(), model, updates), ours(aggregate.FedAvg(), model, updates))
    assert aggregate.FedAvgM().server_momentum == 0.9


def test_fault_tolerant_fedavg_counts_as_the_legacy_class_does() -> None:
    """Up to the results that its weighted mean of lists gives in float64 weights."""
    rng = np.random.default_rng(5)
    model = model_of(rng)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        legacy = LegacyFaultTolerantFedAvg(min_completion_rate_fit=0.3)
    rule = aggregate.FaultTolerantFedAvg(min_completion_rate_fit=0.3)
    for asked in (1, 3, 7, 10):
        for count in range(1, asked + 1):
            updates = updates_near(model, rng, count)
            results: Any = [
                (
                    None,
                    FitRes(
                        Status(Code.OK, ""),
                        ndarrays_to_parameters(list(update.arrays.values())),
                        update.weight,
                        {},
                    ),
                )
                for update in updates
            ]
            failures: Any = [RuntimeError()] * (asked - count)
            parameters, _ = legacy.aggregate_fit(2, results, failures)
            assert (parameters is not None) == (count >= rule.updates_needed(asked))
            if parameters is not None:
                theirs = dict(zip(model, parameters_to_ndarrays(parameters), strict=True))
                assert_close(theirs, ours(rule, model, updates))


def test_flowers_krum_picks_the_wrong_client_when_updates_are_small_against_weights() -> None:
    """Its distances are not centred, and in float32: rounding decides. Ours finds the innermost."""
    wrong = 0
    for seed in range(10):
        rng = np.random.default_rng(seed)
        model = {"w": (10 * rng.standard_normal(20_000)).astype(np.float32)}
        updates = updates_near(model, rng, 7, size=1e-3)
        inner = model["w"] + np.float32(1e-4) * rng.standard_normal(20_000).astype(np.float32)
        updates[seed % 7] = Update(str(seed % 7), 1, {"w": inner})
        assert ours(aggregate.Krum(2), model, updates)["w"].tobytes() == inner.tobytes()
        theirs = ask(flower.Krum(num_malicious_nodes=2), model, updates)["w"]
        wrong += theirs.tobytes() != inner.tobytes()
    assert wrong


def test_flowers_krum_checks_no_bound_on_the_clients() -> None:
    rng = np.random.default_rng(3)
    model = model_of(rng)
    updates = updates_near(model, rng, 3)
    assert ask(flower.Krum(num_malicious_nodes=2), model, updates) is not None
    with pytest.raises(aggregate.AggregationError, match="at least 7 updates"):
        ours(aggregate.Krum(2), model, updates)


def test_flowers_multikrum_weighs_the_chosen_by_what_they_claim() -> None:
    rows = [0.0, 1.0, 2.0, 3.0, 1000.0]
    model = {"w": np.zeros(1, np.float32)}
    updates = [
        Update(str(n), 10**8 if n == 0 else 1, {"w": np.array([row], np.float32)})
        for n, row in enumerate(rows)
    ]
    peer = flower.MultiKrum(num_malicious_nodes=0, num_nodes_to_select=4)
    assert ask(peer, model, updates)["w"].item() == pytest.approx(0.0, abs=1e-6)
    rule = aggregate.MultiKrum(num_malicious=0, num_to_keep=4)
    assert ours(rule, model, updates)["w"].item() == 1.5


def test_flowers_bulyan_skips_a_round_below_its_bound() -> None:
    """Its caller keeps the model and burns the round; ours raises, before it can come to that."""
    rng = np.random.default_rng(4)
    model = model_of(rng)
    updates = updates_near(model, rng, 6)
    assert ask(flower.Bulyan(num_malicious_nodes=1), model, updates) is None
    with pytest.raises(aggregate.AggregationError, match="at least 7 updates"):
        ours(aggregate.Bulyan(1), model, updates)
    assert aggregate.Bulyan(1).updates_needed(6) == 7


def test_flowers_bulyan_chooses_by_one_pass() -> None:
    """The paper repeats Krum among those left, which here takes client 5 instead of client 6."""
    rows = [[4.0, 5.0], [7.0, 9.0], [0.0, 1.0], [8.0, 9.0], [2.0, 3.0], [8.0, 4.0], [2.0, 8.0]]
    model = {"w": np.zeros(2, np.float32)}
    updates = [Update(str(n), 1, {"w": np.array(row, np.float32)}) for n, row in enumerate(rows)]
    rule = aggregate.Bulyan(1)
    candidates = distances.Candidates(distances.squared_distances(updates, model), 1)
    one_pass = [rows[index] for index in candidates.best(5)]
    repeated = [rows[index] for index in rule.choose(model, updates)]
    assert one_pass != repeated

    def middle(chosen: list[list[float]]) -> list[float]:
        """The mean of the three nearest to the median, by coordinate; no ties in these rows."""
        table = np.sort(np.array(chosen), axis=0)
        nearest = np.argsort(np.abs(table - np.median(table, axis=0)), axis=0)[:3]
        return np.take_along_axis(table, nearest, axis=0).mean(axis=0).tolist()

    theirs = ask(flower.Bulyan(num_malicious_nodes=1), model, updates)["w"]
    np.testing.assert_allclose(theirs, middle(one_pass), rtol=1e-6)
    np.testing.assert_allclose(ours(rule, model, updates)["w"], middle(repeated), rtol=1e-6)
    assert middle(one_pass) != middle(repeated)


def test_flowers_trimmed_mean_of_four_drops_nothing_and_says_nothing() -> None:
    rng = np.random.default_rng(6)
    model = model_of(rng)
    updates = updates_near(model, rng, 4)
    theirs = ask(flower.FedTrimmedAvg(beta=0.2), model, updates)
    assert_close(theirs, {k: np.mean([u.arrays[k] for u in updates], axis=0) for k in model})
    rule = aggregate.FedTrimmedAvg(0.2)
    assert_close(theirs, ours(rule, model, updates))
    assert "plain mean of 4 clients" in rule.remarks(4)[0]


def test_flowers_trimmed_mean_drops_28_of_100_for_a_beta_of_29_percent() -> None:
    model = {"w": np.zeros(1, np.float32)}
    rows = [*([-1e6] * 29), *([1.0] * 71)]
    updates = [Update(str(n), 1, {"w": np.array([row], "f4")}) for n, row in enumerate(rows)]
    assert ask(flower.FedTrimmedAvg(beta=0.29), model, updates)["w"].item() < -1e4
    assert ours(aggregate.FedTrimmedAvg(0.29), model, updates)["w"].item() == 1.0


def test_flowers_mean_shows_the_order_of_arrival() -> None:
    rng = np.random.default_rng(8)
    model = {"w": rng.standard_normal(2000).astype(np.float32)}
    updates = updates_near(model, rng, 8)
    shuffled = random.Random(8).sample(updates, 8)
    theirs = [ask(flower.FedAvg(), model, each)["w"].tobytes() for each in (updates, shuffled)]
    mine = [ours(aggregate.FedAvg(), model, e)["w"].tobytes() for e in (updates, shuffled)]
    assert theirs[0] != theirs[1]
    assert mine[0] == mine[1]


def test_one_malformed_reply_ends_flowers_round_and_costs_ours_one_client() -> None:
    rng = np.random.default_rng(9)
    model = model_of(rng)
    good = updates_near(model, rng, 3)
    bad = Update("3", 5, {"other": np.zeros(1, np.float32)})
    with pytest.raises(InconsistentMessageReplies):
        ask(flower.FedAvg(), model, [*good, bad])
    checked = aggregate.check([*good, bad], model)
    assert [rejected.client for rejected in checked.rejected] == ["3"]
    assert checked.accepted == tuple(good)


def test_one_nan_poisons_flowers_mean_and_costs_ours_one_client() -> None:
    rng = np.random.default_rng(10)
    model = model_of(rng)
    updates = updates_near(model, rng, 3)
    updates[1].arrays["bias"][2] = np.nan
    assert np.isnan(ask(flower.FedAvg(), model, updates)["bias"][2])
    assert [r.client for r in aggregate.check(updates, model).rejected] == ["1"]
