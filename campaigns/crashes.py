"""What a power cut may leave of recorded changes. The file-system model, and samples of it.

The model is weaker than ext4, XFS and btrfs with barriers, so that what survives it survives them:

1. A folder: the names at its last sync are there, changed by any subset of the later steps in
   their order. A step is one create, rename, link or unlink; a rename happens whole or not at all.
2. A file: the bytes at its last sync are there. Of those written later each sector is there, or
   zeros, or garbage, or the file is shorter; whatever its name says.
3. Nothing is ordered between folders and files but by sync. A folder whose own name is lost takes
   all that is in it along.
4. What was synced stays. The disk keeps its word about that, and does not rot.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from campaigns.disks import Announced, Event, File, Folder, Link, Named, Node, Synced, Wrote

SECTOR_BYTES = 64
"""Smaller than that of any disk: the files here are small."""


@dataclass(slots=True)
class _Content:
    synced: bytearray = field(default_factory=bytearray)
    pending: bytearray = field(default_factory=bytearray)


@dataclass(slots=True)
class _Names:
    synced: dict[str, Node] = field(default_factory=dict)
    pending: list[dict[str, Node | None]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Crash:
    """The disk after a power cut."""

    root: Folder
    announced: Any
    """The last thing that was announced before the cut, or None."""
    at: int
    """How many events had happened."""


def sample(
    events: Sequence[Event], root: Folder, random: Random, *, at: int | None = None
) -> Crash:
    """One state that the disk may be in after a power cut, after ``at`` events or at any moment."""
    at = random.randint(0, len(events)) if at is None else at
    contents: dict[int, _Content] = {}
    folders: dict[int, _Names] = {}
    announced = None
    for event in events[:at]:
        match event:
            case Wrote(file, data):
                contents.setdefault(id(file), _Content()).pending += data
            case Named(folder, changes):
                folders.setdefault(id(folder), _Names()).pending.append(changes)
            case Synced(node) if isinstance(node, Folder):
                names = folders.setdefault(id(node), _Names())
                _apply(names.synced, names.pending)
                names.pending = []
            case Synced(file):
                content = contents.setdefault(id(file), _Content())
                content.synced += content.pending
                content.pending = bytearray()
            case Announced(what):
                announced = what
    return Crash(_Builder(contents, folders, random).folder(root), announced, at)


def _apply(names: dict[str, Node], steps: Sequence[dict[str, Node | None]]) -> None:
    for changes in steps:
        for name, node in changes.items():
            if node is None:
                names.pop(name, None)
            else:
                names[name] = node


class _Builder:
    """Makes one disk of what is known and what is chance; a file with two names stays one file."""

    def __init__(
        self, contents: dict[int, _Content], folders: dict[int, _Names], random: Random
    ) -> None:
        self._contents = contents
        self._folders = folders
        self._random = random
        self._files: dict[int, File] = {}

    def folder(self, folder: Folder) -> Folder:
        """A folder after the cut, with all below it."""
        known = self._folders.get(id(folder), _Names())
        names = dict(known.synced)
        _apply(names, self._subset(known.pending))
        return Folder({name: self._node(node) for name, node in names.items()})

    def _node(self, node: Node) -> Node:
        match node:
            case Folder():
                return self.folder(node)
            case File():
                if id(node) not in self._files:
                    known = self._contents.get(id(node), _Content())
                    self._files[id(node)] = File(known.synced + self._torn(known.pending))
                return self._files[id(node)]
            case Link():
                return node

    def _subset(self, steps: list[dict[str, Node | None]]) -> list[dict[str, Node | None]]:
        match self._random.randrange(4):
            case 0:
                return steps
            case 1:  # what a journal gives
                return steps[: self._random.randint(0, len(steps))]
            case 2:
                left_out = self._random.randrange(len(steps)) if steps else 0
                return [*steps[:left_out], *steps[left_out + 1 :]]
            case _:
                return [step for step in steps if self._random.random() < 0.5]

    def _torn(self, pending: bytearray) -> bytearray:
        match self._random.randrange(6):
            case 0:
                return pending
            case 1:
                return bytearray()
            case 2:
                return bytearray(len(pending))
            case 3:
                return pending[: self._random.randint(0, len(pending))]
            case _:
                torn = bytearray(pending)
                for start in range(0, len(torn), SECTOR_BYTES):
                    end = min(start + SECTOR_BYTES, len(torn))
                    match self._random.randrange(3):
                        case 0:
                            torn[start:end] = bytes(end - start)
                        case 1:
                            torn[start:end] = self._random.randbytes(end - start)
                        case _:
                            pass
                return torn
