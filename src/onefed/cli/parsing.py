"""How arguments are read: all that cannot be read is told at once, and a group may have a default.

click stops at the first value that it cannot read; we promise that configuration errors come
together (docs/exit-codes.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import click
import typer
import typer.core
from click.core import iter_params_for_processing


class Command(typer.core.TyperCommand):
    """A command that names every value it cannot read."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the arguments.

        Raises:
            UsageError: with a line for each that cannot be read.
        """
        given = list(args)
        try:
            return super().parse_args(ctx, args)
        except click.BadParameter:
            problems = list(self._unreadable(ctx, given))
            raise click.UsageError("\n".join(problems), ctx) from None

    def _unreadable(self, ctx: click.Context, args: Sequence[str]) -> Iterator[str]:
        values, rest, order = self.make_parser(ctx).parse_args(args=list(args))
        for parameter in iter_params_for_processing(order, self.get_params(ctx)):
            try:
                _, rest = parameter.handle_parse_result(ctx, values, rest)
            except click.BadParameter as error:
                yield error.format_message()


class Typer(typer.Typer):
    """A group whose commands are such ``Command``."""

    def command(self, name: str | None = None, **settings: Any) -> Callable[..., Any]:
        """As typer's own."""
        settings.setdefault("cls", Command)
        return super().command(name, **settings)


class ListingGroup(typer.core.TyperGroup):
    """A group that lists where none of its commands is named: ``runs``, ``runs NAME``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the arguments; what no command begins with belongs to ``list``."""
        first = args[0] if args else ""
        known = first in self.commands or first in ctx.help_option_names
        if not known and not ctx.resilient_parsing:  # what a shell asks for: it may yet be typed
            args = ["list", *args]
        return super().parse_args(ctx, args)
