"""up --chaos: a federation whose processes are killed, and the same one undisturbed beside it.

The proof is in the digests: whoever died, every round has to give the same bits.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path

from onefed.checkpoint import files
from onefed.cli import start
from onefed.cli.screen import LogFormat, Screen, screen_for
from onefed.errors import ExitCode, OnefedError
from onefed.local import chaos, deploy, state
from onefed.local.request import Prepared, Request, prepare
from onefed.local.state import StateDir
from onefed.telemetry import events
from onefed.telemetry import log as event_log
from onefed.telemetry.status import KillView, fold

CALM = "-calm"
"""What the name of the undisturbed federation ends with; it is discarded after the comparison."""

ROUNDS_PER_KILL = 2
"""Without --rounds: each kill has a round, and one in which nothing happens."""


class ChaosError(OnefedError):
    """What was asked for cannot be shown so."""

    exit_code = ExitCode.CONFIG


@dataclass(frozen=True)
class Options:
    """What ``--chaos`` came with."""

    seed: int
    kills: int


def run(request: Request, options: Options, *, summary: Path | None, log_format: LogFormat) -> int:
    """Train with kills, then without, and compare; returns the exit code."""
    start.check_summary_file(summary)
    prepared = _with_rounds(prepare(request, os.environ), request, options)
    base = state.home(os.environ)
    if request.name is not None:
        state.require_free(base, request.name + CALM, None, replace=request.replace)
    directory = deploy.create(prepared, request, os.environ)
    screen = screen_for(log_format)
    for notice in prepared.notices:
        screen.say(notice)
    spec = directory.read_spec()
    drawn = chaos.draw(options.seed, kills=options.kills, rounds=spec.rounds, nodes=spec.nodes)
    screen.say(f"{spec.name}: {options.kills} kills, drawn with seed {options.seed}.")
    with chaos.Killer(directory, drawn).at_work():
        outcome = start.attend(directory, screen)
    kills = _kills(directory)
    document: dict[str, object] = {
        "seed": options.seed,
        "kills": [
            {"victim": kill.victim, "round": kill.round, "recovered_s": kill.seconds}
            for kill in kills
        ],
        "undisturbed_sha256": None,
        "rounds_equal": None,
        "equal": None,
    }
    if outcome["exit_code"] == ExitCode.OK:
        calm = _undisturbed(prepared, request, spec.name, log_format)
        code, why = calm.exit_code, "The undisturbed run did not end, so there is no comparison."
        if not code:
            document |= _compared(chaos.digests(directory), calm.digests)
            equal = document["rounds_equal"]
            code = ExitCode.OK if document["equal"] else ExitCode.DIFFERENT
            why = f"{equal} of {spec.rounds} rounds gave the bits of the undisturbed run."
        if not code and len(kills) < options.kills:
            code = ExitCode.FAILED
            why = f"The run ended after {len(kills)} of {options.kills} kills: more --rounds."
        if code:
            outcome |= {"exit_code": int(code), "error": why}
    outcome["chaos"] = document
    text = json.dumps(outcome, indent=1, allow_nan=False).encode() + b"\n"
    files.write_bytes(directory.summary, text)
    return start.finish(directory, screen, summary)


def _with_rounds(prepared: Prepared, request: Request, options: Options) -> Prepared:
    """As many rounds as the kills need, unless the user said how many."""
    spec = prepared.spec
    if not spec.managed or spec.waits:
        raise ChaosError(
            "Kills are shown with an app that onefed manages, and that is given at once.",
            hint="Leave --chaos out, or choose a built-in app: onefed up --chaos",
        )
    if spec.rounds > options.kills:
        return prepared
    if request.rounds is not None:
        raise ChaosError(
            f"{spec.rounds} rounds are too few for {options.kills} kills, of which each has its "
            "round, and the last one follows them.",
            hint=f"Give --rounds {options.kills + 1} or more, or fewer --kills.",
        )
    rounds = ROUNDS_PER_KILL * options.kills
    variables = {**spec.context, "FL_NUM_ROUNDS": str(rounds)}
    return replace(prepared, spec=replace(spec, rounds=rounds, context=variables))


@dataclass(frozen=True)
class _Calm:
    """How the undisturbed run ended."""

    exit_code: int
    digests: tuple[str, ...]


def _undisturbed(prepared: Prepared, request: Request, name: str, log_format: LogFormat) -> _Calm:
    """Train the same in a federation beside it, which is gone afterwards."""
    quiet = replace(request, name=name + CALM, folder=None)
    directory = deploy.create(prepared, quiet, os.environ)
    screen: Screen = screen_for(log_format)
    screen.say(f"{name} is done. The same seed again, undisturbed, to compare every round:")
    try:
        outcome = start.attend(directory, screen)
        code = outcome["exit_code"]
        assert isinstance(code, int), "summary.write wrote it"
        return _Calm(code, chaos.digests(directory))
    finally:
        deploy.remove(directory, state.home(os.environ))


def _compared(rough: tuple[str, ...], calm: tuple[str, ...]) -> dict[str, object]:
    equal = sum(ours == theirs for ours, theirs in zip(rough, calm, strict=False))
    return {
        "undisturbed_sha256": calm[-1] if calm else None,
        "rounds_equal": equal,
        "equal": bool(rough) and rough == calm,
    }


def _kills(directory: StateDir) -> tuple[KillView, ...]:
    """What was really killed, as the events tell it."""
    view = fold(
        record
        for record in event_log.read(directory.events)
        if isinstance(record.event, events.ProcessKilled | events.ProcessRecovered)
    )
    return view.kills
