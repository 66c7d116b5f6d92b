"""The recovery store: the last complete snapshot or an error, whatever dies or lies."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onefed.arrays import digest
from onefed.checkpoint import RecoveryStore, Snapshot, archive, files, recovery, snapshot
from onefed.errors import InUseError, StorageError

RUN = "run-1"


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
    document["sha256"] = snapshot._digest(document["snapshot"])
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
    files.write_json(path, {**document, "version": 2})
    with pytest.raises(StorageError, match="format version 2"):
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


# Crashes


def round_in(folder: Path, snapshot_of: Any) -> int:
    """The round that a restart finds, 0 for none; whole and without a complaint."""
    loaded = RecoveryStore(folder).load(RUN)
    if loaded is None:
        return 0
    assert loaded.damaged == ()
    assert same(loaded.snapshot, snapshot_of(loaded.snapshot.round_number))
    return loaded.snapshot.round_number


def run_until_the_end(store: RecoveryStore, snapshot_of: Any) -> Any:
    """Four rounds, so that pruning is among the calls; announces each that was saved."""
    for number in range(1, 5):
        store.save(snapshot_of(number))
        yield number


def calls_of_a_run(folder: Path, snapshot_of: Any, disks: Any) -> int:
    system = disks.killed(10_000)
    list(run_until_the_end(RecoveryStore(folder, system=system), snapshot_of))
    return int(system.calls)


def test_killed_at_any_call_no_announced_round_is_lost(
    tmp_path: Path, snapshot_of: Any, disks: Any
) -> None:
    calls = calls_of_a_run(tmp_path / "whole", snapshot_of, disks)
    assert calls > 50
    for at in range(1, calls + 1):
        folder, announced = tmp_path / str(at), 0
        with pytest.raises(disks.Killed):  # noqa: PT012
            for number in run_until_the_end(
                RecoveryStore(folder, system=disks.killed(at)), snapshot_of
            ):
                announced = number
        assert round_in(folder, snapshot_of) in (announced, announced + 1)
        filled(folder, snapshot_of, announced + 1, announced + 2)
        assert round_in(folder, snapshot_of) == announced + 2
        assert not list(folder.glob(".*"))


def test_power_cut_at_any_call_no_announced_round_is_lost(
    tmp_path: Path, snapshot_of: Any, disks: Any
) -> None:
    calls = calls_of_a_run(tmp_path / "whole", snapshot_of, disks)
    for at in range(1, calls + 1):
        folder, announced = tmp_path / str(at), 0
        system = disks.PowerCut(at)
        with pytest.raises(disks.Killed):  # noqa: PT012
            for number in run_until_the_end(RecoveryStore(folder, system=system), snapshot_of):
                announced = number
        for after in system.survivors(folder, tmp_path / f"{at} after"):
            assert round_in(after, snapshot_of) in (announced, announced + 1)


def test_power_cut_does_not_bring_an_abandoned_round_back(
    tmp_path: Path, snapshot_of: Any, disks: Any
) -> None:
    system = disks.PowerCut(10_000)
    folder = tmp_path / "state"
    for number in (1, 2, 3, 2):
        RecoveryStore(folder, system=system).save(snapshot_of(number))
    for after in system.survivors(folder, tmp_path / "after"):
        assert round_in(after, snapshot_of) == 2


def test_any_call_that_fails_is_an_error_and_the_save_can_be_repeated(
    tmp_path: Path, snapshot_of: Any, disks: Any
) -> None:
    for at in range(1, calls_of_a_run(tmp_path / "whole", snapshot_of, disks) + 1):
        folder = tmp_path / str(at)
        store = RecoveryStore(folder, system=disks.failing(at))
        failures = 0
        for number in range(1, 5):
            try:
                store.save(snapshot_of(number))
            except StorageError:
                failures += 1
                assert round_in(folder, snapshot_of) in (number - 1, number)
                store.save(snapshot_of(number))
            assert round_in(folder, snapshot_of) == number
        assert failures <= 1


def test_same_round_with_other_arrays_is_the_old_or_the_new(
    tmp_path: Path, snapshot_of: Any, disks: Any
) -> None:
    other = snapshot_of(2, arrays={"w": np.arange(4)})
    filled(tmp_path / "whole", snapshot_of, 2)
    system = disks.killed(1000)
    RecoveryStore(tmp_path / "whole", system=system).save(other)
    for at in range(1, system.calls):
        folder = tmp_path / str(at)
        filled(folder, snapshot_of, 2)
        with pytest.raises(disks.Killed):
            RecoveryStore(folder, system=disks.killed(at)).save(other)
        loaded = RecoveryStore(folder).load(RUN)
        assert loaded is not None
        assert loaded.damaged == ()
        assert same(loaded.snapshot, snapshot_of(2)) or same(loaded.snapshot, other)


WRITER = """
import os, signal, sys
from pathlib import Path
import numpy as np
from onefed.checkpoint import RecoveryStore, Snapshot, files

class Deadly(files.System):
    calls = 0
    def write(self, descriptor, data):
        self.calls += 1
        if self.calls == int(sys.argv[2]):
            super().write(descriptor, data[: len(data) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        return super().write(descriptor, data)

store = RecoveryStore(Path(sys.argv[1]), system=Deadly())
for number in range(1, 10_000):
    store.save(Snapshot(
        run="run-1", round_number=number, rounds_total=10_000, seed=1, rule="FedAvg",
        rule_state={}, arrays={"w": np.full(50_000, number, np.float32)}, history=(),
        app_sha256="", config_sha256="",
    ))
    print(number, flush=True)
"""


@pytest.mark.parametrize("at", [3, 28, 0], ids=["first archive", "a later write", "from outside"])
def test_sigkill_loses_no_announced_round(tmp_path: Path, at: int) -> None:
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path), str(at)], stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None
    announced = 0
    with writer:
        for line in writer.stdout:
            announced = int(line)
            if at == 0 and announced >= 20:
                writer.kill()
    assert writer.returncode == -signal.SIGKILL
    loaded = RecoveryStore(tmp_path).load(RUN)
    found = loaded.snapshot.round_number if loaded else 0
    assert found in (announced, announced + 1)
    if loaded:
        assert loaded.damaged == ()
        assert loaded.snapshot.arrays["w"].tolist() == [found] * 50_000


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
    monkeypatch.setattr(recovery, "SIDECARS_READ_MAX", 4)
    filled(tmp_path, snapshot_of, 1)
    for number in range(100, 120):
        (tmp_path / f"round_{number:06d}.json").write_text("{}")
    with pytest.raises(StorageError, match="No snapshot"):
        RecoveryStore(tmp_path).load(RUN)
