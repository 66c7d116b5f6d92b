"""The recovery store: the last complete snapshot or an error, whatever dies or lies."""

from __future__ import annotations

import errno
import io
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onefed.arrays import digest
from onefed.checkpoint import (
    ModelMismatchError,
    RecoveryStore,
    Snapshot,
    archive,
    files,
    series,
    snapshot,
)
from onefed.errors import InUseError, StorageError

RUN = "run-1"
FIXTURES = Path(__file__).parent / "fixtures"


def filled(folder: Path, snapshot_of: Any, *rounds: int, run: str = RUN) -> RecoveryStore:
    store = RecoveryStore(folder)
    for number in rounds:
        store.save(snapshot_of(number, run))
    return store


def same(one: Snapshot, other: Snapshot) -> bool:
    """Equal in every field, arrays to the bit and in order."""
    return repr(one) == repr(other) and all(
        list(a) == list(b) and digest(a) == digest(b)
        for a, b in ((one.arrays, other.arrays), (one.rule_state, other.rule_state))
    )


def test_a_snapshot_comes_back_whole(tmp_path: Path, snapshot_of: Any) -> None:
    filled(tmp_path / "state", snapshot_of, 1)
    loaded = RecoveryStore(tmp_path / "state").load(RUN)
    assert loaded is not None
    assert same(loaded.snapshot, snapshot_of(1))
    assert loaded.path == tmp_path / "state" / "round_000001.json"
    assert loaded.damaged == ()


def test_nothing_was_ever_saved(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        store = RecoveryStore(folder)
        assert (store.load(RUN), store.peek(), store.runs()) == (None, None, ())


def test_newest_three_rounds_are_kept(tmp_path: Path, snapshot_of: Any) -> None:
    filled(tmp_path, snapshot_of, *range(6))
    assert [path.name for path in sorted(tmp_path.glob("*.json"))] == [
        "round_000003.json",
        "round_000004.json",
        "round_000005.json",
    ]
    assert len(list(tmp_path.iterdir())) == 6


def test_only_the_owner_may_read(tmp_path: Path, snapshot_of: Any) -> None:
    filled(tmp_path / "state", snapshot_of, 1)
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "state").iterdir()} == {0o600}


def test_peek_and_runs_tell_without_reading_arrays(tmp_path: Path, snapshot_of: Any) -> None:
    store = filled(tmp_path, snapshot_of, 1, 2)
    for path in tmp_path.glob("*.npz"):
        path.unlink()
    peeked = store.peek()
    assert peeked is not None
    assert (peeked.run, peeked.round_number, peeked.arrays) == (RUN, 2, {})
    assert peeked.history == snapshot_of(2).history
    assert store.runs() == (RUN,)


def test_folder_of_another_run_is_neither_loaded_nor_written(
    tmp_path: Path, snapshot_of: Any
) -> None:
    filled(tmp_path, snapshot_of, 1)
    before = sorted(path.read_bytes() for path in tmp_path.iterdir())
    with pytest.raises(InUseError, match="belongs to run 'run-1'"):
        RecoveryStore(tmp_path).load("run-2")
    with pytest.raises(InUseError, match="belongs to run 'run-1'"):
        RecoveryStore(tmp_path).save(snapshot_of(2, "run-2"))
    assert sorted(path.read_bytes() for path in tmp_path.iterdir()) == before


def test_saving_an_earlier_round_leaves_the_later_future(tmp_path: Path, snapshot_of: Any) -> None:
    """After a fall back to round 2, an abandoned round 3 must never be loaded again."""
    filled(tmp_path, snapshot_of, 1, 2, 3)
    filled(tmp_path, snapshot_of, 2)
    loaded = RecoveryStore(tmp_path).load(RUN)
    assert loaded is not None
    assert loaded.snapshot.round_number == 2
    assert not list(tmp_path.glob("round_000003*"))


