"""What recovery store and operator's checkpoints have in common: snapshots in one flat folder.

A round is there when its sidecar is; the sidecar names the archives and carries their digests.
So archives are written before it and removed after it. Reading goes from the newest round to older
ones: a damaged one is skipped and named, and where none is left that is an error which names them
all. A model of other names, shapes or dtypes than the app's is an error, too, before any array is
read: there is no silent fresh start.

The digests find damage, and files that were swapped. They are no signature: whoever can write the
folder can forge a round, so the folder belongs to the user that trains.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from onefed import arrays as arrays_
from onefed.arrays import shown
from onefed.checkpoint import archive, files, snapshot
from onefed.checkpoint.files import DamagedError, UnreadableError
from onefed.checkpoint.snapshot import Sidecar, Snapshot
from onefed.errors import ExitCode, InUseError, OnefedError, StorageError

SIDECARS_READ_MAX = 8
"""Newest sidecars that a load looks at, each at most ``files.JSON_BYTES_MAX`` long."""

_T = TypeVar("_T")


class ModelMismatchError(OnefedError):
    """A checkpoint holds another model than the app's."""

    exit_code = ExitCode.CONFIG


@dataclass(frozen=True, slots=True)
class Damaged:
    """A round that was skipped."""

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
    """Newer rounds that were skipped, newest first. Say so to the operator."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How the files of a series are named; the first group of each pattern is the round."""

    kind: str
    """``recovery`` or ``export``."""
    sidecar: re.Pattern[str]
    archive: re.Pattern[str]
    """Archives of the model, or of model and state."""
    state: re.Pattern[str] | None
    """Archives of the rule's state, where they are apart."""
    partial: re.Pattern[str]
    """What a killed writer leaves."""

    def owns(self, sidecar: Sidecar, round_number: int) -> str | None:
        """What a sidecar under the name of a round gets wrong about its files, in words."""
        if sidecar.snapshot.round_number != round_number:
            return f"it holds round {sidecar.snapshot.round_number}"
        state = sidecar.state_archive
        if not _is_of(self.archive, sidecar.archive, round_number):
            return f"it names the archive {shown(sidecar.archive)}"
        if state is not None and not _is_of(self.state, state, round_number):
            return f"it names the archive {shown(state)}"
        if self.state is not None and (state is None) != (not sidecar.rule_state):
            return "its state and the archive of the state do not agree"
        return None


