"""The ServerApp process: what it is handed, what it refuses, and where it goes on."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Context, RecordDict
from flwr.serverapp import ServerApp

from onefed.arrays import digest
from onefed.checkpoint import ModelMismatchError, RecoveryStore
from onefed.errors import ExitCode, InUseError, NotFoundError
from onefed.flower import app_functions, bundle, loop, server_app
from onefed.telemetry import events, log

RUN_CONFIG: dict[str, Any] = {**bundle.RUN_CONFIG_DEFAULTS, "run": "run-1", "num-server-rounds": 2}

TASK = """
import numpy as np

def initial_arrays(run_config):
    return {"w": np.zeros(run_config.get("width", 3), np.float32)}

def evaluate(arrays, run_config):
    arrays["w"] += 100.0  # its own affair
    return {"loss": np.float32(0.5), "accuracy": 1, "num-examples": 9}

def broken(*args):
    raise ValueError("no such file: test.csv")

def nothing(*args):
    return None

def empty(*args):
    return {}

def objects(*args):
    return {"w": np.array([object()])}

def words(*args):
    return {"loss": "small"}

class holder:
    initial_arrays = staticmethod(initial_arrays)
"""


@pytest.fixture(autouse=True)
def _task_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Puts the app's folder on the path, as Flower does."""
    folder = tmp_path / "app"
    folder.mkdir()
    (folder / "the_task.py").write_text(TASK)
    monkeypatch.syspath_prepend(folder)
    yield
    sys.modules.pop("the_task", None)


