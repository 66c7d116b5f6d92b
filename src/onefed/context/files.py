"""Reading ``context.sh`` and ``one_env``: parsed, never executed.

Two programs of the platform write these files, each in its own form:

* OpenNebula writes ``context.sh``: ``NAME='value'``, a ``'`` inside the value as ``'\\''``.
* The guest agent writes ``one_env``: ``export NAME="value"``, the value as it is, quotes included.

Both are read so that a value comes out as it was given.
So are the forms that people write: bare words, double quotes with backslash escapes, comments.
A value may have several lines; ``$(...)``, ``${...}`` and backticks are data like everything else.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from typing import TYPE_CHECKING

from onefed.context import names
from onefed.context.outcome import SHOWN_CHARS_MAX, Finding, Severity

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

FILE_BYTES_MAX = 16 * 1024 * 1024
"""A larger file is refused. Its reader needs no more than one byte beyond."""

LINES_MAX = 200_000
"""More are refused. Parsing takes about 5 s and 100 MB for a million."""

VALUE_CHARS_MAX = 1024 * 1024
"""A longer value is refused."""

FOREIGN_NAMES_MAX = 10_000
"""Names kept that no row of the table has. Others need some of them, for example ``ETH0_IP``."""

OPEN_QUOTES_MAX = 10
"""With more the rest is not read: each may cost a look at everything that follows."""

FINDINGS_MAX = 50
"""About one file; the rest is counted."""


@dataclasses.dataclass(frozen=True)
class Assignment:
    """One ``NAME=value``."""

    text: str
    """As it was given, white space included; any Unicode, but no NUL."""
    line: int
    """Where it starts, from 1."""


@dataclasses.dataclass(frozen=True)
class ContextFile:
    """What a file says, not yet compared with the table."""

    assignments: Mapping[str, Assignment]
    """By the name in the file. Of several assignments the last one counts, as in a shell."""
    findings: tuple[Finding, ...] = ()


def parse(data: bytes) -> ContextFile:
    """Read what somebody else wrote. Whatever is wrong with it becomes findings, never an error."""
    if len(data) > FILE_BYTES_MAX:
        return _refused(f"has more than {FILE_BYTES_MAX} bytes")
    if data.count(b"\n") > LINES_MAX:
        return _refused(f"has more than {LINES_MAX} lines")
    report = _Report()
    assignments: dict[str, Assignment] = {}
    foreign_count = 0
    # Bytes that are not UTF-8 become lone surrogates, which _unfit finds.
    text = data.decode("utf-8-sig", "surrogateescape")
    for name, assignment in _assignments(text, report):
        is_ours = names.canonical_name(name) is not None
        if problem := _unfit(assignment.text):
            severity = Severity.ERROR if is_ours else Severity.WARNING
            report.add(severity, assignment.line, f"the value of {_cut(name)} {problem}", name)
            continue
        if name not in assignments and not is_ours:
            foreign_count += 1
            if foreign_count > FOREIGN_NAMES_MAX:
                continue
        earlier = assignments.get(name)
        if is_ours and earlier is not None and earlier.text != assignment.text:
            message = f"{name} is there again, line {earlier.line} is overruled"
            report.add(Severity.WARNING, assignment.line, message, name)
        assignments[name] = assignment
    if foreign_count > FOREIGN_NAMES_MAX:
        ignored = foreign_count - FOREIGN_NAMES_MAX
        report.add_whole(Severity.WARNING, f"{ignored} of its names are ignored, it has too many")
    return ContextFile(assignments, report.findings())


class _OpenQuoteError(ValueError):
    """A quote without its partner."""


class _Report:
    """Findings about one file, bounded."""

    def __init__(self) -> None:
        self._findings: list[Finding] = []
        self._uncounted: list[Severity] = []

    def add(self, severity: Severity, line: int, message: str, name: str = "") -> None:
        if len(self._findings) >= FINDINGS_MAX:
            self._uncounted.append(severity)
            return
        message = f"Context file, line {line}: {message}."
        self._findings.append(Finding(severity=severity, message=message, name=_cut(name)))

    def add_whole(self, severity: Severity, message: str) -> None:
        self._findings.append(Finding(severity=severity, message=f"Context file: {message}."))

    def findings(self) -> tuple[Finding, ...]:
        if self._uncounted:
            worst = Severity.ERROR if Severity.ERROR in self._uncounted else Severity.WARNING
            self.add_whole(worst, f"{len(self._uncounted)} further problems like these")
        return tuple(self._findings)


_RAW_CHARS_MAX = 4 * VALUE_CHARS_MAX  # OpenNebula writes a quote with four characters
_ASSIGNMENT = re.compile(r"[ \t]*(export[ \t]+)?([A-Za-z_][A-Za-z0-9_]*)=", re.ASCII)
_NOTHING = re.compile(r"[ \t\r]*(#.*)?")
_COMMENTED = re.compile(r'"((?:[^"\\]|\\.)*)"[ \t]+#.*')
_SINGLE_QUOTED = re.compile(r"'([^']*)'")
_DOUBLE_QUOTED = re.compile(r'"((?:[^"\\]++|\\.)*+)"', re.DOTALL)
_ESCAPE = re.compile(r'\\(["\\$`\n])')
_LINE_REST = re.compile(r"[ \t\r]*(?:[ \t]#[^\n]*)?(?=\n|\Z)")
_BARE = re.compile(r"[ \t\r]+|[^ \t\r\n'\"\\]+")


def _assignments(text: str, report: _Report) -> Iterator[tuple[str, Assignment]]:
    """Each assignment in turn, in time linear in the text."""
    lines = text.split("\n")
    starts = list(itertools.accumulate((len(line) + 1 for line in lines), initial=0))
    closes = _closing_lines(lines)
    open_quotes = 0
    index = 0
    while index < len(lines):
        match = _ASSIGNMENT.match(lines[index])
        if match is None:
            if not _NOTHING.fullmatch(lines[index]):
                report.add(Severity.WARNING, index + 1, "this is no NAME=value, it is ignored")
            index += 1
            continue
        name, line = match[2], index + 1
        quoted = match[1] is not None and lines[index].startswith('"', match.end())
        value = _agent_value(lines, index, match.end(), closes) if quoted else None
        if value is None:
            try:
                value = _shell_value(text, starts[index] + match.end())
            except _OpenQuoteError:
                # A script that is somebody's value may hold "export NAME=" lines, which end the
                # agent's form too early. That is no reason to refuse the boot.
                severity = Severity.ERROR if names.canonical_name(name) else Severity.WARNING
                message = f"the quote that opens the value of {_cut(name)} is not closed"
                report.add(severity, line, message, name)
                open_quotes += 1
                if open_quotes > OPEN_QUOTES_MAX:
                    report.add_whole(Severity.ERROR, f"not read after line {line}, see there")
                    return
                index += 1
                continue
        given, line_count = value
        yield name, Assignment(given, line)
        index += line_count


def _closing_lines(lines: Sequence[str]) -> list[bool]:
    """Where a value in the agent's form can end: before an assignment or the end of the file."""
    closes = [False] * len(lines)
    is_boundary = True
    for index in reversed(range(len(lines))):
        closes[index] = is_boundary and lines[index].rstrip(" \t\r").endswith('"')
        if not _NOTHING.fullmatch(lines[index]):
            is_boundary = _ASSIGNMENT.match(lines[index]) is not None
    return closes


