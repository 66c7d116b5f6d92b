"""appliance plan, configure, bootstrap, health, status, drain, script: the boot of one machine."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from onefed import __version__, context
from onefed.appliance import health as health_checks
from onefed.appliance import keeper, lifecycle, machine, stages, steps, surroundings
from onefed.appliance.description import Runtime
from onefed.appliance.steps import Report, Stage, Step
from onefed.checkpoint import files
from onefed.cli import parsing, tables
from onefed.cli.screen import say, table_console
from onefed.errors import ExitCode
from onefed.telemetry import sentences

app = parsing.Typer(
    help="The boot of one machine: its steps, what came of them, whether it is healthy.",
    no_args_is_help=True,
    suggest_commands=False,
)

RoleOption = Annotated[
    context.Role, typer.Option("--role", help="superlink, supernode or peer.", show_default=False)
]
RootOption = Annotated[Path, typer.Option("--root", help="Folder that the machine's files are in.")]
RuntimeOption = Annotated[
    Runtime, typer.Option("--runtime", help="docker (containers) or process.")
]
ContextOption = Annotated[
    Path | None,
    typer.Option(
        "--context", help="Context file.", show_default="run/one-context/one_env in the root"
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check the context, change nothing.")]
Json = Annotated[bool, typer.Option("--json", "-j", help="As JSON.")]

STAGE_LOGS = {Stage.CONFIGURE: "flower-configure.log", Stage.BOOTSTRAP: "flower-bootstrap.log"}
"""Where an operator of OpenNebula looks first (docs/boot.md)."""


UMASK = 0o022


@app.callback()
def _every_command() -> None:
    # Every file of a machine names its own mode. Those of the programs' group have to be readable
    # by it, whatever the shell, the framework or a unit of ours takes away.
    os.umask(UMASK)


@app.command()
def plan(role: RoleOption, json_: Json = False) -> None:
    """Print the ordered steps of a boot with their effects; nothing is read or changed."""
    _print_plan(stages.plan(role), as_json=json_)


@app.command()
def configure(
    role: RoleOption,
    root: RootOption = Path("/"),
    runtime: RuntimeOption = Runtime.DOCKER,
    context_: ContextOption = None,
    dry_run: DryRun = False,
    json_: Json = False,
) -> None:
    """Read the context and prepare files, units and certificates; twice changes nothing."""
    order = stages.Order(role, root.absolute(), runtime, context_)
    with _stage(order, Stage.CONFIGURE, dry_run=dry_run, as_json=json_) as world:
        if world is not None:
            stages.apply(order, Stage.CONFIGURE, world)


@app.command()
def bootstrap(
    role: RoleOption,
    root: RootOption = Path("/"),
    runtime: RuntimeOption = Runtime.DOCKER,
    context_: ContextOption = None,
    dry_run: DryRun = False,
    json_: Json = False,
) -> None:
    """Start the programs, wait until they are healthy, and publish; twice changes nothing."""
    order = stages.Order(role, root.absolute(), runtime, context_)
    with _stage(order, Stage.BOOTSTRAP, dry_run=dry_run, as_json=json_) as world:
        if world is not None:
            outcome = stages.bootstrap(order, world)
            if not json_:
                say(outcome)


@app.command()
def health(
    role: RoleOption,
    root: RootOption = Path("/"),
    context_: ContextOption = None,
    json_: Json = False,
) -> None:
    """Say whether the machine is ready, quickly and without side effects; 8 if it is not."""
    order = stages.Order(role, root.absolute(), Runtime.PROCESS, context_)
    given = surroundings.look(order.paths, _warn, order.context_file)
    resolution = context.resolve(role, context_file=given.context)
    checks = health_checks.look(role, resolution, order.paths, datetime.now(UTC))
    if json_:
        tables.print_json([dataclasses.asdict(check) for check in checks])
    else:
        for check in checks:
            mark = "ok" if check.ok else "failed" if check.decides else "warning"
            say(f"{mark:8}{check.name}: {check.detail}")
    if any(check.decides and not check.ok for check in checks):
        raise typer.Exit(ExitCode.BOOT)


@app.command()
def status(
    role: RoleOption,
    root: RootOption = Path("/"),
    json_: Json = False,
) -> None:
    """Show how far the last boot went, what each step did, and what failed."""
    order = stages.Order(role, root.absolute(), Runtime.PROCESS)
    account = steps.read_account(order.paths.status)
    found = keeper.find(order.paths.keeper)
    if json_:
        tables.print_json(
            {
                "role": role.value,
                "kept_by": None if found is None else dataclasses.asdict(found),
                "steps": [dataclasses.asdict(report) for report in account.reports],
                "next": account.hint,
                "facts": machine.read_facts(order.paths),
            }
        )
        return
    if not account.reports:
        say("This machine has never booted.")
        return
    table = tables.table("step", "name", "outcome", "seconds", "", numbers=(3,))
    for report in account.reports:
        detail, *further = report.detail.splitlines() or [""]
        style = "red" if report.status is steps.Status.FAILED else ""
        seconds = f"{report.seconds:.1f}"
        row = (report.id, report.name, report.status.value, seconds, detail)
        tables.add_row(table, *row, style=style)
        for line in further:
            tables.add_row(table, "", "", "", "", line, style=style)
    table_console().print(table)
    missing = len(stages.plan(role)) - len(account.reports)
    if account.hint:
        say(f"next: {account.hint}")
    elif missing:
        say(f"{missing} steps are still to be done.")
    if found is not None:
        say(f"{found.state}, kept by process {found.pid}")


@app.command()
def drain(
    role: RoleOption,
    root: RootOption = Path("/"),
    context_: ContextOption = None,
) -> None:
    """Stop in order: what runs is finished or given back, then the node is disconnected."""
    order = stages.Order(role, root.absolute(), Runtime.PROCESS, context_)
    stopped = stages.stop(order, _world(lambda _: None))
    say("drained and stopped" if stopped else "nothing runs here")


@app.command()
def renew(
    role: RoleOption,
    root: RootOption = Path("/"),
    context_: ContextOption = None,
) -> None:
    """Renew the server certificate from the kept authority when it ends within 30 days."""
    order = stages.Order(role, root.absolute(), Runtime.PROCESS, context_)
    outcome = stages.renew(order, _world(lambda _: None))
    say(f"{outcome.status}: {outcome.detail}")


@app.command()
def script(
    kind: Annotated[
        lifecycle.Script, typer.Argument(metavar="NAME", help="appliance.sh or health-check.sh.")
    ],
    role: RoleOption,
    runtime: RuntimeOption = Runtime.DOCKER,
) -> None:
    """Print a shell file that the platform demands in an image."""
    sys.stdout.write(lifecycle.script(kind, role, runtime.value, __version__))


@contextlib.contextmanager
def _stage(
    order: stages.Order, stage: Stage, *, dry_run: bool, as_json: bool
) -> Iterator[stages.World | None]:
    """What a stage runs in: every step is told here and in the stage's log. None: nothing to do."""
    given = surroundings.look(order.paths, _warn, order.context_file)
    resolution = context.resolve(order.role, context_file=given.context)
    if dry_run:
        if resolution.errors:
            raise context.ContextError(resolution.errors)
        _print_plan(stages.plan(order.role, stage), as_json=as_json)
        yield None
        return
    wanted = resolution.values["FL_LOG_FORMAT"].text
    files.make_folder(order.paths.logs)
    reports: list[Report] = []
    with (order.paths.logs / STAGE_LOGS[stage]).open("a", encoding="utf-8") as log:

        def on_report(report: Report) -> None:
            reports.append(report)
            lines = _lines(report, as_json=wanted == "json")
            log.writelines(f"{line}\n" for line in lines)
            log.flush()
            # The error itself is shown when the command ends.
            for line in lines[:1] if report.status is steps.Status.FAILED else lines:
                if not as_json:
                    say(line)

        def warn(message: str) -> None:
            _warn(message)
            log.write(_warning(message, as_json=wanted == "json") + "\n")
            log.flush()

        try:
            yield dataclasses.replace(_world(on_report), warn=warn)
        finally:
            if as_json:
                tables.print_json([dataclasses.asdict(report) for report in reports])
    changed = sum(report.status is steps.Status.DONE for report in reports)
    if not as_json and reports:
        say(f"{changed} steps changed something." if changed else "Nothing had to change.")


