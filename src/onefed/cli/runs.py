"""onefed submit and onefed runs: apps for a federation that is there already."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from onefed import context
from onefed.checkpoint import files
from onefed.cli import nodes, parsing, tables
from onefed.cli.nodes import Json
from onefed.cli.screen import say, table_console
from onefed.errors import ExitCode, OnefedError, StorageError
from onefed.local import state
from onefed.local.request import ROUNDS_KEY
from onefed.local.summary import RUN_ENDED
from onefed.telemetry import events, lines
from onefed.telemetry.log import Follower

FOLLOW_POLL_S = 0.3

app = parsing.Typer(
    help="Runs of a federation: list, follow, stop. Alone, or with a name, it lists.",
    cls=parsing.ListingGroup,
    suggest_commands=False,
)

Federation = Annotated[
    str | None, typer.Argument(help="Name of the federation.", show_default="the one that runs")
]


class RunFailedError(OnefedError):
    """The run that was followed did not complete."""


def submit(
    app_folder: Path,
    name: str | None,
    *,
    rounds: int | None,
    assignments: Sequence[str],
    follow: bool,
) -> None:
    """Check an app, pack it, and hand it to a running federation."""
    from onefed.flower import bundle  # imports Flower

    settings = context.parse_assignments(assignments)
    if settings.context:
        raise OnefedError(
            "A submission sets settings of the app only, and no FL_ variables: the federation "
            "has its own.",
            hint="Variables are given when it is started: onefed up --set",
        )
    asked = dict(settings.app_config)
    if rounds is not None:
        asked[ROUNDS_KEY] = rounds
    found = bundle.load(app_folder.absolute())
    bundle.check_imports(found)
    packed = bundle.build(found)
    mailbox = nodes.mailbox_of(name)  # the app was read by now: root may become another user here
    file = mailbox / f"{uuid.uuid4().hex}.fab"
    files.make_folder(mailbox, mode=0o700)
    follower = _news(name)
    try:
        files.write_bytes(file, packed.fab, mode=0o600)
        done = nodes.ask(name, "submit", file=file.name, run_config=asked)
    finally:
        with contextlib.suppress(StorageError):
            files.remove(file)
    say(f"{found.name} is submitted as run {done['run'][:8]}.")
    if follow:
        _follow(follower)


@app.command("list")
def list_(name: Federation = None, json_: Json = False) -> None:
    """Show the runs of a federation, the newest first."""
    answer = nodes.ask(name, "runs")
    if json_:
        tables.print_json(answer)
        return
    table = tables.table("run", "submitted", "status", "details", numbers=())
    for row in answer["runs"]:
        tables.add_row(
            table, row["run_id"], row["submitted_at"][:19], row["status"], row["details"]
        )
    table_console().print(table)
    if not answer["runs"]:
        say(f"Nothing was submitted yet ({answer['status']}).")


@app.command("follow")
def follow_(name: Federation = None) -> None:
    """Print what happens until the run has ended; its outcome is the exit code."""
    follower = _news(name)  # before the question: the run may end right after the answer
    if nodes.ask(name, "runs")["status"] in RUN_ENDED:
        say("No run is under way.")
        return
    _follow(follower)


@app.command()
def stop(name: Federation = None) -> None:
    """Stop the run once the round in flight is saved; the federation stays."""
    done = nodes.ask(name, "stop")
    say(f"Run {done['run'][:8]} stops once the round in flight is saved.")


def _news(name: str | None) -> Follower:
    return state.news(nodes.events_of(name))


def _follow(follower: Follower) -> None:
    while True:
        for record in follower.poll():
            say(lines.text_line(record))
            if isinstance(record.event, events.RunStatus) and record.event.status in RUN_ENDED:
                if record.event.status == "completed":
                    return
                error = RunFailedError(f"The run {record.event.status}: {record.event.details}")
                if record.event.status == "stopped":
                    error.exit_code = ExitCode.INTERRUPTED
                raise error
            if isinstance(record.event, events.FederationEnd):
                raise RunFailedError("The federation ended before the run.")
        time.sleep(FOLLOW_POLL_S)
