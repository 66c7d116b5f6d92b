"""What exact resume needs to know about a run after a round, and its sidecar document.

The arrays of a snapshot are in an archive, or in two; all the rest, and a digest of each array, is
in a JSON document beside them, the same for recovery store and operator's checkpoints. The document
carries a digest of itself, so that a flipped bit cannot move the run to another round or seed.
Decoding trusts nothing: types, sizes and names are checked.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from onefed import arrays as arrays_
from onefed.checkpoint.archive import ARRAYS_BYTES_MAX, ARRAYS_MAX, Entry
from onefed.checkpoint.files import DamagedError
from onefed.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from onefed.arrays import Arrays

FORMAT = "onefed recovery snapshot"
VERSION = 2
"""Raised with every change that an older program would misread.

1 had neither ``state_archive`` and ``saved_at`` nor arrays of bfloat16; it is read as before.
"""

DIMENSIONS_MAX = 64
"""Of one array; numpy's own limit."""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundRecord:
    """What is remembered of a committed round."""

    round_number: int
    """From 1; 0 is the evaluation of the initial model."""
    loss: float | None
    """Of the global model after the round, where it was evaluated; may be NaN."""
    accuracy: float | None
    """0.0 to 1.0, where it was evaluated."""
    contributors: tuple[str, ...]
    """Keys of the clients whose updates went into the round, in client order."""
    failures: int
    """Replies that failed or were rejected."""
    seconds: float
    """Duration of the round."""
    model_sha256: str
    """``arrays.digest`` of the global model after the round."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Snapshot:
    """Everything that decides how a run goes on."""

    run: str
    """Identity of the run, the same after every restart."""
    round_number: int
    """The last committed round; 0 before the first."""
    rounds_total: int
    """Rounds the run was asked for."""
    seed: int
    """Of the run: all sampling is derived from it and the round."""
    rule: str
    """Name of the aggregation rule."""
    rule_state: Arrays
    """Its state after ``round_number``."""
    arrays: Arrays
    """The global model after ``round_number``."""
    history: tuple[RoundRecord, ...]
    """One record per committed round, oldest first."""
    app_sha256: str
    """Digest of the app bundle."""
    config_sha256: str
    """Digest of the configuration that decides the result."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Version by program, of those that wrote the snapshot."""


@dataclass(frozen=True, slots=True)
class Sidecar:
    """A decoded document: the snapshot without its arrays, and where and what they are."""

    snapshot: Snapshot
    """Its ``arrays`` and ``rule_state`` are empty."""
    archive: str
    """Name of the archive in the same folder."""
    arrays: tuple[Entry, ...]
    """The model: the first arrays of the archive."""
    rule_state: tuple[Entry, ...]
    """The state of the rule: the arrays after them, or those of ``state_archive``."""
    state_archive: str | None = None
    """Name of the archive with the state of the rule, where it has one of its own."""
    saved_at: datetime | None = None
    """In UTC, where the writer was told the time."""

    def parts(self) -> list[tuple[str, tuple[Entry, ...]]]:
        """Each archive by name, with its arrays in order."""
        if self.state_archive is None:
            return [(self.archive, (*self.arrays, *self.rule_state))]
        return [(self.archive, self.arrays), (self.state_archive, self.rule_state)]

    def joined(self, values: Sequence[NDArray[Any]]) -> Snapshot:
        """The snapshot with the arrays of its ``parts``, one after the other."""
        entries = (*self.arrays, *self.rule_state)
        named = [(entry.key, value) for entry, value in zip(entries, values, strict=True)]
        count = len(self.arrays)
        return replace(self.snapshot, arrays=dict(named[:count]), rule_state=dict(named[count:]))


def encode(sidecar: Sidecar) -> dict[str, object]:
    """Make the JSON document of a sidecar."""
    snapshot = sidecar.snapshot
    body: dict[str, object] = {
        "run": snapshot.run,
        "round_number": snapshot.round_number,
        "rounds_total": snapshot.rounds_total,
        "seed": snapshot.seed,
        "rule": snapshot.rule,
        "app_sha256": snapshot.app_sha256,
        "config_sha256": snapshot.config_sha256,
        "versions": dict(snapshot.versions),
        "history": _encode_history(snapshot.history),
        "archive": sidecar.archive,
        "state_archive": sidecar.state_archive,
        "saved_at": None
        if sidecar.saved_at is None
        else sidecar.saved_at.astimezone(UTC).isoformat(),
        "arrays": [_encode_entry(entry) for entry in sidecar.arrays],
        "rule_state": [_encode_entry(entry) for entry in sidecar.rule_state],
    }
    return {"format": FORMAT, "version": VERSION, "sha256": self_digest(body), "snapshot": body}


def decode(path: Path, document: object) -> Sidecar:
    """Read a document of ``encode``, which came from ``path``; ``DamagedError`` for any other."""
    try:
        if _get(document, "format", str) != FORMAT:
            raise ValueError("it is not a recovery snapshot")
        version = _get(document, "version", int)
        if version < 1:
            raise ValueError(f"it has format version {version}")
        if version > VERSION:
            raise StorageError(
                f"{path} has format version {version}; this program reads up to {VERSION}.",
                hint="Continue the run with the newer version of onefed that wrote it.",
            )
        body = _get(document, "snapshot", dict)
        if _get(document, "sha256", str) != self_digest(body):
            raise ValueError("its content has not the digest it was saved with")
        return _decode_body(body, version)
    except ValueError as error:
        raise DamagedError(path, str(error)) from error
    except RecursionError as error:
        raise DamagedError(path, "it is nested too deeply") from error


