"""Going on from a copied checkpoint: whose run it is, and what has to fit."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onefed.appliance.paths import Paths
from onefed.checkpoint import Exporter, RecoveryStore, RoundRecord, Snapshot
from onefed.errors import NotFoundError
from onefed.flower import run_watch
from onefed.local import origin
from onefed.local.request import prepare
from onefed.local.state import SUPERLINK, StateDir

RECORD = RoundRecord(
    round_number=4,
    loss=0.5,
    accuracy=0.5,
    contributors=("0", "1"),
    failures=0,
    seconds=1.0,
    model_sha256="m" * 64,
)

SNAPSHOT = Snapshot(
    run="run-1",
    round_number=4,
    rounds_total=9,
    seed=7,
    rule="FedAdam",
    rule_state={"m": np.ones(2)},
    arrays={"w": np.full(2, 0.5, np.float32)},
    history=(RECORD,),
    app_sha256="a" * 64,
    config_sha256="c" * 64,
    versions={},
)


@pytest.fixture(params=["recovery", "export", "federation"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Everything that a checkpoint may be copied as."""
    place = tmp_path / "copy"
    if request.param == "recovery":
        RecoveryStore(place).save(SNAPSHOT)
    elif request.param == "export":
        Exporter(place, SNAPSHOT.run, 1).save(SNAPSHOT, now=datetime(2026, 1, 1, tzinfo=UTC))
    else:
        RecoveryStore(Paths(StateDir(place).root(SUPERLINK)).recovery).save(SNAPSHOT)
    return place


def test_whatever_was_copied_is_found_and_only_read(folder: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    found = origin.load(folder).snapshot
    assert (found.run, found.round_number, found.rule) == ("run-1", 4, "FedAdam")
    assert np.array_equal(found.arrays["w"], SNAPSHOT.arrays["w"])
    assert np.array_equal(found.rule_state["m"], SNAPSHOT.rule_state["m"])
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_where_there_is_nothing_it_is_said(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        origin.load(tmp_path)


def test_the_runs_own_settings_hold_where_nothing_else_is_said(
    ask: Callable[..., Any], tmp_path: Path
) -> None:
    completed = origin.complete(ask(), SNAPSHOT, {})
    assert (completed.seed, completed.rounds, completed.strategy) == (7, 9, "FedAdam")

    said = ask(seed=1, rounds=12, strategy="Krum")
    assert origin.complete(said, SNAPSHOT, {}) == said

    file = tmp_path / "context.sh"
    file.write_text("FL_NUM_ROUNDS='20'\n")
    elsewhere = ask(assignments=["FL_SEED=3"], context_file=file)
    assert origin.complete(elsewhere, SNAPSHOT, {"FL_STRATEGY": "Krum"}) == elsewhere


def test_another_run_is_refused_with_every_reason(
    ask: Callable[..., Any], environ: dict[str, str]
) -> None:
    prepared = prepare(ask(seed=8, strategy="FedAvg"), environ)
    with pytest.raises(origin.OriginError) as caught:
        origin.check(prepared, SNAPSHOT)
    for reason in ("another app", "seed is 7, not 8", "strategy is FedAdam, not FedAvg"):
        assert reason in caught.value.message


def test_the_same_run_goes_on_and_other_nodes_are_told_of(
    ask: Callable[..., Any], environ: dict[str, str]
) -> None:
    prepared = prepare(origin.complete(ask(), SNAPSHOT, environ), environ)
    assert prepared.packed is not None
    theirs = dataclasses.replace(SNAPSHOT, app_sha256=prepared.packed.sha256)
    assert len(origin.check(prepared, theirs)) == 1
    alone = dataclasses.replace(theirs, history=(dataclasses.replace(RECORD, contributors=("0",)),))
    assert "will not be that of the undisturbed run" in origin.check(prepared, alone)[-1]


def test_an_app_with_its_own_serverapp_goes_on_from_nothing(
    ask: Callable[..., Any], environ: dict[str, str], write_app: Callable[..., Path], tmp_path: Path
) -> None:
    prepared = prepare(ask(app=write_app(tmp_path / "own")), environ)
    with pytest.raises(origin.OriginError, match="Only an app that onefed manages"):
        origin.check(prepared, SNAPSHOT)


def test_what_is_planted_is_what_the_machine_finds(make: Callable[..., StateDir]) -> None:
    directory = make()
    origin.plant(directory, SNAPSHOT)
    paths = Paths(directory.root(SUPERLINK))
    loaded = RecoveryStore(paths.recovery).load("run-1")
    assert loaded is not None
    assert loaded.snapshot.round_number == 4
    assert run_watch.read_state(paths.state / "supervisor.json").run == "run-1"
    assert json.loads((paths.state / "supervisor.json").read_text()) == {"run": "run-1"}
    assert paths.recovery.stat().st_mode & 0o777 == 0o700