class Series:
    """The snapshots of one layout in one folder."""

    def __init__(
        self, folder: Path, layout: Layout, *, system: files.System = files.SYSTEM
    ) -> None:
        self.folder = folder
        self.layout = layout
        self.system = system

    def sidecars(self) -> list[tuple[int, Path]]:
        """Sidecars with their rounds, newest first."""
        return self._matching(self.layout.sidecar)

    def archives(self) -> list[tuple[int, Path]]:
        """Archives of either kind with their rounds, newest first."""
        state = self.layout.state
        return self._matching(self.layout.archive, *([] if state is None else [state]))

    def partials(self) -> list[Path]:
        """Files that a killed writer left."""
        return [path for _, path in self._matching(self.layout.partial)]

    def sidecar(self, path: Path, round_number: int) -> Sidecar:
        """Read the sidecar of a round; ``DamagedError`` where it is not one."""
        document = _twice(lambda: files.read_json(path, system=self.system))
        sidecar = snapshot.decode(path, document)
        if wrong := self.layout.owns(sidecar, round_number):
            raise DamagedError(path, wrong)
        return sidecar

    def with_arrays(self, sidecar: Sidecar) -> Snapshot:
        """The snapshot of a sidecar, with its arrays; ``DamagedError`` for a wrong digest."""
        values: list[NDArray[Any]] = []
        for name, entries in sidecar.parts():
            values += self.read(name, entries)
        return sidecar.joined(values)

    def read(self, name: str, entries: Iterable[archive.Entry]) -> list[NDArray[Any]]:
        """The arrays of one archive."""
        path, expected = self.folder / name, list(entries)

        def read() -> list[NDArray[Any]]:
            with files.open_regular(path, system=self.system) as stream:
                return archive.read(path, stream, expected)

        return _twice(read)

    def newest_whole(
        self,
        run: str,
        template: Mapping[str, NDArray[Any]] | None,
        *,
        unnamed: Iterable[Damaged] = (),
    ) -> Loaded | None:
        """The newest whole snapshot of ``run``; None where no round is named.

        Args:
            template: the app's model; a snapshot of another is a ``ModelMismatchError``.
            unnamed: rounds that something names although their sidecar is not there.
        """
        damaged: list[Damaged] = list(unnamed)
        foreign: set[str] = set()
        for round_number, path in self.sidecars()[:SIDECARS_READ_MAX]:
            try:
                sidecar = self.sidecar(path, round_number)
                if sidecar.snapshot.run == run:
                    _compare(path, sidecar, template)
                    return Loaded(self.with_arrays(sidecar), path, tuple(damaged))
                foreign.add(sidecar.snapshot.run)
                damaged.append(Damaged(path, f"it belongs to run {shown(sidecar.snapshot.run)}"))
            except DamagedError as error:
                damaged.append(Damaged(error.path, error.reason))
        if foreign:
            raise self.in_use(foreign)
        if damaged:
            listed = "\n".join(f"{entry.path}: {entry.reason}." for entry in damaged)
            more = len(self.sidecars()) > SIDECARS_READ_MAX
            which = f"None of the newest {SIDECARS_READ_MAX} snapshots" if more else "No snapshot"
            raise StorageError(
                f"{which} in {self.folder} is whole:\n{listed}",
                hint="Restore the folder from a backup, or move it away to train from the start.",
            )
        return None

    def readable(self) -> Iterator[Snapshot]:
        """Snapshots of whole sidecars, newest first, of whatever run, without their arrays."""
        for round_number, path in self.sidecars()[:SIDECARS_READ_MAX]:
            with contextlib.suppress(DamagedError):
                yield self.sidecar(path, round_number).snapshot

    def in_use(self, runs: Iterable[str]) -> InUseError:
        """The error for a folder of other runs."""
        return InUseError(
            f"{self.folder} belongs to run {', '.join(map(shown, sorted(runs)))}.",
            hint="Resume that run, choose another state folder, or move this one away.",
        )

    def forget_later(self, round_number: int) -> None:
        """Remove the sidecars of later rounds: a future that the run has left."""
        for later, path in self.sidecars():
            if later > round_number:
                files.remove(path, system=self.system)

    def remove(
        self, doomed: Iterable[int], *, dry_run: bool = False, settle: bool = True
    ) -> list[Path]:
        """Remove rounds, sidecars first; with ``settle`` a power cut keeps to that order, too.

        So no sidecar is left that names what is gone. What is removed, or would be, comes back.
        """
        numbers = frozenset(doomed)
        sidecars = [path for number, path in self.sidecars() if number in numbers]
        archives = [path for number, path in self.archives() if number in numbers]
        if not dry_run:
            for path in sidecars:
                files.remove(path, system=self.system)
            if settle and sidecars and archives:
                files.sync_folder(self.folder, system=self.system)
            for path in archives:
                files.remove(path, system=self.system)
        return [*sidecars, *archives]

    def _matching(self, *patterns: re.Pattern[str]) -> list[tuple[int, Path]]:
        """Files of ours with their round, newest first."""
        names = files.names_in(self.folder, system=self.system)
        matches = [
            match for pattern in patterns for match in map(pattern.fullmatch, names) if match
        ]
        return sorted(((int(m[1]), self.folder / m[0]) for m in matches), reverse=True)


def _compare(path: Path, sidecar: Sidecar, template: Mapping[str, NDArray[Any]] | None) -> None:
    if template is None:
        return
    # Arrays without memory: names, shapes and dtypes are all that is compared.
    named = {
        entry.key: np.broadcast_to(np.zeros((), arrays_.dtype_of(entry.dtype)), entry.shape)
        for entry in sidecar.arrays
    }
    difference = arrays_.mismatch(named, template)
    if difference is not None:
        raise ModelMismatchError(
            f"{path} holds another model than the app's: {difference}.",
            hint="Resume with the app that trained it, or train into another folder.",
        )


def _is_of(pattern: re.Pattern[str] | None, name: str, round_number: int) -> bool:
    match = None if pattern is None else pattern.fullmatch(name)
    return match is not None and int(match[1]) == round_number


def _twice(read: Callable[[], _T]) -> _T:
    """Try a read again when the disk failed: what is damage must not be chance."""
    try:
        return read()
    except UnreadableError:
        return read()