def test_what_an_earlier_version_wrote_is_read(snapshot_of: Any) -> None:
    loaded = RecoveryStore(FIXTURES / "version_1/recovery").load(RUN, snapshot_of(2).arrays)
    assert loaded is not None
    assert same(loaded.snapshot, snapshot_of(2))
    assert loaded.damaged == ()


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ({"layer/weight": np.zeros((2, 3), np.float32)}, "'steps' is not part of the model"),
        ({"layer/weight": np.zeros((3, 2), np.float32), "steps": np.array(0)}, "has shape"),
        ({"layer/weight": np.zeros((2, 3)), "steps": np.array(0)}, "has dtype float32"),
    ],
    ids=range(3),
)
def test_model_of_another_app_is_refused_before_an_array_is_read(
    tmp_path: Path, snapshot_of: Any, template: Any, said: str
) -> None:
    store = filled(tmp_path, snapshot_of, 1)
    for path in tmp_path.glob("*.npz"):
        path.unlink()
    with pytest.raises(ModelMismatchError, match=f"another model than the app's: .*{said}"):
        store.load(RUN, template)


class Moody(files.System):
    """A disk whose reads fail a number of times."""

    def __init__(self, failures: int) -> None:
        self.failures = failures

    def open(self, path: Path) -> Any:
        class Stream(io.BytesIO):
            def read(stream, size: int | None = -1) -> bytes:  # noqa: N805
                if self.failures and path.suffix == ".npz":
                    self.failures -= 1
                    raise OSError(errno.EIO, "the disk failed")
                return super().read(size)

        with super().open(path) as stream:
            return Stream(stream.read())


def test_a_read_that_fails_once_does_not_cost_a_round(tmp_path: Path, snapshot_of: Any) -> None:
    filled(tmp_path, snapshot_of, 1, 2)
    loaded = RecoveryStore(tmp_path, system=Moody(1)).load(RUN)
    assert loaded is not None
    assert (loaded.snapshot.round_number, loaded.damaged) == (2, ())
    loaded = RecoveryStore(tmp_path, system=Moody(2)).load(RUN)
    assert loaded is not None
    assert loaded.snapshot.round_number == 1
    assert [entry.reason for entry in loaded.damaged] == ["reading it failed: the disk failed"]


def test_folder_that_was_moved_away_is_made_again(tmp_path: Path, snapshot_of: Any) -> None:
    store = filled(tmp_path / "state", snapshot_of, 1)
    (tmp_path / "state").rename(tmp_path / "old")
    store.save(snapshot_of(2))
    assert [path.name for path in (tmp_path / "state").glob("*.json")] == ["round_000002.json"]


# Damage


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[190] ^= 1  # in the elements of the first array, or in the middle of the document
    path.write_bytes(data)


def link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def older(path: Path) -> None:
    (sibling,) = path.parent.glob(f"round_000001*{path.suffix}")
    shutil.copy(sibling, path)


@pytest.mark.parametrize("harm", [truncate, flip, link, pipe, older, Path.unlink])
@pytest.mark.parametrize("suffix", [".json", ".npz"])
def test_damaged_newest_is_skipped_and_named(
    tmp_path: Path, snapshot_of: Any, suffix: str, harm: Any
) -> None:
    filled(tmp_path, snapshot_of, 1, 2)
    (victim,) = tmp_path.glob(f"round_000002*{suffix}")
    harm(victim)
    loaded = RecoveryStore(tmp_path).load(RUN)
    assert loaded is not None
    assert same(loaded.snapshot, snapshot_of(1))
    if (suffix, harm) != (".json", Path.unlink):  # without its sidecar there is no snapshot
        assert [entry.path for entry in loaded.damaged] == [victim]
        assert loaded.damaged[0].reason


def test_all_damaged_is_an_error_that_names_them(tmp_path: Path, snapshot_of: Any) -> None:
    filled(tmp_path, snapshot_of, 1, 2)
    for path in tmp_path.glob("*.npz"):
        flip(path)
    with pytest.raises(StorageError, match="No snapshot in") as caught:
        RecoveryStore(tmp_path).load(RUN)
    assert all(str(path) in caught.value.message for path in tmp_path.glob("*.npz"))


def test_lost_sidecars_are_no_fresh_start(tmp_path: Path, snapshot_of: Any) -> None:
    filled(tmp_path, snapshot_of, 1, 2)
    for path in tmp_path.glob("*.json"):
        path.unlink()
    with pytest.raises(StorageError, match=r"arrays of rounds \[1, 2\] without their sidecars"):
        RecoveryStore(tmp_path).load(RUN)


