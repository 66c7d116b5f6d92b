"""Rules for single values: what is required in words, and the parser that checks it.

A parser raises ``ValueError`` with a detail that completes the words; no detail repeats the value.
"""

from __future__ import annotations

import dataclasses
import enum
import ipaddress
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

ConfigValue: TypeAlias = str | int | float | bool
"""What Flower's run_config and node_config hold."""

INTEGER_MAX = 2**31 - 1
"""Upper bound of a number, unless its rule says otherwise."""

INTEGER_64_MAX = 2**63 - 1
"""Flower carries integers of a configuration as signed 64 bit."""

VALUE_CHARS_MAX = 4096
"""Bound of a value that is not a file."""

PAIRS_MAX = 64
"""Entries in a list of key=value pairs or of certificate names."""


class Kind(enum.StrEnum):
    """Type of an OpenNebula USER_INPUT."""

    TEXT = "text"
    TEXT64 = "text64"
    """A file in base64 (PEM material)."""
    NUMBER = "number"
    """Integer."""
    NUMBER_FLOAT = "number-float"
    LIST = "list"
    BOOLEAN = "boolean"


@dataclasses.dataclass(frozen=True)
class Rule:
    """A requirement on one value."""

    text: str
    """Completes "FL_X ...", for example ``must be a positive integer``."""
    parse: Callable[[str], object]
    """Gives the typed value of a text that is trimmed and not empty."""
    kind: Kind = Kind.TEXT
    options: tuple[str, ...] = ()
    """Choices of a list, in the order in which a template offers them."""
    chars_max: int = VALUE_CHARS_MAX


@dataclasses.dataclass(frozen=True)
class Address:
    """Where a server listens or is reached."""

    host: str
    port: int

    @property
    def is_loopback(self) -> bool:
        """Only this machine reaches it."""
        return self.host == "localhost" or self.host.startswith("127.")

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


def integer(text: str, minimum: int, maximum: int = INTEGER_MAX, *, but: range = range(0)) -> Rule:
    """Decimal digits only, ``minimum`` to ``maximum``, both included, without ``but``."""

    def parse(value: str) -> int:
        # Bounded digits: Python refuses, with another error, to read very long ones.
        if not re.fullmatch(r"[0-9]{1,19}", value, re.ASCII):
            raise ValueError("decimal digits only")
        number = int(value)
        if not minimum <= number <= maximum:
            raise ValueError(f"{minimum} to {maximum}")
        if number in but:
            raise ValueError(f"not {but.start} to {but.stop - 1}")
        return number

    return Rule(text, parse, Kind.NUMBER)


def number(text: str, accepts: Callable[[float], bool]) -> Rule:
    """A finite decimal number, exponent allowed."""

    def parse(value: str) -> float:
        if not _FLOAT.fullmatch(value):
            raise ValueError("a decimal number such as 0.1 or 1e-9")
        parsed = float(value)
        if not math.isfinite(parsed) or not accepts(parsed):
            raise ValueError("out of range")
        return parsed

    return Rule(text, parse, Kind.NUMBER_FLOAT)


def one_of(options: Sequence[str], *, planned: Sequence[str] = ()) -> Rule:
    """An exact match with one of the options; a planned one is refused by its name."""

    def parse(value: str) -> str:
        if value in planned:
            raise ValueError(f"{value} is not built yet")
        if value not in options:
            is_close = value.lower() in {option.lower() for option in options}
            raise ValueError("upper and lower case matter" if is_close else "")
        return value

    return Rule(f"must be one of: {', '.join(options)}", parse, Kind.LIST, (*options, *planned))


def pattern(text: str, expression: str) -> Rule:
    """A text that matches the whole expression, in ASCII."""
    compiled = re.compile(expression, re.ASCII)

    def parse(value: str) -> str:
        if not compiled.fullmatch(value):
            raise ValueError
        return value

    return Rule(text, parse)


def parse_boolean(value: str) -> bool:
    """YES or NO in any case, nothing else: ``true`` or ``1`` would be a guess."""
    try:
        return {"YES": True, "NO": False}[value.upper()]
    except KeyError:
        raise ValueError("true, false, 1 and 0 are not accepted") from None


def parse_address(value: str) -> Address:
    """Host name or IPv4 address, colon, port."""
    match = re.fullmatch(r"([A-Za-z0-9][A-Za-z0-9._-]{0,252}):([0-9]{1,5})", value, re.ASCII)
    if match is None:
        raise ValueError("a name or IPv4 address, a colon and a port")
    port = int(match[2])
    if not 1 <= port <= 65535:
        raise ValueError("port 1 to 65535")
    return Address(match[1], port)


