"""Numbers and tables of the commands that look at files."""

from __future__ import annotations

import json
import math

import pytest
from rich.console import Console

from onefed.cli import tables


@pytest.mark.parametrize(
    ("size_bytes", "shown"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (99_949, "99.9 kB"),
        (99_950, "100 kB"),
        (999_499, "999 kB"),
        (999_500, "1.0 MB"),
        (16 * 2**30, "17.2 GB"),
        (10**15, "1000000 GB"),
    ],
)
def test_sizes_have_three_digits_and_a_unit(size_bytes: int, shown: str) -> None:
    assert tables.size(size_bytes) == shown


@pytest.mark.parametrize(
    ("value", "shown"), [(None, ""), (0.25, "0.2500"), (1e9, "1e+09"), (math.nan, "nan")]
)
def test_numbers_are_short(value: float | None, shown: str) -> None:
    assert tables.number(value) == shown


def test_cells_are_no_mark_up_and_move_no_cursor(capsys: pytest.CaptureFixture[str]) -> None:
    made = tables.table("name", "count", numbers=[1])
    tables.add_row(made, "[red]x[/]\x1b[2J\n", "3")
    Console(width=60).print(made)
    assert "[red]x[/]\\x1b[2J\\x0a" in capsys.readouterr().out


def test_a_document_is_json_whatever_its_numbers_are(capsys: pytest.CaptureFixture[str]) -> None:
    tables.print_json({"a": (math.nan, [math.inf, {"b": -math.inf}]), "c": None, "d": True})
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert found == {"a": ["nan", ["inf", {"b": "-inf"}]], "c": None, "d": True}
