"""Federations made by hand, and the program that looks at them."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onefed import arrays
from onefed.appliance.paths import Paths
from onefed.checkpoint import RecoveryStore, RoundRecord, Snapshot
from onefed.cli import main
from onefed.local import ownership, state, summary
from onefed.local.spec import Spec
from onefed.local.state import SUPERLINK, StateDir
from onefed.telemetry import events
from onefed.telemetry.log import EventLog
from onefed.telemetry.status import fold

PROGRAM = (str(Path(sys.executable).with_name("onefed")),)

HOLDER = """
import sys
from pathlib import Path
from onefed.local import ownership, state
with ownership.hold(state.StateDir(Path(sys.argv[1]))):
    print("held", flush=True)
    sys.stdin.read()
"""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a command left."""

    code: int
    out: str
    err: str


class Clock:
    """One second later at each look."""

    def __init__(self) -> None:
        self.now = datetime(2026, 1, 1, 12, tzinfo=UTC)

    def __call__(self) -> datetime:
        self.now += timedelta(seconds=1)
        return self.now


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The state home of every command in this test; nothing is there yet."""
    folder = tmp_path / "home"
    monkeypatch.setenv("ONEFED_HOME", str(folder))
    monkeypatch.setenv("COLUMNS", "100")
    return folder


@pytest.fixture
def onefed(home: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Runs a command in this process."""

    def run(*arguments: object) -> Outcome:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        code = ended.value.code
        assert isinstance(code, int)
        return Outcome(code, captured.out, captured.err)

    return run


@pytest.fixture
def program(home: Path) -> Callable[..., Outcome]:
    """Runs a command in a process of its own, where its streams or environment matter."""

    def run(*arguments: object, through: tuple[str, ...] = ()) -> Outcome:
        done = subprocess.run(
            [*through, *PROGRAM, *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
        )
        return Outcome(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture
def make(home: Path) -> Callable[..., StateDir]:
    """A federation that was asked for and never started."""

    def build(name: str = "demo", folder: Path | None = None, **changed: Any) -> StateDir:
        spec = Spec(
            name=name,
            nodes=2,
            app="image-classification",
            managed=True,
            rounds=3,
            strategy="FedAvg",
            seed=7,
            context={"FL_NUM_ROUNDS": "3"},
        )
        directory = state.claim(home, name, folder)
        directory.write_spec(dataclasses.replace(spec, **changed))
        return directory

    return build


@pytest.fixture
def finish() -> Callable[..., None]:
    """Gives a federation the files of one that has trained all its rounds."""
    return _finish


@pytest.fixture
def finished(make: Callable[..., StateDir]) -> Callable[..., StateDir]:
    """A federation that has trained all its rounds."""

    def build(name: str = "demo", **changed: Any) -> StateDir:
        directory = make(name, **changed)
        _finish(directory)
        return directory

    return build


@pytest.fixture
def hold() -> Iterator[Callable[[StateDir], subprocess.Popen[str]]]:
    """Has a process own a federation, as the cloud of one that runs."""
    holders = []

    def start(directory: StateDir) -> subprocess.Popen[str]:
        carried = f"{ownership.STATE_VARIABLE}={directory.folder}"
        holder = subprocess.Popen(
            ["env", carried, sys.executable, "-c", HOLDER, directory.folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        holders.append(holder)
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        return holder

    yield start
    for holder in holders:
        holder.kill()
        holder.communicate()


def _finish(directory: StateDir) -> None:
    spec = directory.read_spec()
    clock = Clock()
    log = EventLog(directory.events, "cloud", clock)
    names = (SUPERLINK, *state.supernodes(spec.nodes))
    log.emit(
        events.FederationStart(
            spec.name, spec.nodes, spec.rounds, spec.strategy, spec.app, spec.seed,
            str(directory.folder),
        )
    )  # fmt: skip
    for name in names:
        role = name.partition("/")[0]
        log.emit(events.BootStep(name, role, "SL-04", "Validate", "done", None, 0.1))
        log.emit(events.VmState(name, role, "running"))
    for index in range(spec.nodes):
        log.emit(events.NodeRegistered(f"supernode/{index}", str(10 + index), index))
        log.emit(events.ClientJoin(str(10 + index), "127.0.0.1"))
    log.emit(events.TrainingStart(spec.strategy, spec.rounds, spec.nodes))
    history = []
    store = RecoveryStore(Paths(directory.root(SUPERLINK)).recovery)
    for number in range(1, spec.rounds + 1):
        model = {"layer/weight": np.full((2, 2), number, np.float32)}
        loss, accuracy = 1 / number, 1 - 1 / (number + 1)
        log.emit(events.RoundStart(number, spec.nodes, spec.strategy))
        for index in range(spec.nodes):
            log.emit(events.ClientReply(number, "train", str(10 + index), str(index), 100, 0.5))
        history.append(
            RoundRecord(
                round_number=number,
                loss=loss,
                accuracy=accuracy,
                contributors=("0", "1"),
                failures=0,
                seconds=2.5,
                model_sha256=arrays.digest(model),
            )
        )
        store.save(
            Snapshot(
                run="run",
                round_number=number,
                rounds_total=spec.rounds,
                seed=spec.seed,
                rule=spec.strategy,
                rule_state={},
                arrays=model,
                history=tuple(history),
                app_sha256="a" * 64,
                config_sha256="c" * 64,
            )
        )
        log.emit(events.RecoverySaved(number, arrays.digest(model), 1000))
        log.emit(events.RoundEnd(number, spec.nodes, loss, accuracy, 2.5))
    log.emit(events.CheckpointSaved(spec.rounds, f"{directory.folder}/checkpoint.npz", 2048))
    log.emit(events.TrainingEnd(spec.rounds, 1 / spec.rounds, 0.75, 9.0))
    log.emit(events.RunStatus("completed"))
    log.close()
    follower = state.Follower(directory.events)
    view = fold(follower.poll())
    told = summary.make(directory, spec, view, error=None, seconds=12.5)
    log.emit(summary.as_event(told))
    log.close()
    summary.write(told, directory.summary)
    for name in names:
        logs = Paths(directory.root(name)).logs
        logs.mkdir(parents=True)
        (logs / f"{name.partition('/')[0]}.log").write_text(f"first of {name}\nlast of {name}\n")
