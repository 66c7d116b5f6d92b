"""Messages of the protocol as bytes and back: JSON, strictly by the types in ``peer.messages``.

A message is a list, its class first and then its fields, and so is everything inside it. Nothing
is taken that the types do not say, and every text, list and number has a bound: bytes from a peer
make a message or a ``CodecError``.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import types
import typing
from collections.abc import Iterator
from typing import Any

from onefed import aggregate
from onefed.errors import OnefedError
from onefed.peer import messages
from onefed.peer.messages import (
    Adopt,
    Ballot,
    Contribution,
    Entry,
    Heartbeat,
    Item,
    Message,
    Piece,
    Plan,
    Roster,
    Shard,
    Slice,
)

MESSAGE_BYTES_MAX = 2**20
"""Of a message without data. A heartbeat of 64 members and as many contributors takes 70 KB."""

TEXT_CHARACTERS_MAX = 4096
"""Of a text; the longest is a contact, which holds a certificate."""

LIST_LENGTH_MAX = 4096
SHARDS_MAX = 4096
"""Ranges that a model may be cut into."""
NUMBER_MAX = 2**53
"""Of terms, rounds and sizes. A term more every second lasts for 285 million years."""


class CodecError(OnefedError):
    """Bytes that are no message of this protocol."""


def encode(message: Message) -> bytes:
    """Bytes of a message."""
    return json.dumps(_plain(message), separators=(",", ":")).encode()


def decode(content: bytes) -> Message:
    """The message.

    Raises:
        CodecError: it is none.
    """
    if len(content) > MESSAGE_BYTES_MAX:
        raise CodecError(f"A message of {len(content)} bytes is longer than {MESSAGE_BYTES_MAX}.")
    return typing.cast("Message", _decoded(content, Message))


def encode_item(item: Item) -> list[Any]:
    """An item, as part of a JSON document."""
    return typing.cast("list[Any]", _plain(item))


def decode_item(document: object) -> Item:
    """The item; raises ``CodecError`` where it is none."""
    try:
        return typing.cast("Item", _read(Item, document))
    except ValueError as error:
        raise CodecError(f"This names no item: {error}.") from error


def _decoded(content: bytes, hint: Any) -> Any:
    try:
        return _read(hint, json.loads(content))
    except (ValueError, RecursionError) as error:  # JSON and UTF-8 errors are ValueErrors
        raise CodecError(f"This is no message: {error}.") from error


def rosters(message: Message) -> Iterator[Roster]:
    """Every roster that a message, not an envelope, speaks of."""
    proposal = getattr(message, "proposal", None)
    entries = (getattr(message, name, None) for name in ("commit", "accepted"))
    for each in (*entries, proposal, getattr(proposal, "entry", None)):
        if isinstance(each, Entry | Plan):
            yield each.roster


def _wrong(value: Any) -> str | None:
    """What the machine takes for granted of a peer that keeps to the protocol, and is not so."""
    match value:
        case Contribution(weight=weight) if not 1 <= weight <= aggregate.WEIGHT_MAX:
            return f"an update of weight {weight}"
        case Slice(index=index, count=count) if not 0 <= index < count <= SHARDS_MAX:
            return f"part {index} of {count} of an update"
        case Piece(index=index, count=count) if not 0 <= index < count <= SHARDS_MAX or count < 2:
            return f"piece {index} of {count} of a model"
        case Shard(index=index) if not 0 <= index < SHARDS_MAX:
            return f"part {index} of a model"
        case Plan(contributors=()):
            return "a plan without contributors"
        case Plan(contributors=each) if len({one.node for one in each}) < len(each):
            return "a plan with a contributor twice"
        case Plan(receivers=()):
            return "a plan without receivers"
        case Adopt(ballot, entry) if entry.ballot >= ballot:
            return "an adoption under a ballot that is not newer"
        case Heartbeat(term=term, proposal=proposal) if proposal and proposal.ballot.term != term:
            return "a proposal of another term than its heartbeat's"
    return None


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        fields = [_plain(getattr(value, each.name)) for each in dataclasses.fields(value)]
        return [type(value).__name__, *fields]
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    return value


def _read(hint: Any, value: Any) -> Any:
    """A value of the type ``hint``; ValueError where it is none."""
    options = typing.get_args(hint)
    if isinstance(hint, types.UnionType):
        return _read_union(options, value)
    if typing.get_origin(hint) is tuple:
        if type(value) is not list or len(value) > LIST_LENGTH_MAX:
            raise ValueError("a list was expected")
        return tuple(_read(options[0], each) for each in value)
    if hint is Ballot:
        if type(value) is not list or len(value) != len(Ballot._fields):
            raise ValueError("a ballot was expected")
        return Ballot(*(_read(int, each) for each in value))
    if dataclasses.is_dataclass(hint):
        return _read_object(typing.cast("type", hint), value)
    if type(value) is not hint:
        raise ValueError(f"{hint.__name__} was expected")
    if hint is str and len(value) > TEXT_CHARACTERS_MAX:
        raise ValueError("a text is too long")
    if hint is int and not -1 <= value <= NUMBER_MAX:
        raise ValueError("a number is out of range")
    return value


def _read_union(options: tuple[Any, ...], value: Any) -> Any:
    if value is None and types.NoneType in options:
        return None
    for option in options:
        if not dataclasses.is_dataclass(option):
            if option is not types.NoneType:
                return _read(option, value)
        elif type(value) is list and value[:1] == [typing.cast("type", option).__name__]:
            return _read(option, value)
    raise ValueError("nothing of the expected kinds")


def _read_object(kind: type, value: Any) -> Any:
    hints = _hints(kind)
    if type(value) is not list or value[:1] != [kind.__name__] or len(value) != len(hints) + 1:
        raise ValueError(f"{kind.__name__} was expected")
    found = kind(*(_read(hint, each) for hint, each in zip(hints, value[1:], strict=True)))
    if (wrong := _wrong(found)) is not None:
        raise ValueError(wrong)
    return found


@functools.cache
def _hints(kind: type) -> tuple[Any, ...]:
    hints = typing.get_type_hints(kind, vars(messages))
    return tuple(hints[each.name] for each in dataclasses.fields(kind))
