"""Looking at a folder of checkpoints: what is there, and whether it is whole.

Reads only, except for ``Series.prune``. A folder may hold two kinds, each a series of rounds:
``recovery`` and ``export``. Nothing here needs a run, a lock or a running federation, and a look
beside a writer sees the rounds that are complete.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from onefed.arrays import Arrays, shown
from onefed.checkpoint import archive, export, files, recovery, series
from onefed.checkpoint.files import DamagedError
from onefed.checkpoint.retention import Retention
from onefed.checkpoint.snapshot import Sidecar, Snapshot
from onefed.errors import NotFoundError, OnefedError, StorageError

NO_SIDECAR = "it has no sidecar, so nothing tells what it should hold"


@dataclass(frozen=True, slots=True)
class Entry:
    """One round of a series, without a look at its arrays."""

    round_number: int
    paths: tuple[Path, ...]
    """Sidecar and archives, as far as they are there."""
    size_bytes: int
    """Of all of them."""
    saved_at: datetime | None
    """In UTC: what the sidecar says, else when the oldest of the files was written."""
    is_latest: bool
    """Whether it is what a reader gets that asks for no round."""
    problem: str | None
    """What a look at the sidecar shows to be wrong; ``Series.verify`` looks at all."""


def open_folder(folder: Path) -> list[Series]:
    """The kinds of checkpoints in a folder; ``NotFoundError`` where there are none."""
    found = [Series(folder, layout) for layout in (recovery.LAYOUT, export.LAYOUT)]
    named = [each for each in found if each.is_there()]
    if not named:
        raise NotFoundError(
            f"There are no checkpoints in {folder}.",
            hint="Name a recovery folder of a federation, or the folder of FL_CHECKPOINT_PATH.",
        )
    return named


@dataclass(frozen=True, slots=True)
class _Listing:
    """The names in the folder at one moment."""

    sidecars: dict[int, Path]
    archives: list[tuple[int, Path]]
    named: list[int]
    """Rounds that something names, newest first."""
    earlier: frozenset[int]
    """Those of an earlier onefed, which wrote no sidecars."""
    latest: int | None
    """Round of the link, else the newest."""


class Series:
    """The rounds of one kind in one folder."""

    def __init__(self, folder: Path, layout: series.Layout) -> None:
        self.kind = layout.kind
        """``recovery`` or ``export``."""
        self.folder = folder
        self._files = series.Series(folder, layout)

    def is_there(self) -> bool:
        """Whether the folder names a round of this kind."""
        return bool(self._listing().named)

    def newest(self) -> int:
        """The newest round that a sidecar, the metadata or the link name, whole or not.

        An archive names its round where it comes from an earlier onefed (``export``).
        """
        named = self._listing().named
        if not named:
            raise NotFoundError(f"There are no checkpoints in {self.folder}.")
        return named[0]

    def rounds(self) -> list[Entry]:
        """All rounds, newest first."""
        listing = self._listing()
        return [self._entry(listing, number) for number in listing.named]

    def snapshot(self, round_number: int) -> Snapshot:
        """What the sidecar of a round says, without arrays; ``DamagedError`` for a wrong one."""
        return self._sidecar(self._listing(), round_number).snapshot

    def arrays(self, round_number: int) -> Arrays:
        """The model of a round, verified; ``DamagedError`` where it is not what was saved."""
        listing = self._listing()
        if round_number in listing.earlier:
            return self._earlier_arrays(round_number)
        sidecar = self._sidecar(listing, round_number)
        values = self._files.read(*sidecar.parts()[0])
        return {entry.key: value for entry, value in zip(sidecar.arrays, values, strict=False)}

    def rule_state(self, round_number: int) -> Arrays:
        """The state of the rule after a round, verified; empty where the rule has none."""
        sidecar = self._sidecar(self._listing(), round_number)
        if not sidecar.rule_state:
            return {}
        values = self._files.read(*sidecar.parts()[-1])[-len(sidecar.rule_state) :]
        return {entry.key: value for entry, value in zip(sidecar.rule_state, values, strict=True)}

    def verify(self, round_number: int) -> list[str]:
        """All that is wrong with a round, a sentence each; empty where it is whole.

        Reads every byte, and takes a few MiB of memory whatever the archives claim to hold.
        """
        listing = self._listing()
        if round_number in listing.earlier:
            return self._verify_earlier(listing, round_number)
        newest_export = self.kind == export.LAYOUT.kind and round_number == listing.named[0]
        found = []
        try:
            sidecar = self._sidecar(listing, round_number)
        except NotFoundError:
            raise
        except OnefedError as error:
            found.append(error.message)
        else:
            for name, entries in sidecar.parts():
                found += self._problems(self.folder / name, entries)
            if newest_export:
                found += self._metadata_problems(sidecar)
        return [*found, *(self._link_problems(round_number) if newest_export else [])]

    def prune(self, retention: Retention, *, dry_run: bool = False) -> list[Path]:
        """Remove the rounds that ``retention`` does not keep; what is, or would be, removed."""
        if self.kind == export.LAYOUT.kind:
            return export.prune(self._files, retention, dry_run=dry_run)
        rounds = self._listing().named
        return self._files.remove(set(rounds) - retention.kept(rounds), dry_run=dry_run)

    def _listing(self) -> _Listing:
        sidecars, archives = self._files.sidecars(), self._files.archives()
        if self.kind != export.LAYOUT.kind:
            named = list(dict.fromkeys(number for number, _ in sidecars))
            return _Listing(dict(sidecars), archives, named, frozenset(), max(named, default=None))
        counted, head = export.counted(self._files), export.head(self.folder)
        target = files.link_target(self.folder / export.LATEST) or ""
        match = export.LAYOUT.archive.fullmatch(target)
        named = sorted({*counted, *head}, reverse=True)
        return _Listing(
            sidecars=dict(sidecars),
            archives=archives,
            named=named,
            earlier=frozenset(counted) - {number for number, _ in sidecars},
            latest=int(match[1]) if match else max(named, default=None),
        )

    def _sidecar(self, listing: _Listing, round_number: int) -> Sidecar:
        path = listing.sidecars.get(round_number)
        if path is not None:
            return self._files.sidecar(path, round_number)
        if round_number in listing.named:
            raise DamagedError(self._archive(round_number), NO_SIDECAR)
        raise NotFoundError(
            f"There is no checkpoint of round {round_number} in {self.folder}.",
            hint=f"The newest rounds there: {', '.join(map(str, listing.named[:20]))}.",
        )

    def _entry(self, listing: _Listing, round_number: int) -> Entry:
        archives = [path for number, path in listing.archives if number == round_number]
        first = [listing.sidecars[round_number]] if round_number in listing.sidecars else []
        problem, saved_at = None, None
        try:
            sidecar = self._sidecar(listing, round_number)
        except DamagedError as error:
            if round_number not in listing.earlier:
                problem = f"{error.path.name}: {error.reason}"
        except OnefedError as error:
            problem = error.message
        else:
            saved_at = sidecar.saved_at
            expected = [self.folder / name for name, _ in sidecar.parts()]
            missing = [path.name for path in expected if path not in archives]
            problem = f"{missing[0]}: it is missing" if missing else None
            archives = [path for path in expected if path in archives]
        paths = (*first, *archives)
        status = [path.lstat() for path in paths if os.path.lexists(path)]
        if saved_at is None and status:
            saved_at = datetime.fromtimestamp(min(each.st_mtime for each in status), UTC)
        return Entry(
            round_number=round_number,
            paths=paths,
            size_bytes=sum(each.st_size for each in status),
            saved_at=saved_at,
            is_latest=round_number == listing.latest,
            problem=problem,
        )

    def _problems(self, path: Path, entries: tuple[archive.Entry, ...]) -> list[str]:
        try:
            with files.open_regular(path) as stream:
                found = archive.problems(path, stream, entries)
        except DamagedError as error:
            found = [error.reason]
        except StorageError as error:
            return [error.message]
        return [f"{path.name}: {reason}." for reason in found]

    def _link_problems(self, round_number: int) -> list[str]:
        target = files.link_target(self.folder / export.LATEST)
        expected = f"checkpoint_round_{round_number}.npz"
        if target is None:
            return [f"{export.LATEST}: there is no link of that name."]
        if target != expected:
            return [f"{export.LATEST}: it links to {shown(target)}, not to {expected}."]
        return []

    def _metadata_problems(self, sidecar: Sidecar) -> list[str]:
        try:
            document = files.read_json(self.folder / export.METADATA)
        except StorageError as error:
            return [error.message]
        recorded = [
            record.model_sha256
            for record in sidecar.snapshot.history[-1:]
            if record.round_number == sidecar.snapshot.round_number
        ]
        expected = {
            "round": sidecar.snapshot.round_number,
            "num_arrays": len(sidecar.arrays),
            "keys": [entry.key for entry in sidecar.arrays],
            "run": sidecar.snapshot.run,
            **({"model_sha256": recorded[0]} if recorded else {}),
        }
        found = document if isinstance(document, dict) else {}
        return [
            f"{export.METADATA}: {shown(name)} is not that of the sidecar."
            for name, value in expected.items()
            if found.get(name) != value
        ]

    # Checkpoints of an earlier onefed: an archive, and metadata about the newest of them.

    def _archive(self, round_number: int) -> Path:
        return self.folder / f"checkpoint_round_{round_number}.npz"

    def _earlier_metadata(self, round_number: int) -> tuple[list[str], str] | None:
        """Keys and digest of the model, where the metadata is about this round."""
        try:
            document = files.read_json(self.folder / export.METADATA)
        except DamagedError:
            return None
        if not isinstance(document, dict) or document.get("round") != round_number:
            return None
        keys, digest = document.get("keys"), document.get("model_sha256")
        if not isinstance(keys, list) or not all(type(key) is str for key in keys):
            return None
        if len(set(keys)) != len(keys) or not isinstance(digest, str):
            return None
        return keys, digest

    def _earlier_arrays(self, round_number: int) -> Arrays:
        path, about = self._archive(round_number), self._earlier_metadata(round_number)
        if about is None:
            raise DamagedError(path, NO_SIDECAR)
        keys, digest = about
        with files.open_regular(path) as stream:
            entries = archive.describe(path, stream, keys)
            if archive.digest_of(path, stream, entries) != digest:
                raise DamagedError(path, "it has not the digest that the metadata names")
            values = archive.read(path, stream, entries)
        return dict(zip(keys, values, strict=True))

    def _verify_earlier(self, listing: _Listing, round_number: int) -> list[str]:
        path, about = self._archive(round_number), self._earlier_metadata(round_number)
        found = []
        try:
            with files.open_regular(path) as stream:
                entries = archive.describe(path, stream, about[0] if about else None)
                if about and archive.digest_of(path, stream, entries) != about[1]:
                    found.append(f"{path.name}: it has not the digest that the metadata names.")
        except DamagedError as error:
            found.append(f"{path.name}: {error.reason}.")
        except StorageError as error:
            found.append(error.message)
        if round_number == listing.named[0]:
            found += self._link_problems(round_number)
            if about is None:
                found.append(f"{export.METADATA}: it is not about round {round_number}.")
        return found
