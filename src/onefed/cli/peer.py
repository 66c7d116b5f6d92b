"""peer: groups without a coordinator, and simulate: schedules of their protocol in virtual time."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import Annotated

import typer

from onefed.cli import parsing, peer_evict, peer_group
from onefed.cli.screen import say
from onefed.errors import ExitCode
from onefed.sim import options, report
from onefed.sim.mutants import SCHEDULES_MAX
from onefed.sim.run import run

FAILURES_SHOWN = 3
SCHEDULES_LIMIT = 10**9

app = parsing.Typer(
    help="Training without a coordinator.", no_args_is_help=True, suggest_commands=False
)


@app.callback()
def _group() -> None:
    """Training without a coordinator."""


app.command()(peer_group.up)
app.command()(peer_group.resume)
app.command()(peer_group.status)
app.command()(peer_group.join)
app.command()(peer_group.leave)
app.command()(peer_evict.evict)


@app.command()
def simulate(
    seed: Annotated[int, typer.Option("--seed", min=0, help="First seed.")] = 0,
    schedules: Annotated[
        int,
        typer.Option(
            "--schedules",
            "-n",
            min=1,
            max=SCHEDULES_LIMIT,
            help="So many seeds in a row.",
        ),
    ] = 1000,
    seconds: Annotated[
        int | None,
        typer.Option("--seconds", min=1, help="Begin no schedule after so long."),
    ] = None,
    minimise: Annotated[
        bool, typer.Option("--minimise", help="Leave out of a failure what it does not need.")
    ] = False,
    mutants: Annotated[
        bool,
        typer.Option("--mutants", help="Seed bugs, and show how soon each is seen."),
    ] = False,
) -> None:
    """Simulate the peer protocol under faults and check its promises.

    A failure prints its seed, its schedule and its last events, and ends with exit code 1.
    """
    if mutants:
        limit = str(min(schedules, SCHEDULES_MAX))
        command = [sys.executable, "-O", "-m", "onefed.sim.mutants", "--schedules", limit]
        raise typer.Exit(subprocess.run(command, check=False).returncode)
    totals, failed, started_s = report.Totals(), [], time.monotonic()
    for result in report.many(seed, schedules, processes=os.cpu_count() or 1):
        totals.add(result)
        if result.violation is not None:
            failed.append(result.seed)
            if len(failed) <= FAILURES_SHOWN:
                outcome = report.smallest(result.seed) if minimise else None
                say(report.failure(outcome or run(options.draw(result.seed))))
        if seconds is not None and time.monotonic() - started_s > seconds:
            break
    took_s = time.monotonic() - started_s
    say(
        f"{totals.schedules} schedules from seed {seed}: {len(failed)} failed; "
        f"{totals.rounds} rounds, {totals.events} events, {totals.virtual_s:.0f} virtual s, "
        f"{totals.schedules / took_s * 60:.0f} schedules a minute"
    )
    if failed:
        again = f"onefed peer simulate --seed {failed[0]} --schedules 1 --minimise"
        say(f"commit {_commit()}; to see the first again: {again}")
        raise typer.Exit(ExitCode.FAILED)


def _commit() -> str:
    """Of the sources, where they lie in a repository."""
    command = ["git", "-C", os.path.dirname(__file__), "rev-parse", "--short", "HEAD"]  # noqa: PTH120
    try:
        found = subprocess.run(command, check=False, capture_output=True, text=True)
    except OSError:
        return "unknown"
    return found.stdout.strip() or "unknown"
