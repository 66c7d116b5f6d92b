"""Tables and numbers of commands that look at files, and their JSON."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from rich.table import Table
from rich.text import Text

from onefed.cli.screen import say
from onefed.telemetry import sentences

ROWS_SHOWN = 40
"""Rows of a table for people; JSON has all."""


def table(*columns: str, numbers: Iterable[int]) -> Table:
    """An empty table; ``numbers`` are the places of columns that are set to the right."""
    made = Table(box=None, pad_edge=False, header_style="dim")
    right = set(numbers)
    for index, column in enumerate(columns):
        made.add_column(
            column,
            justify="right" if index in right else "left",
            overflow="fold",
            no_wrap=index in right,
        )
    return made


def add_row(table: Table, *cells: str, style: str = "") -> None:
    """A row of what came from files: no mark-up, nothing that moves the cursor."""
    table.add_row(*(Text(sentences.visible(cell)) for cell in cells), style=style)


def say_more(count: int) -> None:
    """How many rows were left out, if any."""
    if count > ROWS_SHOWN:
        say(f"and {count - ROWS_SHOWN} more")


def time(moment: datetime | None) -> str:
    """To the second, in the zone it has."""
    return "" if moment is None else f"{moment:%Y-%m-%d %H:%M:%S}"


def size(size_bytes: int) -> str:
    """Three digits and a decimal unit."""
    size, units = float(size_bytes), iter(("B", "kB", "MB", "GB"))
    unit = next(units)
    while size >= 999.5 and (larger := next(units, None)):
        size, unit = size / 1000, larger
    return f"{size:.0f} {unit}" if unit == "B" or size >= 99.95 else f"{size:.1f} {unit}"


def number(value: float | None) -> str:
    """Four decimals, or four digits of a number that would be long."""
    if value is None:
        return ""
    return f"{value:.4f}" if abs(value) < 1e6 else f"{value:.4g}"


def print_json(document: object) -> None:
    """The one document that ``--json`` promises on standard output."""
    sys.stdout.write(json.dumps(_finite(document), indent=1, allow_nan=False) + "\n")


def _finite(document: Any) -> Any:
    """JSON has no number for NaN and the infinities: they become ``nan``, ``inf`` and ``-inf``."""
    match document:
        case dict():
            return {key: _finite(value) for key, value in document.items()}
        case list() | tuple():
            return [_finite(value) for value in document]
        case float() if not math.isfinite(document):
            return repr(document)
        case _:
            return document
