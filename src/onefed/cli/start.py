"""up, run, resume and down: from options to a federation, and staying with it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from onefed.cli.screen import LogFormat, Screen, screen_for
from onefed.errors import ExitCode, InUseError, OnefedError, StorageError
from onefed.local import deploy, state
from onefed.local import summary as summaries
from onefed.local.state import StateDir
from onefed.telemetry.log import Follower
from onefed.telemetry.status import FederationView, fold

LOOK_S = 0.2
"""How often the view is drawn anew."""

DOWN_LIMIT_S = 900.0
"""A round in flight may take its whole timeout before it is saved."""


def run(
    request: deploy.Request, *, summary: Path | None, detach: bool, log_format: LogFormat
) -> int:
    """Start a new federation; returns the exit code."""
    prepared = deploy.prepare(request, os.environ)
    directory = deploy.create(prepared, request, os.environ)
    screen = screen_for(log_format)
    for notice in prepared.notices:
        screen.say(notice)
    return _run(directory, screen, summary=summary, detach=detach)


def resume(
    name: str, *, rounds: int | None, summary: Path | None, detach: bool, log_format: LogFormat
) -> int:
    """Continue a federation that does not run; returns the exit code."""
    directory = state.find(state.home(os.environ), name)
    if state.owner(directory) is not None:
        raise InUseError(
            f"The federation {name!r} is running.", hint=f"Look at it: onefed status {name}"
        )
    spec = directory.read_spec()
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
    directory = state.find(base, name)
    spec = directory.read_spec()
    console = Console(soft_wrap=True)
    cloud = state.owner(directory)
    if cloud is None:
        left = state.end_processes(directory)
        console.print(
            f"{spec.name} was not running; {left} left-over processes were ended."
            if left
            else f"{spec.name} is not running."
        )
    else:
        _stop(directory, cloud, console, now=now)
    if purge:
        deploy.remove(directory, base)
        console.print(f"{spec.name} and everything it trained is gone.")


def _stop(directory: StateDir, cloud: int, console: Console, *, now: bool) -> None:
    name = directory.read_spec().name
    console.print(
        f"Stopping {name}." if now else f"Stopping {name} once the round in flight is saved."
    )
    os.kill(cloud, signal.SIGTERM if now else signal.SIGINT)
    limit = time.monotonic() + DOWN_LIMIT_S
    while state.owner(directory) is not None:
        if time.monotonic() > limit:
            os.kill(cloud, signal.SIGTERM)
            limit += DOWN_LIMIT_S
        time.sleep(LOOK_S)
    outcome = summaries.read(directory.summary)
    done, total = outcome["rounds_done"], outcome["rounds_total"]
    console.print(f"{name} is down after round {done} of {total}.")


def _run(directory: StateDir, screen: Screen, *, summary: Path | None, detach: bool) -> int:
    directory.summary.unlink(missing_ok=True)
    follower = Follower(directory.events)
    follower.poll()  # what earlier starts said
    cloud = deploy.start(directory, os.environ, attached=not detach)
    view = FederationView()
    with _forwarding(cloud), screen.open():
        while True:
            ended = cloud.poll() is not None  # before reading, so that nothing is missed
            records = follower.poll()
            view = fold(records, view)
            screen.show(view, records)
            if ended or (detach and view.status == "training"):
                break
            time.sleep(LOOK_S)
    if not ended:
        screen.say(
            f"{view.name} is training. Look at it: onefed status {view.name}; "
            f"stop it: onefed down {view.name}"
        )
        return ExitCode.OK
    return _outcome(directory, cloud, screen, summary)


def _outcome(
    directory: StateDir, cloud: subprocess.Popen[bytes], screen: Screen, summary: Path | None
) -> int:
    try:
        document = summaries.read(directory.summary)
    except OSError:
        state.end_processes(directory)
        raise OnefedError(
            f"The cloud of the federation ended without a word (exit code {cloud.returncode}).",
            hint=f"Its log is {directory.log}; onefed resume continues the federation.",
        ) from None
    if summary is not None:
        try:
            shutil.copyfile(directory.summary, summary)
        except OSError as error:
            raise StorageError(
                f"The summary cannot be written to {summary}: {error.strerror}.",
                hint=f"It is also in {directory.summary}.",
            ) from error
    screen.finish(document)
    code = document["exit_code"]
    assert isinstance(code, int), "summary.write wrote it"
    return code


@contextmanager
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
