"""The rounds, on virtual clients in virtual time, with the real recovery store on a real disk."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Context, Message, MessageType, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from onefed import aggregate, failpoints
from onefed.apps.image_classification import client_app as digits
from onefed.apps.image_classification import task
from onefed.arrays import Arrays, digest
from onefed.checkpoint import Exporter, RecoveryStore, Snapshot, files
from onefed.errors import StorageError
from onefed.flower import loop, payload
from onefed.flower.app_functions import Score
from onefed.telemetry import events

ROUNDS = 4
RUN = "run-1"
START: Arrays = {"w": np.linspace(-1, 1, 5, dtype=np.float32), "b": np.zeros((), np.float32)}

LOOP_POINTS = [point for point, text in failpoints.POINTS.items() if text.startswith("loop: ")]

app = ClientApp()
"""A reproducible walk: every number depends on seed, round and partition, and on the model."""


@app.train()
def train(message: Message, context: Context) -> Message:
    config = message.content["config"]
    partition = int(context.node_config["partition-id"])
    generator = np.random.default_rng([config["seed"], config["server-round"], partition])
    walked = {
        name: np.asarray(array.numpy() * 0.7 + generator.normal(size=array.shape), np.float32)
        for name, array in message.content["arrays"].items()
    }
    content = RecordDict(
        {
            "arrays": payload.to_record(walked),
            "metrics": MetricRecord({"num-examples": 10 + partition}),
        }
    )
    return Message(content, reply_to=message)


@app.evaluate()
def evaluate(message: Message, _context: Context) -> Message:
    model = payload.to_arrays(message.content["arrays"])
    metrics = MetricRecord({"num-examples": 2, "loss": distance(model), "accuracy": 0.5})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)


def distance(model: Arrays) -> float:
    return float(sum(np.abs(array, dtype=np.float64).sum() for array in model.values()))


MEMORY = aggregate.rule("FedAdam", bias_correction=True, eta=0.02)
"""A rule with a memory that also depends on the number of the round."""


class Killed(BaseException):
    """The process is gone: no handler of ours runs after it."""


class FullDisk(files.System):
    """Refuses the next files."""

    def __init__(self) -> None:
        self.refusals_left = 0

    def create(self, name: str, mode: int, folder: int) -> int:
        if self.refusals_left:
            self.refusals_left -= 1
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().create(name, mode, folder)


class Federation:
    """A coordinator and its clients, from one start of the ServerApp to its end."""

    def __init__(self, hub: SimpleNamespace, folder: Path, **plan: Any) -> None:
        self.events: list[events.Event] = []
        self.on_event: Callable[[events.Event], None] = lambda _event: None
        self.clock = hub.VirtualClock()
        self.grid = hub.VirtualGrid(self.clock)
        self.disk = FullDisk()
        self.folder = folder
        self.store = RecoveryStore(folder / "recovery", system=self.disk)
        self.rule: aggregate.Rule = MEMORY
        self.exporter: Exporter | None = None
        self.evaluate: Callable[[Arrays], Score] | None = lambda model: Score(
            distance(model), 0.5, 7
        )
        self.stopping = False
        self.reach: failpoints.Reach = failpoints.nothing
        self.start = START
        self.plan = loop.Plan(
            **{
                "run": RUN,
                "rounds_total": ROUNDS,
                "seed": 5,
                "strategy": MEMORY.name,
                "min_fit_clients": 2,
                "min_evaluate_clients": 2,
                "min_available_clients": 2,
                "round_timeout_s": 60.0,
                "app_sha256": "a" * 64,
                "config_sha256": "c" * 64,
                "versions": {},
                **plan,
            }
        )
        self._hub = hub

    def join(self, *partitions: int, client_app: ClientApp = app, delay_s: float = 0.0) -> None:
        """Connect clients that run an app and answer after ``delay_s``."""
        for partition in partitions:
            self.add(str(partition), self.node(partition, client_app), delay_s)

    def node(self, partition: int, client_app: ClientApp = app) -> Callable[[Message], Message]:
        node: Callable[[Message], Message] = self._hub.running(
            client_app, partition=partition, partitions=3
        )
        return node

    def add(self, key: str, behaviour: Callable[[Message], Any], delay_s: float = 0.0) -> int:
        def late(message: Message) -> Any:
            came = behaviour(message)
            return [(delay_s, came)] if isinstance(came, Message) else came

        node_id: int = self.grid.add(key, late)
        return node_id

    def run(self) -> Snapshot:
        """Go on from what the store holds, or begin."""
        loaded = self.store.load(self.plan.run)
        first = loop.first_snapshot(self.plan, self.rule, self.start)
        world = loop.World(
            grid=self.grid,
            rule=self.rule,
            store=self.store,
            exporter=self.exporter,
            spool=self.folder / "spool",
            evaluate=self.evaluate,
            emit=self._emit,
            clock=self.clock,
            now=lambda: datetime(2026, 1, 1, tzinfo=UTC),
            sleep=self.clock.sleep,
            should_stop=lambda: self.stopping,
            reach=self.reach,
        )
        return loop.run(self.plan, world, first if loaded is None else loaded.snapshot)

    def _emit(self, event: events.Event) -> None:
        self.events.append(event)
        self.on_event(event)

    def saved(self) -> Snapshot:
        """What somebody finds who starts now."""
        loaded = RecoveryStore(self.folder / "recovery").load(self.plan.run)
        assert loaded is not None
        return loaded.snapshot

    def told(self, kind: type[events.Event]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    def asked(self, kind: str = MessageType.TRAIN) -> list[tuple[int, str]]:
        """The round in each message of a kind, and the client that it went to."""
        keys = {node.node_id: node.name.partition(":")[2] for node in self.grid.get_nodes()}
        return [
            (message.content["config"]["server-round"], keys[message.metadata.dst_node_id])
            for message in self.grid.sent
            if message.metadata.message_type == kind
        ]


Start = Callable[..., Federation]


@pytest.fixture
def start(hub: SimpleNamespace, tmp_path: Path) -> Start:
    """Starts a federation; with the same folder name it finds what the one before left there."""

    def make(folder: str = "federation", **plan: Any) -> Federation:
        return Federation(hub, tmp_path / folder, **plan)

    return make


@pytest.fixture
def undisturbed(start: Start) -> str:
    """Digest of the model of three clients after all rounds."""
    federation = start("undisturbed")
    federation.join(0, 1, 2)
    return digest(federation.run().arrays)


class TestRounds:
    def test_every_client_is_asked_once_a_round_with_its_true_number(self, start: Start) -> None:
        federation = start()
        federation.join(0, 1, 2)

        last = federation.run()

        assert federation.asked() == [(n, key) for n in range(1, ROUNDS + 1) for key in "012"]
        assert last.round_number == ROUNDS
        assert [record.round_number for record in last.history] == [1, 2, 3, 4]
        assert {record.contributors for record in last.history} == {("0", "1", "2")}
        assert last.history[-1].model_sha256 == digest(last.arrays)
        assert digest(federation.saved().arrays) == digest(last.arrays)
        assert [event.round for event in federation.told(events.RoundEnd)] == [1, 2, 3, 4]

    def test_the_model_is_the_one_that_the_plain_algorithm_gives(
        self, start: Start, undisturbed: str
    ) -> None:
        federation = start()
        nodes = {str(partition): federation.node(partition) for partition in (2, 0, 1)}
        rule, model = MEMORY, START
        state = rule.init(model)
        for number in range(1, ROUNDS + 1):
            updates = []
            for key, node in nodes.items():
                record = payload.to_record(model)
                reply = node(payload.train_message(7, record, round_number=number, seed=5))
                trained = payload.to_arrays(reply.content["arrays"])
                updates.append(aggregate.Update(key, 10 + int(key), trained))
            state, model = rule.step(state, model, updates, number)

        assert digest(model) == undisturbed

    def test_seed_and_round_travel_in_every_message(self, start: Start) -> None:
        federation = start(seed=2**63 - 1)
        federation.join(0, 1)

        federation.run()

        assert {message.content["config"]["seed"] for message in federation.grid.sent} == {
            2**63 - 1
        }

    def test_what_fedprox_tells_the_clients_is_in_every_message(self, start: Start) -> None:
        """By the name of Flower's own strategy: an app that was written for it applies the term."""
        federation = start(strategy="FedProx")
        federation.rule = aggregate.rule("FedProx", proximal_mu=0.25)
        federation.join(0, 1)

        federation.run()

        assert {message.content["config"]["proximal-mu"] for message in federation.grid.sent} == {
            0.25
        }

    def test_fedprox_keeps_the_clients_of_the_built_in_app_near_the_global_model(
        self, start: Start
    ) -> None:
        moved = {}
        for mu in (0.0, 10.0):
            federation = start(f"mu-{mu}", rounds_total=1, strategy="FedProx")
            federation.rule = aggregate.rule("FedProx", proximal_mu=mu)
            federation.start = task.initial_arrays({"seed": 5})
            federation.join(0, 1, 2, client_app=digits.app)
            last = federation.run()
            moved[mu] = sum(
                float(np.square(last.arrays[key] - federation.start[key]).sum())
                for key in last.arrays
            )

        assert moved[10.0] < moved[0.0] / 4

    @settings(deadline=None, max_examples=25, suppress_health_check=list(HealthCheck))
    @given(
        delays=st.lists(st.floats(0, 50), min_size=3, max_size=3), order=st.permutations(range(3))
    )
    def test_the_order_of_arrival_does_not_show_in_the_model(
        self,
        hub: SimpleNamespace,
        tmp_path_factory: pytest.TempPathFactory,
        undisturbed: str,
        delays: tuple[float, float, float],
        order: list[int],
    ) -> None:
        federation = Federation(hub, tmp_path_factory.mktemp("federation"))
        for partition in order:
            federation.join(partition, delay_s=delays[partition])

        assert digest(federation.run().arrays) == undisturbed

    def test_another_seed_gives_another_model(self, start: Start, undisturbed: str) -> None:
        federation = start(seed=6)
        federation.join(0, 1, 2)

        assert digest(federation.run().arrays) != undisturbed

    def test_a_client_that_joins_later_takes_part_from_the_next_round_on(
        self, start: Start
    ) -> None:
        federation = start()
        federation.join(0, 1)

        def join_after_round_2(event: events.Event) -> None:
            if isinstance(event, events.RoundEnd) and event.round == 2:
                federation.join(2)

        federation.on_event = join_after_round_2

        contributors = [record.contributors for record in federation.run().history]

        assert contributors == [("0", "1")] * 2 + [("0", "1", "2")] * 2

    def test_a_run_that_is_complete_trains_nothing(self, start: Start, undisturbed: str) -> None:
        again = start("undisturbed")

        assert digest(again.run().arrays) == undisturbed
        assert again.events == []

    def test_more_rounds_go_on_where_the_run_ended(self, start: Start) -> None:
        first = start(rounds_total=2)
        first.join(0, 1, 2)
        first.run()
        second = start(rounds_total=3)
        second.join(0, 1, 2)

        last = second.run()

        assert {number for number, _ in second.asked()} == {3}
        assert (last.round_number, last.rounds_total) == (3, 3)

    def test_the_built_in_app_learns_to_read_digits(self, start: Start) -> None:
        federation = start(rounds_total=5, strategy="FedAvg")
        federation.rule = aggregate.rule("FedAvg")
        federation.start = task.initial_arrays({"seed": 5})
        federation.evaluate = None
        federation.join(0, 1, 2, client_app=digits.app)

        last = federation.run()

        accuracies = [event.aggregated_accuracy for event in federation.told(events.RoundEnd)]
        assert accuracies[-1] > 0.9
        assert task.evaluate(last.arrays, {})["accuracy"] > 0.9


