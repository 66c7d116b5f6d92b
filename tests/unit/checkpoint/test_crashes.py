"""Whatever fails, dies or loses power while a store is written: nothing announced is lost.

The campaigns run all cases and many more states; these are a few of each, and proofs that they
would find a fault.
"""

from __future__ import annotations

import errno
from pathlib import Path
from random import Random
from typing import Any

import pytest
from campaigns import crashes, kth_call, mutations, power_cut, store_machine
from campaigns.disks import Event, File, Folder, MemoryDisk, RecordingDisk, Synced
from campaigns.workloads import WORKLOADS, Workload

from onefed.checkpoint import files
from onefed.errors import OnefedError

CASES = [
    case
    for case in kth_call.CASES
    if (case.number == errno.EIO and not case.lasts)
    or (case.number in (errno.EMFILE, 0) and case.workload.name == "recovery")
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_call_that_fails_is_survived(case: kth_call.Case) -> None:
    outcome = kth_call.run(kth_call.CASES.index(case))
    assert outcome.violations == ()
    assert outcome.states > 50


def test_no_power_cut_loses_what_was_announced() -> None:
    outcomes = [power_cut.run(seed) for seed in range(600)]
    assert [violation for outcome in outcomes for violation in outcome.violations] == []


def violations(events: list[Event], workload: Workload, root: Folder) -> int:
    """Crash states of recorded events, out of 300, in which the workload finds what it must not."""
    found = 0
    for seed in range(300):
        crash = crashes.sample(events, root, Random(seed))
        try:
            loaded = workload.load(power_cut.FOLDER, MemoryDisk(crash.root))
            found += workload.violation(loaded, crash.announced or 0) is not None
        except OnefedError:
            found += 1
    return found


@pytest.mark.parametrize("kind", [File, Folder])
@pytest.mark.parametrize("workload", [WORKLOADS[0], WORKLOADS[2]], ids=lambda each: each.name)
def test_a_store_that_forgot_to_sync_would_be_found(workload: Workload, kind: type) -> None:
    disk = power_cut.recorded(workload)
    careless = [
        event
        for event in disk.events
        if not (isinstance(event, Synced) and isinstance(event.node, kind))
    ]
    assert violations(disk.events, workload, disk.root) == 0
    assert violations(careless, workload, disk.root) > 10


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda each: each.name)
def test_the_disk_in_memory_is_as_the_real_one(tmp_path: Path, workload: Workload) -> None:
    folder, memory = tmp_path / "deep" / "state", RecordingDisk()
    for path, system in ((folder, files.SYSTEM), (power_cut.FOLDER, memory)):
        save = workload.opened(path, system)
        for snapshot in workload.saves:
            save(snapshot)
    assert sorted(memory.names(power_cut.FOLDER)) == sorted(files.SYSTEM.names(folder))
    for path in folder.iterdir():
        twin = power_cut.FOLDER / path.name
        if path.is_symlink():
            assert memory.link_target(twin) == str(path.readlink())
        else:
            assert memory.open(twin).read() == path.read_bytes()


@pytest.mark.parametrize(
    "act",
    [
        lambda system, path: system.names(path / "none"),
        lambda system, path: system.names(path / "file"),
        lambda system, path: system.open(path / "none"),
        lambda system, path: system.open(path / "link"),
        lambda system, path: system.open(path / "folder"),
        lambda system, path: system.link_target(path / "file"),
        lambda system, path: system.open_folder(path / "none"),
        lambda system, path: system.make_folder(path / "folder", 0o755),
        lambda system, path: system.make_folder(path / "none" / "below", 0o755),
        lambda system, path: system.create("file", 0o644, system.open_folder(path)),
        lambda system, path: system.unlink("none", system.open_folder(path)),
        lambda system, path: system.rename("none", "file", system.open_folder(path)),
        lambda system, path: system.rename("file", "folder", system.open_folder(path)),
        lambda system, path: system.symlink("file", "link", system.open_folder(path)),
    ],
    ids=range(14),
)
def test_the_disk_in_memory_has_the_errors_of_the_real_one(tmp_path: Path, act: Any) -> None:
    numbers = []
    for system, path in ((files.SYSTEM, tmp_path / "at"), (MemoryDisk(), Path("/at"))):
        system.make_folder(path, 0o755)
        system.make_folder(path / "folder", 0o755)
        folder = system.open_folder(path)
        system.close(system.create("file", 0o644, folder))
        system.symlink("file", "link", folder)
        with pytest.raises(OSError) as caught:  # noqa: PT011 - the number is compared
            act(system, path)
        numbers.append(caught.value.errno)
    assert numbers[0] == numbers[1]


def test_no_mutation_gives_a_model_that_was_not_committed() -> None:
    outcomes = [mutations.run(seed) for seed in range(60)]
    assert [violation for outcome in outcomes for violation in outcome.violations] == []


@pytest.mark.parametrize("seed", range(2))
def test_any_order_of_saves_crashes_damage_and_resumes_finds_what_was_committed(seed: int) -> None:
    assert store_machine.run(seed).violations == ()