class Machine:
    """A coordinator's machine: what its processes find in their environment and on its disk."""

    def __init__(self, folder: Path, hub: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
        self.recovery = folder / "recovery"
        self.stop_request = folder / "stop"
        self._events = folder / "events.jsonl"
        monkeypatch.setenv("ONEFED_RECOVERY_DIR", str(self.recovery))
        monkeypatch.setenv("ONEFED_STOP_FILE", str(self.stop_request))
        monkeypatch.setenv("ONEFED_EVENTS", str(self._events))
        self.grid = hub.VirtualGrid(hub.VirtualClock())
        for key in ("0", "1"):
            self.grid.add(key, self._train(hub, float(key)))

    @staticmethod
    def _train(hub: SimpleNamespace, step: float) -> Callable[[Any], Any]:
        return lambda message: hub.answer(
            message,
            {"w": message.content["arrays"]["w"].numpy() + np.float32(step)},
            num_examples=1,
        )

    def run(self, app: ServerApp | None = None, **changes: Any) -> None:
        app = app or server_app.managed("the_task:initial_arrays", "the_task:evaluate")
        context = Context(
            run_id=1,
            node_id=0,
            node_config={},
            state=RecordDict(),
            run_config={**RUN_CONFIG, **changes},
        )
        app(self.grid, context)

    def events(self) -> list[events.Event]:
        return [record.event for record in log.read(self._events)]  # type: ignore[misc]

    def of(self, kind: type[events.Event]) -> list[Any]:
        return [event for event in self.events() if isinstance(event, kind)]


@pytest.fixture
def machine(tmp_path: Path, hub: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, hub, monkeypatch)


class TestRun:
    def test_a_run_is_told_from_its_start_to_its_end(self, machine: Machine) -> None:
        machine.run()

        told = machine.events()
        assert told[0] == events.TrainingStart("FedAvg", 2, 2)
        end = told[-1]
        assert isinstance(end, events.TrainingEnd)
        assert (end.total_rounds, end.final_loss, end.final_accuracy) == (2, 0.5, 1.0)
        loaded = RecoveryStore(machine.recovery).load("run-1")
        assert loaded is not None
        assert loaded.snapshot.arrays["w"].tolist() == [1.0] * 3

    def test_the_next_process_goes_on_where_the_last_one_ended(self, machine: Machine) -> None:
        machine.run(**{"num-server-rounds": 1})
        machine.run(**{"num-server-rounds": 3})

        assert [event.round for event in machine.of(events.RoundEnd)] == [1, 2, 3]
        assert [event.round for event in machine.of(events.RunResumed)] == [2]
        assert machine.of(events.Notice) == []

    def test_fewer_rounds_than_are_done_is_a_run_that_is_complete(self, machine: Machine) -> None:
        machine.run(**{"num-server-rounds": 2})
        machine.run(**{"num-server-rounds": 1})

        assert [event.round for event in machine.of(events.RoundEnd)] == [1, 2]
        [notice] = machine.of(events.Notice)
        assert notice.message == "The run is complete: 2 rounds are done, 1 wanted."
        assert [event.total_rounds for event in machine.of(events.TrainingEnd)] == [2, 2]

    def test_a_stopped_run_has_not_ended(self, machine: Machine) -> None:
        machine.stop_request.touch()

        machine.run()

        assert machine.of(events.TrainingEnd) == []

    def test_checkpoints_are_written_where_they_are_wanted(
        self, machine: Machine, tmp_path: Path
    ) -> None:
        folder = tmp_path / "checkpoints"

        machine.run(**{"checkpoint-enabled": True, "checkpoint-path": str(folder)})

        assert (folder / "checkpoint_round_2.npz").is_file()

    def test_checkpoints_of_another_run_stop_it_before_it_trains(
        self, machine: Machine, tmp_path: Path
    ) -> None:
        wanted = {"checkpoint-enabled": True, "checkpoint-path": str(tmp_path / "checkpoints")}
        machine.run(**wanted)
        asked = len(machine.grid.sent)

        with pytest.raises(InUseError):
            machine.run(run="run-2", **wanted)

        assert len(machine.grid.sent) == asked

    def test_without_its_environment_it_says_how_it_is_started(
        self, machine: Machine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("ONEFED_RECOVERY_DIR")

        with pytest.raises(NotFoundError, match="ONEFED_RECOVERY_DIR is not set") as raised:
            machine.run()
        assert "onefed run" in (raised.value.hint or "")

    def test_whatever_ends_it_is_told_as_an_event(self, machine: Machine) -> None:
        with pytest.raises(ValueError, match="three"):
            machine.run(**{"num-server-rounds": "three"})
        with pytest.raises(app_functions.AppFunctionError):
            machine.run(server_app.managed("the_task:broken", None))

        notices = machine.of(events.Notice)
        assert [notice.level for notice in notices] == ["ERROR", "ERROR"]
        assert "ValueError: invalid literal" in notices[0].message
        assert "no such file: test.csv" in notices[1].message


class TestCheckpoints:
    @pytest.mark.parametrize(
        ("keep", "left"),
        [({}, {1, 2, 3, 4}), ({"keep-last": 1}, {4}), ({"keep-last": 1, "keep-every": 2}, {2, 4})],
    )
    def test_as_many_stay_as_the_operator_wants(
        self, machine: Machine, tmp_path: Path, keep: dict[str, int], left: set[int]
    ) -> None:
        folder = tmp_path / "exports"
        settings = {"enabled": True, "interval": 1, "path": str(folder), **keep}
        changes = {f"checkpoint-{key}": value for key, value in settings.items()}

        machine.run(**changes, **{"num-server-rounds": 4})

        names = {path.name for path in folder.glob("checkpoint_round_*.npz")}
        assert names == {f"checkpoint_round_{number}.npz" for number in left}


class TestResume:
    @pytest.mark.parametrize(
        ("changes", "reason"),
        [({"seed": 1}, "seed 0"), ({"run": "run-2"}, "belongs to run 'run-1'")],
    )
    def test_another_run_is_not_mixed_into_this_one(
        self, machine: Machine, changes: dict[str, Any], reason: str
    ) -> None:
        machine.run(**{"num-server-rounds": 1})

        with pytest.raises((server_app.ResumeError, InUseError), match=reason):
            machine.run(**changes)

        assert [event.round for event in machine.of(events.RoundEnd)] == [1]

    def test_another_app_is_not_mixed_into_this_run(self, machine: Machine) -> None:
        machine.run(**{"num-server-rounds": 1})
        machine.grid.fab_hash = "b" * 64

        with pytest.raises(server_app.ResumeError, match="another app") as raised:
            machine.run()
        assert raised.value.exit_code is ExitCode.CONFIG

    @pytest.mark.parametrize(
        ("changes", "warnings"),
        [
            ({"round-timeout-s": 5}, 0),
            ({"checkpoint-interval": 2, "checkpoint-path": "/elsewhere"}, 0),
            ({"learning-rate": 0.5}, 1),
        ],
    )
    def test_a_setting_that_changes_the_result_is_warned_of_once(
        self, machine: Machine, changes: dict[str, Any], warnings: int
    ) -> None:
        machine.run(**{"num-server-rounds": 1})
        machine.run(**changes)
        machine.run(**changes, **{"num-server-rounds": 3})

        assert [event.round for event in machine.of(events.RoundEnd)] == [1, 2, 3]
        assert [notice.level for notice in machine.of(events.Notice)] == ["WARNING"] * warnings

    def test_a_setting_that_changes_the_model_stops_the_run(self, machine: Machine) -> None:
        machine.run(**{"num-server-rounds": 1})

        with pytest.raises(ModelMismatchError, match="shape"):
            machine.run(width=4)

        machine.run()
        assert [event.round for event in machine.of(events.RoundEnd)] == [1, 2]

    def test_a_damaged_snapshot_is_passed_over_and_named(self, machine: Machine) -> None:
        machine.run()
        (machine.recovery / "round_000002.json").write_text("{")

        machine.run()

        [warning] = machine.of(events.Notice)
        assert "round_000002.json" in warning.message
        assert [event.round for event in machine.of(events.RoundEnd)] == [1, 2, 2]


class TestPlan:
    def test_the_bridge_is_read_back(self) -> None:
        plan = server_app.make_plan(RUN_CONFIG, app_sha256="a")

        assert plan == loop.Plan(
            run="run-1",
            rounds_total=2,
            seed=0,
            strategy="FedAvg",
            min_fit_clients=2,
            min_evaluate_clients=2,
            min_available_clients=2,
            round_timeout_s=600.0,
            app_sha256="a",
            config_sha256=plan.config_sha256,
            versions=plan.versions,
        )
        assert set(plan.versions) == {"onefed", "flwr", "numpy", "python"}

    def test_the_order_of_settings_does_not_matter(self) -> None:
        turned = dict(reversed(RUN_CONFIG.items()))

        assert server_app.make_plan(turned, app_sha256="a") == server_app.make_plan(
            RUN_CONFIG, app_sha256="a"
        )


class TestAppFunctions:
    def test_the_first_model_is_the_apps(self) -> None:
        for reference in ("the_task:initial_arrays", "the_task:holder.initial_arrays"):
            model = server_app.first_model(reference, RUN_CONFIG)
            assert digest(model) == digest({"w": np.zeros(3, np.float32)})

    def test_an_array_record_is_a_model_too(self, monkeypatch: pytest.MonkeyPatch) -> None:
        record = ArrayRecord({"w": Array(np.ones(2, np.float32))})
        monkeypatch.setitem(sys.modules, "the_task", SimpleNamespace(f=lambda _config: record))

        assert server_app.first_model("the_task:f", {})["w"].tolist() == [1.0, 1.0]

    @pytest.mark.parametrize("function", ["broken", "nothing", "empty", "objects"])
    def test_what_is_no_model_is_the_apps_error(self, function: str) -> None:
        with pytest.raises(app_functions.AppFunctionError, match=f"the_task:{function}") as raised:
            server_app.first_model(f"the_task:{function}", {})
        assert raised.value.exit_code is ExitCode.APP
        assert "must return arrays by name" in (raised.value.hint or "")

    def test_judging_leaves_the_model_alone(self) -> None:
        model = {"w": np.zeros(3, np.float32)}

        score = app_functions.judge_of("the_task:evaluate", {})(model)

        assert (score.loss, score.accuracy, score.num_examples) == (0.5, 1.0, 9)
        assert model["w"].tolist() == [0.0] * 3

    def test_an_app_may_measure_nothing(self) -> None:
        score = app_functions.judge_of("the_task:empty", {})({})

        assert (score.loss, score.accuracy, score.num_examples) == (None, None, 0)

    @pytest.mark.parametrize("function", ["broken", "nothing", "words"])
    def test_what_is_no_score_is_the_apps_error(self, function: str) -> None:
        judge = app_functions.judge_of(f"the_task:{function}", {})

        with pytest.raises(app_functions.AppFunctionError, match=f"the_task:{function}"):
            judge({"w": np.zeros(3, np.float32)})
