"""The operator's checkpoints: files for people and tools, in the folder ``FL_CHECKPOINT_PATH``.

* ``checkpoint_round_<N>.npz``: the arrays in the order of the model, named ``arr_0`` and on
* ``checkpoint_latest.npz``: a relative link to the newest of them
* ``checkpoint_latest.json``: about the newest; written last, so it never tells of a missing file
* ``checkpoint_run.json``: the run that the folder belongs to; written first

All are kept. Exact resume does not need them: that is what the recovery store is for.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC
from typing import TYPE_CHECKING

from onefed.arrays import digest, require_supported, shown
from onefed.checkpoint import archive, files
from onefed.errors import InUseError

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

    from onefed.arrays import Arrays

LATEST = "checkpoint_latest.npz"
METADATA = "checkpoint_latest.json"
OWNER = "checkpoint_run.json"
ROUND = re.compile(r"checkpoint_round_[0-9]+\.npz")
PARTIAL = re.compile(r"\.checkpoint_round_[0-9]+\.npz\.partial")

VERSION = 1
"""``format`` in the metadata; raised with every change that an older program would misread."""


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

    def due(self, round_number: int, rounds_total: int) -> bool:
        """Whether a round is saved: each ``interval``-th and the last, but not round 0."""
        if round_number == 0:
            return False
        return round_number == rounds_total or round_number % self.interval == 0

    def save(self, arrays: Arrays, *, round_number: int, strategy: str, now: datetime) -> Saved:
        """Write the checkpoint of a round; ``now`` is an aware time, stored in UTC.

        Raises ``InUseError`` where the folder holds checkpoints of another run, ``StorageError``
        where the disk refuses: training can go on after either, and the checkpoints that were there
        are as they were.
        """
        assert now.tzinfo is not None, "a timestamp without a zone means nothing elsewhere"
        require_supported(arrays)
        path = self.folder / f"checkpoint_round_{round_number}.npz"
        archive.check_size(path, list(arrays.values()))
        metadata = {
            "round": round_number,
            "timestamp": now.astimezone(UTC).isoformat(timespec="seconds"),
            "num_arrays": len(arrays),
            "strategy": strategy,
            "run": self.run,
            "keys": list(arrays),
            "model_sha256": digest(arrays),
            "format": VERSION,
        }
        self.claim()
        size_bytes = files.write_atomically(
            path,
            lambda stream: archive.write(stream, archive.positional(arrays.values())),
            system=self.system,
        )
        files.replace_symlink(self.folder / LATEST, path.name, system=self.system)
        files.write_json(self.folder / METADATA, metadata, system=self.system)
        return Saved(path, size_bytes)

    def claim(self) -> None:
        """Make the folder ours, and clear what a killed writer left in it.

        Raises ``InUseError`` where it holds checkpoints of another run. ``save`` does it, too;
        called at the start, it tells the operator before anything is trained.
        """
        files.make_folder(self.folder)
        names = files.names_in(self.folder)
        owner = self._owner(names)
        if owner != self.run:
            if any(map(_is_checkpoint, names)):
                of = "an unknown run" if owner is None else f"run {shown(owner)}"
                raise InUseError(
                    f"{self.folder} holds checkpoints of {of}; this is run {shown(self.run)}.",
                    hint="Resume that run, choose another FL_CHECKPOINT_PATH, "
                    "or move its checkpoint_* files away.",
                )
            files.write_json(self.folder / OWNER, {"run": self.run}, system=self.system)
        for name in filter(PARTIAL.fullmatch, names):
            files.remove(self.folder / name, system=self.system)

    def _owner(self, names: list[str]) -> str | None:
        """The run that wrote here, as far as its files tell."""
        for name in (OWNER, METADATA):
            if name in names:
                document = files.read_json(self.folder / name)
                run = document.get("run") if isinstance(document, dict) else None
                if isinstance(run, str):
                    return run
        return None


def holds_checkpoints(folder: Path) -> bool:
    """Whether somebody's checkpoints are in a folder; False where there is no such folder."""
    return any(map(_is_checkpoint, files.names_in(folder)))


def _is_checkpoint(name: str) -> bool:
    return ROUND.fullmatch(name) is not None or name in (LATEST, METADATA)
