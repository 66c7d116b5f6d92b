"""The disk of a node: its journal, the models that it has promised to keep, its private state.

    journal           ``peer.journal``: appended, synced before what it records is said; written
                      anew with what still counts at every start, and when it has become long
    models/ROOT       whole models, written before anything says that they are held
    private           what the app keeps between rounds (``checkpoint`` calls it local)
    lock              held while a process owns the folder

Everything goes through the seam of ``checkpoint.files``. Nothing is unpickled.
"""

from __future__ import annotations

import fcntl
import os
import re
import struct
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from onefed.checkpoint import files
from onefed.errors import InUseError, StorageError
from onefed.peer import journal
from onefed.peer.interface import Record
from onefed.peer.messages import Digest, Entry, NodeId
from onefed.peer.settings import Saved

MODE = 0o600
"""Private state may hold what an app has learned of its node's data."""

JOURNAL_LONG_BYTES = 2**24
"""A journal that is longer is compacted. A round of 64 members appends about 200 KB."""

JOURNAL_BYTES_MAX = 2 * JOURNAL_LONG_BYTES + journal.PAYLOAD_BYTES_MAX
"""What may be there after a crash: the last record is as long as any."""

PRIVATE_BYTES_MAX = 2**30

_PRIVATE = struct.Struct("<8sQ")
"""Magic, and the round after which it holds."""
_PRIVATE_MAGIC = b"1fPriv1\n"

ROOT = re.compile(r"[0-9a-f]{64}")
"""Of a model: it becomes a file's name."""


class Store:
    """The folder of one node. It is made with ``create``, and opened once per process."""

    def __init__(
        self,
        folder: Path,
        *,
        system: files.System = files.SYSTEM,
        journal_long_bytes: int = JOURNAL_LONG_BYTES,
    ) -> None:
        """Take the folder; raises ``InUseError`` where another process has it."""
        assert journal_long_bytes <= JOURNAL_LONG_BYTES
        self._folder = folder
        self._system = system
        self._journal_long_bytes = journal_long_bytes
        self._whose: tuple[NodeId, str] = ("", "")
        """Node and experiment of the journal that is open."""
        self._known: Saved | None = None
        """What the records so far say."""
        self._journal: files.Appender | None = None
        self._models = threading.Lock()
        """A model may come from two peers, and be made here as well, at the same time."""
        self._synced_bytes = 0
        self._bytes = 0
        files.make_folder(folder / "models", mode=0o700, system=system)
        self._lock = os.open(folder / "lock", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, MODE)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            raise InUseError(
                f"Another process is the node of {folder}.", hint="Stop it first."
            ) from None

    @property
    def exists(self) -> bool:
        """Whether a node has begun here."""
        return "journal" in files.names_in(self._folder, system=self._system)

    def create(self, node: NodeId, experiment: str, start: Entry, model: bytes) -> None:
        """Begin as ``node``, with the model that all begin with."""
        self.write_model(start.root, model)
        self._write_journal(journal.header(node, experiment, start))

    def load(self, node: NodeId, experiment: str) -> Saved:
        """What the node knew, and open its journal to go on.

        Raises:
            JournalError: the journal cannot be trusted, or is of another node.
        """
        path = self._folder / "journal"
        with files.open_regular(path, system=self._system) as stream:
            content = stream.read(JOURNAL_BYTES_MAX + 1)
        if len(content) > JOURNAL_BYTES_MAX:
            raise StorageError(
                f"{path} is longer than {JOURNAL_BYTES_MAX} bytes.",
                hint="Let the node join under a new name, with an empty folder.",
            )
        saved = journal.replay(content, node, experiment).saved
        self._whose, self._known = (node, experiment), saved
        self._compact()  # without the torn tail, and synced
        return replace(saved, models=tuple(self._model_names()))

    def append(self, record: Record) -> None:
        """Add a record to the journal; it is durable after the next ``sync``."""
        assert self._journal is not None, "load comes first"
        assert self._known is not None
        frame = journal.encode(record, self._synced_bytes)
        self._journal.append(frame)
        self._bytes += len(frame)
        self._known = journal.after(self._known, record)

    @property
    def is_long(self) -> bool:
        """The journal is better synced now, which makes it short."""
        return self._bytes > self._journal_long_bytes

    def sync(self) -> None:
        """Make every record so far survive a power cut."""
        assert self._journal is not None, "load comes first"
        if self.is_long:
            self._compact()
            return
        length = self._bytes
        self._journal.sync()
        self._synced_bytes = length

    def write_model(self, root: Digest, content: bytes) -> None:
        """Keep a model, durably. ``content`` is what ``root`` is the digest of."""
        with self._models:
            files.write_bytes(self._model(root), content, mode=MODE, system=self._system)

    def read_model(self, root: Digest, size_bytes: int) -> bytes:
        """A model of that size, not compared with its digest."""
        path = self._model(root)
        with files.open_regular(path, system=self._system) as stream:
            content = stream.read(size_bytes + 1)
        if len(content) != size_bytes:
            raise files.DamagedError(path, f"it does not have {size_bytes} bytes")
        return content

    def forget_model(self, root: Digest) -> None:
        """Remove a model; fine if there is none."""
        with self._models:
            files.remove(self._model(root), system=self._system)

    def write_private(self, round_number: int, content: bytes) -> None:
        """Keep what the app wants to find again after that round."""
        head = _PRIVATE.pack(_PRIVATE_MAGIC, round_number)
        files.write_bytes(self._folder / "private", head + content, mode=MODE, system=self._system)

    def read_private(self) -> tuple[int, bytes] | None:
        """The newest private state and its round; None where there is none."""
        if "private" not in files.names_in(self._folder, system=self._system):
            return None
        path = self._folder / "private"
        with files.open_regular(path, system=self._system) as stream:
            content = stream.read(PRIVATE_BYTES_MAX + 1)
        if not _PRIVATE.size <= len(content) <= PRIVATE_BYTES_MAX:
            raise files.DamagedError(path, "its length cannot be right")
        magic, round_number = _PRIVATE.unpack_from(content)
        if magic != _PRIVATE_MAGIC:
            raise files.DamagedError(path, "it does not begin as it should")
        return round_number, content[_PRIVATE.size :]

    def close(self) -> None:
        """Let go of the folder."""
        if self._journal is not None:
            self._journal.close()
            self._journal = None
        os.close(self._lock)

    def _compact(self) -> None:
        assert self._known is not None
        if self._journal is not None:
            self._journal.close()
        self._write_journal(journal.compacted(*self._whose, self._known))
        self._journal = files.Appender(self._folder / "journal", system=self._system)

    def _write_journal(self, content: bytes) -> None:
        files.write_bytes(self._folder / "journal", content, mode=MODE, system=self._system)
        self._bytes = self._synced_bytes = len(content)

    def _model(self, root: Digest) -> Path:
        assert ROOT.fullmatch(root), "a root becomes a file's name"
        return self._folder / "models" / root

    def _model_names(self) -> Sequence[str]:
        names = files.names_in(self._folder / "models", system=self._system)
        return [name for name in names if ROOT.fullmatch(name)]
