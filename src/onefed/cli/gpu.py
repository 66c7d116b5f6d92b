"""gpu validate: what a machine lacks before its GPUs can train, and how to repair it."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from onefed.appliance import gpu
from onefed.cli import parsing, tables
from onefed.cli.screen import say
from onefed.errors import ExitCode

app = parsing.Typer(
    help="GPUs: what is missing for them.", no_args_is_help=True, suggest_commands=False
)


@app.callback()
def _group() -> None:
    """A group, although it has one command so far."""


@app.command()
def validate(
    host: Annotated[
        bool, typer.Option("--host", help="Check a host that passes GPUs to virtual machines.")
    ] = False,
    image: Annotated[
        str | None,
        typer.Option("--image", help="Local image with nvidia-smi, to try in a container."),
    ] = None,
    json_: Annotated[bool, typer.Option("--json", "-j", help="As JSON.")] = False,
) -> None:
    """Check this machine's GPUs, each finding with its repair; 1 when a check failed."""
    driver = gpu.System()
    findings = gpu.validate_host(driver) if host else gpu.validate_vm(driver, image=image)
    if json_:
        tables.print_json([dataclasses.asdict(each) for each in findings])
    else:
        for each in findings:
            say(f"{each.level:8}{each.text}")
            if each.repair:
                say(f"        repair: {each.repair}")
        count = {level: sum(each.level is level for each in findings) for level in gpu.Level}
        errors, warnings = count[gpu.Level.ERROR], count[gpu.Level.WARNING]
        if errors:
            say(f"FAILED: {errors} errors, {warnings} warnings")
        else:
            say(f"PASSED with WARNINGS: {warnings}" if warnings else "PASSED")
    if not gpu.passed(findings):
        raise typer.Exit(ExitCode.FAILED)
