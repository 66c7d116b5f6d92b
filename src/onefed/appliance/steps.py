"""A boot step as data, and applying a list of them.

A boot is a fixed, ordered list of steps with the ids of docs/boot.md.
Every step looks at what is there and brings it to what should be there, so that a second boot
changes nothing, and a boot that was cut off anywhere is completed by the next one.
"""

from __future__ import annotations

import contextlib
import enum
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Generic, TypeVar

from onefed.checkpoint import files
from onefed.errors import ExitCode, OnefedError, StorageError

Machine = TypeVar("Machine")
"""What the steps of a role work on."""


class Stage(enum.StrEnum):
    """Who runs a step (docs/boot.md)."""

    PLATFORM = "platform"
    CONFIGURE = "configure"
    BOOTSTRAP = "bootstrap"


class Status(enum.StrEnum):
    """How a step ended."""

    DONE = "done"
    UNCHANGED = "unchanged"
    SKIPPED = "skipped"
    FAILED = "failed"


@dataclass(frozen=True)
class Outcome:
    """How a step ended, and in one line what came of it."""

    status: Status
    detail: str


def done(detail: str) -> Outcome:
    """The step changed something."""
    return Outcome(Status.DONE, detail)


def unchanged(detail: str) -> Outcome:
    """Everything was there already."""
    return Outcome(Status.UNCHANGED, detail)


def skipped(reason: str) -> Outcome:
    """This machine has no use for the step."""
    return Outcome(Status.SKIPPED, reason)


@dataclass(frozen=True)
class Step(Generic[Machine]):
    """One step of a boot."""

    id: str
    """Of docs/boot.md, with the role in front: ``SL-07a``."""
    name: str
    stage: Stage
    effect: str
    """What it brings about, for people who read the plan."""
    run: Callable[[Machine], Outcome]


@dataclass(frozen=True)
class Report:
    """What the status file says of one step."""

    id: str
    name: str
    stage: str
    status: Status
    detail: str
    seconds: float


class BootError(OnefedError):
    """A step failed, and with it the boot."""

    def __init__(self, step_id: str, step_name: str, cause: OnefedError) -> None:
        super().__init__(f"Step {step_id} ({step_name}) failed: {cause.message}", hint=cause.hint)
        self.step_id = step_id
        self.exit_code = ExitCode.BOOT if cause.exit_code == ExitCode.FAILED else cause.exit_code


def apply(
    steps: Sequence[Step[Machine]],
    machine: Machine,
    *,
    status_file: Path,
    clock: Callable[[], float],
    on_report: Callable[[Report], None],
    before_step: Callable[[], None] = lambda: None,
    earlier: Sequence[Report] = (),
) -> None:
    """Run steps in order; the status file is whole after each of them.

    Args:
        earlier: of a stage before this one; they stay in the status file.
        clock: monotonic seconds.
        on_report: called after every step, the failed one included.
        before_step: called before every step; what it raises ends the boot there.

    Raises:
        BootError: a step failed; those after it were not run.
        StorageError: the status file cannot be written.
    """
    reports = list(earlier)

    def record(step: Step[Machine], outcome: Outcome, started: float, hint: str = "") -> None:
        report = Report(
            id=step.id,
            name=step.name,
            stage=step.stage.value,
            status=outcome.status,
            detail=outcome.detail,
            seconds=round(clock() - started, 3),
        )
        reports.append(report)
        document = {"format": 1, "steps": [asdict(each) for each in reports]}
        if hint:
            document["next"] = hint
        try:
            files.write_bytes(status_file, json.dumps(document, indent=1).encode())
        finally:
            on_report(report)

    for step in steps:
        before_step()
        started = clock()
        try:
            outcome = step.run(machine)
        except (OnefedError, OSError) as error:
            cause = error if isinstance(error, OnefedError) else _of_the_system(error)
            with contextlib.suppress(StorageError):  # the step's own failure is the one to tell
                failed = Outcome(Status.FAILED, cause.message)
                record(step, failed, started, cause.hint or "")
            raise BootError(step.id, step.name, cause) from error
        record(step, outcome, started)


@dataclass(frozen=True)
class Account:
    """What a status file tells of the last boot, as far as it went."""

    reports: tuple[Report, ...]
    hint: str
    """What to look at next, when the last step failed."""


def read_account(status_file: Path) -> Account:
    """What ``apply`` wrote; nothing when there is no status file that can be read."""
    try:
        document = files.read_json(status_file)
        assert isinstance(document, dict)
        reports = tuple(
            Report(**{**each, "status": Status(each["status"])}) for each in document["steps"]
        )
        return Account(reports, str(document.get("next", "")))
    except (StorageError, AssertionError, KeyError, TypeError, ValueError):
        return Account((), "")


def _of_the_system(error: OSError) -> StorageError:
    place = "" if error.filename is None else f": {error.filename}"
    return StorageError(
        f"{error.strerror or error}{place}.",
        hint="Check the free space of the disk, and who owns that file.",
    )
