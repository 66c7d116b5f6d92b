"""Models by their digest, each as the difference from another: a store of lossless deltas.

A model is one file, ``<model_sha256>.delta``, in the format of ``delta_file``: against a base that
is stored too, or full. A full model has the same format, only without a base. That is one reader
with one set of bounds, it holds the names and every element type, and it is smaller than an
``.npz`` archive.

A chain of deltas ends at a full model after a bounded number of links, and every link is verified
when it is read: there is no way to a model that was not stored under its digest.
"""

from __future__ import annotations

import os
import re
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from onefed import arrays as arrays_
from onefed.checkpoint import archive, delta_file, files
from onefed.checkpoint.archive import Entry
from onefed.checkpoint.files import DamagedError
from onefed.errors import NotFoundError

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from onefed.arrays import Arrays

CHAIN_MAX = 8
"""Deltas on one full model, unless the store is told otherwise. Each adds a decoding to ``get``."""
CHAIN_READ_MAX = 64
"""Deltas on one full model that are ever followed, or allowed."""
THREADS_MAX = 8
"""More do not help: reading and writing the file is one thread's work."""

FILE = re.compile(r"([0-9a-f]{64})\.delta")
PARTIAL = re.compile(r"\.[0-9a-f]{64}\.delta\.partial")


class DeltaStore:
    """Models in one folder, each a file that is named by its digest. One process writes at a time.

    The model that was put last is kept in memory, as the likely base of the next.
    """

    def __init__(
        self,
        folder: Path,
        *,
        chain_max: int = CHAIN_MAX,
        threads: int | None = None,
        system: files.System = files.SYSTEM,
    ) -> None:
        """``chain_max`` 0 stores full models only; ``threads`` None takes the processors there are.

        Neither they nor the threads show in what ``get`` gives, and threads not in the files.
        """
        assert 0 <= chain_max <= CHAIN_READ_MAX, chain_max
        self._folder = folder
        self._chain_max = chain_max
        self._threads = threads or min(THREADS_MAX, os.cpu_count() or 1)
        self._system = system
        self._made = False
        self._newest: tuple[str, Arrays] | None = None

    def put(self, arrays: Arrays, base: str | None) -> str:
        """Store a model and return its digest, once it survives a power cut and reads back whole.

        It becomes a delta against the stored model ``base``; a full one where ``base`` is None, not
        here, damaged or of other keys, shapes or dtypes, where the chain would get longer than
        ``chain_max``, or where that is the shorter file, as far as a sample of the tiles tells.
        A model that is here already, and whole, is left as it is.

        Raises ``StorageError`` where the disk refuses; what was there before is whole then.
        """
        arrays_.require_supported(arrays)
        # Once for all tiles of an array, not for each.
        arrays = {key: delta_file.plain(array) for key, array in arrays.items()}
        with ThreadPoolExecutor(self._threads) as pool:
            whole = pool.submit(arrays_.digest, arrays)
            entries = tuple(pool.map(delta_file.entry_of, arrays.items()))
            target = whole.result()
            path = self.path(target)
            archive.check_size(path, list(arrays.values()))
            if not self._holds(target):
                below = self._base_of(target, base, arrays)
                if below and not delta_file.helps(pool, entries, arrays, below):
                    below = {}
                header = delta_file.Header(base if below else None, target, entries)
                self._write(pool, path, header, arrays, below)
        self._keep(target, arrays)
        return target

    def get(self, digest: str) -> Arrays:
        """The model of that digest, every link of its chain verified.

        Takes the memory of one model. Raises ``NotFoundError`` where there is none of that digest,
        ``DamagedError`` where its file, or one it rests on, is not what ``put`` wrote.
        """
        result: Arrays = {}
        below: tuple[Entry, ...] | None = None
        with ThreadPoolExecutor(self._threads) as pool:
            for name in reversed(self.chain(digest)):
                path = self.path(name)
                with files.open_regular(path, system=self._system) as stream:
                    header = delta_file.read_header(path, stream, name)
                    delta_file.check_claim(path, stream, header, below)
                    if below is None:
                        result = delta_file.allocate(path, header.entries)
                    for tile, difference in delta_file.decoded(pool, path, stream, header):
                        part = delta_file.part(result, tile)
                        np.bitwise_xor(part, difference, out=part)
                below = header.entries
                result = {entry.key: result[entry.key] for entry in below}
                for entry, found in zip(
                    below, pool.map(delta_file.entry_of, result.items()), strict=True
                ):
                    if found.sha256 != entry.sha256:
                        raise DamagedError(
                            path, f"{arrays_.shown(entry.key)} has not the digest it should"
                        )
        if arrays_.digest(result) != digest:
            raise DamagedError(self.path(digest), "the model has not the digest that names it")
        return {
            entry.key: result[entry.key].astype(arrays_.dtype_of(entry.dtype), copy=False)
            for entry in below or ()
        }

    def chain(self, digest: str) -> list[str]:
        """The model, the base it rests on, and so on down to a full one.

        Raises as ``get`` does; of the files only the headers are read.
        """
        found: list[str] = []
        name: str | None = digest
        while name is not None:
            path = self.path(name)
            if name in found:
                raise DamagedError(path, "it rests on itself")
            if len(found) > CHAIN_READ_MAX:
                raise DamagedError(
                    self.path(digest), f"it rests on a chain of over {CHAIN_READ_MAX}"
                )
            if not found and name not in self.names():
                raise NotFoundError(
                    f"There is no model {digest} in {self._folder}.",
                    hint="Ask for one that is there, or for a copy of this one.",
                )
            found.append(name)
            with files.open_regular(path, system=self._system) as stream:
                name = delta_file.read_header(path, stream, name).base
        return found

    def names(self) -> list[str]:
        """Digests of the models that are here, in no order of time; damaged ones too."""
        matches = map(FILE.fullmatch, files.names_in(self._folder, system=self._system))
        return [match[1] for match in matches if match]

    def prune(self, keep: Collection[str]) -> list[str]:
        """Remove every model but those in ``keep`` and what they rest on; returns the removed.

        Raises ``DamagedError``, and removes nothing, where a kept file does not tell its base.
        """
        present = self.names()
        needed: set[str] = set()
        for digest in sorted(set(keep) & set(present)):
            needed.update(self.chain(digest))
        removed = [name for name in present if name not in needed]
        # Those that rest on others first: what a cut-off prune leaves is whole.
        for name in sorted(removed, key=self._height, reverse=True):
            files.remove(self.path(name), system=self._system)
        for name in filter(PARTIAL.fullmatch, files.names_in(self._folder, system=self._system)):
            files.remove(self._folder / name, system=self._system)
        return removed

    def path(self, digest: str) -> Path:
        """The file of a model, there or not; ``DamagedError`` for what is no digest."""
        if delta_file.DIGEST.fullmatch(digest) is None:
            raise DamagedError(self._folder, f"{arrays_.shown(digest)} is not a digest of a model")
        return self._folder / f"{digest}.delta"

    def _height(self, digest: str) -> int:
        """Models under this one; of a damaged one, more than any whole one has."""
        try:
            return len(self.chain(digest))
        except DamagedError:
            return CHAIN_READ_MAX + 2

    def _holds(self, digest: str) -> bool:
        try:
            self.get(digest)
        except (NotFoundError, DamagedError):
            return False
        return True

    def _base_of(self, target: str, base: str | None, arrays: Arrays) -> Arrays:
        """The base of a delta; empty where there can be none."""
        if base is None:
            return {}
        try:
            chain = self.chain(base)
            # A file of ``target`` may be there and damaged: what rests on it cannot be its base.
            if len(chain) > self._chain_max or target in chain:
                return {}
            newest = self._newest
            found = newest[1] if newest and newest[0] == base else self.get(base)
        except (NotFoundError, DamagedError):
            return {}
        return found if arrays_.mismatch(arrays, found) is None else {}

    def _write(
        self,
        pool: ThreadPoolExecutor,
        path: Path,
        header: delta_file.Header,
        arrays: Arrays,
        below: Arrays,
    ) -> None:
        if not self._made:
            files.make_folder(self._folder, mode=0o700, system=self._system)
            self._made = True
        files.write_atomically(
            path,
            lambda stream: delta_file.encode(pool, stream, header, arrays, below),
            mode=0o600,
            system=self._system,
        )
        try:
            with files.open_regular(path, system=self._system) as stream:
                if delta_file.read_header(path, stream, header.target) != header:
                    raise DamagedError(path, "its header reads back otherwise")
                for tile, difference in delta_file.decoded(pool, path, stream, header):
                    if not np.array_equal(difference, delta_file.difference(tile, arrays, below)):
                        raise DamagedError(path, "its elements read back otherwise")
        except DamagedError:
            files.remove(path, system=self._system)
            raise

    def _keep(self, digest: str, arrays: Arrays) -> None:
        """Remember a copy, in the memory of the one before where that fits."""
        kept = self._newest[1] if self._newest else {}
        self._newest = None
        if arrays_.mismatch(arrays, kept) is None:
            for key, array in arrays.items():
                kept[key][...] = array
        else:
            kept = {key: array.copy() for key, array in arrays.items()}
        self._newest = (digest, kept)