def _lines(report: Report, *, as_json: bool) -> list[str]:
    """A step that is through, as FL_LOG_FORMAT wants its lines."""
    if as_json:
        stamp = datetime.now(UTC).isoformat(timespec="milliseconds")
        fields = {"timestamp": stamp, "event": "boot_step", **dataclasses.asdict(report)}
        return [json.dumps(fields)]
    first, *further = report.detail.splitlines() or [""]
    head = f"{report.id:7} {report.name}: {report.status}: {first}"
    return [sentences.visible(line) for line in (head, *(f"        {each}" for each in further))]


def _warning(message: str, *, as_json: bool) -> str:
    """What a boot goes on without, as FL_LOG_FORMAT wants its lines."""
    if as_json:
        stamp = datetime.now(UTC).isoformat(timespec="milliseconds")
        fields = {"timestamp": stamp, "level": "WARNING", "event": "notice", "message": message}
        return json.dumps(fields)
    return f"WARNING {sentences.visible(message)}"


def _world(on_report: Callable[[Report], None]) -> stages.World:
    return stages.World(
        environ=os.environ,
        clock=time.monotonic,
        now=lambda: datetime.now(UTC),
        sleep=time.sleep,
        warn=_warn,
        on_report=on_report,
    )


def _warn(message: str) -> None:
    typer.echo(f"WARNING: {message}", err=True)


def _print_plan(wanted: tuple[Step[Any], ...], *, as_json: bool) -> None:
    if as_json:
        tables.print_json(
            [
                {"id": each.id, "name": each.name, "stage": each.stage, "effect": each.effect}
                for each in wanted
            ]
        )
        return
    table = tables.table("step", "name", "stage", "effect", numbers=())
    for each in wanted:
        tables.add_row(table, each.id, each.name, each.stage.value, each.effect)
    table_console().print(table)
