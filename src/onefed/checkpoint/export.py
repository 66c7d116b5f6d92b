"""The operator's checkpoints: files for people and tools, in the folder ``FL_CHECKPOINT_PATH``.

* ``checkpoint_round_<N>.npz``: the arrays in the order of the model, named ``arr_0`` and on
* ``checkpoint_round_<N>_state.npz``: the state of the rule, where it has one
* ``checkpoint_round_<N>.json``: the sidecar, as in the recovery store; written after the archives
* ``checkpoint_latest.npz``: a relative link to the newest of the archives
* ``checkpoint_latest.json``: about the newest; written last, so it never tells of a missing file
* ``checkpoint_run.json``: the run that the folder belongs to; written first

So a copy of the folder is enough to go on exactly on another machine. An archive without a sidecar
is one of two things. Where every sidecar is of a later round, an earlier onefed wrote it, which
made none: its arrays can be read where the metadata is about it, and no run can go on from it.
Otherwise a save was cut off: it was never announced, and the next save of that round replaces it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from onefed.arrays import digest, require_supported, shown
from onefed.checkpoint import archive, files, snapshot
from onefed.checkpoint.files import DamagedError
from onefed.checkpoint.retention import KEEP_ALL, Retention
from onefed.checkpoint.series import Damaged, Layout, Loaded, Series
from onefed.checkpoint.snapshot import Sidecar, Snapshot
from onefed.errors import InUseError, StorageError

LATEST = "checkpoint_latest.npz"
METADATA = "checkpoint_latest.json"
OWNER = "checkpoint_run.json"

LAYOUT = Layout(
    kind="export",
    sidecar=re.compile(r"checkpoint_round_(0|[1-9][0-9]{0,11})\.json"),
    archive=re.compile(r"checkpoint_round_(0|[1-9][0-9]{0,11})\.npz"),
    state=re.compile(r"checkpoint_round_(0|[1-9][0-9]{0,11})_state\.npz"),
    partial=re.compile(
        r"\.checkpoint_round_(0|[1-9][0-9]{0,11})(?:\.json|(?:_state)?\.npz)\.partial"
    ),
)

VERSION = 2
"""``format`` in the metadata; raised with every change that an older program would misread.