class TestExactResume:
    def test_a_kill_at_any_event_changes_no_bit_and_repeats_no_announced_round(
        self, start: Start, undisturbed: str
    ) -> None:
        watched = start("watched")
        watched.join(0, 1, 2)
        watched.run()

        for kill_at in range(len(watched.events)):
            name = f"killed-{kill_at}"
            announced = _run_until_killed(start(name), kill_at)
            survivor = start(name)
            survivor.join(0, 1, 2)

            last = survivor.run()

            assert digest(last.arrays) == undisturbed, watched.events[kill_at]
            assert not announced & {number for number, _ in survivor.asked()}
            assert [record.round_number for record in last.history] == [1, 2, 3, 4]

    @pytest.mark.parametrize("point", LOOP_POINTS)
    def test_a_kill_at_any_point_changes_no_bit_and_repeats_no_announced_round(
        self, start: Start, undisturbed: str, point: str
    ) -> None:
        for kill_in in range(1, ROUNDS + 1):
            name = f"killed-{kill_in}"
            killed = start(name)
            killed.join(0, 1, 2)
            killed.reach = _killer(point, kill_in)
            with pytest.raises(Killed):
                killed.run()
            announced = {event.round for event in killed.told(events.RoundEnd)}
            survivor = start(name)
            survivor.join(0, 1, 2)

            last = survivor.run()

            assert digest(last.arrays) == undisturbed
            trained = {number for number, _ in survivor.asked()}
            assert not announced & trained
            assert trained <= set(range(kill_in, ROUNDS + 1)), "at most the round in flight is lost"

    @settings(deadline=None, max_examples=20, suppress_health_check=list(HealthCheck))
    @given(lives=st.lists(st.integers(0, 30), max_size=8))
    def test_many_kills_change_no_bit_either(
        self,
        hub: SimpleNamespace,
        tmp_path_factory: pytest.TempPathFactory,
        undisturbed: str,
        lives: list[int],
    ) -> None:
        folder = tmp_path_factory.mktemp("federation")
        for events_until_killed in lives:
            _run_until_killed(Federation(hub, folder), events_until_killed)
        survivor = Federation(hub, folder)
        survivor.join(0, 1, 2)

        assert digest(survivor.run().arrays) == undisturbed

    @pytest.mark.parametrize("rounds_before", range(ROUNDS + 1))
    def test_a_stop_after_any_round_changes_no_bit(
        self, start: Start, undisturbed: str, rounds_before: int
    ) -> None:
        stopped = start()
        stopped.join(0, 1, 2)
        stopped.stopping = rounds_before == 0

        def stop(event: events.Event) -> None:
            if isinstance(event, events.RoundStart) and event.round == rounds_before:
                stopped.stopping = True

        stopped.on_event = stop
        assert stopped.run().round_number == rounds_before
        resumed = start()
        resumed.join(0, 1, 2)

        assert digest(resumed.run().arrays) == undisturbed
        assert {number for number, _ in resumed.asked()} == set(
            range(rounds_before + 1, ROUNDS + 1)
        )

    def test_every_outcome_of_a_round_is_told_when_the_store_holds_it(self, start: Start) -> None:
        federation = start()
        federation.exporter = Exporter(federation.folder / "checkpoints", RUN, interval=1)
        federation.join(0, 1, 2)
        outcomes = (
            events.RecoverySaved,
            events.EvaluationResult,
            events.CheckpointSaved,
            events.RoundEnd,
        )
        seen: list[str] = []

        def check(event: events.Event) -> None:
            if isinstance(event, outcomes):
                saved = federation.saved()
                assert saved.round_number == event.round
                assert saved.history[-1].model_sha256 == digest(saved.arrays)
                seen.append(event.EVENT)

        federation.on_event = check
        federation.run()

        assert seen == [kind.EVENT for kind in outcomes] * ROUNDS


