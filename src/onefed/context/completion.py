"""What a shell offers after ``--set``: names, then the values that a name takes."""

from __future__ import annotations

from onefed.context.syntax import Kind
from onefed.context.table import VARIABLES
from onefed.context.variable import Level, Variable


def complete(incomplete: str) -> list[tuple[str, str]]:
    """Candidates for a ``NAME=VALUE`` that is not complete yet, each with its help."""
    name, equals, value = incomplete.partition("=")
    if equals:
        row = VARIABLES.get(name)
        known = [] if row is None else _values(row)
        return [(f"{name}={each}", "") for each in known if each.startswith(value)]
    return [
        (f"{row.name}=", row.help)
        for row in VARIABLES.values()
        if row.level is not Level.PLATFORM and row.name.startswith(name.upper())
    ]


def _values(row: Variable) -> tuple[str, ...]:
    if row.kind is Kind.BOOLEAN:
        return ("YES", "NO")
    return row.options or ((row.default,) if row.default else ())
