"""One line per thing that happened: JSON for collectors, text for people.

The JSON line has the fields of the reference design: ``timestamp`` (UTC, milliseconds, ``Z``),
``level``, ``logger``, ``role``, ``message``, ``source`` (``file:line``), and for events ``event``
and ``data``. A logged exception adds ``exc``. Everything outside of printable ASCII is escaped, so
a line is one line, and harmless on a terminal, whatever is in its values.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TextIO, get_args

from onefed.telemetry import events, sentences
from onefed.telemetry.events import Event, Level, Unknown

if TYPE_CHECKING:
    from collections.abc import Mapping

LINE_BYTES_MAX = 64 * 1024
"""With its line break. Longer texts inside are cut; Linux appends this much in one piece."""

_CUTS_CHARACTERS = (4096, 512, 64)
"""Tried in turn on each text of a line that is too long. A character is at most 12 bytes, and a
line has at most 16 texts, so the last one always fits."""

_LEVELS = frozenset(get_args(Level))


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One line, read."""

    timestamp: datetime
    """Aware, UTC."""
    level: Level
    logger: str
    role: str
    message: str
    source: str
    event: Event | Unknown | None = None
    """None for a line that is a message and nothing else."""


def event_line(event: Event, *, timestamp: datetime, role: str, source: str) -> str:
    """The JSON line of an event, without a line break."""
    return encode(
        {
            "timestamp": stamp(timestamp),
            "level": event.severity,
            "logger": event.LOGGER,
            "role": role,
            "message": sentences.sentence(event),
            "source": source,
            "event": event.EVENT,
            "data": events.to_data(event),
        }
    )


def record_line(record: Record) -> str:
    """The JSON line that a record was read from, without a line break."""
    content: dict[str, Any] = {
        "timestamp": stamp(record.timestamp),
        "level": record.level,
        "logger": record.logger,
        "role": record.role,
        "message": record.message,
        "source": record.source,
    }
    match record.event:
        case None:
            pass
        case Unknown() as event:
            content |= {"event": event.event, "data": dict(event.data)}
        case event:
            content |= {"event": event.EVENT, "data": events.to_data(event)}
    return encode(content)


def text_line(record: Record, *, rounds_total: int | None = None) -> str:
    """One line for a person: the local time of day, the level if it matters, the sentence."""
    clock = record.timestamp.astimezone().strftime("%H:%M:%S")
    level = f" {record.level}" if record.level in ("WARNING", "ERROR") else ""
    if record.event is None or isinstance(record.event, Unknown):
        return f"{clock}{level} {sentences.visible(record.message)}"
    return f"{clock}{level} {sentences.sentence(record.event, rounds_total=rounds_total)}"


def parse(line: str | bytes) -> Record | None:
    """A record, or None when the line is not one of ours: torn, foreign, too long."""
    if len(line) > LINE_BYTES_MAX:
        return None
    try:
        content = json.loads(line)
        timestamp = datetime.fromisoformat(content["timestamp"])
        texts = {name: content[name] for name in ("logger", "role", "message", "source")}
        level = content["level"]
        if timestamp.tzinfo is None or level not in _LEVELS:
            return None
        timestamp = timestamp.astimezone(UTC)
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None
    if not all(isinstance(text, str) for text in texts.values()):
        return None
    event = events.from_record(content) if content.get("event") is not None else None
    return Record(timestamp=timestamp, level=level, event=event, **texts)


class JsonFormatter(logging.Formatter):
    """Formats any log record as one JSON line, from its raw attributes.

    An event travels in a record as ``extra={"event": event}``.
    """

    def __init__(self, role: str) -> None:
        super().__init__()
        self.role = role

    def format(self, record: logging.LogRecord) -> str:
        event = getattr(record, "event", None)
        content: dict[str, Any] = {
            "timestamp": stamp(datetime.fromtimestamp(record.created, tz=UTC)),
            "level": _level(record.levelno),
            "logger": record.name.partition(".")[0],
            "role": self.role,
            "message": _message(record),
            "source": f"{record.filename}:{record.lineno}",
        }
        if isinstance(event, Event):
            content |= {"event": event.EVENT, "data": events.to_data(event)}
        if record.exc_info:
            content["exc"] = self.formatException(record.exc_info)
        return encode(content)


def use_json(logger: logging.Logger, role: str, stream: TextIO) -> None:
    """Let a logger write JSON lines to ``stream``, instead of what its console handlers wrote.

    The handlers are replaced, because Flower's own ignores its formatter. Files stay.
    """
    replaced = [
        each
        for each in logger.handlers
        if isinstance(each, logging.StreamHandler) and not isinstance(each, logging.FileHandler)
    ]
    handler = logging.StreamHandler(stream)
    handler.setLevel(min((each.level for each in replaced), default=logging.NOTSET))
    handler.setFormatter(JsonFormatter(role))
    for each in replaced:
        logger.removeHandler(each)
    logger.addHandler(handler)


def stamp(moment: datetime) -> str:
    """``2026-02-09T14:30:00.123Z``"""
    assert moment.tzinfo is not None, "a naive time means another moment on another machine"
    text = moment.astimezone(UTC).isoformat(timespec="milliseconds")
    return text.removesuffix("+00:00") + "Z"


def encode(content: Mapping[str, Any]) -> str:
    """One JSON line without its break, of less than LINE_BYTES_MAX bytes; long texts are cut."""
    line = _dump(content)
    for characters in _CUTS_CHARACTERS:
        if len(line) < LINE_BYTES_MAX:
            break
        line = _dump(_cut(content, characters))
    return line


def _dump(content: Mapping[str, Any]) -> str:
    line = json.dumps(content, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return line.replace("\x7f", "\\u007f")  # the one control character that JSON lets pass


def _cut(value: Any, characters: int) -> Any:
    if isinstance(value, dict):
        return {key: _cut(each, characters) for key, each in value.items()}
    return sentences.cut(value, characters) if isinstance(value, str) else value


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except (TypeError, ValueError, KeyError):  # the arguments do not fit the text
        return f"{record.msg} {record.args}"


def _level(number: int) -> Level:
    if number >= logging.ERROR:
        return "ERROR"
    if number >= logging.WARNING:
        return "WARNING"
    return "INFO" if number >= logging.INFO else "DEBUG"