def _killer(point: str, number: int) -> failpoints.Reach:
    """Ends the process at a point of a round."""

    def reach(passed: str, passed_number: int) -> None:
        assert passed in LOOP_POINTS
        if (passed, passed_number) == (point, number):
            raise Killed

    return reach


def _run_until_killed(federation: Federation, events_until_killed: int) -> set[int]:
    """The rounds that were announced before."""
    federation.join(0, 1, 2)

    def die(_event: events.Event) -> None:
        if len(federation.events) > events_until_killed:
            raise Killed

    federation.on_event = die
    try:
        federation.run()
    except Killed:
        federation.events.pop()  # nobody heard of it
    return {event.round for event in federation.told(events.RoundEnd)}


def silent(_message: Message) -> None:
    """A node that never answers."""


def raising(_message: Message) -> Message:
    raise RuntimeError("out of memory")


class TestQuorum:
    def test_a_round_without_quorum_is_repeated_under_its_number_and_then_committed(
        self, start: Start, undisturbed: str
    ) -> None:
        federation = start(min_fit_clients=3, min_available_clients=3)
        federation.join(0, 1)
        node = federation.node(2)

        def silent_twice_in_round_2(message: Message) -> Message | None:
            times = federation.asked().count((2, "2"))
            return None if 1 <= times <= 2 else node(message)

        federation.add("2", silent_twice_in_round_2)

        last = federation.run()

        assert digest(last.arrays) == undisturbed
        assert (
            federation.told(events.RoundRepeated)
            == [
                events.RoundRepeated(
                    2, "2 usable updates, 3 needed; missing: 2 (timeout)", responded=2, required=3
                )
            ]
            * 2
        )
        assert [event.round for event in federation.told(events.RoundEnd)] == [1, 2, 3, 4]
        assert [event.round for event in federation.told(events.RoundStart)] == [1, 2, 2, 2, 3, 4]
        assert {event.client for event in federation.told(events.ClientFailure)} == {"2"}

    def test_a_round_that_never_finds_a_quorum_stops_the_run_and_loses_nothing(
        self, start: Start, undisturbed: str
    ) -> None:
        federation = start(min_fit_clients=3, min_available_clients=3)
        federation.join(0, 1)
        node = federation.node(2)
        federation.add(
            "2", lambda m: node(m) if m.content["config"]["server-round"] < 3 else silent(m)
        )

        with pytest.raises(loop.QuorumError) as raised:
            federation.run()

        assert "Round 3 found no quorum in 4 tries" in raised.value.message
        assert "FL_MIN_FIT_CLIENTS" in raised.value.message
        assert "Rounds up to 2 are saved" in (raised.value.hint or "")
        assert len(federation.told(events.RoundRepeated)) == loop.REPEATS_MAX
        assert federation.saved().round_number == 2
        mended = start(min_fit_clients=3, min_available_clients=3)
        mended.join(0, 1, 2)
        assert digest(mended.run().arrays) == undisturbed

    def test_a_rule_that_needs_more_updates_than_the_plan_repeats_the_round(
        self, start: Start
    ) -> None:
        """Krum withstands one of five; of four it promises nothing, whatever the plan says."""
        federation = start(rounds_total=1)
        federation.rule = aggregate.rule("Krum", num_malicious=1)
        federation.join(0, 1, 2, 3)
        node = federation.node(4)
        federation.add(
            "4", lambda m: silent(m) if not federation.told(events.RoundRepeated) else node(m)
        )

        federation.run()

        [repeated] = federation.told(events.RoundRepeated)
        assert (repeated.responded, repeated.required) == (4, 5)
        assert len(federation.told(events.RoundEnd)) == 1

    def test_what_a_rule_has_to_say_about_so_few_clients_is_told_once(self, start: Start) -> None:
        federation = start()
        federation.rule = aggregate.rule("FedTrimmedAvg", beta=0.2)
        federation.join(0, 1, 2, 3)

        federation.run()

        [notice] = federation.told(events.Notice)
        assert notice.level == "WARNING"
        assert "FedTrimmedAvg" in notice.message

    def test_waiting_for_clients_is_told_again_and_again_and_ends_when_they_come(
        self, start: Start, undisturbed: str
    ) -> None:
        federation = start(min_available_clients=3)
        federation.join(0)
        federation.clock.at(15.0, lambda: federation.join(1))
        federation.clock.at(35.0, lambda: federation.join(2))

        last = federation.run()

        stalls = federation.told(events.TrainingStalled)
        assert [stall.waiting_since_seconds for stall in stalls] == [10.0, 20.0, 30.0]
        assert [stall.connected_clients for stall in stalls] == [1, 2, 2]
        assert {(stall.round, stall.required_clients) for stall in stalls} == {(1, 3)}
        assert digest(last.arrays) == undisturbed

    def test_more_clients_are_waited_for_when_the_quorum_wants_more(self, start: Start) -> None:
        federation = start(min_fit_clients=3, min_available_clients=1, rounds_total=1)
        federation.join(0, 1)
        federation.clock.at(1.0, lambda: federation.join(2))

        assert federation.run().history[-1].contributors == ("0", "1", "2")

    def test_a_repeated_round_does_without_a_client_that_has_left(self, start: Start) -> None:
        federation = start(min_fit_clients=2, rounds_total=1, round_timeout_s=30.0)
        federation.join(0)
        leaving = federation.add("1", silent)
        federation.clock.at(20.0, lambda: federation.grid.remove(leaving))
        federation.clock.at(45.0, lambda: federation.join(2))

        last = federation.run()

        assert last.history[-1].contributors == ("0", "2")
        assert len(federation.told(events.RoundRepeated)) == 1
        assert federation.told(events.TrainingStalled)


