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
from dataclasses import dataclass
from typing import TYPE_CHECKING

from onefed.arrays import shown
from onefed.checkpoint import archive, files, snapshot
from onefed.checkpoint.files import DamagedError
from onefed.checkpoint.snapshot import RoundRecord, Sidecar, Snapshot
from onefed.errors import InUseError, StorageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path
    from typing import Any

    from numpy.typing import NDArray

    from onefed.arrays import Arrays
    from onefed.checkpoint.archive import Entry

__all__ = ["Damaged", "Loaded", "RecoveryStore", "RoundRecord", "Snapshot"]

KEPT_ROUNDS = 3
"""Newest rounds that stay in the folder."""
SIDECARS_READ_MAX = 8
"""Newest sidecars that are looked at; of our own there are never more than ``KEPT_ROUNDS`` + 1."""

SIDECAR = re.compile(r"round_([0-9]{6,12})\.json")
ARCHIVE = re.compile(r"round_([0-9]{6,12})-[0-9a-f]{16}\.npz")
PARTIAL = re.compile(r"\.round_([0-9]{6,12})(?:\.json|-[0-9a-f]{16}\.npz)\.partial")


@dataclass(frozen=True, slots=True)
class Damaged:
    """A snapshot that was skipped."""

    path: Path
    """The file that is wrong."""
    reason: str
    """What is wrong with it."""


@dataclass(frozen=True, slots=True, eq=False)
class Loaded:
    """The newest whole snapshot of a run."""

    snapshot: Snapshot
    """With its arrays, verified by digest."""
    path: Path
    """Its sidecar."""
    damaged: tuple[Damaged, ...]
    """Newer snapshots that were skipped, newest first. Say so to the operator."""


class RecoveryStore:
    """The snapshots of one run in one folder. One process writes at a time."""

    def __init__(self, folder: Path, *, system: files.System = files.SYSTEM) -> None:
        self._folder = folder
        self._system = system
        self._claimed_by: str | None = None

    def save(self, current: Snapshot) -> None:
        """Make ``current`` durable and the newest of its run; then drop what is no longer kept.

        Returns when the snapshot survives a power cut. Raises ``StorageError`` where it may not;
        what was saved before is whole then, and the call can be repeated. Snapshots of later rounds
        are dropped: they belong to a future that this run has left.
        Raises ``InUseError`` where the folder belongs to another run.
        """
        files.make_folder(self._folder, mode=0o700)
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
        for round_number, later in self._sidecars():
            if round_number > current.round_number:
                files.remove(later, system=self._system)
        files.write_json(path, snapshot.encode(sidecar), mode=0o600, system=self._system)
        self._prune(current.round_number)

    def load(self, run: str) -> Loaded | None:
        """Newest whole snapshot of ``run``; None where nothing was ever saved.

        Raises ``InUseError`` where the folder holds snapshots of other runs only, ``StorageError``
        where it holds snapshots and none is whole, or one that a newer program wrote.
        """
        damaged: list[Damaged] = []
        foreign: set[str] = set()
        for round_number, path in self._sidecars():
            try:
                sidecar = _read_sidecar(path, round_number)
                if sidecar.snapshot.run == run:
                    return Loaded(self._with_arrays(sidecar), path, tuple(damaged))
                foreign.add(sidecar.snapshot.run)
                damaged.append(Damaged(path, f"it belongs to run {shown(sidecar.snapshot.run)}"))
            except DamagedError as error:
                damaged.append(Damaged(error.path, error.reason))
        if foreign:
            raise self._in_use(foreign)
        if damaged:
            listed = "\n".join(f"{entry.path}: {entry.reason}." for entry in damaged)
            raise StorageError(
                f"No snapshot in {self._folder} is whole:\n{listed}",
                hint="Restore the folder from a backup, or move it away to train from the start.",
            )
        if len(archives := {number for number, _ in self._matching(ARCHIVE)}) > 1:
            # One alone is what a first save leaves that was cut off: nothing was announced then.
            raise StorageError(
                f"{self._folder} holds arrays of rounds {sorted(archives)} without their sidecars.",
                hint="Restore the .json files, or move the folder away to train from the start.",
            )
        return None

    def peek(self) -> Snapshot | None:
        """Newest snapshot with a whole sidecar, of whatever run; its arrays are not read: empty."""
        readable = self._readable()
        return readable[0] if readable else None

    def runs(self) -> tuple[str, ...]:
        """Runs that the folder holds snapshots of; one, unless somebody put files there."""
        return tuple(dict.fromkeys(found.run for found in self._readable()))

    def _claim(self, run: str) -> None:
        if self._claimed_by != run:
            runs = self.runs()
            if runs and run not in runs:
                raise self._in_use(runs)
            self._claimed_by = run

    def _in_use(self, runs: Iterable[str]) -> InUseError:
        return InUseError(
            f"{self._folder} belongs to run {', '.join(map(shown, sorted(runs)))}.",
            hint="Resume that run, choose another state folder, or move this one away.",
        )

    def _readable(self) -> list[Snapshot]:
        found = []
        for round_number, path in self._sidecars():
            with contextlib.suppress(DamagedError):
                found.append(_read_sidecar(path, round_number).snapshot)
        return found

    def _with_arrays(self, sidecar: Sidecar) -> Snapshot:
        path = self._folder / sidecar.archive
        with files.open_regular(path) as stream:
            values = archive.read(path, stream, [*sidecar.arrays, *sidecar.rule_state])
        count = len(sidecar.arrays)
        return dataclasses.replace(
            sidecar.snapshot,
            arrays=_named(sidecar.arrays, values[:count]),
            rule_state=_named(sidecar.rule_state, values[count:]),
        )

    def _sidecars(self) -> list[tuple[int, Path]]:
        """Newest first."""
        return self._matching(SIDECAR)[:SIDECARS_READ_MAX]

    def _matching(self, pattern: re.Pattern[str]) -> list[tuple[int, Path]]:
        """Files of ours with their round, newest first."""
        names = files.names_in(self._folder)
        matches = [match for match in map(pattern.fullmatch, names) if match]
        return sorted(((int(m[1]), self._folder / m[0]) for m in matches), reverse=True)

    def _prune(self, newest: int) -> None:
        """Drop what no load will look at. It is tried again after the next round."""
        sidecars, archives = self._matching(SIDECAR), self._matching(ARCHIVE)
        kept = [number for number, _ in sidecars if number <= newest][:KEPT_ROUNDS]
        for number, path in (*sidecars, *archives, *self._matching(PARTIAL)):
            if number not in kept or path.suffix == ".partial":
                with contextlib.suppress(StorageError):
                    files.remove(path, system=self._system)


def _read_sidecar(path: Path, round_number: int) -> Sidecar:
    sidecar = snapshot.decode(path, files.read_json(path))
    if sidecar.snapshot.round_number != round_number:
        raise DamagedError(path, f"it holds round {sidecar.snapshot.round_number}")
    match = ARCHIVE.fullmatch(sidecar.archive)
    if match is None or int(match[1]) != round_number:
        raise DamagedError(path, f"it names the archive {shown(sidecar.archive)}")
    return sidecar


def _named(entries: Sequence[Entry], values: Sequence[NDArray[Any]]) -> Arrays:
    return {entry.key: value for entry, value in zip(entries, values, strict=True)}