def test_sidecar_of_another_run_is_refused_by_name(tmp_path: Path, snapshot_of: Any) -> None:
    filled(tmp_path / "a", snapshot_of, 1, 2)
    filled(tmp_path / "b", snapshot_of, 1, 2, run="run-2")
    shutil.copy(tmp_path / "b" / "round_000002.json", tmp_path / "a")
    loaded = RecoveryStore(tmp_path / "a").load(RUN)
    assert loaded is not None
    assert loaded.snapshot.round_number == 1
    assert [entry.reason for entry in loaded.damaged] == ["it belongs to run 'run-2'"]


def forge(path: Path, **changed: Any) -> None:
    """Change fields of a sidecar and make its digest fit."""
    document: Any = files.read_json(path)
    document["snapshot"].update(changed)
    document["sha256"] = snapshot.self_digest(document["snapshot"])
    files.write_json(path, document)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"round_number": 9}, "it holds round 9"),
        ({"archive": "../../etc/passwd"}, "it names the archive"),
        ({"archive": "round_000001-0123456789abcdef.npz"}, "it names the archive"),
        ({"arrays": []}, "exactly the 1 arrays"),
        ({"arrays": [{"key": "w", "dtype": "int8", "shape": [9], "sha256": ""}]}, "exactly the 2"),
    ],
    ids=range(5),
)
def test_forged_sidecar_is_refused(
    tmp_path: Path, snapshot_of: Any, changed: dict[str, Any], said: str
) -> None:
    filled(tmp_path, snapshot_of, 2)
    forge(tmp_path / "round_000002.json", **changed)
    with pytest.raises(StorageError, match=said):
        RecoveryStore(tmp_path).load(RUN)


def test_pickled_arrays_are_refused_and_no_code_runs(tmp_path: Path, snapshot_of: Any) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "sprung",))

    filled(tmp_path, snapshot_of, 1)
    (path,) = tmp_path.glob("*.npz")
    with path.open("wb") as stream:
        np.savez(stream, *[np.array([Trap()], object)] * 3)
    with pytest.raises(StorageError, match="is not a float32"):
        RecoveryStore(tmp_path).load(RUN)
    assert not (tmp_path / "sprung").exists()


def test_newer_format_stops_instead_of_falling_back(tmp_path: Path, snapshot_of: Any) -> None:
    filled(tmp_path, snapshot_of, 1, 2)
    path = tmp_path / "round_000002.json"
    document: Any = files.read_json(path)
    files.write_json(path, {**document, "version": 3})
    with pytest.raises(StorageError, match="format version 3"):
        RecoveryStore(tmp_path).load(RUN)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory, snapshot_of: Any) -> Path:
    folder = tmp_path_factory.mktemp("pristine")
    filled(folder, snapshot_of, 1, 2)
    return folder


NAMES = ["round_000001.json", "round_000001-*.npz", "round_000002.json", "round_000002-*.npz"]


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_mutated_files_never_give_a_snapshot_that_was_not_saved(
    pristine: Path, snapshot_of: Any, data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "state"
        shutil.copytree(pristine, folder)
        for pattern in data.draw(st.lists(st.sampled_from(NAMES), min_size=1, unique=True)):
            (path,) = folder.glob(pattern)
            content = path.read_bytes()
            start = data.draw(st.integers(0, len(content)))
            end = start + data.draw(st.integers(0, 8))
            path.write_bytes(content[:start] + data.draw(st.binary(max_size=8)) + content[end:])
        try:
            loaded = RecoveryStore(folder).load(RUN)
        except StorageError:
            return
        assert loaded is not None
        assert same(loaded.snapshot, snapshot_of(loaded.snapshot.round_number))


# Bounds


def test_snapshot_too_large_to_load_is_not_saved(
    tmp_path: Path, snapshot_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "ARRAYS_BYTES_MAX", 8)
    with pytest.raises(StorageError, match="at most"):
        RecoveryStore(tmp_path).save(snapshot_of(1))
    assert not list(tmp_path.iterdir())


def test_flood_of_planted_sidecars_is_bounded(
    tmp_path: Path, snapshot_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(series, "SIDECARS_READ_MAX", 4)
    filled(tmp_path, snapshot_of, 1)
    for number in range(100, 120):
        (tmp_path / f"round_{number:06d}.json").write_text("{}")
    with pytest.raises(StorageError, match="None of the newest 4 snapshots"):
        RecoveryStore(tmp_path).load(RUN)