class TestDeadline:
    def test_with_a_quorum_of_all_a_slow_client_is_waited_for(self, start: Start) -> None:
        """Whatever earlier rounds were like: on a laptop the same seed gives the same bits."""
        federation = start(min_fit_clients=3, round_timeout_s=600.0, round_timeout_min_s=1.0)
        federation.join(0, 1)
        node = federation.node(2)
        slow_in_round_3 = {3: 500.0}
        federation.add(
            "2", lambda m: [(slow_in_round_3.get(m.content["config"]["server-round"], 0), node(m))]
        )

        last = federation.run()

        assert {record.contributors for record in last.history} == {("0", "1", "2")}
        assert federation.told(events.RoundRepeated) == []

    def test_with_a_quorum_of_some_it_costs_a_straggler_its_round(self, start: Start) -> None:
        federation = start(min_fit_clients=2, round_timeout_s=600.0, round_timeout_min_s=20.0)
        federation.join(0, 1)
        node = federation.node(2)
        slow_in_round_3 = {3: 500.0}
        federation.add(
            "2", lambda m: [(slow_in_round_3.get(m.content["config"]["server-round"], 0), node(m))]
        )

        last = federation.run()

        contributors = [record.contributors for record in last.history]
        assert contributors == [("0", "1", "2")] * 2 + [("0", "1")] + [("0", "1", "2")]
        [failure] = federation.told(events.ClientFailure)
        assert (failure.round, failure.client, failure.error_type) == (3, "2", "timeout")
        assert last.history[2].seconds == pytest.approx(20.0)

    def test_the_first_round_waits_as_long_as_it_may(self, start: Start) -> None:
        federation = start(min_fit_clients=2, rounds_total=1, round_timeout_min_s=1.0)
        federation.join(0, 1)
        federation.join(2, delay_s=55.0)

        assert federation.run().history[-1].contributors == ("0", "1", "2")