1 had no ``sidecar``, since there was none.
"""


@dataclass(frozen=True, slots=True)
class Saved:
    """A checkpoint that was written."""

    path: Path
    """The ``.npz`` file of the round."""
    size_bytes: int
    """Its size."""


@dataclass(frozen=True, slots=True)
class Exporter:
    """Writes the checkpoints of one run into one folder, and never over those of another."""

    folder: Path
    """Made when the first checkpoint is saved."""
    run: str
    """Identity of the run, the same after every restart."""
    interval: int
    """Rounds from one checkpoint to the next, 1 or more (``FL_CHECKPOINT_INTERVAL``)."""
    system: files.System = files.SYSTEM
    """The seam to the disk."""
    retention: Retention = KEEP_ALL
    """What stays after a save."""

    def due(self, round_number: int, rounds_total: int) -> bool:
        """Whether a round is saved: each ``interval``-th and the last, but not round 0."""
        if round_number == 0:
            return False
        return round_number == rounds_total or round_number % self.interval == 0

    def save(self, current: Snapshot, *, now: datetime) -> Saved:
        """Write the checkpoint of a round; ``now`` is an aware time, stored in UTC.

        Checkpoints of later rounds are dropped: they belong to a future that this run has left.
        Raises ``InUseError`` where the folder holds checkpoints of another run, ``StorageError``
        where the disk refuses: training can go on after either, and the newest checkpoint that was
        there is as it was, unless it was of the same round with other content.
        """
        assert now.tzinfo is not None, "a timestamp without a zone means nothing elsewhere"
        assert current.run == self.run, current.run
        require_supported(current.arrays)
        number, saved_at = current.round_number, now.astimezone(UTC).replace(microsecond=0)
        path = self.folder / f"checkpoint_round_{number}.npz"
        state_path = self.folder / f"checkpoint_round_{number}_state.npz"
        archive.check_size(path, list(current.arrays.values()))
        archive.check_size(state_path, list(current.rule_state.values()))
        sidecar = Sidecar(
            snapshot=dataclasses.replace(current, arrays={}, rule_state={}),
            archive=path.name,
            arrays=archive.manifest(current.arrays),
            rule_state=archive.manifest(current.rule_state),
            state_archive=state_path.name if current.rule_state else None,
            saved_at=saved_at,
        )
        metadata = {
            "round": number,
            "timestamp": saved_at.isoformat(),
            "num_arrays": len(current.arrays),
            "strategy": current.rule,
            "run": self.run,
            "keys": list(current.arrays),
            "model_sha256": digest(current.arrays),
            "sidecar": _sidecar_name(number),
            "format": VERSION,
        }
        self.claim()
        self._disown(sidecar)
        size_bytes = self._write(path, current.arrays)
        if current.rule_state:
            self._write(state_path, current.rule_state)
        self._series().forget_later(number)
        files.write_json(
            self.folder / _sidecar_name(number), snapshot.encode(sidecar), system=self.system
        )
        files.replace_symlink(self.folder / LATEST, path.name, system=self.system)
        files.write_json(self.folder / METADATA, metadata, system=self.system)
        with contextlib.suppress(StorageError):  # tried again after the next checkpoint
            self._tidy(number)
        return Saved(path, size_bytes)

    def load(self, template: Mapping[str, NDArray[Any]] | None = None) -> Loaded | None:
        """Newest whole checkpoint of the run; None where no checkpoint was ever saved.

        Raises ``InUseError`` where the folder holds checkpoints of other runs only,
        ``StorageError`` where it holds some and a run can go on from none, and
        ``ModelMismatchError`` where names, shapes or dtypes are not those of ``template``.
        """
        series = self._series()
        sidecars = {number for number, _ in series.sidecars()}
        archives = {number for number, _ in series.archives()}
        named = head(self.folder, system=self.system)
        missing = [number for number in named if number not in sidecars]
        if not sidecars and (missing or len(archives) > 1):
            # One archive alone is what a first save leaves that was cut off.
            raise StorageError(
                f"{self.folder} holds models of rounds {sorted(archives)} without their sidecars.",
                hint="An older onefed wrote them, or the .json files are lost: restore those, or "
                "train from the start in another folder.",
            )
        unnamed = [Damaged(self.folder / _sidecar_name(n), "it is missing") for n in missing]
        return series.newest_whole(self.run, template, unnamed=unnamed)

    def claim(self) -> None:
        """Make the folder ours, and clear what a killed writer left in it.

        Raises ``InUseError`` where it holds checkpoints of another run. ``save`` does it, too;
        called at the start, it tells the operator before anything is trained.
        """
        files.make_folder(self.folder, system=self.system)
        names = files.names_in(self.folder, system=self.system)
        owner = self._owner(names)
        if owner != self.run or OWNER not in names:
            if owner != self.run and any(map(_is_checkpoint, names)):
                of = "an unknown run" if owner is None else f"run {shown(owner)}"
                raise InUseError(
                    f"{self.folder} holds checkpoints of {of}; this is run {shown(self.run)}.",
                    hint="Resume that run, choose another FL_CHECKPOINT_PATH, "
                    "or move its checkpoint_* files away.",
                )
            files.write_json(self.folder / OWNER, {"run": self.run}, system=self.system)
        for path in self._series().partials():
            files.remove(path, system=self.system)

    def _disown(self, sidecar: Sidecar) -> None:
        """Take away an old sidecar of this round, which would speak for other arrays."""
        series, number = self._series(), sidecar.snapshot.round_number
        path = self.folder / _sidecar_name(number)
        if (number, path) not in series.sidecars():
            return
        with contextlib.suppress(DamagedError):
            if series.sidecar(path, number).parts() == sidecar.parts():
                return  # the archives will have the same bytes
        files.remove(path, system=self.system)
        files.sync_folder(self.folder, system=self.system)

    def _write(self, path: Path, members: Mapping[str, NDArray[Any]]) -> int:
        return files.write_atomically(
            path,
            lambda stream: archive.write(stream, archive.positional(members.values())),
            system=self.system,
        )

    def _tidy(self, newest: int) -> None:
        series = self._series()
        series.remove(number for number, _ in series.archives() if number > newest)
        prune(series, self.retention)

    def _series(self) -> Series:
        return Series(self.folder, LAYOUT, system=self.system)

    def _owner(self, names: list[str]) -> str | None:
        """The run that wrote here, as far as its files tell; where none can, damage is an error."""
        damage = None
        for name in (OWNER, METADATA):
            if name in names:
                try:
                    document = files.read_json(self.folder / name, system=self.system)
                except DamagedError as error:
                    damage = damage or error
                    continue
                run = document.get("run") if isinstance(document, dict) else None
                if isinstance(run, str):
                    return run
        if damage is not None:
            raise damage
        return None


def head(folder: Path, *, system: files.System = files.SYSTEM) -> list[int]:
    """Rounds that the metadata and the link name, newest first; damaged ones name none."""
    found = set()
    with contextlib.suppress(DamagedError):
        document = files.read_json(folder / METADATA, system=system)
        number = document.get("round") if isinstance(document, dict) else None
        if type(number) is int and number >= 0:
            found.add(number)
    match = LAYOUT.archive.fullmatch(files.link_target(folder / LATEST, system=system) or "")
    if match:
        found.add(int(match[1]))
    return sorted(found, reverse=True)


def counted(series: Series) -> list[int]:
    """Rounds of a folder that are checkpoints, newest first: with a sidecar, or older than all."""
    sidecars = {number for number, _ in series.sidecars()}
    oldest = min(sidecars, default=None)
    archives = {number for number, _ in series.archives()}
    older = {number for number in archives if oldest is None or number < oldest}
    return sorted(sidecars | older, reverse=True)


def prune(series: Series, retention: Retention, *, dry_run: bool = False) -> list[Path]:
    """Remove what ``retention`` does not keep, never what link or metadata name.

    Files of rounds after the newest checkpoint are left alone: a save may be on its way. What is
    removed, or would be, comes back.
    """
    rounds = counted(series)
    if retention == KEEP_ALL or not rounds:
        return []
    kept = retention.kept(rounds) | set(head(series.folder, system=series.system))
    present = {number for number, _ in (*series.sidecars(), *series.archives())}
    doomed = {number for number in present if number < rounds[0]} - kept
    return series.remove(doomed, dry_run=dry_run)


def holds_checkpoints(folder: Path) -> bool:
    """Whether somebody's checkpoints are in a folder; False where there is no such folder."""
    return any(map(_is_checkpoint, files.names_in(folder)))


def _sidecar_name(round_number: int) -> str:
    return f"checkpoint_round_{round_number}.json"


def _is_checkpoint(name: str) -> bool:
    patterns = (LAYOUT.archive, LAYOUT.sidecar)
    return name in (LATEST, METADATA) or any(pattern.fullmatch(name) for pattern in patterns)
