"""A look at a folder: what is there, what is wrong with it, and what can go."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onefed.arrays import digest
from onefed.checkpoint import DamagedError, Exporter, RecoveryStore, Retention
from onefed.checkpoint.inspect import Series, open_folder
from onefed.errors import NotFoundError, StorageError

FIXTURES = Path(__file__).parent / "fixtures"
NOW = datetime(2026, 11, 3, 12, tzinfo=UTC)
RUN = "run-1"


@pytest.fixture
def export(tmp_path: Path, snapshot_of: Any) -> Series:
    exporter = Exporter(tmp_path, RUN, 1)
    for number in (1, 2, 3):
        exporter.save(snapshot_of(number), now=NOW)
    (series,) = open_folder(tmp_path)
    return series


@pytest.fixture
def recovery(tmp_path: Path, snapshot_of: Any) -> Series:
    store = RecoveryStore(tmp_path)
    for number in (1, 2, 3):
        store.save(snapshot_of(number))
    (series,) = open_folder(tmp_path)
    return series


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[190] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("kind", ["export", "recovery"])
def test_a_whole_series_is_listed_read_and_verified(
    kind: str, request: pytest.FixtureRequest, snapshot_of: Any
) -> None:
    series: Series = request.getfixturevalue(kind)
    assert (series.kind, series.newest()) == (kind, 3)
    entries = series.rounds()
    assert [entry.round_number for entry in entries] == [3, 2, 1]
    assert [entry.is_latest for entry in entries] == [True, False, False]
    for entry in entries:
        number = entry.round_number
        assert entry.problem is None
        assert entry.size_bytes == sum(path.stat().st_size for path in entry.paths)
        assert len(entry.paths) == (3 if kind == "export" else 2)
        assert entry.saved_at is not None
        assert (entry.saved_at == NOW) == (kind == "export")
        assert series.snapshot(number).arrays == {}
        assert series.snapshot(number).history == snapshot_of(number).history
        assert list(series.arrays(number)) == list(snapshot_of(number).arrays)
        assert digest(series.arrays(number)) == digest(snapshot_of(number).arrays)
        assert digest(series.rule_state(number)) == digest(snapshot_of(number).rule_state)
        assert series.verify(number) == []


def test_both_kinds_in_one_folder_are_two_series(tmp_path: Path, snapshot_of: Any) -> None:
    RecoveryStore(tmp_path).save(snapshot_of(1))
    Exporter(tmp_path, RUN, 1).save(snapshot_of(2), now=NOW)
    assert [(each.kind, each.newest()) for each in open_folder(tmp_path)] == [
        ("recovery", 1),
        ("export", 2),
    ]


@pytest.mark.parametrize("name", ["round_000001-0123456789abcdef.npz", "model.npz", None])
def test_folder_without_checkpoints_is_said_to_be_so(tmp_path: Path, name: str | None) -> None:
    """An archive alone is what a killed writer leaves in a recovery folder."""
    if name:
        (tmp_path / name).touch()
    with pytest.raises(NotFoundError, match="no checkpoints in"):
        open_folder(tmp_path)
    with pytest.raises(NotFoundError, match="no checkpoints in"):
        open_folder(tmp_path / "none")


def test_round_that_is_not_there_is_answered_with_those_that_are(export: Series) -> None:
    for ask in (export.snapshot, export.arrays, export.rule_state, export.verify):
        with pytest.raises(NotFoundError, match="no checkpoint of round 9") as caught:
            ask(9)
        assert caught.value.hint == "The newest rounds there: 3, 2, 1."


def test_state_of_a_rule_without_one_is_empty(tmp_path: Path, snapshot_of: Any) -> None:
    Exporter(tmp_path, RUN, 1).save(snapshot_of(1, rule_state={}), now=NOW)
    (series,) = open_folder(tmp_path)
    assert series.rule_state(1) == {}
    assert series.verify(1) == []


def unlink(path: Path) -> None:
    path.unlink()


def retarget(path: Path) -> None:
    path.unlink()
    path.symlink_to("/etc/passwd")


def about_another(path: Path) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_arrays": 7}))


@pytest.mark.parametrize(
    ("name", "harm", "said"),
    [
        ("checkpoint_round_3.npz", flip, "has not the check sum it was saved with"),
        ("checkpoint_round_3_state.npz", flip, "has not the check sum it was saved with"),
        ("checkpoint_round_3_state.npz", unlink, "checkpoint_round_3_state.npz: it is missing"),
        ("checkpoint_round_3.json", flip, "checkpoint_round_3.json is damaged"),
        ("checkpoint_round_3.json", unlink, "it has no sidecar"),
        ("checkpoint_latest.npz", unlink, "there is no link of that name"),
        ("checkpoint_latest.npz", retarget, "links to '/etc/passwd', not to checkpoint_round_3"),
        ("checkpoint_latest.json", flip, "checkpoint_latest.json"),
        ("checkpoint_latest.json", unlink, "checkpoint_latest.json"),
        ("checkpoint_latest.json", about_another, "'num_arrays' is not that of the sidecar"),
    ],
    ids=range(10),
)
def test_what_is_wrong_with_the_newest_is_said(
    export: Series, name: str, harm: Callable[[Path], None], said: str
) -> None:
    harm(export.folder / name)
    assert export.newest() == 3
    assert said in "\n".join(export.verify(3))
    assert export.verify(2) == []


def test_a_look_at_the_sidecar_shows_what_it_can(export: Series) -> None:
    (export.folder / "checkpoint_round_1_state.npz").unlink()
    flip(export.folder / "checkpoint_round_2.json")
    flip(export.folder / "checkpoint_round_3.npz")
    problems = [entry.problem for entry in export.rounds()]
    assert problems[0] is None
    assert problems[1] is not None
    assert problems[1].startswith("checkpoint_round_2.json: ")
    assert problems[2] == "checkpoint_round_1_state.npz: it is missing"
    with pytest.raises(DamagedError, match="not the digest"):
        export.arrays(3)


def test_every_array_that_is_wrong_is_named(recovery: Series) -> None:
    (archive,) = recovery.folder.glob("round_000002-*.npz")
    data = archive.read_bytes()
    for value in (np.full((2, 3), 2 + 5 / 8, np.float32), np.full(3, -2.0)):
        assert data.count(value.tobytes()) == 1
        data = data.replace(value.tobytes(), bytes(value.nbytes))
    archive.write_bytes(data)
    assert len(recovery.verify(2)) == 2


def test_the_newest_that_is_named_counts_whole_or_not(recovery: Series) -> None:
    (recovery.folder / "round_000004.json").write_text("{")
    assert recovery.newest() == 4
    assert recovery.rounds()[0].problem == "round_000004.json: it is not a JSON document"
    with pytest.raises(StorageError):
        recovery.snapshot(4)


def test_newer_format_is_no_damage(recovery: Series) -> None:
    path = recovery.folder / "round_000003.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": 3}))
    assert "format version 3" in str(recovery.rounds()[0].problem)
    assert "format version 3" in recovery.verify(3)[0]


def test_a_planted_pipe_is_no_wait(export: Series) -> None:
    for name in ("checkpoint_round_3.npz", "checkpoint_latest.json", "checkpoint_round_2.json"):
        (export.folder / name).unlink()
        os.mkfifo(export.folder / name)
    assert len(export.rounds()) == 3
    assert export.verify(3)
    assert export.verify(2)


def test_what_an_earlier_onefed_exported_is_read_as_far_as_it_can_be(
    tmp_path: Path, snapshot_of: Any
) -> None:
    shutil.copytree(FIXTURES / "version_1/export", tmp_path / "export", symlinks=True)
    (series,) = open_folder(tmp_path / "export")
    assert [(e.round_number, e.problem, e.is_latest) for e in series.rounds()] == [
        (2, None, True),
        (1, None, False),
    ]
    assert series.verify(2) == series.verify(1) == []
    assert digest(series.arrays(2)) == digest(snapshot_of(2).arrays)
    with pytest.raises(DamagedError, match="it has no sidecar"):
        series.arrays(1)
    with pytest.raises(DamagedError, match="it has no sidecar"):
        series.rule_state(2)
    flip(tmp_path / "export/checkpoint_round_2.npz")
    assert series.verify(2)
    with pytest.raises(DamagedError):
        series.arrays(2)


def test_an_archive_that_a_cut_off_save_left_is_not_listed(export: Series) -> None:
    for number in (2, 4):
        shutil.copy(
            export.folder / "checkpoint_round_3.npz",
            export.folder / f"checkpoint_round_{number}.npz",
        )
    (export.folder / "checkpoint_round_2.json").unlink()
    assert [entry.round_number for entry in export.rounds()] == [3, 1]


@pytest.mark.parametrize("kind", ["export", "recovery"])
def test_prune_says_what_goes_and_then_takes_it(kind: str, request: pytest.FixtureRequest) -> None:
    series: Series = request.getfixturevalue(kind)
    assert series.prune(Retention()) == []
    before = sorted(series.folder.iterdir())
    planned = series.prune(Retention(keep_last=1), dry_run=True)
    assert sorted(series.folder.iterdir()) == before
    assert series.prune(Retention(keep_last=1)) == planned
    assert sorted([*series.folder.iterdir(), *planned]) == before
    assert [entry.round_number for entry in series.rounds()] == [3]
    assert series.verify(3) == []


def test_prune_never_takes_what_the_link_names(export: Series) -> None:
    link = export.folder / "checkpoint_latest.npz"
    link.unlink()
    link.symlink_to("checkpoint_round_1.npz")
    export.prune(Retention(keep_last=1))
    assert [entry.round_number for entry in export.rounds()] == [3, 1]


def test_prune_leaves_a_save_alone_that_is_on_its_way(export: Series) -> None:
    on_its_way = export.folder / "checkpoint_round_4.npz"
    shutil.copy(export.folder / "checkpoint_round_3.npz", on_its_way)
    export.prune(Retention(keep_last=1))
    assert on_its_way.exists()
