"""What reading the context gives: values, findings about them, the error that lists findings."""

from __future__ import annotations

import dataclasses
import enum
from typing import TYPE_CHECKING

from onefed import errors

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from onefed.context import variable

SHOWN_CHARS_MAX = 64
"""A value is cut here when it is shown; a name as well."""

HIDDEN = "<hidden>"
"""Stands for a value that must not be shown."""


class Severity(enum.StrEnum):
    """How much a finding matters. FATAL and ERROR stop the program, after all were reported."""

    FATAL = "FATAL"
    """The source as a whole cannot be used."""
    ERROR = "ERROR"
    WARNING = "WARNING"
    INFO = "INFO"

    @property
    def stops(self) -> bool:
        return self in (Severity.FATAL, Severity.ERROR)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing to say about one variable, or about a source as a whole."""

    severity: Severity
    message: str
    """Whole sentences: what is wrong with which value, and what is required."""
    name: str = ""
    """Canonical name where there is one, else the name as given. Empty: about a whole source."""
    shown: str = ""
    """The given value in quotes: secrets hidden, long values cut, control characters escaped."""
    rule: str = ""
    """What a value must be, for example ``must be a positive integer``."""
    example: str = ""
    """A value that is accepted."""

    def __str__(self) -> str:
        if not self.example:
            return self.message
        return f"{self.message} Example: {self.name}={self.example}"


class Source(enum.StrEnum):
    """Where a value came from, the strongest first."""

    EXPLICIT = "command line"
    FILE = "context file"
    ENVIRONMENT = "environment"
    DEFAULT = "default"


@dataclasses.dataclass(frozen=True)
class Value:
    """The outcome for one variable."""

    text: str
    """Trimmed, booleans in upper case. The default when nothing was given or it was refused."""
    source: Source
    is_set: bool
    """Somebody gave a value that is not empty, valid or not."""


@dataclasses.dataclass(frozen=True)
class Resolution:
    """Everything that one appliance learned from its sources."""

    role: variable.Role
    values: Mapping[str, Value]
    """By canonical name: each variable of this role, set or not."""
    findings: tuple[Finding, ...]

    @property
    def errors(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.severity.stops)


class ContextError(errors.OnefedError):
    """The context or a ``--set`` cannot be used. Reports everything that is wrong, at once."""

    exit_code = errors.ExitCode.CONFIG

    def __init__(self, findings: Iterable[Finding]) -> None:
        self.findings = tuple(finding for finding in findings if finding.severity.stops)
        """Severity ERROR and FATAL only."""
        count = len(self.findings)
        lines = [str(finding) for finding in self.findings]
        lines.append(f"{count} configuration error{'s' if count != 1 else ''}.")
        super().__init__(
            "\n".join(lines),
            hint="Correct them all and start again; docs/context.md describes every variable.",
        )


def show(text: str, *, hide: bool = False) -> str:
    """Make a value fit for a terminal or a log: one short line that holds no control characters."""
    if hide:
        return HIDDEN
    if len(text) <= SHOWN_CHARS_MAX:
        return repr(text)
    return f"{text[:SHOWN_CHARS_MAX]!r}... ({len(text)} characters)"