def parse_relative_path(value: str) -> str:
    """A file below a folder that somebody else chooses."""
    if not re.fullmatch(r"[A-Za-z0-9._][A-Za-z0-9._/-]*", value, re.ASCII):
        raise ValueError("no other characters, no leading slash")
    if value.endswith("/") or ".." in value.split("/"):
        raise ValueError("a file, and no '..'")
    return value


def parse_container_path(value: str) -> str:
    """The container side of a mount: no colon, comma or ``..``, and not a folder we mount."""
    if not re.fullmatch(r"/[A-Za-z0-9._/-]*", value, re.ASCII):
        raise ValueError("no other characters")
    parts = [part for part in value.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise ValueError("no '..'")
    path = "/" + "/".join(parts)
    if path in ("/", "/app", "/app/state", "/app/certificates"):
        raise ValueError("a folder of its own")
    return path


def parse_pairs(value: str) -> dict[str, ConfigValue]:
    """``key=value`` pairs separated by spaces, as Flower takes them on its command line."""
    pairs: dict[str, ConfigValue] = {}
    if not _FORBIDDEN_IN_PAIRS.isdisjoint(value):
        raise ValueError(f"none of {''.join(sorted(_FORBIDDEN_IN_PAIRS))}")
    for word in value.split():
        key, equals, text = word.partition("=")
        if not equals or not text:
            raise ValueError("each word is one key=value, values without spaces")
        if not _PAIR_KEY.fullmatch(key):
            raise ValueError("a key is of letters, digits, '.', '_' and '-'")
        if key in pairs:
            raise ValueError("no key twice")
        pairs[key] = config_value(text)
    if len(pairs) > PAIRS_MAX:
        raise ValueError(f"at most {PAIRS_MAX} pairs")
    return pairs


def config_value(text: str) -> ConfigValue:
    """Type a value as TOML does; what is no number, boolean or quoted text is text as it stands."""
    if len(text) >= 2 and text[0] == text[-1] and text[0] in "\"'":
        text = text[1:-1]
        if not _QUOTES.isdisjoint(text):
            raise ValueError("no quotes inside a quoted value")
        return text
    if not _QUOTES.isdisjoint(text):
        raise ValueError("quotes only around a whole value")
    if text in ("true", "false"):
        return text == "true"
    if re.fullmatch(r"[+-]?(0|[1-9][0-9]*)", text, re.ASCII):
        if len(text) > 20 or abs(int(text)) > INTEGER_64_MAX:
            raise ValueError("integers of 64 bits")
        return int(text)
    if _FLOAT.fullmatch(text):
        parsed = float(text)
        if not math.isfinite(parsed):
            raise ValueError("finite numbers")
        return parsed
    return text


def render_pairs(pairs: Mapping[str, ConfigValue]) -> str:
    """One argument for Flower's ``--node-config`` and ``--run-config``; the inverse of parsing.

    Text is quoted, for Flower reads a bare word as broken TOML and opens what ends in ``.toml``.
    """
    return " ".join(f"{key}={_toml(value)}" for key, value in pairs.items())


def parse_subject_names(value: str) -> tuple[str, ...]:
    """``IP:<address>`` and ``DNS:<name>`` entries, each in its normal spelling."""
    entries = [entry.strip() for entry in value.split(",")]
    if len(entries) > PAIRS_MAX:
        raise ValueError(f"at most {PAIRS_MAX} entries")
    return tuple(_subject_name(entry) for entry in entries)


_FLOAT = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?", re.ASCII)
_PAIR_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)*", re.ASCII)
_QUOTES = frozenset("\"'")

# What a shell, or systemd for the percent sign, would give a meaning to.
_FORBIDDEN_IN_PAIRS = frozenset("$`;|&<>()\\%")

_DNS_LABEL = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
_DNS_NAME = re.compile(rf"(\*\.)?{_DNS_LABEL}(\.{_DNS_LABEL})*", re.ASCII)


def _toml(value: ConfigValue) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return f'"{value}"' if isinstance(value, str) else repr(value)


def _subject_name(entry: str) -> str:
    kind, _, name = entry.partition(":")
    if kind == "IP":
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            raise ValueError("an IP entry is an IPv4 or IPv6 address") from None
        if "%" in name:
            raise ValueError("no zone in an IPv6 address")
        return f"IP:{address}"
    if kind == "DNS":
        name = name.lower()
        if len(name) > 253 or not _DNS_NAME.fullmatch(name):
            raise ValueError("a DNS entry is a host name, its first label may be '*'")
        if name.replace(".", "").isdigit():
            raise ValueError("an address is an IP entry")
        return f"DNS:{name}"
    raise ValueError("each entry starts with IP: or DNS:")