class TestComingBack:
    def test_a_node_that_restarts_inside_a_round_stalls_nothing_and_changes_no_bit(
        self, start: Start, undisturbed: str
    ) -> None:
        federation = start(min_fit_clients=3, min_available_clients=3)
        federation.join(0, 1)
        node = federation.node(2)
        dead = federation.add("2", silent)
        federation.clock.at(5.0, lambda: federation.grid.remove(dead))
        federation.clock.at(9.0, lambda: federation.grid.add("2", node, dead))

        last = federation.run()

        assert digest(last.arrays) == undisturbed
        assert last.history[0].seconds < 12
        assert federation.told(events.RoundRepeated) == []
        assert federation.asked().count((1, "2")) == 2
        assert federation.told(events.ClientFailure) == []

    def test_while_it_is_away_the_wait_is_told(
        self, start: Start, hub: SimpleNamespace, undisturbed: str
    ) -> None:
        federation = start(min_fit_clients=3, min_available_clients=3)
        federation.join(0, 1)
        node = federation.node(2)
        dead = federation.add("2", lambda m: [(8.0, hub.error_of(m, 5, "gone", by_superlink=True))])
        federation.clock.at(5.0, lambda: federation.grid.remove(dead))
        federation.clock.at(35.0, lambda: federation.grid.add("2", node, dead))

        assert digest(federation.run().arrays) == undisturbed
        stalls = federation.told(events.TrainingStalled)
        assert [(stall.connected_clients, stall.required_clients) for stall in stalls] == [
            (2, 3)
        ] * 3

    def test_a_round_that_has_failed_anyway_waits_for_nobody_who_is_away(
        self, start: Start, hub: SimpleNamespace, undisturbed: str
    ) -> None:
        """The app of one client raised: the round is repeated, and the wait is before it."""
        federation = start(min_fit_clients=3, min_available_clients=3)
        federation.join(0)
        node_1, node_2 = federation.node(1), federation.node(2)
        raised: list[bool] = []

        def raising_once(message: Message) -> Message:
            raised.append(True)
            error = hub.error_of(message, 2, "x", by_superlink=False)
            return error if len(raised) == 1 else node_1(message)

        federation.add("1", raising_once)
        dead = federation.add("2", lambda m: [(8.0, hub.error_of(m, 5, "gone", by_superlink=True))])
        federation.clock.at(5.0, lambda: federation.grid.remove(dead))
        federation.clock.at(45.0, lambda: federation.grid.add("2", node_2, dead))

        assert digest(federation.run().arrays) == undisturbed
        [repeated] = federation.told(events.RoundRepeated)
        assert "missing: 1 (app_raised), 2 (node_unavailable)" in repeated.reason

    def test_a_stop_does_not_wait_for_who_is_away(self, start: Start, hub: SimpleNamespace) -> None:
        federation = start(min_fit_clients=3, min_available_clients=3)
        federation.join(0, 1)
        dead = federation.add("2", lambda m: [(8.0, hub.error_of(m, 5, "gone", by_superlink=True))])
        federation.clock.at(5.0, lambda: federation.grid.remove(dead))

        def stop() -> None:
            federation.stopping = True

        federation.clock.at(15.0, stop)

        assert federation.run().round_number == 0
        assert federation.clock() < 17