def _decode_body(body: object, version: int) -> Sidecar:
    versions = _get(body, "versions", dict)
    snapshot = Snapshot(
        run=_get(body, "run", str),
        round_number=_count(body, "round_number"),
        rounds_total=_count(body, "rounds_total"),
        seed=_get(body, "seed", int),
        rule=_get(body, "rule", str),
        rule_state={},
        arrays={},
        history=tuple(_decode_history(_get(body, "history", list))),
        app_sha256=_get(body, "app_sha256", str),
        config_sha256=_get(body, "config_sha256", str),
        versions={name: _get(versions, name, str) for name in versions},
    )
    return Sidecar(
        snapshot=snapshot,
        archive=_get(body, "archive", str),
        state_archive=None if version == 1 else _optional_str(body, "state_archive"),
        saved_at=None if version == 1 else _optional_time(body, "saved_at"),
        arrays=_decode_entries(_get(body, "arrays", list)),
        rule_state=_decode_entries(_get(body, "rule_state", list)),
    )


def _encode_history(history: tuple[RoundRecord, ...]) -> list[dict[str, object]]:
    """One object per round; contributors only where they are not those of the round before.

    Estimate: 250 bytes a round, so that 16 MiB hold 60,000 rounds of an unchanged federation.
    """
    before: tuple[str, ...] | None = None
    encoded = []
    for record in history:
        contributors = None if record.contributors == before else list(record.contributors)
        encoded.append(_encode_record(record, contributors))
        before = record.contributors
    return encoded


def _decode_history(documents: list[Any]) -> Iterator[RoundRecord]:
    before: tuple[str, ...] | None = None
    for document in documents:
        record = _decode_record(document, before)
        before = record.contributors
        yield record


def _encode_record(record: RoundRecord, contributors: list[str] | None) -> dict[str, object]:
    return {
        "round_number": record.round_number,
        "loss": _encode_float(record.loss),
        "accuracy": _encode_float(record.accuracy),
        "contributors": contributors,
        "failures": record.failures,
        "seconds": _encode_float(record.seconds),
        "model_sha256": record.model_sha256,
    }


def _decode_record(document: object, before: tuple[str, ...] | None) -> RoundRecord:
    contributors = before if _entry(document, "contributors") is None else None
    if contributors is None:
        contributors = tuple(_get(document, "contributors", list))
    seconds = _optional_float(document, "seconds")
    if seconds is None or any(type(client) is not str for client in contributors):
        raise ValueError("a round has no seconds, or a contributor without a name")
    return RoundRecord(
        round_number=_count(document, "round_number"),
        loss=_optional_float(document, "loss"),
        accuracy=_optional_float(document, "accuracy"),
        contributors=contributors,
        failures=_count(document, "failures"),
        seconds=seconds,
        model_sha256=_get(document, "model_sha256", str),
    )


def _encode_entry(entry: Entry) -> dict[str, object]:
    shape = list(entry.shape)
    return {"key": entry.key, "dtype": entry.dtype, "shape": shape, "sha256": entry.sha256}


def _decode_entries(documents: list[Any]) -> tuple[Entry, ...]:
    entries = {entry.key: entry for entry in map(_decode_entry, documents)}
    if len(entries) != len(documents) or len(entries) > ARRAYS_MAX:
        raise ValueError("it names an array twice, or too many arrays")
    return tuple(entries.values())


def _decode_entry(document: object) -> Entry:
    shape = _get(document, "shape", list)
    dtype = _get(document, "dtype", str)
    if len(shape) > DIMENSIONS_MAX or any(type(n) is not int or n < 0 for n in shape):
        raise ValueError("an array has an impossible shape")
    if math.prod(n for n in shape if n) > ARRAYS_BYTES_MAX:
        raise ValueError("an array is larger than any archive")
    if dtype not in arrays_.DTYPES:
        raise ValueError(f"an array has the unsupported dtype {arrays_.shown(dtype)}")
    return Entry(_get(document, "key", str), dtype, tuple(shape), _get(document, "sha256", str))


def _entry(document: object, name: str) -> Any:
    return document.get(name) if isinstance(document, dict) else None


def _get(document: object, name: str, kind: type[_T]) -> _T:
    value = _entry(document, name)
    if type(value) is not kind:  # exactly: True is an int to isinstance
        raise ValueError(f"{arrays_.shown(name)} is missing or not of type {kind.__name__}")
    return value


def _optional_str(document: object, name: str) -> str | None:
    return None if _entry(document, name) is None else _get(document, name, str)


def _optional_time(document: object, name: str) -> datetime | None:
    text = _optional_str(document, name)
    if text is None:
        return None
    time = datetime.fromisoformat(text)
    if time.utcoffset() != timedelta(0):
        raise ValueError(f"{arrays_.shown(name)} is not a time in UTC")
    return time


def _count(document: object, name: str) -> int:
    value = _get(document, name, int)
    if value < 0:
        raise ValueError(f"{arrays_.shown(name)} is negative")
    return value


def _encode_float(value: float | None) -> float | str | None:
    """A JSON number, or text for what JSON has no number for: ``nan``, ``inf``, ``-inf``."""
    if value is None or math.isfinite(value):
        return None if value is None else float(value)
    return repr(float(value))


def _optional_float(document: object, name: str) -> float | None:
    value = _entry(document, name)
    if value is None or type(value) is float:
        return value
    if value in ("nan", "inf", "-inf"):
        return float(value)
    raise ValueError(f"{arrays_.shown(name)} is not a number")


def self_digest(body: dict[str, object]) -> str:
    """What a document carries of its ``snapshot`` part."""
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
