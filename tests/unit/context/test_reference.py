"""The generated page."""

from __future__ import annotations

from pathlib import Path

from onefed.context import VARIABLES, reference

PAGE = Path(__file__).parents[3] / "docs" / "context.md"


def test_the_page_is_up_to_date() -> None:
    """After a change: python -m onefed.context.reference > docs/context.md."""
    assert PAGE.read_text(encoding="utf-8") == reference.render()


def test_every_variable_has_a_row() -> None:
    page = reference.render()
    for name, row in VARIABLES.items():
        [line] = [
            line
            for line in page.splitlines()
            if line.startswith((f"| `{name}` |", f"| `{name}` **"))
        ][:1]
        assert ("**ours**" in line) == row.ours
        assert ("**changed**" in line) == bool(row.changed)


def test_tables_are_whole() -> None:
    for line in reference.render().splitlines():
        if line.startswith("|"):
            cells = line.replace("\\|", "").count("|") - 1
            assert cells in (2, 3, 7)
            assert line.endswith("|")
            assert "<" not in line