def changing(**change: Any) -> Callable[[Callable[[Message], Message]], Callable[[Message], Any]]:
    """A client that trains honestly and then sends something else."""

    def wrap(node: Callable[[Message], Message]) -> Callable[[Message], Any]:
        def behave(message: Message) -> Any:
            reply = node(message)
            if message.metadata.message_type == MessageType.TRAIN:
                for name, record in change.items():
                    reply.content[name] = record(reply.content[name])
            return reply

        return behave

    return wrap


def filled(value: float) -> Callable[[ArrayRecord], ArrayRecord]:
    return lambda record: ArrayRecord(
        {key: Array(np.full(array.shape, value, np.float32)) for key, array in record.items()}
    )


BAD_CLIENTS: Mapping[str, tuple[str, Callable[[Callable[[Message], Message]], Any]]] = {
    "NaN": ("rejected_update", changing(arrays=filled(np.nan))),
    "infinity": ("rejected_update", changing(arrays=filled(np.inf))),
    "wrong-shape": (
        "rejected_update",
        changing(arrays=lambda _record: ArrayRecord({"w": Array(np.zeros(9, np.float32))})),
    ),
    "huge-weight": (
        "rejected_update",
        changing(metrics=lambda _record: MetricRecord({"num-examples": 10**18})),
    ),
    "no-weight": ("malformed_reply", changing(metrics=lambda _record: MetricRecord({"x": 1}))),
    "raising": ("app_raised", lambda node: raising),
    "silent": ("timeout", lambda node: silent),
    "late": ("timeout", lambda node: lambda message: [(60.5, node(message))]),
}


