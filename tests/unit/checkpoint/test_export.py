"""The operator's checkpoints: the contract of their names, and nobody else's are touched."""

from __future__ import annotations

import json
import os
import shutil
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onefed.arrays import digest
from onefed.checkpoint import (
    Exporter,
    ModelMismatchError,
    Retention,
    Saved,
    Snapshot,
    holds_checkpoints,
)
from onefed.errors import InUseError, StorageError

FIXTURES = Path(__file__).parent / "fixtures"
NOW = datetime(2026, 11, 3, 12, 0, 5, 999, tzinfo=timezone(timedelta(hours=2)))
MODEL = {"z": np.arange(4, dtype=np.float32).reshape(2, 2), "file": np.array(7)}
STATE = {"m": np.zeros(2)}


def snapshot(number: int, run: str = "run-1", **changed: Any) -> Snapshot:
    fields: dict[str, Any] = {
        "run": run,
        "round_number": number,
        "rounds_total": 99,
        "seed": 1,
        "rule": "FedAvg",
        "rule_state": {},
        "arrays": MODEL,
        "history": (),
        "app_sha256": "a",
        "config_sha256": "c",
    }
    return Snapshot(**{**fields, **changed})


def save(exporter: Exporter, number: int, **changed: Any) -> Saved:
    return exporter.save(snapshot(number, exporter.run, **changed), now=NOW)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def found(folder: Path) -> tuple[int, list[str]]:
    """Round that a resume begins from, and the files that it passed over."""
    loaded = Exporter(folder, "run-1", 1).load()
    assert loaded is not None
    return loaded.snapshot.round_number, [entry.path.name for entry in loaded.damaged]


