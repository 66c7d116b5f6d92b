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
from dataclasses import dataclass
from typing import Any

from onefed.errors import ExitCode, OnefedError
from onefed.peer.interface import (
    AcceptedRecord,
    CommittedRecord,
    IncarnationRecord,
    Record,
    VoteRecord,
)
from onefed.peer.messages import Ballot, Contribution, Entry, Member, NodeId
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
    return _frame(document, synced_bytes)


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
    term, voted_for, incarnation = 0, None, 0
    commit, accepted = _read_entry(head["start"]), None
    for record in records:
        if "term" in record:
            term, voted_for = record["term"], record["voted_for"]
        elif "accepted" in record:
            accepted = _read_entry(record["accepted"])
            if accepted.ballot.term > term:
                term, voted_for = accepted.ballot.term, None
        elif "committed" in record:
            commit = _read_entry(record["committed"])
        elif "incarnation" in record:
            incarnation = record["incarnation"]
    return Replayed(Saved(commit, term, voted_for, accepted, incarnation), good_bytes)


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
    ]


def _read_entry(document: list[Any]) -> Entry:
    round_number, root, size_bytes, ballot, roster, contributors, owners = document
    return Entry(
        round_number=round_number,
        root=root,
        size_bytes=size_bytes,
        ballot=Ballot(*ballot),
        roster=tuple(Member(*each) for each in roster),
        contributors=tuple(Contribution(*each) for each in contributors),
        owners=tuple(owners),
    )


def _broken(what: str) -> JournalError:
    return JournalError(
        f"The journal {what}.",
        hint="The node may have forgotten a vote. Start it with a new name and an empty folder.",
    )
