"""A machine that was deployed again goes on from the checkpoints of its predecessor."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onefed.appliance import earlier_run
from onefed.appliance.paths import Paths
from onefed.appliance.steps import BootError, Status
from onefed.checkpoint import Exporter, RecoveryStore, RoundRecord, Snapshot
from onefed.errors import ExitCode, InUseError
from onefed.flower import run_watch

CHECKPOINTS = {"FL_CHECKPOINT_ENABLED": "YES"}


def snapshot(round_number: int = 2, run: str = "run-1", seed: int = 0) -> Snapshot:
    records = tuple(
        RoundRecord(
            round_number=number,
            loss=0.5,
            accuracy=0.5,
            contributors=("0", "1"),
            failures=0,
            seconds=1.0,
            model_sha256="m" * 64,
        )
        for number in range(1, round_number + 1)
    )
    return Snapshot(
        run=run,
        round_number=round_number,
        rounds_total=3,
        seed=seed,
        rule="FedAvg",
        rule_state={},
        arrays={"w": np.full(2, round_number, np.float32)},
        history=records,
        app_sha256="a" * 64,
        config_sha256="c" * 64,
    )


def export(folder: Path, *found: Snapshot) -> None:
    for each in found:
        Exporter(folder, each.run, 1).save(each, now=datetime(2026, 1, 1, tzinfo=UTC))


def kept(paths: Paths) -> Snapshot | None:
    loaded = RecoveryStore(paths.recovery).load("run-1")
    return None if loaded is None else loaded.snapshot


def folders(computer: Any) -> Any:
    """The step of the boot that looks."""
    return computer.boot()["SL-07"]


@pytest.mark.parametrize("own_path", [False, True])
def test_a_new_machine_goes_on_with_the_run_of_the_checkpoints(
    coordinator, tmp_path, own_path
) -> None:
    folder = tmp_path / "volume" if own_path else coordinator.paths.checkpoints
    coordinator.variables |= CHECKPOINTS
    if own_path:
        coordinator.variables["FL_CHECKPOINT_PATH"] = str(folder)
    export(folder, snapshot(1), snapshot(2))
    assert "recovery store" in folders(coordinator).detail
    found = kept(coordinator.paths)
    assert found is not None
    assert (found.round_number, found.arrays["w"].tolist()) == (2, [2.0, 2.0])
    assert run_watch.read_state(coordinator.paths.supervisor_state).run == "run-1"
    assert folders(coordinator).status is Status.UNCHANGED


@pytest.mark.parametrize(
    "changed", [{"FL_CHECKPOINT_RESUME": "NO"}, {"FL_CHECKPOINT_ENABLED": "NO"}]
)
def test_one_that_is_told_not_to_begins_anew(coordinator, changed) -> None:
    coordinator.variables |= CHECKPOINTS | changed
    export(coordinator.paths.checkpoints, snapshot())
    folders(coordinator)
    assert kept(coordinator.paths) is None
    assert not coordinator.paths.supervisor_state.exists()


def test_a_machine_that_has_a_run_keeps_it(coordinator) -> None:
    coordinator.variables |= CHECKPOINTS
    coordinator.boot()
    coordinator.paths.supervisor_state.write_text(json.dumps({"run": "run-2"}))
    export(coordinator.paths.checkpoints, snapshot())
    assert folders(coordinator).status is Status.UNCHANGED
    assert run_watch.read_state(coordinator.paths.supervisor_state).run == "run-2"


def test_the_newest_whole_checkpoint_counts_and_a_damaged_one_is_told(coordinator) -> None:
    coordinator.variables |= CHECKPOINTS
    folder = coordinator.paths.checkpoints
    export(folder, snapshot(1), snapshot(2))
    (folder / "checkpoint_round_2.npz").write_bytes(b"damaged")
    folders(coordinator)
    found = kept(coordinator.paths)
    assert found is not None
    assert found.round_number == 1
    assert "damaged" in " ".join(coordinator.warnings)


def test_the_run_is_that_of_the_newest_sidecar_that_can_be_read(coordinator) -> None:
    coordinator.variables |= CHECKPOINTS
    folder = coordinator.paths.checkpoints
    export(folder, snapshot(1), snapshot(2))
    (folder / "checkpoint_round_2.json").write_bytes(b"{")
    folders(coordinator)
    found = kept(coordinator.paths)
    assert found is not None
    assert found.round_number == 1


def test_checkpoints_of_another_run_stop_the_boot_and_say_what_to_do(coordinator) -> None:
    coordinator.variables |= CHECKPOINTS
    export(coordinator.paths.checkpoints, snapshot(seed=7))
    with pytest.raises(BootError, match="seed 7") as caught:
        coordinator.boot()
    assert (caught.value.step_id, caught.value.exit_code) == ("SL-07", ExitCode.CONFIG)
    assert "FL_CHECKPOINT_RESUME=NO" in str(caught.value.hint)
    coordinator.variables["FL_SEED"] = "7"
    folders(coordinator)
    assert kept(coordinator.paths) is not None


def test_a_first_checkpoint_that_was_cut_off_is_none(coordinator) -> None:
    coordinator.variables |= CHECKPOINTS
    folder = coordinator.paths.checkpoints
    folder.mkdir(parents=True)
    (folder / "checkpoint_round_1.npz").write_bytes(b"PK")
    folders(coordinator)
    assert kept(coordinator.paths) is None


def test_none_of_several_checkpoints_is_whole(coordinator) -> None:
    coordinator.variables |= CHECKPOINTS
    folder = coordinator.paths.checkpoints
    export(folder, snapshot(1), snapshot(2))
    for archive in folder.glob("checkpoint_round_?.npz"):
        archive.write_bytes(b"damaged")
    with pytest.raises(BootError) as caught:
        coordinator.boot()
    assert caught.value.exit_code is ExitCode.STORAGE


def test_a_store_that_has_come_further_is_left_as_it_is(tmp_path) -> None:
    """The power failed between the store and the identity, or that was lost."""
    paths = Paths(tmp_path)
    RecoveryStore(paths.recovery).save(snapshot(3))
    earlier_run.plant(paths, snapshot(2))
    found = kept(paths)
    assert found is not None
    assert found.round_number == 3
    other = Paths(tmp_path / "other")
    RecoveryStore(other.recovery).save(snapshot(run="run-9"))
    with pytest.raises(InUseError):
        earlier_run.plant(other, snapshot())
