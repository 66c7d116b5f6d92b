"""up, run, resume and down: from options to a federation, and staying with it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from onefed.appliance import machine
from onefed.cli.screen import LogFormat, Screen, say, screen_for
from onefed.errors import ExitCode, InUseError, OnefedError, StorageError
from onefed.local import deploy, origin, ownership, state
from onefed.local import summary as summaries
from onefed.local.request import Request, prepare
from onefed.local.spec import Spec
from onefed.local.state import StateDir
from onefed.telemetry.status import FederationView, fold

LOOK_S = 0.2
"""How often the view is drawn anew."""

DOWN_LIMIT_S = 900.0
"""A round in flight may take its whole timeout before it is saved."""

STOP_LIMIT_S = 90.0
"""For a stop at once: twice what the cloud gives its machines, and some."""


LAST_LINES = 8
"""Of the cloud's log, where it left no summary."""

UNDER_WAY = ("training", "stalled", "finished")
"""What a federation is once ``--detach`` need not wait any longer."""


class WhichError(OnefedError):
    """Several federations could be meant, and guessing would do harm."""

    exit_code = ExitCode.USAGE


class ReaderGoneError(OnefedError):
    """Whoever read our output has gone, and an attached federation was stopped with it."""

    exit_code = ExitCode.INTERRUPTED


def run(
    request: Request,
    *,
    resume_from: Path | None = None,
    summary: Path | None,
    detach: bool,
    log_format: LogFormat,
) -> int:
    """Start a new federation, or one that goes on elsewhere; returns the exit code."""
    check_summary_file(summary)
    found = None if resume_from is None else origin.load(resume_from.absolute())
    if found is not None:
        request = origin.complete(request, found.snapshot, os.environ)
    prepared = prepare(request, os.environ)
    notices = list(prepared.notices)
    if found is not None:
        notices += [f"Passed over {each.path}: {each.reason}." for each in found.damaged]
        notices += origin.check(prepared, found.snapshot)
    directory = deploy.create(prepared, request, os.environ)
    if found is not None:
        origin.plant(directory, found.snapshot)
    screen = screen_for(log_format)
    for notice in notices:
        screen.say(notice)
    return _run(directory, screen, summary=summary, detach=detach)


def resume(
    name: str, *, rounds: int | None, summary: Path | None, detach: bool, log_format: LogFormat
) -> int:
    """Continue a federation that does not run; returns the exit code."""
    check_summary_file(summary)
    directory = state.find(state.home(os.environ), name)
    spec = directory.read_spec()
    if ownership.owner(directory) is not None:
        raise InUseError(
            f"The federation {name!r} is running.", hint=f"Look at it: onefed status {name}"
        )
    screen = screen_for(log_format)
    if not spec.managed:
        screen.say("This app runs its own ServerApp, which begins anew: Flower has no resume.")
    if rounds is not None:
        variables = {**spec.context, "FL_NUM_ROUNDS": str(rounds)}
        directory.write_spec(replace(spec, rounds=rounds, context=variables))
    return _run(directory, screen, summary=summary, detach=detach)


def down(name: str | None, *, now: bool, purge: bool) -> None:
    """Stop a federation, and with ``purge`` discard it."""
    base = state.home(os.environ)
    directory = state.find(base, name) if name else _only_one(base, purge=purge)
    name = name or directory.read_spec().name
    if ownership.owner(directory) is not None:
        _stop(directory, name, now=now)
    elif left := ownership.end_processes(directory):
        say(f"{name} was not running; {left} left-over processes were ended.")
    else:
        say(f"{name} is not running.")
    if purge:
        deploy.remove(directory, base)
        say(f"{name} and everything it trained is gone.")


def _only_one(base: Path, *, purge: bool) -> StateDir:
    """The federation that is meant without a name: of those that run, or to discard, of all."""
    every = state.all_of(base)
    candidates = every if purge else ownership.running(every)
    if len(candidates) > 1:
        names = ", ".join(each.read_spec().name for each in candidates)
        raise WhichError(
            f"There are several federations: {names}.", hint="Name the one: onefed down NAME"
        )
    return candidates[0] if candidates else state.find(base, None)


def _stop(directory: StateDir, name: str, *, now: bool) -> None:
    say(f"Stopping {name}." if now else f"Stopping {name} once the round in flight is saved.")
    if now or not _ends(directory, signal.SIGINT, DOWN_LIMIT_S):
        _ends(directory, signal.SIGTERM, STOP_LIMIT_S)
    # The cloud lets go of its federation a moment before it ends, and everything is written then.
    ownership.end_processes(directory)
    try:
        outcome = summaries.read(directory.summary)
    except StorageError:
        say(f"{name} is down, and left no word. Continue it: onefed resume {name}")
    else:
        done, total = outcome["rounds_done"], outcome["rounds_total"]
        say(f"{name} is down after round {done} of {total}.")


def _ends(directory: StateDir, number: signal.Signals, limit_s: float) -> bool:
    """Ask the cloud to stop; whether it did in time."""
    limit = time.monotonic() + limit_s
    asked = False
    while ownership.owner(directory) is not None:
        if time.monotonic() > limit:
            return False
        asked = asked or ownership.signal_owner(directory, number)
        time.sleep(LOOK_S)
    return True