class TestBadClients:
    @pytest.mark.parametrize("kind", BAD_CLIENTS)
    @pytest.mark.parametrize("judged_by", ["the coordinator", "the clients"])
    def test_a_bad_client_costs_itself_its_rounds_and_the_others_nothing(
        self, start: Start, hub: SimpleNamespace, kind: str, judged_by: str
    ) -> None:
        error_type, spoil = BAD_CLIENTS[kind]
        federations = [start("with"), start("without")]
        for federation in federations:
            federation.join(0, 2)
            if judged_by == "the clients":
                federation.evaluate = None
        spoiled, clean = federations
        behaviour = spoil(spoiled.node(1))
        if behaviour is raising:
            raising_app = ClientApp()
            raising_app.train()(lambda message, _context: raising(message))
            behaviour = hub.running(raising_app, partition=1)
        spoiled.add("1", behaviour)

        last, expected = spoiled.run(), clean.run()

        assert digest(last.arrays) == digest(expected.arrays)
        assert {record.contributors for record in last.history} == {("0", "2")}
        assert [record.loss for record in last.history] == [r.loss for r in expected.history]
        assert [record.failures for record in last.history] == [1] * ROUNDS
        named = [(e.round, e.client, e.error_type) for e in spoiled.told(events.ClientFailure)]
        assert named == [(number, "1", error_type) for number in range(1, ROUNDS + 1)]
        assert spoiled.told(events.RoundRepeated) == []

    def test_a_client_that_lost_the_round_is_not_waited_for_again(self, start: Start) -> None:
        federation = start(rounds_total=1)
        federation.evaluate = None
        federation.join(0, 1)
        federation.add("2", silent)

        federation.run()

        assert federation.asked(MessageType.EVALUATE) == [(1, "0"), (1, "1")]
        assert federation.clock() < 2 * federation.plan.round_timeout_s

    def test_only_bad_clients_are_no_quorum(self, start: Start) -> None:
        federation = start()
        federation.add("0", changing(arrays=filled(np.nan))(federation.node(0)))
        federation.join(1)

        with pytest.raises(loop.QuorumError):
            federation.run()

        assert federation.told(events.RoundEnd) == []


class TestEvaluation:
    def test_the_coordinator_judges_where_the_app_can(self, start: Start) -> None:
        federation = start()
        federation.join(0, 1)

        last = federation.run()

        assert federation.asked(MessageType.EVALUATE) == []
        assert last.history[-1].loss == distance(last.arrays)
        assert federation.told(events.EvaluationResult)[-1] == events.EvaluationResult(
            ROUNDS, distance(last.arrays), 0.5, 7
        )

    def test_else_the_clients_judge_the_new_model(self, start: Start) -> None:
        federation = start()
        federation.evaluate = None
        federation.join(0, 1, 2)

        last = federation.run()

        assert federation.asked(MessageType.EVALUATE)[-3:] == [(ROUNDS, key) for key in "012"]
        assert last.history[-1].loss == pytest.approx(distance(last.arrays))
        assert federation.told(events.EvaluationResult)[-1].num_examples == 6

    def test_too_few_judges_leave_the_round_without_a_score_but_committed(
        self, start: Start
    ) -> None:
        federation = start(min_evaluate_clients=3)
        federation.evaluate = None
        federation.join(0, 1)
        node = federation.node(2)
        federation.add(
            "2", lambda m: node(m) if m.metadata.message_type == MessageType.TRAIN else silent(m)
        )

        last = federation.run()

        assert {record.contributors for record in last.history} == {("0", "1", "2")}
        assert {record.loss for record in last.history} == {None}
        assert federation.told(events.EvaluationResult) == []
        assert [event.round for event in federation.told(events.RoundEnd)] == [1, 2, 3, 4]


