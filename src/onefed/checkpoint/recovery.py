"""The recovery store: one snapshot per round, from which a run goes on exactly where it was.

A snapshot is two files: ``round_000007-<tag>.npz`` with the arrays and, once that is on the disk,
``round_000007.json``, which names the archive and carries its digests. So a snapshot exists when
its sidecar does, and a round that is saved again with other content never touches the archive of
the first. ``KEPT_ROUNDS`` rounds are kept, for the day the newest is damaged.

A damaged snapshot is skipped and named. There is no silent fresh start: where there are snapshots
but none is whole, or where they belong to another run, loading is an error.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from onefed.checkpoint import archive, files, snapshot
from onefed.checkpoint.retention import Retention
from onefed.checkpoint.series import Damaged, Layout, Loaded, Series
from onefed.checkpoint.snapshot import RoundRecord, Sidecar, Snapshot
from onefed.errors import StorageError

__all__ = ["Damaged", "Loaded", "RecoveryStore", "RoundRecord", "Snapshot"]

KEPT_ROUNDS = 3
"""Newest rounds that stay in the folder."""

LAYOUT = Layout(
    kind="recovery",
    sidecar=re.compile(r"round_([0-9]{6,12})\.json"),
    archive=re.compile(r"round_([0-9]{6,12})-[0-9a-f]{16}\.npz"),
    state=None,
    partial=re.compile(r"\.round_([0-9]{6,12})(?:\.json|-[0-9a-f]{16}\.npz)\.partial"),
)


class RecoveryStore:
    """The snapshots of one run in one folder. One process writes at a time."""

    def __init__(self, folder: Path, *, system: files.System = files.SYSTEM) -> None:
        self._folder = folder
        self._system = system
        self._series = Series(folder, LAYOUT, system=system)
        self._claimed_by: str | None = None

    def save(self, current: Snapshot) -> None:
        """Make ``current`` durable and the newest of its run; then drop what is no longer kept.

        Returns when the snapshot survives a power cut. Raises ``StorageError`` where it may not;
        what was saved before is whole then, and the call can be repeated. Snapshots of later rounds
        are dropped: they belong to a future that this run has left.
        Raises ``InUseError`` where the folder belongs to another run.
        """
        self._claim(current.run)
        members = [*current.arrays.values(), *current.rule_state.values()]
        path = self._folder / f"round_{current.round_number:06d}.json"
        archive.check_size(path, members)
        model = archive.manifest(current.arrays)
        state = archive.manifest(current.rule_state)
        tag = hashlib.sha256("".join(entry.sha256 for entry in (*model, *state)).encode())
        archive_path = path.with_name(f"{path.stem}-{tag.hexdigest()[:16]}.npz")
        sidecar = Sidecar(
            snapshot=dataclasses.replace(current, arrays={}, rule_state={}),
            archive=archive_path.name,
            arrays=model,
            rule_state=state,
        )
        files.write_atomically(
            archive_path,
            lambda stream: archive.write(stream, archive.positional(members)),
            mode=0o600,
            system=self._system,
        )
        self._series.forget_later(current.round_number)
        files.write_json(path, snapshot.encode(sidecar), mode=0o600, system=self._system)
        self._prune(current.round_number)

    def load(self, run: str, template: Mapping[str, NDArray[Any]] | None = None) -> Loaded | None:
        """Newest whole snapshot of ``run``; None where nothing was ever saved.

        Raises ``InUseError`` where the folder holds snapshots of other runs only, ``StorageError``
        where it holds snapshots and none is whole, or one that a newer program wrote, and
        ``ModelMismatchError`` where names, shapes or dtypes are not those of ``template``.
        """
        loaded = self._series.newest_whole(run, template)
        if loaded is None and len(archives := {n for n, _ in self._series.archives()}) > 1:
            # One alone is what a first save leaves that was cut off: nothing was announced then.
            raise StorageError(
                f"{self._folder} holds arrays of rounds {sorted(archives)} without their sidecars.",
                hint="Restore the .json files, or move the folder away to train from the start.",
            )
        return loaded

    def peek(self) -> Snapshot | None:
        """Newest snapshot with a whole sidecar, of whatever run; its arrays are not read: empty."""
        return next(self._series.readable(), None)

    def runs(self) -> tuple[str, ...]:
        """Runs that the folder holds snapshots of; one, unless somebody put files there."""
        return tuple(dict.fromkeys(found.run for found in self._series.readable()))

    def _claim(self, run: str) -> None:
        """Make the folder ours, once; and again where somebody moved it away."""
        if self._claimed_by == run and self._system.is_folder(self._folder):
            return
        files.make_folder(self._folder, mode=0o700, system=self._system)
        runs = self.runs()
        if runs and run not in runs:
            raise self._series.in_use(runs)
        self._claimed_by = run

    def _prune(self, newest: int) -> None:
        """Drop what no load will look at. It is tried again after the next round."""
        with contextlib.suppress(StorageError):
            sidecars = {number for number, _ in self._series.sidecars()}
            archives = {number for number, _ in self._series.archives()}
            kept = Retention(keep_last=KEPT_ROUNDS).kept(n for n in sidecars if n <= newest)
            # Unsettled, as one sync a round less: three newer rounds are looked at before these.
            self._series.remove((sidecars | archives) - kept, settle=False)
            for path in self._series.partials():
                files.remove(path, system=self._system)
