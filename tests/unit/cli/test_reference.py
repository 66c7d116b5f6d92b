"""The pages about the commands and their exit codes."""

from __future__ import annotations

import ast
import inspect
import itertools
import re
from pathlib import Path

import click

from onefed import errors
from onefed.cli import main, reference
from onefed.errors import ExitCode

DOCS = Path(__file__).parents[3] / "docs"


def leaves(path: str, command: click.Command) -> dict[str, click.Command]:
    """Every command that does something, by its full name."""
    if not isinstance(command, click.Group):
        return {path: command}
    found: dict[str, click.Command] = {}
    for name, child in command.commands.items():
        found |= leaves(f"{path} {name}", child)
    return found


def test_the_page_of_commands_is_up_to_date() -> None:
    """After a change: python -m onefed.cli.reference > docs/commands.md."""
    assert (DOCS / "commands.md").read_text(encoding="utf-8") == reference.render()


def test_every_command_and_every_option_is_there_with_its_meaning() -> None:
    sections = {part.partition("\n")[0]: part for part in reference.render().split("\n## ")[1:]}
    commands = leaves("onefed", main.command())
    assert set(sections) == set(commands)
    for path, command in commands.items():
        for parameter in command.params:
            names = (
                [parameter.make_metavar(click.Context(command))]
                if isinstance(parameter, click.Argument)
                else parameter.opts
            )
            for name in names:
                [row] = [line for line in sections[path].splitlines() if f"`{name}`" in line]
                assert row.endswith(". |"), row


def test_prose_has_one_sentence_a_line() -> None:
    for page in ("commands.md", "exit-codes.md", "summary.md"):
        for line in (DOCS / page).read_text().splitlines():
            if not line.startswith("|"):
                assert not re.search(r"[.!?] [A-Z]", line), (page, line)


def test_every_exit_code_is_documented_in_its_own_words() -> None:
    [body] = [
        node.body
        for node in ast.walk(ast.parse(inspect.getsource(errors)))
        if isinstance(node, ast.ClassDef) and node.name == "ExitCode"
    ]
    documented = {}
    for name, text in itertools.pairwise(body):
        if isinstance(name, ast.Assign) and isinstance(text, ast.Expr):
            [target] = name.targets
            documented[ExitCode[ast.unparse(target)]] = ast.literal_eval(text.value)
    assert set(documented) == set(ExitCode)

    page = (DOCS / "exit-codes.md").read_text()
    rows = re.findall(r"^\| (\d+) \| ([^|]+) \|", page, re.MULTILINE)
    assert rows == [(str(int(code)), text.replace("``", "`")) for code, text in documented.items()]


def test_links_between_the_pages_lead_somewhere() -> None:
    for page in ("commands.md", "exit-codes.md", "summary.md"):
        for target in re.findall(r"\]\(([^)#]+)\)", (DOCS / page).read_text()):
            assert (DOCS / target).exists(), (page, target)
