"""context reference, explain, check and inputs: what variables there are, and what they come to."""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from onefed import context
from onefed.cli import parsing, tables
from onefed.cli.screen import say, table_console
from onefed.context import explain as explanation
from onefed.context import inputs as documents
from onefed.context import reference as pages
from onefed.errors import ExitCode
from onefed.local.request import read_context

app = parsing.Typer(
    help="Context variables: what there is, what they come to, what is wrong with a file of them.",
    no_args_is_help=True,
    suggest_commands=False,
)

Json = Annotated[bool, typer.Option("--json", "-j", help="As JSON.")]
FEDERATION = (context.Role.SUPERLINK, context.Role.SUPERNODE)
"""Whose context one file may be; a peer's is another one, unless it says something of peers."""

RoleOption = Annotated[
    context.Role, typer.Option("--role", help="The machine that reads the variables.")
]


@app.command()
def reference() -> None:
    """Print the page about all variables, as Markdown."""
    sys.stdout.write(pages.render())


@app.command()
def explain(
    role: RoleOption = context.Role.SUPERLINK,
    file: Annotated[
        Path | None, typer.Option("--context", help="File of context variables.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Set a context variable."),
    ] = None,
    json_: Json = False,
) -> None:
    """Show every effective value with its source, and why some defaults are ours.

    Values that are refused are shown as their default, and the exit code is 3.
    """
    found = context.resolve(
        role,
        explicit=context.parse_assignments(set_ or []).context,
        context_file=read_context(file),
        environment=os.environ,
    )
    rows = explanation.explain(found)
    if json_:
        tables.print_json(
            {
                "role": role.value,
                "variables": [dataclasses.asdict(row) for row in rows],
                "findings": [_document(finding) for finding in found.findings],
            }
        )
        raise typer.Exit(ExitCode.CONFIG if found.errors else ExitCode.OK)
    table = tables.table("variable", "value", "from", "", numbers=())
    for row in rows:
        note = "changed" if row.changed else ""
        style = "" if row.source == context.Source.DEFAULT.value else "bold"
        tables.add_row(table, row.name, row.shown, row.source, note, style=style)
    table_console().print(table)
    say("")
    say("Changed defaults, or meanings of one:")
    for row in rows:
        if row.changed:
            say(f"  {row.name}: {row.changed}")
    _say_findings(found.findings)
    raise typer.Exit(ExitCode.CONFIG if found.errors else ExitCode.OK)


@app.command()
def check(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="context.sh, one_env, or alike.")],
    role: Annotated[
        context.Role | None,
        typer.Option(
            "--role",
            help="Check for one machine only.",
            show_default="those that read what the file sets",
        ),
    ] = None,
    json_: Json = False,
) -> None:
    """Say everything that is wrong with a file of context variables, at once.

    Nothing of the file is executed. The exit code is 3 when a boot would refuse it.
    """
    given = read_context(file)
    roles = _readers(given) if role is None else (role,)
    found = [context.resolve(each, context_file=given) for each in roles]
    findings = _once(
        [finding for each in found for finding in each.findings], several=len(roles) > 1
    )
    wrong = [finding for finding in findings if finding.severity.stops]
    if json_:
        tables.print_json([_document(finding) for finding in findings])
        raise typer.Exit(ExitCode.CONFIG if wrong else ExitCode.OK)
    _say_findings(findings)
    if wrong:
        say(f"{len(wrong)} configuration error{'s' if len(wrong) != 1 else ''}: no boot.")
        raise typer.Exit(ExitCode.CONFIG)
    say("Every variable is valid.")


@app.command()
def inputs(
    profile: Annotated[
        documents.Profile | None,
        typer.Option(
            "--profile", help="Kind of service template.", show_default="the VM template of --role"
        ),
    ] = None,
    role: RoleOption = context.Role.SUPERLINK,
    framework: Annotated[
        list[str] | None,
        typer.Option(
            "--framework",
            metavar="NAME",
            help="A framework that the image of the nodes carries, once for each: the form offers "
            "these, and the first is its default.",
            show_default="not known: all are offered, none is the default",
        ),
    ] = None,
) -> None:
    """Print the user inputs of a service template as JSON, or CONTEXT and inputs of a VM's."""
    carried = tuple(framework or ())
    known = context.VARIABLES["ML_FRAMEWORK"].options
    if unknown := [name for name in carried if name not in known]:
        raise typer.BadParameter(
            f"{', '.join(unknown)}: it must be one of {', '.join(known)}.",
            param_hint="'--framework'",
        )
    if profile is None:
        sys.stdout.write(documents.vm_template(role, carried))
        return
    tables.print_json(
        {
            "user_inputs": documents.service_inputs(profile),
            "roles": [
                {"name": each.value, "user_inputs": documents.role_inputs(profile, each, carried)}
                for each in documents.ROLES[profile]
            ],
        }
    )


def _readers(given: context.ContextFile | None) -> tuple[context.Role, ...]:
    """Whose file it is: a group's where it sets what only peers read, else a federation's; it may
    be both, where it sets something that no peer reads as well."""
    found = [context.resolve(role, context_file=given) for role in context.Role]
    readers = [
        context.VARIABLES[name].appliances
        for each in found
        for name, value in each.values.items()
        if value.is_set or name in {finding.name for finding in each.errors}
    ]
    peer = context.Role.PEER
    if frozenset({peer}) not in readers:
        return FEDERATION
    return (*FEDERATION, peer) if any(peer not in each for each in readers) else (peer,)


def _once(findings: list[context.Finding], *, several: bool) -> list[context.Finding]:
    """Without repetitions; of a file for several machines, without what is another one's."""
    unique = list(dict.fromkeys(findings))
    if not several:
        return unique
    return [each for each in unique if not each.message.endswith("does not read it.")]


def _say_findings(findings: tuple[context.Finding, ...] | list[context.Finding]) -> None:
    for finding in sorted(findings, key=lambda each: list(context.Severity).index(each.severity)):
        say(f"{finding.severity}: {finding}")


def _document(finding: context.Finding) -> dict[str, str]:
    return {**dataclasses.asdict(finding), "severity": finding.severity.value}
