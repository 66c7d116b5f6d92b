"""The disk of a node: a journal whose tail may be lost or torn, and whole models."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from onefed.peer import journal
from onefed.peer.interface import AcceptedRecord, Record, VoteRecord
from onefed.peer.messages import Digest, Entry, NodeId, Parcel
from onefed.peer.settings import Saved
from onefed.sim.content import Content


class Disk:
    """Survives its node."""

    def __init__(
        self,
        head: bytes,
        *,
        long_bytes: int | None = None,
        compact: Callable[[Saved], bytes] | None = None,
    ) -> None:
        """Begin with the first frame of a journal, on disk.

        Args:
            long_bytes: a journal that is longer is compacted when it is synced; None: never.
            compact: makes a short journal of what a node knows.
        """
        self.journal = bytearray(head)
        self._long_bytes = long_bytes
        self._compact = compact
        self.known: Saved | None = None
        """What the records of this life say; set at every start."""
        self.compactions = 0
        self.synced_bytes = len(head)
        self.models: dict[Digest, Content] = {}
        self.packed: set[Digest] = set()
        """What the node has kept for itself after some rounds."""
        self.own_parcel: Parcel | None = None
        """The newest of them."""
        self.parcels: set[Parcel] = set()
        """Of others; whole."""
        self.told: dict[NodeId, Parcel] = {}
        """The newest of each of which the machine has heard in this life."""
        self.restored = False
        """The node has taken what others kept of it."""
        self.accepted: Entry | None = None
        """Newest that was synced, of entries and of votes: for the checkers."""
        self.vote: VoteRecord | None = None

    def append(self, record: Record, *, sync: bool) -> None:
        """Add a frame."""
        self.journal += journal.encode(record, self.synced_bytes)
        if self.known is not None:
            self.known = journal.after(self.known, record)
        if sync:
            if self._long_bytes is not None and len(self.journal) > self._long_bytes:
                assert self.known is not None
                assert self._compact is not None
                self.journal = bytearray(self._compact(self.known))
                self.compactions += 1
            self.synced_bytes = len(self.journal)
            match record:
                case AcceptedRecord(entry):
                    self.accepted = entry
                case VoteRecord():
                    self.vote = record
                case _:
                    pass

    def newest_parcels(self) -> dict[NodeId, Parcel]:
        """Of each other node."""
        ordered = sorted(self.parcels, key=lambda parcel: parcel.round_number)
        return {parcel.node: parcel for parcel in ordered}

    def crash(self, random: Random, *, torn: bool) -> None:
        """The process ends; in a power cut, what was not synced may be shorter, or garbage."""
        if not torn:
            return
        loose = len(self.journal) - self.synced_bytes
        if loose:
            del self.journal[self.synced_bytes + random.randint(0, loose) :]
        if random.random() < 0.5 and len(self.journal) > self.synced_bytes:
            self.journal[random.randrange(self.synced_bytes, len(self.journal))] ^= 0x55
        elif random.random() < 0.3:
            self.journal += bytes(random.randrange(1, 40))

    def cut(self, good_bytes: int) -> None:
        """The node starts: the torn tail goes, and the rest is made sure of."""
        del self.journal[good_bytes:]
        self.synced_bytes = good_bytes
