"""Completion by the shell: click's own, asked for here because ``main`` handles errors itself."""

from __future__ import annotations

import enum
from collections.abc import Mapping

import click
from click import shell_completion

PROGRAM = "onefed"
VARIABLE = "_ONEFED_COMPLETE"
"""Set by the shell's script when it wants candidates instead of a command."""


class Shell(enum.StrEnum):
    """Shells that click knows."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


def script(program: click.Command, shell: Shell) -> str:
    """What the shell reads once."""
    return _for(program, shell.value).source()


def asked(environ: Mapping[str, str]) -> str | None:
    """The instruction, such as ``bash_complete``; None when a command is to run."""
    return environ.get(VARIABLE)


def answer(program: click.Command, instruction: str) -> int:
    """Print candidates for the command line that the shell put into the environment."""
    return shell_completion.shell_complete(program, {}, PROGRAM, VARIABLE, instruction)


def _for(program: click.Command, shell: str) -> shell_completion.ShellComplete:
    found = shell_completion.get_completion_class(shell)
    assert found is not None, f"click knows {shell}"
    return found(program, {}, PROGRAM, VARIABLE)
