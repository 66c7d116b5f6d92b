"""Any order of saves, crashes, damage, pruning and resumes, against a list of what was committed.

The store is a real one on a disk in memory; the model of it is the snapshot that was announced last
and those that may be found instead. Each seed is ``EXAMPLES`` runs of the machine.
"""

from __future__ import annotations

import errno
from pathlib import Path
from random import Random
from typing import Any

from hypothesis import seed as seeded
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from campaigns import crashes, results
from campaigns.disks import Fault, FaultyDisk, File, Folder, Killed, RecordingDisk
from campaigns.workloads import NOW, RUN, committed, identity
from onefed.checkpoint import Exporter, Loaded, RecoveryStore, Retention, Snapshot
from onefed.checkpoint.export import OWNER
from onefed.checkpoint.files import System
from onefed.errors import StorageError

FOLDER = Path("/state")
EXAMPLES = 50
"""Runs of the machine under one seed."""
CALLS_MAX = 60
"""More than one save makes: some of the faults never come."""


class Store:
    """A store of either kind, opened anew for each call, as by a new process."""

    def __init__(self, kind: str, retention: Retention) -> None:
        self.kind = kind
        self._retention = retention

    def save(self, system: System, snapshot: Snapshot) -> None:
        if self.kind == "recovery":
            RecoveryStore(FOLDER, system=system).save(snapshot)
        else:
            Exporter(FOLDER, RUN, 1, system, self._retention).save(snapshot, now=NOW)

    def load(self, system: System) -> Loaded | None:
        if self.kind == "recovery":
            return RecoveryStore(FOLDER, system=system).load(RUN)
        return Exporter(FOLDER, RUN, 1, system).load()


class StoreMachine(RuleBasedStateMachine):
    """``announced`` is the round that must be found, ``possible`` those that may be instead."""

    @initialize(
        kind=st.sampled_from(["recovery", "export"]),
        keep_last=st.integers(0, 3),
        keep_every=st.integers(0, 3),
    )
    def begin(self, kind: str, keep_last: int, keep_every: int) -> None:
        self.store = Store(kind, Retention(keep_last, keep_every))
        self.disk = RecordingDisk()
        self.variant = 0
        self.history: list[Snapshot] = []
        """Every snapshot that was ever handed to the store, oldest first."""
        self.announced: Snapshot | None = None
        self.possible: list[Snapshot] = []
        self.damaged = False

    def following(self) -> Snapshot:
        number = 1 if self.announced is None else self.announced.round_number + 1
        snapshot = committed(number, self.variant)
        self.history.append(snapshot)
        return snapshot

    def succeeded(self, snapshot: Snapshot) -> None:
        self.announced, self.possible, self.damaged = snapshot, [], False
        self.disk.announce(len(self.history))

    @rule()
    def save(self) -> None:
        snapshot = self.following()
        self.store.save(self.disk, snapshot)
        self.succeeded(snapshot)

    @rule(at=st.integers(1, CALLS_MAX), number=st.sampled_from([errno.EIO, errno.ENOSPC]))
    def save_on_a_failing_disk(self, at: int, number: int) -> None:
        snapshot = self.following()
        try:
            self.store.save(FaultyDisk(self.disk, Fault(at, number)), snapshot)
        except StorageError:
            self.possible.append(snapshot)
        else:
            self.succeeded(snapshot)

    @rule(at=st.integers(1, CALLS_MAX))
    def die_while_saving(self, at: int) -> None:
        snapshot = self.following()
        fault = Fault(at, Killed(), lasts=True)
        try:
            self.store.save(FaultyDisk(self.disk, fault), snapshot)
        except Killed:
            self.possible.append(snapshot)
        else:
            self.succeeded(snapshot)

    @rule(seed=st.integers(0, 2**32))
    def lose_power(self, seed: int) -> None:
        """Now, with nothing on its way: what was announced is durable."""
        events = self.disk.events
        chance = Random(seed)  # noqa: S311 - chance that can be repeated, no secret
        crash = crashes.sample(events, self.disk.root, chance, at=len(events))
        self.disk = RecordingDisk(crash.root)

    @precondition(lambda self: self.announced is not None)
    @rule(back=st.integers(1, 3))
    def go_back(self, back: int) -> None:
        """Save an earlier round again, with another result; then go on from there."""
        assert self.announced is not None
        self.variant += 1
        number = max(1, self.announced.round_number - back)
        snapshot = committed(number, self.variant)
        self.history.append(snapshot)
        self.store.save(self.disk, snapshot)
        self.succeeded(snapshot)

    @precondition(lambda self: self.announced is not None)
    @rule(data=st.data())
    def damage(self, data: st.DataObject) -> None:
        """Flip a bit of one file.

        Not in the one that names the run: a folder of another run is refused, and rightly so.
        """
        folder: Any = self.disk.at(FOLDER)
        assert isinstance(folder, Folder)
        name = data.draw(st.sampled_from(sorted({*folder.names} - {OWNER})))
        file = folder.names[name]
        if isinstance(file, File) and file.content:
            place = data.draw(st.integers(0, len(file.content) - 1))
            rotten = bytearray(file.content)
            rotten[place] ^= 1
            folder.names[name] = File(rotten)
            self.disk = RecordingDisk(self.disk.root)
            self.damaged = True

    @precondition(lambda self: self.announced is not None)
    @rule()
    def resume(self) -> None:
        """A new process goes on from what it finds."""
        try:
            loaded = self.store.load(self.disk)
        except StorageError:
            return
        if loaded is not None:
            self.announced, self.possible = loaded.snapshot, []
            self.variant += 1

    @invariant()
    def what_is_found_was_committed(self) -> None:
        if not hasattr(self, "store"):
            return
        try:
            loaded = self.store.load(self.disk)
        except StorageError:
            assert self.damaged
            return
        found = None if loaded is None else identity(loaded.snapshot)
        if self.damaged:
            assert found in {identity(snapshot) for snapshot in self.history}
            return
        allowed = [self.announced, *self.possible]
        assert found in {None if each is None else identity(each) for each in allowed}


def run(seed: int) -> results.Outcome:
    """Some runs of the machine; the first that fails is shrunk and told."""
    machine = seeded(seed)(type("Seeded", (StoreMachine,), {}))
    try:
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=EXAMPLES, stateful_step_count=8, deadline=None, database=None
            ),
        )
    except Exception as error:  # noqa: BLE001 - whatever the store raises is the finding
        told = [f"{type(error).__name__}: {error}", *getattr(error, "__notes__", [])]
        return results.Outcome(EXAMPLES, (" ".join(told),))
    return results.Outcome(EXAMPLES, ())


if __name__ == "__main__":
    results.main("store_machine", __doc__ or "", run, option="seeds", count=40, shard=10)
