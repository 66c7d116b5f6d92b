"""A power cut at any moment: what was announced is found, or before that the round before.

Each seed is one state of the disk after a cut: a workload is recorded once, and ``crashes`` draws
the moment and what the disk made of it. Some states are then used to go on.
"""

from __future__ import annotations

import functools
from pathlib import Path
from random import Random

from campaigns import crashes, results
from campaigns.disks import MemoryDisk, RecordingDisk
from campaigns.workloads import WORKLOADS, Workload
from onefed.errors import OnefedError

FOLDER = Path("/disk/deep/state")
"""Made by the store itself: its name may be lost, too."""
GO_ON = 0.1
"""Share of the states in which the run goes on after the cut."""


@functools.cache
def recorded(workload: Workload) -> RecordingDisk:
    """The changes of a whole workload."""
    disk = RecordingDisk()
    save = workload.opened(FOLDER, disk)
    for count, snapshot in enumerate(workload.saves, start=1):
        save(snapshot)
        disk.announce(count)
    return disk


def run(seed: int) -> results.Outcome:
    """One state."""
    random = Random(seed)  # noqa: S311 - chance that can be repeated, no secret
    workload = WORKLOADS[seed % len(WORKLOADS)]
    disk = recorded(workload)
    crash = crashes.sample(disk.events, disk.root, random)
    announced, after = crash.announced or 0, MemoryDisk(crash.root)
    try:
        wrong = workload.violation(workload.load(FOLDER, after), announced)
        if wrong is None and random.random() < GO_ON:
            wrong = workload.finish(FOLDER, after, announced)
    except OnefedError as error:
        wrong = f"{type(error).__name__}: {error.message}"
    where = f"{workload.name}, cut after {crash.at} of {len(disk.events)} events: {wrong}"
    return results.Outcome(1, () if wrong is None else (where,))


if __name__ == "__main__":
    results.main("power_cut", __doc__ or "", run, option="states", count=1000, shard=10_000)
