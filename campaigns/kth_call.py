"""Every call to the disk fails once: the k-th, for k = 1, 2, ... until none does.

A seed is a kind of failure in a workload. EIO, ENOSPC and EMFILE come once or for ever, while the
workload saves and while its result is loaded; SIGKILL comes once, in a child process, on a file
system of the kernel.
"""

from __future__ import annotations

import errno
import itertools
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from campaigns import results
from campaigns.disks import Fault, FaultyDisk, MemoryDisk, sigkill
from campaigns.workloads import WORKLOADS, Workload
from onefed.checkpoint import files
from onefed.errors import OnefedError, StorageError

FOLDER = Path("/disk/deep/state")
ERRORS = (errno.EIO, errno.ENOSPC, errno.EMFILE)
MEMORY = Path("/dev/shm")  # noqa: S108 - a folder of its own is made there
"""Where children are killed, if it is there: a kill takes nothing that was written."""
CALLS_MAX = 1000
"""More than any workload makes."""


@dataclass(frozen=True, slots=True)
class Case:
    """One kind of failure in one workload."""

    workload: Workload
    number: int
    """The errno, or 0 for SIGKILL."""
    lasts: bool

    def __str__(self) -> str:
        name = errno.errorcode.get(self.number, "SIGKILL")
        return f"{self.workload.name}, {name}{' for ever' if self.lasts else ''}"


CASES = tuple(
    Case(workload, number, lasts)
    for workload in WORKLOADS
    for number, lasts in (*itertools.product(ERRORS, (False, True)), (0, False))
)


def run(seed: int) -> results.Outcome:
    """All k of one case."""
    case = CASES[seed % len(CASES)]
    sweeps = (_killed(case.workload),) if case.number == 0 else (_saving(case), _loading(case))
    states, violations = 0, []
    for at, wrong in itertools.chain(*sweeps):
        states += 1
        if wrong is not None:
            violations.append(f"{case}, call {at}: {wrong}")
    return results.Outcome(states, tuple(violations))


def _saving(case: Case) -> Iterator[tuple[int, str | None]]:
    """Save by save, each tried again once when it fails; then a new process goes on."""
    for at in range(1, CALLS_MAX):
        disk, workload, announced = MemoryDisk(), case.workload, 0
        fault = Fault(at, case.number, case.lasts)
        save = workload.opened(FOLDER, FaultyDisk(disk, fault))
        try:
            for snapshot in workload.saves:
                try:
                    save(snapshot)
                except StorageError:
                    save(snapshot)
                announced += 1
        except StorageError:
            pass
        if fault.calls < at:
            return
        yield at, _aftermath(workload, FOLDER, disk, announced)


def _loading(case: Case) -> Iterator[tuple[int, str | None]]:
    """A load that meets the failure says so, or gives the last round: never an earlier one."""
    workload, disk = case.workload, MemoryDisk()
    save = workload.opened(FOLDER, disk)
    for snapshot in workload.saves:
        save(snapshot)
    for at in range(1, CALLS_MAX):
        fault = Fault(at, case.number, case.lasts)
        try:
            loaded = workload.load(FOLDER, FaultyDisk(disk, fault))
        except StorageError:
            yield at, None
        else:
            if fault.calls < at:
                return
            yield at, workload.violation(loaded, len(workload.saves))


def _killed(workload: Workload) -> Iterator[tuple[int, str | None]]:
    """A child process that is killed by the kernel; it reports each save through a pipe."""
    for at in range(1, CALLS_MAX):
        with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as name:
            folder = Path(name) / "deep" / "state"
            announced, died = _child(workload, folder, at)
            if not died:
                return
            yield at, _aftermath(workload, folder, files.SYSTEM, announced)


def _child(workload: Workload, folder: Path, at: int) -> tuple[int, bool]:
    """Saves that were announced, and whether the child was killed."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        save = workload.opened(folder, FaultyDisk(files.SYSTEM, Fault(at, sigkill)))
        for snapshot in workload.saves:
            save(snapshot)
            os.write(writer, b".")
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        announced = len(stream.read())
    _, status = os.waitpid(child, 0)
    return announced, os.WIFSIGNALED(status)


def _aftermath(
    workload: Workload, folder: Path, system: files.System, announced: int
) -> str | None:
    try:
        wrong = workload.violation(workload.load(folder, system), announced)
        return wrong or workload.finish(folder, system, announced)
    except OnefedError as error:
        return f"{type(error).__name__}: {error.message}"


if __name__ == "__main__":
    results.main("kth_call", __doc__ or "", run, option="cases", count=len(CASES), shard=5)