def test_files_are_those_of_the_contract(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "checkpoints"
    exporter = Exporter(folder, "run-1", 5)
    save(exporter, 5, rule_state=STATE)
    saved = save(exporter, 10)
    assert saved == Saved(folder / "checkpoint_round_10.npz", saved.path.stat().st_size)
    assert names(folder) == [
        "checkpoint_latest.json",
        "checkpoint_latest.npz",
        "checkpoint_round_10.json",
        "checkpoint_round_10.npz",
        "checkpoint_round_5.json",
        "checkpoint_round_5.npz",
        "checkpoint_round_5_state.npz",
        "checkpoint_run.json",
    ]
    assert str((folder / "checkpoint_latest.npz").readlink()) == "checkpoint_round_10.npz"
    with np.load(folder / "checkpoint_latest.npz", allow_pickle=False) as plain:
        assert list(plain) == ["arr_0", "arr_1"]
        assert plain["arr_0"].tobytes() == MODEL["z"].tobytes()
        assert plain["arr_1"] == 7
    assert json.loads((folder / "checkpoint_latest.json").read_text()) == {
        "round": 10,
        "timestamp": "2026-11-03T10:00:05+00:00",
        "num_arrays": 2,
        "strategy": "FedAvg",
        "run": "run-1",
        "keys": ["z", "file"],
        "model_sha256": digest(MODEL),
        "sidecar": "checkpoint_round_10.json",
        "format": 2,
    }


def test_a_copy_of_the_folder_is_enough_to_go_on(tmp_path: Path, snapshot_of: Any) -> None:
    Exporter(tmp_path / "here", "run-1", 1).save(snapshot_of(3), now=NOW)
    shutil.copytree(tmp_path / "here", tmp_path / "there", symlinks=True)
    loaded = Exporter(tmp_path / "there", "run-1", 1).load(snapshot_of(1).arrays)
    assert loaded is not None
    assert (loaded.path.name, loaded.damaged) == ("checkpoint_round_3.json", ())
    assert repr(loaded.snapshot) == repr(snapshot_of(3))
    assert digest(loaded.snapshot.rule_state) == digest(snapshot_of(3).rule_state)


def test_nothing_was_ever_saved(tmp_path: Path) -> None:
    assert Exporter(tmp_path / "none", "run-1", 1).load() is None
    Exporter(tmp_path, "run-1", 1).claim()
    assert Exporter(tmp_path, "run-1", 1).load() is None


def test_model_of_another_app_is_refused(tmp_path: Path) -> None:
    save(Exporter(tmp_path, "run-1", 1), 1)
    with pytest.raises(ModelMismatchError, match="'file' is not part of the model"):
        Exporter(tmp_path, "run-1", 1).load({"z": MODEL["z"]})


def test_damaged_newest_is_passed_over_and_named(tmp_path: Path) -> None:
    exporter = Exporter(tmp_path, "run-1", 1)
    for number in (1, 2):
        save(exporter, number, rule_state=STATE)
    state = tmp_path / "checkpoint_round_2_state.npz"
    state.write_bytes(state.read_bytes()[:-1])
    assert found(tmp_path) == (1, [state.name])
    (tmp_path / "checkpoint_round_2.json").unlink()
    assert found(tmp_path) == (1, ["checkpoint_round_2.json"])
    (tmp_path / "checkpoint_round_1.npz").unlink()
    with pytest.raises(StorageError, match="No snapshot in") as caught:
        found(tmp_path)
    for name in ("checkpoint_round_2.json", "checkpoint_round_1.npz"):
        assert name in caught.value.message


def test_models_without_sidecars_are_no_fresh_start(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"models of rounds \[1, 2\] without their sidecars"):
        Exporter(FIXTURES / "version_1/export", "run-1", 1).load()


def test_an_earlier_version_s_folder_is_gone_on_with(tmp_path: Path) -> None:
    shutil.copytree(FIXTURES / "version_1/export", tmp_path / "export", symlinks=True)
    save(Exporter(tmp_path / "export", "run-1", 1), 3)
    assert found(tmp_path / "export") == (3, [])


def test_what_a_first_save_leaves_that_was_cut_off_is_no_checkpoint(tmp_path: Path) -> None:
    exporter = Exporter(tmp_path, "run-1", 1)
    save(exporter, 1)
    for name in ("checkpoint_round_1.json", "checkpoint_latest.npz", "checkpoint_latest.json"):
        (tmp_path / name).unlink()
    assert exporter.load() is None


def test_going_back_drops_the_rounds_that_were_left(tmp_path: Path) -> None:
    exporter = Exporter(tmp_path, "run-1", 1)
    for number in (1, 2, 3):
        save(exporter, number, rule_state=STATE)
    other = {**MODEL, "file": np.array(8)}
    save(exporter, 2, arrays=other)
    loaded = exporter.load()
    assert loaded is not None
    assert (loaded.snapshot.round_number, loaded.damaged) == (2, ())
    assert digest(loaded.snapshot.arrays) == digest(other)
    assert not list(tmp_path.glob("*_3*"))


def test_retention_keeps_what_it_says_and_the_latest(tmp_path: Path) -> None:
    exporter = Exporter(tmp_path, "run-1", 1, retention=Retention(keep_last=2, keep_every=4))
    for number in range(1, 8):
        save(exporter, number, rule_state=STATE)
    kept = [f"checkpoint_round_{n}{end}" for n in (4, 6, 7) for end in (".npz", "_state.npz")]
    assert sorted(path.name for path in tmp_path.glob("checkpoint_round_*.npz")) == sorted(kept)
    assert len(list(tmp_path.glob("checkpoint_round_*.json"))) == 3


def test_a_sidecar_alone_is_somebody_s_checkpoint(tmp_path: Path) -> None:
    assert not holds_checkpoints(tmp_path / "none")
    (tmp_path / "checkpoint_round_3.json").write_text("{}")
    assert holds_checkpoints(tmp_path)


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


def test_damaged_name_of_the_run_is_read_from_the_metadata(tmp_path: Path) -> None:
    save(Exporter(tmp_path, "run-1", 1), 1)
    (tmp_path / "checkpoint_run.json").write_text("{")
    save(Exporter(tmp_path, "run-1", 1), 2)
    with pytest.raises(InUseError, match="checkpoints of run 'run-1'"):
        save(Exporter(tmp_path, "run-2", 1), 1)
    (tmp_path / "checkpoint_latest.json").write_text("{")
    with pytest.raises(StorageError, match=r"checkpoint_run\.json is damaged"):
        save(Exporter(tmp_path, "run-1", 1), 2)


def test_folder_whose_checkpoints_were_moved_away_is_free(tmp_path: Path) -> None:
    save(Exporter(tmp_path, "run-1", 1), 1)
    for path in list(tmp_path.iterdir()):
        if path.name != "checkpoint_run.json":
            path.unlink()
    save(Exporter(tmp_path, "run-2", 1), 1)


def test_full_disk_is_an_error_and_the_latest_stays(tmp_path: Path, disks: Any) -> None:
    save(Exporter(tmp_path, "run-1", 1), 1)
    with pytest.raises(StorageError, match="No space left"):
        save(Exporter(tmp_path, "run-1", 1, disks.failing(6)), 2)
    assert json.loads((tmp_path / "checkpoint_latest.json").read_text())["round"] == 1
    with np.load(tmp_path / "checkpoint_latest.npz") as plain:
        assert plain["arr_1"] == 7


@pytest.mark.parametrize(
    "name", ["checkpoint_round_1.npz", "checkpoint_latest.npz", "checkpoint_round_1.json"]
)
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
            snapshot(1), now=NOW.astimezone(UTC).replace(tzinfo=None)
        )
