"""One checkpoint of a node as a file: a header, then arrays. Nothing in it is ever unpickled.

::

    prefix    8 bytes MAGIC, version and header length as uint32, SHA-256 of the header
    header    JSON: what it is, of whom, after which round; its arrays with shapes and digests
    archive   the arrays, as in ``checkpoint.archive``; what the app keeps for itself as the last

The names end in ``.pkl``, as the contract has them; no pickle is in them. Every array is compared
with its digest when it is read.
"""

from __future__ import annotations

import enum
import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote

import numpy as np

from onefed import arrays
from onefed.arrays import Arrays
from onefed.checkpoint import archive, files
from onefed.checkpoint.files import DamagedError

MAGIC = b"1fNode1\n"
VERSION = 1
PREFIX = struct.Struct("<8sII32s")
HEADER_BYTES_MAX = files.JSON_BYTES_MAX
MODE = 0o600
"""What an app keeps for itself may tell of the node's data."""
PRIVATE = "private"
"""Name of the array that holds what the app keeps for itself, as bytes; after all others."""


class Kind(enum.StrEnum):
    """What is in a checkpoint."""

    LOCAL = "local"
    """What the node has trained, and what its app keeps for itself."""
    AGGREGATED = "aggregated"
    """The result of the round, as this node has accepted it."""
    ROUND_FINISHED = "round_finished"
    """The committed model and the state of the experiment."""
    REMOTE = "remote"
    """Another node's ``local``, kept for it."""


@dataclass(frozen=True, slots=True)
class About:
    """The metadata."""

    kind: Kind
    experiment: str
    node: str
    """Whose it is; a ``remote`` one lies on another node's disk."""
    round_number: int
    saved_at: str
    """ISO 8601, UTC."""
    train_set: tuple[str, ...] = ()
    """Voters on the next round."""
    contributors: tuple[str, ...] = ()
    base: str = ""
    """Root of the model of the round, as whose difference a parcel is packed."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Of an evaluation; empty: there was none."""
    state: Mapping[str, Any] = field(default_factory=dict)
    """Of the experiment: rounds, neighbours, settings. For ``round_finished``."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Metadata and content."""

    about: About
    model: Arrays
    private: bytes | None = None
    """What the app keeps for itself, Flower's bytes."""

    @property
    def digest(self) -> str:
        """Of what is in it, wherever it lies and however it is packed."""
        told = [self.about.node, self.about.experiment, self.about.round_number]
        content = [arrays.digest(self.model), hashlib.sha256(self.private or b"").hexdigest()]
        return hashlib.sha256(json.dumps([*told, *content]).encode()).hexdigest()


def escaped(text: str) -> str:
    """As a folder's name: ``127.0.0.1:80/x`` becomes ``127.0.0.1%3A80%2Fx``."""
    found = quote(text, safe="", encoding="utf-8")
    return found.replace(".", "%2E") if set(found) <= {"."} else found


def place(root: Path, experiment: str, node: str, round_number: int, kind: Kind) -> Path:
    """``{experiment_name}/{node_address}/round_{N}_{kind}.pkl``."""
    return root / escaped(experiment) / escaped(node) / f"round_{round_number}_{kind}.pkl"


def write(path: Path, checkpoint: Checkpoint, *, system: files.System = files.SYSTEM) -> None:
    """Write it, or leave what was there."""
    members = dict(checkpoint.model)
    if checkpoint.private is not None:
        assert PRIVATE not in members, "no array of a model has that name"
        members[PRIVATE] = np.frombuffer(checkpoint.private, np.uint8)
    archive.check_size(path, list(members.values()))
    header = _header(checkpoint, archive.manifest(members))

    def put(stream: BinaryIO) -> None:
        stream.write(PREFIX.pack(MAGIC, VERSION, len(header), hashlib.sha256(header).digest()))
        stream.write(header)
        archive.write(stream, archive.positional(members.values()))

    files.make_folder(path.parent, mode=0o700, system=system)
    files.write_atomically(path, put, mode=MODE, system=system)


def read(path: Path, *, system: files.System = files.SYSTEM) -> Checkpoint:
    """Read it; raises ``DamagedError`` for whatever ``write`` did not write."""
    with files.open_regular(path, system=system) as stream:
        prefix = stream.read(PREFIX.size)
        if len(prefix) != PREFIX.size:
            raise DamagedError(path, "it is cut short")
        magic, version, length, sha256 = PREFIX.unpack(prefix)
        if magic != MAGIC:
            raise DamagedError(path, "it is no checkpoint of a node")
        if version != VERSION:
            raise DamagedError(path, f"it has the format {version}; this program reads {VERSION}")
        header = stream.read(length) if length <= HEADER_BYTES_MAX else b""
        if hashlib.sha256(header).digest() != sha256:
            raise DamagedError(path, "its header has not the digest it was saved with")
        try:
            about, entries = read_header(json.loads(header))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise DamagedError(path, "its header is not one of ours") from error
        values = archive.read(path, stream, entries)
    model = {entry.key: value for entry, value in zip(entries, values, strict=True)}
    private = model.pop(PRIVATE, None)
    return Checkpoint(about, model, None if private is None else private.tobytes())


def document(about: About) -> dict[str, Any]:
    """The metadata as JSON."""
    return {
        "type": str(about.kind),
        "experiment": about.experiment,
        "node_address": about.node,
        "round": about.round_number,
        "timestamp": about.saved_at,
        "train_set": list(about.train_set),
        "contributors": list(about.contributors),
        "base": about.base,
        "metrics": dict(about.metrics),
        "state": dict(about.state),
    }


def read_document(found: dict[str, Any]) -> About:
    """The metadata; raises one of several errors where it is none of ours."""
    round_number = found["round"]
    texts = [found["experiment"], found["node_address"], found["timestamp"], found["base"]]
    names = [*found["train_set"], *found["contributors"]]
    if type(round_number) is not int or any(type(each) is not str for each in texts + names):
        raise TypeError("metadata of other types")
    return About(
        kind=Kind(found["type"]),
        experiment=found["experiment"],
        node=found["node_address"],
        round_number=round_number,
        saved_at=found["timestamp"],
        train_set=tuple(found["train_set"]),
        contributors=tuple(found["contributors"]),
        base=found["base"],
        metrics=dict(found["metrics"]),
        state=dict(found["state"]),
    )


def as_remote(checkpoint: Checkpoint) -> Checkpoint:
    """Another node's, as it is kept."""
    return replace(checkpoint, about=replace(checkpoint.about, kind=Kind.REMOTE))


def _header(checkpoint: Checkpoint, entries: tuple[archive.Entry, ...]) -> bytes:
    listed = [[each.key, each.dtype, each.shape, each.sha256] for each in entries]
    found = document(checkpoint.about) | {"arrays": listed}
    return json.dumps(found, allow_nan=False, separators=(",", ":")).encode()


def read_header(found: Any) -> tuple[About, tuple[archive.Entry, ...]]:
    """Metadata and arrays of a header."""
    entries = []
    for key, dtype, shape, sha256 in found["arrays"]:
        if type(key) is not str or type(sha256) is not str or dtype not in arrays.DTYPES:
            raise TypeError("an array of another kind")
        if any(type(length) is not int or length < 0 for length in shape):
            raise TypeError("an array of another shape")
        entries.append(archive.Entry(key, dtype, tuple(shape), sha256))
    if len({entry.key for entry in entries}) != len(entries):
        raise ValueError("two arrays of one name")
    return read_document(found), tuple(entries)
