"""The operator's checkpoints: the contract of their names, and nobody else's are touched."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from onefed.arrays import digest
from onefed.checkpoint import Exporter, Saved
from onefed.errors import InUseError, StorageError

if TYPE_CHECKING:
    from pathlib import Path

NOW = datetime(2026, 11, 3, 12, 0, 5, 999, tzinfo=timezone(timedelta(hours=2)))
MODEL = {"z": np.arange(4, dtype=np.float32).reshape(2, 2), "file": np.array(7)}


def save(exporter: Exporter, number: int) -> Saved:
    return exporter.save(MODEL, round_number=number, strategy="FedAvg", now=NOW)


def test_files_are_those_of_the_contract(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "checkpoints"
    exporter = Exporter(folder, "run-1", 5)
    save(exporter, 5)
    saved = save(exporter, 10)
    assert saved == Saved(folder / "checkpoint_round_10.npz", saved.path.stat().st_size)
    assert sorted(path.name for path in folder.iterdir()) == [
        "checkpoint_latest.json",
        "checkpoint_latest.npz",
        "checkpoint_round_10.npz",
        "checkpoint_round_5.npz",
        "checkpoint_run.json",
    ]
    assert str((folder / "checkpoint_latest.npz").readlink()) == "checkpoint_round_10.npz"
    with np.load(folder / "checkpoint_latest.npz", allow_pickle=False) as found:
        assert list(found) == ["arr_0", "arr_1"]
        assert found["arr_0"].tobytes() == MODEL["z"].tobytes()
        assert found["arr_1"] == 7
    assert json.loads((folder / "checkpoint_latest.json").read_text()) == {
        "round": 10,
        "timestamp": "2026-11-03T10:00:05+00:00",
        "num_arrays": 2,
        "strategy": "FedAvg",
        "run": "run-1",
        "keys": ["z", "file"],
        "model_sha256": digest(MODEL),
        "format": 1,
    }


@pytest.mark.parametrize(
    ("interval", "rounds_total", "due"),
    [(5, 12, [5, 10, 12]), (1, 3, [1, 2, 3]), (5, 3, [3]), (4, 4, [4])],
)
def test_each_interval_and_the_last_round_are_due(
    tmp_path: Path, interval: int, rounds_total: int, due: list[int]
) -> None:
    exporter = Exporter(tmp_path, "run-1", interval)
    assert [n for n in range(rounds_total + 1) if exporter.due(n, rounds_total)] == due


def test_checkpoints_of_another_run_are_left_alone(tmp_path: Path) -> None:
    save(Exporter(tmp_path, "run-1", 1), 1)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(InUseError, match="checkpoints of run 'run-1'; this is run 'run-2'") as it:
        save(Exporter(tmp_path, "run-2", 1), 1)
    assert "choose another FL_CHECKPOINT_PATH" in str(it.value.hint)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_checkpoints_of_an_unknown_program_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "checkpoint_round_1.npz").write_bytes(b"theirs")
    with pytest.raises(InUseError, match="checkpoints of an unknown run"):
        save(Exporter(tmp_path, "run-2", 1), 1)
    assert (tmp_path / "checkpoint_round_1.npz").read_bytes() == b"theirs"


def test_metadata_alone_tells_the_run_too(tmp_path: Path) -> None:
    save(Exporter(tmp_path, "run-1", 1), 1)
    (tmp_path / "checkpoint_run.json").unlink()
    with pytest.raises(InUseError, match="checkpoints of run 'run-1'"):
        save(Exporter(tmp_path, "run-2", 1), 1)
    save(Exporter(tmp_path, "run-1", 1), 2)


def test_folder_whose_checkpoints_were_moved_away_is_free(tmp_path: Path) -> None:
    save(Exporter(tmp_path, "run-1", 1), 1)
    for path in list(tmp_path.iterdir()):
        if path.name != "checkpoint_run.json":
            path.unlink()
    save(Exporter(tmp_path, "run-2", 1), 1)


def test_killed_at_any_call_the_latest_is_whole_and_the_run_goes_on(
    tmp_path: Path, disks: Any
) -> None:
    for at in range(1, 200):
        folder = tmp_path / str(at)
        system, announced = disks.killed(at), 0
        try:
            for number in (1, 2):
                save(Exporter(folder, "run-1", 1, system), number)
                announced = number
        except disks.Killed:
            latest, metadata = folder / "checkpoint_latest.npz", folder / "checkpoint_latest.json"
            if announced:
                assert json.loads(metadata.read_text())["round"] in (announced, announced + 1)
                with np.load(latest, allow_pickle=False) as found:
                    assert len(found) == 2
            save(Exporter(folder, "run-1", 1), announced + 2)
            assert str(latest.readlink()) == f"checkpoint_round_{announced + 2}.npz"
            assert not list(folder.glob(".*"))
        else:
            break
    assert 20 < at < 199


def test_full_disk_is_an_error_and_the_latest_stays(tmp_path: Path, disks: Any) -> None:
    save(Exporter(tmp_path, "run-1", 1), 1)
    with pytest.raises(StorageError, match="No space left"):
        save(Exporter(tmp_path, "run-1", 1, disks.failing(6)), 2)
    assert json.loads((tmp_path / "checkpoint_latest.json").read_text())["round"] == 1
    with np.load(tmp_path / "checkpoint_latest.npz") as found:
        assert found["arr_1"] == 7


@pytest.mark.parametrize("name", ["checkpoint_round_1.npz", "checkpoint_latest.npz"])
def test_planted_links_are_never_followed(tmp_path: Path, name: str) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"precious")
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    (folder / "checkpoint_run.json").write_text('{"run": "run-1"}')
    (folder / name).symlink_to(outside)
    save(Exporter(folder, "run-1", 1), 1)
    assert outside.read_bytes() == b"precious"
    assert np.load(folder / "checkpoint_latest.npz")["arr_1"] == 7


@pytest.mark.parametrize("name", ["checkpoint_run.json", "checkpoint_latest.json"])
def test_planted_pipe_is_an_error_and_not_a_wait(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(StorageError, match="not a regular file"):
        save(Exporter(tmp_path, "run-1", 1), 1)


def test_clock_without_a_zone_is_our_mistake(tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        Exporter(tmp_path, "run-1", 1).save(
            MODEL, round_number=1, strategy="FedAvg", now=NOW.astimezone(UTC).replace(tzinfo=None)
        )
