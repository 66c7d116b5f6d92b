"""The journal: framed records, one after the other, and what a node knows after reading them.

A frame is ``FRAME`` (magic, length of the payload, bytes known to be on disk when the frame was
written, CRC-32 of all that and the payload) and a payload in JSON. What follows the synced bytes
may be torn by a power cut in any way, since nothing was promised on it yet; damage before them is
no power cut, and a node that has it must not vote: it has forgotten a promise.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from onefed.errors import ExitCode, OnefedError
from onefed.peer.interface import (
    AcceptedRecord,
    CommittedRecord,
    EvictionRecord,
    IncarnationRecord,
    Record,
    VoteRecord,
)
from onefed.peer.messages import Ballot, Contribution, Entry, Eviction, Member, NodeId
from onefed.peer.settings import Saved

FORMAT_VERSION = 1
MAGIC = b"1fJ\n"
FRAME = struct.Struct("<4sIQI")
"""Magic, payload length, bytes known to be on disk before, CRC-32."""
PAYLOAD_BYTES_MAX = 2**24
"""More than an entry of ten thousand contributors takes."""


class JournalError(OnefedError):
    """A journal that cannot be trusted: the node must come back as a new one."""

    exit_code = ExitCode.STORAGE


@dataclass(frozen=True, slots=True)
class Replayed:
    """A journal that was read."""

    saved: Saved
    good_bytes: int
    """Length up to the torn tail; the driver cuts the file there before it appends."""


def header(node: NodeId, experiment: str, start: Entry) -> bytes:
    """The first frame: whose journal it is, and the entry all begin with."""
    document = {
        "version": FORMAT_VERSION,
        "node": node,
        "experiment": experiment,
        "start": _entry(start),
    }
    return _frame(document, 0)


def encode(record: Record, synced_bytes: int) -> bytes:
    """One frame.

    Args:
        synced_bytes: of the file, known to be on disk now.
    """
    document: dict[str, Any] = {}
    match record:
        case VoteRecord(term, voted_for):
            document = {"term": term, "voted_for": voted_for}
        case AcceptedRecord(entry):
            document = {"accepted": _entry(entry)}
        case CommittedRecord(entry):
            document = {"committed": _entry(entry)}
        case IncarnationRecord(incarnation):
            document = {"incarnation": incarnation}
        case EvictionRecord(nodes):
            document = {"evicted": nodes}
    return _frame(document, synced_bytes)


def compacted(node: NodeId, experiment: str, saved: Saved) -> bytes:
    """A journal that says in a few frames what the records behind ``saved`` have said.

    It takes the place of the old one at once, by a rename: until then the old one counts.
    """
    content = header(node, experiment, saved.commit)
    records: list[Record] = [IncarnationRecord(saved.incarnation)]
    records += [] if saved.accepted is None else [AcceptedRecord(saved.accepted)]
    records += [EvictionRecord(saved.evicted)] if saved.evicted else []
    records.append(VoteRecord(saved.term, saved.voted_for))  # last: of an older term than accepted
    for record in records:
        content += encode(record, len(content))
    return content


def after(saved: Saved, record: Record) -> Saved:
    """What a node knows once a record is in its journal."""
    match record:
        case VoteRecord(term, voted_for):
            return replace(saved, term=term, voted_for=voted_for)
        case AcceptedRecord(entry):
            if entry.ballot.term > saved.term:
                return replace(saved, accepted=entry, term=entry.ballot.term, voted_for=None)
            return replace(saved, accepted=entry)
        case CommittedRecord(entry):
            names = {member.node for member in entry.roster}
            evicted = tuple(node for node in saved.evicted if node in names)
            return replace(saved, commit=entry, evicted=evicted)
        case IncarnationRecord(incarnation):
            return replace(saved, incarnation=incarnation)
        case EvictionRecord(nodes):
            return replace(saved, evicted=nodes)


def replay(content: bytes, node: NodeId, experiment: str) -> Replayed:
    """What the node knew, without its models.

    Raises:
        JournalError: damage before the synced bytes; no header; a header of another node,
            experiment or version.
    """
    frames, good_bytes = _read(content)
    if not frames:
        raise _broken("has no whole first record")
    head, *records = frames
    if head.get("version") != FORMAT_VERSION:
        raise JournalError(
            f"The journal has the format version {head.get('version')!r}.",
            hint=f"This program reads version {FORMAT_VERSION}.",
        )
    if (head["node"], head["experiment"]) != (node, experiment):
        raise JournalError(
            f"The journal is of the node {head['node']!r} in {head['experiment']!r}.",
            hint=f"Give {node!r} in {experiment!r} a folder of its own.",
        )
    saved = Saved(_read_entry(head["start"]))
    for record in records:
        saved = after(saved, _read_record(record))
    return Replayed(saved, good_bytes)


def _read_record(document: dict[str, Any]) -> Record:
    if "accepted" in document:
        return AcceptedRecord(_read_entry(document["accepted"]))
    if "committed" in document:
        return CommittedRecord(_read_entry(document["committed"]))
    if "incarnation" in document:
        return IncarnationRecord(document["incarnation"])
    if "evicted" in document:
        return EvictionRecord(tuple(document["evicted"]))
    return VoteRecord(document["term"], document["voted_for"])


def _read(content: bytes) -> tuple[list[dict[str, Any]], int]:
    """Whole frames from the start, and where they end."""
    frames, end = [], 0
    for offset, length, _, payload in _frames(content, 0):
        if offset != end:
            break
        frames.append(json.loads(payload))
        end = offset + length
    for _, _, synced_bytes, _ in _frames(content, end):
        if synced_bytes > end:
            raise _broken(f"is damaged at byte {end}, which was on disk")
    return frames, end


def _frames(content: bytes, start: int) -> Iterator[tuple[int, int, int, bytes]]:
    """Every whole frame from ``start`` on: offset, length, synced bytes, payload."""
    offset = start
    while (offset := content.find(MAGIC, offset)) >= 0 and offset + FRAME.size <= len(content):
        _, length, synced_bytes, checksum = FRAME.unpack_from(content, offset)
        end = offset + FRAME.size + length
        payload = content[offset + FRAME.size : end]
        if (
            length <= PAYLOAD_BYTES_MAX
            and end <= len(content)
            and checksum == _checksum(length, synced_bytes, payload)
        ):
            yield offset, FRAME.size + length, synced_bytes, payload
            offset = end
        else:
            offset += 1


def _frame(document: dict[str, Any], synced_bytes: int) -> bytes:
    payload = json.dumps(document, separators=(",", ":")).encode()
    assert len(payload) <= PAYLOAD_BYTES_MAX
    checksum = _checksum(len(payload), synced_bytes, payload)
    return FRAME.pack(MAGIC, len(payload), synced_bytes, checksum) + payload


def _checksum(length: int, synced_bytes: int, payload: bytes) -> int:
    return zlib.crc32(payload, zlib.crc32(struct.pack("<IQ", length, synced_bytes)))


def _entry(entry: Entry) -> list[Any]:
    return [
        entry.round_number,
        entry.root,
        entry.size_bytes,
        entry.ballot,
        [(member.node, member.contact) for member in entry.roster],
        [(each.node, each.weight, each.digest, each.size_bytes) for each in entry.contributors],
        entry.owners,
        # Only where there are any: a journal without them is read by older programs, too.
        *([_evictions(entry)] if entry.evictions else []),
    ]


def _evictions(entry: Entry) -> list[Any]:
    return [(each.round_number, each.root, each.nodes) for each in entry.evictions]


def _read_entry(document: list[Any]) -> Entry:
    round_number, root, size_bytes, ballot, roster, contributors, owners, *rest = document
    return Entry(
        round_number=round_number,
        root=root,
        size_bytes=size_bytes,
        ballot=Ballot(*ballot),
        roster=tuple(Member(*each) for each in roster),
        contributors=tuple(Contribution(*each) for each in contributors),
        owners=tuple(owners),
        evictions=tuple(
            Eviction(round_number, root, tuple(nodes))
            for round_number, root, nodes in (rest[0] if rest else ())
        ),
    )


def _broken(what: str) -> JournalError:
    return JournalError(
        f"The journal {what}.",
        hint="The node may have forgotten a vote. Start it with a new name and an empty folder.",
    )
