"""The checkpoints of a node: its own ones, and what it keeps for others."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from urllib.parse import unquote

from onefed.checkpoint import files
from onefed.checkpoint.files import DamagedError
from onefed.node.checkpoints import file
from onefed.node.checkpoints.file import Checkpoint, Kind
from onefed.peer.messages import Parcel

OWN_ORDER = (Kind.LOCAL, Kind.AGGREGATED, Kind.ROUND_FINISHED)
"""In which the checkpoints of a round are tried."""

_NAME = re.compile(r"round_([0-9]{1,12})_(local|aggregated|round_finished|remote)\.pkl")


class Folder:
    """``checkpoints/`` of one node and one experiment."""

    def __init__(
        self,
        root: Path,
        experiment: str,
        node: str,
        *,
        kept_rounds: int | None = None,
        warn: Callable[[str], None] = lambda _: None,
        system: files.System = files.SYSTEM,
    ) -> None:
        """Use a folder; it is made with the first checkpoint.

        Args:
            kept_rounds: of the node's own ones, the newest so many rounds; None: all.
            warn: told of every file that cannot be used.
        """
        assert kept_rounds is None or kept_rounds >= 1
        self.root = root
        self.experiment = experiment
        self.node = node
        self.promised: int | None = None
        """Round of the own checkpoint that others are to keep: it stays until a newer one is."""
        self._kept_rounds = kept_rounds
        self._warn = warn
        self._system = system

    def save(self, checkpoint: Checkpoint) -> Path:
        """Write one, durably; older ones than are kept go."""
        about = checkpoint.about
        assert about.experiment == self.experiment
        path = file.place(self.root, self.experiment, about.node, about.round_number, about.kind)
        file.write(path, checkpoint, system=self._system)
        if self._kept_rounds is not None:
            for old in self.rounds(about.node)[self._kept_rounds :]:
                kept = {Kind.LOCAL} if (about.node, old) == (self.node, self.promised) else set()
                for kind in set(Kind) - kept:
                    files.remove(self._path(about.node, old, kind), system=self._system)
        return path

    def rounds(self, node: str, kind: Kind | None = None) -> list[int]:
        """Of which there are checkpoints of a node, newest first."""
        found = set()
        for name in files.names_in(self._folder(node), system=self._system):
            match = _NAME.fullmatch(name)
            if match and (kind is None or match[2] == kind):
                found.add(int(match[1]))
        return sorted(found, reverse=True)

    def newest(
        self,
        node: str | None = None,
        *,
        up_to: int | None = None,
        kinds: Sequence[Kind] = OWN_ORDER,
    ) -> Checkpoint | None:
        """The newest that can be read: by round, then by kind. What cannot is told."""
        return next(self._readable(node or self.node, up_to, kinds), None)

    def read(self, node: str, round_number: int, kind: Kind) -> Checkpoint:
        """One of them; raises ``DamagedError`` where it is not what was written there."""
        path = self._path(node, round_number, kind)
        found = file.read(path, system=self._system)
        about = found.about
        if (about.experiment, about.node) != (self.experiment, node):
            raise DamagedError(path, f"it is of {about.node} in {about.experiment}")
        if (about.round_number, about.kind) != (round_number, kind):
            raise DamagedError(path, f"it is {about.kind} of round {about.round_number}")
        return found

    def parcels(self) -> list[Parcel]:
        """What is kept for others: the newest of each that can be read."""
        found = []
        above = self.root / file.escaped(self.experiment)
        for name in files.names_in(above, system=self._system):
            node = unquote(name)
            kept = self.newest(node, kinds=(Kind.REMOTE,))
            if kept is not None:
                found.append(parcel_of(kept))
        return found

    def _readable(
        self, node: str, up_to: int | None, kinds: Sequence[Kind]
    ) -> Iterator[Checkpoint]:
        for number in self.rounds(node):
            if up_to is not None and number > up_to:
                continue
            names = files.names_in(self._folder(node), system=self._system)
            for kind in kinds:
                path = self._path(node, number, kind)
                if path.name in names:
                    try:
                        yield self.read(node, number, kind)
                    except DamagedError as error:
                        self._warn(f"A checkpoint is not used: {error.message}")

    def _folder(self, node: str) -> Path:
        return self.root / file.escaped(self.experiment) / file.escaped(node)

    def _path(self, node: str, round_number: int, kind: Kind) -> Path:
        return file.place(self.root, self.experiment, node, round_number, kind)


def parcel_of(checkpoint: Checkpoint) -> Parcel:
    """How the protocol names it."""
    about = checkpoint.about
    return Parcel(about.node, about.round_number, checkpoint.digest, "")