def attend(directory: StateDir, screen: Screen) -> dict[str, object]:
    """Start a federation and show it to its end; returns its summary."""
    _stay(directory, screen, summary=None, detach=False)
    return summaries.read(directory.summary)


def _run(directory: StateDir, screen: Screen, *, summary: Path | None, detach: bool) -> int:
    view = _stay(directory, screen, summary=summary, detach=detach)
    if view is None:
        return finish(directory, screen, summary)
    if directory.read_spec().waits:
        screen.say(
            f"{view.name} waits for an app: onefed submit APP {view.name}; "
            f"stop it: onefed down {view.name}"
        )
    else:
        screen.say(
            f"{view.name} is training. Look at it: onefed status {view.name}; "
            f"stop it: onefed down {view.name}"
        )
    return ExitCode.OK


def _stay(
    directory: StateDir, screen: Screen, *, summary: Path | None, detach: bool
) -> FederationView | None:
    """Start it and show it; None when it has ended, else what it is when it can be left alone."""
    started = time.monotonic()
    directory.summary.unlink(missing_ok=True)
    follower = state.news(directory.events)
    cloud = deploy.start(
        directory, os.environ, attached=not detach, summary=summary if detach else None
    )
    view, spec = FederationView(), directory.read_spec()
    try:
        with _forwarding(cloud), screen.open():
            while True:
                ended = cloud.poll() is not None  # before reading, so that nothing is missed
                records = follower.poll()
                view = fold(records, view)
                screen.show(view, records)
                if ended or (detach and (view.status in UNDER_WAY or _waits(spec, view))):
                    break
                time.sleep(LOOK_S)
    except BaseException as error:
        if detach:
            raise
        cloud.terminate()  # an attached federation ends with its screen
        cloud.wait()
        if isinstance(error, BrokenPipeError):
            name = directory.read_spec().name
            raise ReaderGoneError(
                f"Nobody reads the output any more, so {name} was stopped.",
                hint=f"Continue it: onefed resume {name}",
            ) from None
        raise
    if not ended:
        return view
    if not directory.summary.exists():
        _bury(directory, cloud.returncode, view, seconds=time.monotonic() - started)
    return None


def _waits(spec: Spec, view: FederationView) -> bool:
    """Whether it is up and there is nothing to train yet."""
    up = [node for node in view.nodes.values() if node.vm is not None and node.ready]
    return spec.waits and len(up) == spec.nodes + 1


def _bury(directory: StateDir, exit_code: int, view: FederationView, *, seconds: float) -> None:
    """Say in its place how a federation ended whose cloud was killed or could not start.

    Raises:
        InUseError: another cloud holds the folder, so nothing ended.
    """
    if ownership.owner(directory) is not None:
        raise InUseError(
            f"{directory.folder} is in use: its federation is running already.",
            hint="Look at it with: onefed status",
        )
    ownership.end_processes(directory)
    last_words = machine.last_lines(directory.log, LAST_LINES)
    error = "\n".join(
        (
            f"The cloud of the federation ended before its time (exit code {exit_code}).",
            *(f"  {line}" for line in last_words),
            f"Its log is {directory.log}; onefed resume continues the federation.",
        )
    )
    outcome = summaries.make(directory, directory.read_spec(), view, error=error, seconds=seconds)
    code = ExitCode.FAILED
    with contextlib.suppress(ValueError):
        code = ExitCode(exit_code) or code
    summaries.write(summaries.with_exit_code(outcome, code), directory.summary)


def finish(directory: StateDir, screen: Screen, summary: Path | None) -> int:
    """Say how it ended, copy the summary to where it is wanted; returns the exit code."""
    document = summaries.read(directory.summary)
    screen.finish(document)
    if summary is not None:
        try:
            shutil.copyfile(directory.summary, summary)
        except OSError as error:
            raise StorageError(
                f"The summary cannot be written to {summary}: {error.strerror or error}.",
                hint=f"It is also in {directory.summary}.",
            ) from error
    code = document["exit_code"]
    assert isinstance(code, int), "summary.write wrote it"
    return code


def check_summary_file(path: Path | None) -> None:
    """A training is too long to find out at its end that there is nowhere to write."""
    if path is None:
        return
    folder = path.absolute().parent
    if path.is_dir():
        problem = "it is a folder"
    elif not folder.is_dir():
        problem = f"there is no folder {folder}"
    elif not os.access(folder, os.W_OK):
        problem = f"{folder} is not writable"
    else:
        return
    raise StorageError(
        f"The summary cannot be written to {path}: {problem}.",
        hint="Name a file in a folder that exists and can be written to.",
    )


@contextlib.contextmanager
def _forwarding(cloud: subprocess.Popen[bytes]) -> Iterator[None]:
    """Pass Ctrl-C on: the cloud saves the round in flight, and at the second one stops at once."""

    def interrupt(_number: int, _frame: object) -> None:
        if cloud.poll() is None:
            cloud.send_signal(signal.SIGINT)

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
