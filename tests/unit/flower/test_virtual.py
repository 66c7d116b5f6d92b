"""A federation in one process: the same loop, unchanged apps, and what a thousand clients cost."""

from __future__ import annotations

import itertools
import tracemalloc
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import (
    ConfigRecord,
    Context,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp import ClientApp

from onefed import aggregate
from onefed.apps.image_classification import client_app as digits
from onefed.apps.image_classification import task
from onefed.arrays import Arrays, digest, nbytes
from onefed.checkpoint import RecoveryStore, Snapshot
from onefed.flower import clients, exchange, intake, loop, payload, virtual
from onefed.flower.app_functions import Score
from onefed.flower.virtual import VirtualGrid
from onefed.telemetry import events

MODEL: Arrays = {"w": np.linspace(-1, 1, 20, dtype=np.float32)}

MODELS_MAX = 8
"""Of memory in a round, the global one and those of the app that runs in the same process among
them."""

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    partition = int(context.node_config["partition-id"])
    walked = {
        name: (array.numpy() + partition).astype(np.float32)
        for name, array in message.content["arrays"].items()
    }
    metrics = MetricRecord({"num-examples": 1 + partition})
    content = RecordDict({"arrays": payload.to_record(walked), "metrics": metrics})
    return Message(content, reply_to=message)


class Run:
    """The real loop on a grid."""

    def __init__(self, folder: Path, grid: VirtualGrid, rule: str = "FedAvg", **plan: Any) -> None:
        self.events: list[events.Event] = []
        self.rule = aggregate.rule(rule)
        count = len(list(grid.get_nodes()))
        self.plan = loop.Plan(
            **{
                "run": "run-1",
                "rounds_total": 2,
                "seed": 5,
                "strategy": rule,
                "min_fit_clients": count,
                "min_evaluate_clients": 1,
                "min_available_clients": count,
                "round_timeout_s": 60.0,
                "app_sha256": "a" * 64,
                "config_sha256": "c" * 64,
                "versions": {},
                **plan,
            }
        )
        passed_s = itertools.count()
        self.world = loop.World(
            grid=grid,
            rule=self.rule,
            store=RecoveryStore(folder / "recovery"),
            exporter=None,
            spool=folder / "spool",
            evaluate=lambda _model: Score(0.0, 0.0, 1),
            emit=self.events.append,
            clock=lambda: next(passed_s) / 1000,
            now=lambda: datetime(2026, 1, 1, tzinfo=UTC),
            sleep=lambda _seconds: None,
            should_stop=lambda: False,
        )

    def run(self, model: Arrays = MODEL) -> Snapshot:
        return loop.run(self.plan, self.world, loop.first_snapshot(self.plan, self.rule, model))


def test_an_unchanged_app_gives_the_model_of_the_plain_algorithm(tmp_path: Path) -> None:
    last = Run(tmp_path, virtual.federation(app, 4)).run()

    shift = np.average([0, 1, 2, 3], weights=[1, 2, 3, 4])
    assert last.arrays["w"] == pytest.approx(MODEL["w"] + 2 * shift)


@pytest.mark.parametrize("rule", aggregate.RULES)
def test_every_rule_runs(tmp_path: Path, rule: str) -> None:
    run = Run(tmp_path, virtual.federation(app, 7), rule)

    assert run.run().round_number == 2
    assert [event for event in run.events if isinstance(event, events.ClientFailure)] == []


def test_the_built_in_app_learns(tmp_path: Path) -> None:
    grid = virtual.federation(digits.app, 3)

    last = Run(tmp_path, grid, rounds_total=4).run(task.initial_arrays({"seed": 5}))

    assert task.evaluate(last.arrays, {})["accuracy"] > 0.9


def test_an_app_that_raises_loses_its_round_and_no_other(tmp_path: Path) -> None:
    grid = virtual.federation(app, 3)
    grid.add("3", lambda _message: 1 / 0)  # type: ignore[arg-type, return-value]
    run = Run(tmp_path, grid, min_fit_clients=3)

    assert run.run().history[-1].contributors == ("0", "1", "2")
    [first, _] = [event for event in run.events if isinstance(event, events.ClientFailure)]
    assert (first.client, first.error_type) == ("3", "app_raised")
    assert "ZeroDivisionError" in (first.reason or "")


def test_what_an_app_does_to_its_message_reaches_no_other(tmp_path: Path) -> None:
    seen: list[set[str]] = []

    def vandal(message: Message) -> Message:
        seen.append(set(message.content["config"]))
        message.content["config"]["x"] = 1
        message.content["arrays"].clear()
        return Message(RecordDict(), reply_to=message)

    grid = VirtualGrid({"0": vandal, "1": vandal})
    record, config = payload.to_record(MODEL), ConfigRecord({"seed": 1})
    content = RecordDict({"arrays": record, "config": config})

    ids = grid.push_messages([Message(content, node, MessageType.TRAIN) for node in (2, 3)])

    assert len(list(grid.pull_messages(ids))) == 2
    assert seen == [{"seed"}, {"seed"}]
    assert list(record) == ["w"]


def test_what_an_app_keeps_in_its_context_lasts() -> None:
    counting = ClientApp()

    @counting.train()
    def count(message: Message, context: Context) -> Message:
        known = context.state.get("n", ConfigRecord({"n": 0}))
        context.state["n"] = ConfigRecord({"n": int(known["n"]) + 1})
        return Message(RecordDict({"config": context.state["n"]}), reply_to=message)

    grid = virtual.federation(counting, 1)

    def ask() -> int:
        message = Message(RecordDict(), virtual.FIRST_NODE_ID, MessageType.TRAIN)
        [reply] = grid.pull_messages(grid.push_messages([message]))
        return int(reply.content["config"]["n"])

    assert [ask(), ask(), ask()] == [1, 2, 3]


def test_nobody_takes_a_message_for_a_node_that_is_not_there() -> None:
    grid = VirtualGrid({"0": lambda _message: None})
    [node] = clients.connected(grid)
    grid.remove(node.node_id)

    assert list(grid.push_messages([Message(RecordDict(), node.node_id, "train")])) == [""]


class TestCost:
    """Laws, not seconds: what many clients may cost the coordinator."""

    @pytest.mark.parametrize("count", [10, 1000])
    def test_a_round_is_a_call_and_a_message_for_each_client(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
    ) -> None:
        grid = virtual.federation(app, count)
        looks = self._counting(grid, monkeypatch)

        Run(tmp_path, grid, rounds_total=1).run()

        assert grid.calls == sum(looks) == count
        assert len(looks) == 1  # small replies: one look brings them all

    def test_large_replies_are_looked_at_one_by_one(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(exchange, "LOOK_BYTES_MAX", 1)
        grid = virtual.federation(app, 50)
        looks = self._counting(grid, monkeypatch)

        Run(tmp_path, grid, rounds_total=1).run()

        assert looks == [1] * 50

    @pytest.mark.parametrize("backwards", [False, True], ids=["in-order", "backwards"])
    def test_the_mean_family_needs_the_same_few_models_however_many_clients_there_are(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backwards: bool
    ) -> None:
        """Also when each comes before its turn: then it waits on disk."""
        monkeypatch.setattr(intake, "HELD_BYTES_MAX", 0)
        monkeypatch.setattr(exchange, "LOOK_BYTES_MAX", 1)
        few, many = (
            self._peak_models(tmp_path / str(count), count, "FedAvg", backwards)
            for count in (4, 32)
        )

        assert many == pytest.approx(few, abs=0.5)
        assert many <= MODELS_MAX

    def test_the_robust_family_needs_the_whole_round(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(exchange, "LOOK_BYTES_MAX", 1)

        assert self._peak_models(tmp_path, 12, "Krum", backwards=False) >= 12

    def _counting(self, grid: VirtualGrid, monkeypatch: pytest.MonkeyPatch) -> list[int]:
        looks: list[int] = []
        pull = grid.pull_messages

        def counting(message_ids: Any) -> Any:
            looks.append(len(list(message_ids)))
            return pull(message_ids)

        monkeypatch.setattr(grid, "pull_messages", counting)
        return looks

    def _peak_models(self, folder: Path, count: int, rule: str, backwards: bool) -> float:
        """Most memory that the loop and one app at a time took, in sizes of the model."""
        grid = virtual.federation(app, count)
        if backwards:
            _reverse_looks(grid)
        run = Run(folder, grid, rule, rounds_total=1)
        model: Arrays = {"w": np.zeros(2**18, np.float32)}
        tracemalloc.start()
        try:
            last = run.run(model)
            peak_bytes = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert len(last.history[-1].contributors) == count
        return 1 + peak_bytes / nbytes(model)


def _reverse_looks(grid: VirtualGrid) -> None:
    """Whoever is first in order answers last."""
    pull = grid.pull_messages
    seen = 0

    def late(message_ids: Any) -> Any:
        nonlocal seen
        wanted = list(message_ids)
        if wanted == ["message-1"] and seen < 2:
            seen += 1
            return []
        return pull(wanted)

    grid.pull_messages = late  # type: ignore[method-assign]


def test_the_order_of_arrival_does_not_show(tmp_path: Path) -> None:
    straight, late = virtual.federation(app, 9), virtual.federation(app, 9)
    _reverse_looks(late)

    assert digest(Run(tmp_path / "a", straight).run().arrays) == digest(
        Run(tmp_path / "b", late).run().arrays
    )
