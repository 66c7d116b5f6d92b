"""The sources, read as text: what linters do not see."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from onefed.appliance import reference as boot_reference

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "src/onefed").rglob("*.py"))

BANNED = {
    r"\b(?:TODO|FIXME|XXX)\b": "finish it, or file an issue",
    r"\bpickle\.load": "nothing is ever unpickled",
    r"shell\s*=\s*True": "programs get argument arrays",
    r"\bapp_?store\b": "say what it stores",
    r"\b(?:master|slave)\b": "coordinator and node, or superlink and supernode",
    r"\bworker\b": "client or node: the field's terms",
    r"(?:/work|/root|/home)/[a-z]": "no path of one machine",
}
"""Spellings that are not wanted in src, each with what to do instead."""

LINES_MAX = 600
"""Past this, look for the second idea."""


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_says_what_it_is_for_and_uses_the_words_of_the_house(path: Path) -> None:
    text = path.read_text()
    assert ast.get_docstring(ast.parse(text)), "a module begins with what it is for"
    for pattern, advice in BANNED.items():
        found = re.search(pattern, text)
        assert found is None, f"{found[0] if found else ''}: {advice}"
    assert len(text.splitlines()) <= LINES_MAX


def test_every_test_module_has_a_module_to_test() -> None:
    """tests/unit mirrors src/onefed: a renamed module takes its tests along."""
    unit = ROOT / "tests/unit"
    orphans = [
        str(test.relative_to(ROOT))
        for test in unit.rglob("test_*.py")
        if test.parent != unit
        and not (ROOT / "src/onefed" / test.parent.relative_to(unit)).is_dir()
    ]
    assert orphans == []


def test_the_boot_page_is_fresh() -> None:
    assert (ROOT / "docs/boot.md").read_text() == boot_reference.page(), "run: make docs"


def links() -> Iterator[tuple[str, str]]:
    """Every relative link in a Markdown file, with the file."""
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md")]:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
            yield str(page.relative_to(ROOT)), target


def test_every_link_in_the_documents_leads_somewhere() -> None:
    dead = [(page, to) for page, to in links() if not (ROOT / page).parent.joinpath(to).exists()]
    assert dead == []


def test_references_in_docstrings_lead_to_a_page_that_exists() -> None:
    pages = {path.name for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]}
    missing = {
        (str(path.relative_to(ROOT)), name)
        for path in SOURCES
        for name in re.findall(r"\b([A-Za-z-]+\.md)\b", path.read_text())
        if name not in pages
    }
    assert missing == set()


def test_shell_scripts_parse() -> None:
    for script in ("scripts/setup", "scripts/pin"):
        subprocess.run(["sh", "-n", ROOT / script], check=True)
    subprocess.run(["bash", "-n", ROOT / ".ci/run"], check=True)


def test_every_scenario_of_recovery_has_a_test_that_is_there() -> None:
    page = (ROOT / "docs/protocol.md").read_text()
    table = page.partition("### Scenarios of recovery")[2].partition("###")[0]
    assert set(re.findall(r"^\| (A\d+) \|", table, re.MULTILINE)) == {
        f"A{number}" for number in range(1, 12)
    }
    for name, test in re.findall(r"`(test_\w+\.py)::(test_\w+)`", table):
        assert f"def {test}(" in (ROOT / "tests/integration" / name).read_text(), test