class TestStores:
    def test_a_store_that_fails_for_a_while_delays_the_round_and_changes_nothing(
        self, start: Start, undisturbed: str
    ) -> None:
        federation = start()
        federation.join(0, 1, 2)

        def fill(event: events.Event) -> None:
            if isinstance(event, events.RoundStart) and event.round == 2:
                federation.disk.refusals_left = loop.SAVE_TRIES - 1

        federation.on_event = fill

        assert digest(federation.run().arrays) == undisturbed
        waits = federation.told(events.Notice)
        assert len(waits) == loop.SAVE_TRIES - 1
        assert all(wait.level == "ERROR" and "Round 2 waits" in wait.message for wait in waits)
        assert federation.clock.slept.count(loop.SAVE_PAUSE_S) == loop.SAVE_TRIES - 1

    def test_a_store_that_stays_full_stops_the_run_and_loses_nothing_announced(
        self, start: Start, undisturbed: str
    ) -> None:
        federation = start()
        federation.join(0, 1, 2)

        def fill(event: events.Event) -> None:
            if isinstance(event, events.RoundStart) and event.round == 3:
                federation.disk.refusals_left = 10**9

        federation.on_event = fill

        with pytest.raises(StorageError, match="No space left"):
            federation.run()

        assert [event.round for event in federation.told(events.RoundEnd)] == [1, 2]
        assert [event.round for event in federation.told(events.EvaluationResult)] == [1, 2]
        assert federation.saved().round_number == 2
        mended = start()
        mended.join(0, 1, 2)
        assert digest(mended.run().arrays) == undisturbed

    def test_checkpoints_come_at_their_interval_and_at_the_end(self, start: Start) -> None:
        federation = start(rounds_total=5)
        federation.exporter = Exporter(federation.folder / "checkpoints", RUN, interval=2)
        federation.join(0, 1)

        federation.run()

        saved = federation.told(events.CheckpointSaved)
        assert [event.round for event in saved] == [2, 4, 5]
        assert all(Path(event.path).stat().st_size == event.size_bytes for event in saved)

    def test_a_checkpoint_that_cannot_be_written_is_a_warning(
        self, start: Start, undisturbed: str
    ) -> None:
        federation = start()
        occupied = federation.folder / "checkpoints"
        occupied.parent.mkdir()
        occupied.write_text("a file where a folder should be")
        federation.exporter = Exporter(occupied, RUN, interval=2)
        federation.join(0, 1, 2)

        assert digest(federation.run().arrays) == undisturbed
        warnings = federation.told(events.Notice)
        assert [(warning.level, warning.message[:21]) for warning in warnings] == [
            ("WARNING", "Checkpoint of round 2"),
            ("WARNING", "Checkpoint of round 4"),
        ]


class TestStop:
    def test_the_round_in_flight_is_finished_and_saved(self, start: Start) -> None:
        federation = start()
        federation.join(0, 1)

        def stop(event: events.Event) -> None:
            federation.stopping = isinstance(event, events.RoundStart) and event.round == 2

        federation.on_event = lambda event: None if federation.stopping else stop(event)

        assert federation.run().round_number == 2
        assert federation.saved().round_number == 2

    def test_nobody_is_waited_for_after_a_stop(self, start: Start) -> None:
        federation = start()
        federation.join(0)

        def stop() -> None:
            federation.stopping = True

        federation.clock.at(12.0, stop)

        assert federation.run().round_number == 0
        assert len(federation.told(events.TrainingStalled)) == 1
        assert federation.asked() == []

    def test_a_round_without_quorum_is_not_repeated_after_a_stop(self, start: Start) -> None:
        federation = start(min_fit_clients=2)
        federation.join(0)
        federation.add("1", silent)

        def stop(event: events.Event) -> None:
            federation.stopping = True

        federation.on_event = stop

        assert federation.run().round_number == 0
        assert federation.told(events.RoundRepeated) == []


def test_progress_tells_every_reply_with_its_examples(start: Start) -> None:
    federation = start(rounds_total=1)
    federation.join(0, 1)

    federation.run()

    replies = federation.told(events.ClientReply)
    assert [(r.round, r.phase, r.client, r.num_examples) for r in replies] == [
        (1, "train", "0", 10),
        (1, "train", "1", 11),
    ]


def test_a_thousand_clients_train_in_one_process(start: Start) -> None:
    federation = start(rounds_total=1, min_fit_clients=1000)
    federation.join(*range(1000))

    last = federation.run()

    assert last.history[-1].contributors == tuple(map(str, range(1000)))