def _agent_value(
    lines: Sequence[str], first: int, start: int, closes: Sequence[bool]
) -> tuple[str, int] | None:
    """Value and line count of ``export NAME="...``, where quotes inside were not escaped.

    None: no line closes it before the next export, so it is not of that form.
    """
    opened = lines[first][start + 1 :]
    if closes[first] and opened.rstrip(" \t\r"):
        return _unescape(opened.rstrip(" \t\r")[:-1]), 1
    if match := _COMMENTED.fullmatch(lines[first], start):
        return _unescape(match[1]), 1
    for last in range(first + 1, len(lines)):
        match = _ASSIGNMENT.match(lines[last])
        if match is not None and match[1] is not None:
            break
        if closes[last]:
            inside = "\n".join([opened, *lines[first + 1 : last + 1]])
            return _unescape(inside.rstrip(" \t\r")[:-1]), last + 1 - first
    return None


def _shell_value(text: str, start: int) -> tuple[str, int]:
    """Value and line count of what a shell would read, but for spaces outside quotes: data.

    A quoted part that spans lines ends at a line's end or before an escape, as OpenNebula writes
    it. If anything else follows, its end is the opening quote of a later value.
    """
    parts = []
    position = start
    while not (rest := _LINE_REST.match(text, position)):
        if position - start > _RAW_CHARS_MAX:
            raise _OpenQuoteError
        if text[position] in "'\"":
            quotes = _SINGLE_QUOTED if text[position] == "'" else _DOUBLE_QUOTED
            match = quotes.match(text, position)
            after = "" if match is None else text[match.end() : match.end() + 1]
            if match is None or ("\n" in match[1] and after not in "\\\n \t\r"):
                raise _OpenQuoteError
            parts.append(match[1] if quotes is _SINGLE_QUOTED else _unescape(match[1]))
            position = match.end()
        elif text[position] == "\\":
            parts.append(text[position + 1 : position + 2].replace("\n", ""))
            position += 2
        else:
            match = _BARE.match(text, position)
            assert match is not None
            parts.append(match[0])
            position = match.end()
    return "".join(parts), 1 + text.count("\n", start, rest.start())


def _unescape(text: str) -> str:
    """Undo the escapes that double quotes know; any other backslash is a backslash."""
    return _ESCAPE.sub(lambda match: match[1].strip("\n"), text)


def _unfit(text: str) -> str:
    """Why a value cannot be used at all. Empty: it can."""
    if len(text) > VALUE_CHARS_MAX:
        return f"has more than {VALUE_CHARS_MAX} characters"
    if "\0" in text:
        return "holds a NUL byte"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "is not UTF-8"
    return ""


def _cut(name: str) -> str:
    return name if len(name) <= SHOWN_CHARS_MAX else f"{name[:SHOWN_CHARS_MAX]}..."


def _refused(why: str) -> ContextFile:
    message = f"The context file {why} and was not read."
    return ContextFile({}, (Finding(severity=Severity.FATAL, message=message),))
