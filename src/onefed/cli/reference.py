"""The page docs/commands.md, made from the commands.

``python -m onefed.cli.reference > docs/commands.md`` writes it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator

import click

from onefed.cli import main

_HEAD = """\
# Commands

<!-- Generated: python -m onefed.cli.reference > docs/commands.md -->

Federations lie in the folder `ONEFED_HOME`, by default `~/.local/state/onefed`.
Each has a name, and a folder that holds all of it.

What a command ends with is in [exit-codes.md](exit-codes.md).
What `--summary` writes is in [summary.md](summary.md).
What `--set` and `--context` take is in [context.md](context.md).
Every command explains itself with `--help`.
"""

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


def render() -> str:
    """The whole page."""
    sections = [_section(path, each) for path, each in _commands("onefed", main.command())]
    return "\n".join([_HEAD, *sections])


def _commands(path: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    """Every command that does something, with its full name, in the order of ``--help``."""
    if not isinstance(command, click.Group):
        yield path, command
        return
    context = click.Context(command)
    for name in command.list_commands(context):
        child = command.get_command(context, name)
        assert child is not None, f"{path} lists {name}"
        yield from _commands(f"{path} {name}", child)


def _section(path: str, command: click.Command) -> str:
    context = click.Context(command, info_name=path)
    sentences = _SENTENCE_END.split(" ".join((command.help or "").split()))
    synopsis = " ".join((path, *command.collect_usage_pieces(context)))
    lines = [f"## {path}", "", *sentences, "", "```", synopsis, "```"]
    rows = [_row(parameter, context) for parameter in command.params]
    if rows:
        lines += ["", "| Argument or option | Default | What it is |", "|---|---|---|", *rows]
    return "\n".join(lines) + "\n"


def _row(parameter: click.Parameter, context: click.Context) -> str:
    help_text = str(getattr(parameter, "help", None) or "")
    cells = (_names(parameter, context), _default(parameter), help_text)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _names(parameter: click.Parameter, context: click.Context) -> str:
    if isinstance(parameter, click.Argument):
        return f"`{parameter.make_metavar(context)}`"
    names = ", ".join(f"`{name}`" for name in sorted(parameter.opts, key=len, reverse=True))
    if isinstance(parameter, click.Option) and parameter.is_flag:
        return names
    return f"{names} `{parameter.make_metavar(context)}`"


def _default(parameter: click.Parameter) -> str:
    if parameter.required:
        return "required"
    shown = getattr(parameter, "show_default", None)
    if isinstance(shown, str):
        return shown
    if parameter.default is None or isinstance(parameter.default, bool):
        return ""
    return str(getattr(parameter.default, "value", parameter.default))


if __name__ == "__main__":
    sys.stdout.write(render())
