"""Applying boot steps: in order, told on disk after each, and stopped by the first failure."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from onefed.appliance import steps, superlink, supernode
from onefed.appliance.steps import BootError, Outcome, Report, Stage, Status, Step
from onefed.errors import ExitCode, InUseError, OnefedError, StorageError

SUPERLINK_IDS = (
    *("SL-01", "SL-02", "SL-03", "SL-04", "SL-05", "SL-06", "SL-07", "SL-07a"),
    *("SL-07b", "SL-08", "SL-08a", "SL-09", "SL-10", "SL-10a", "SL-11"),
    *("SL-12", "SL-13"),
)
"""boot.md, section 4; its last line, without a number there, is SL-13, and SL-07b is ours."""

SUPERNODE_IDS = (
    *("SN-01", "SN-02", "SN-03", "SN-04", "SN-05", "SN-06", "SN-06a", "SN-07", "SN-07b", "SN-07c"),
    *("SN-08", "SN-09", "SN-10", "SN-11", "SN-12", "SN-13", "SN-13a", "SN-14a", "SN-15"),
)
"""boot.md, section 5; SN-07c, the node's key, is ours."""


class Diary:
    """The machine of these tests: notes which steps ran, and what stood on disk then."""

    def __init__(self, status_file: Path) -> None:
        self.ran: list[str] = []
        self.seen: list[list[str]] = []
        self._status_file = status_file

    def note(self, name: str) -> None:
        self.ran.append(name)
        self.seen.append([each["id"] for each in document(self._status_file)["steps"]])


@pytest.fixture
def status_file(tmp_path: Path) -> Path:
    return tmp_path / "boot-status.json"


@pytest.fixture
def apply(status_file: Path, time) -> Callable[..., tuple[Diary, list[Report]]]:
    """Apply steps; gives what they noted and what was reported, also of a boot that failed."""
    diary = Diary(status_file)
    reports: list[Report] = []

    def run(wanted: Sequence[Step[Diary]], **more: Any) -> tuple[Diary, list[Report]]:
        steps.apply(
            wanted,
            diary,
            **{"status_file": status_file, "clock": time, "on_report": reports.append} | more,
        )
        return diary, reports

    run.diary, run.reports = diary, reports  # type: ignore[attr-defined]
    return run


def document(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {"steps": []}
    loaded: dict[str, Any] = json.loads(path.read_bytes())
    return loaded


def good(name: str, outcome: Outcome | None = None) -> Step[Diary]:
    def run(diary: Diary) -> Outcome:
        diary.note(name)
        return outcome or steps.done("made it")

    return Step(name, f"Step {name}", Stage.CONFIGURE, "something is there", run)


def bad(name: str, error: Exception) -> Step[Diary]:
    def run(diary: Diary) -> Outcome:
        diary.note(name)
        raise error

    return Step(name, f"Step {name}", Stage.BOOTSTRAP, "nothing", run)


def test_steps_run_in_the_order_of_the_list(apply) -> None:
    diary, reports = apply([good("B"), good("A"), good("C")])
    assert diary.ran == ["B", "A", "C"]
    assert [report.id for report in reports] == ["B", "A", "C"]


def test_every_step_finds_the_earlier_ones_on_disk(apply, status_file: Path) -> None:
    diary, _ = apply([good("A"), good("B"), good("C")])
    assert diary.seen == [[], ["A"], ["A", "B"]]
    assert [each["id"] for each in document(status_file)["steps"]] == ["A", "B", "C"]


def test_status_file_says_how_each_step_ended_and_how_long_it_took(
    apply, status_file: Path, time
) -> None:
    def slow(_: Diary) -> Outcome:
        time.sleep(2.5)
        return steps.unchanged("was there")

    apply(
        [
            good("A", steps.skipped("no use here")),
            Step("B", "Slow", Stage.PLATFORM, "time passes", slow),
        ]
    )
    assert document(status_file) == {
        "format": 1,
        "steps": [
            {
                "id": "A",
                "name": "Step A",
                "stage": "configure",
                "status": "skipped",
                "detail": "no use here",
                "seconds": 0.0,
            },
            {
                "id": "B",
                "name": "Slow",
                "stage": "platform",
                "status": "unchanged",
                "detail": "was there",
                "seconds": 2.5,
            },
        ],
    }


def test_a_failed_step_ends_the_boot_and_is_the_last_on_disk(apply, status_file: Path) -> None:
    with pytest.raises(BootError):
        apply([good("A"), bad("B", OnefedError("No luck.")), good("C")])
    assert apply.diary.ran == ["A", "B"]
    assert [report.status for report in apply.reports] == [Status.DONE, Status.FAILED]
    assert document(status_file)["steps"][-1] | {"seconds": 0} == {
        "id": "B",
        "name": "Step B",
        "stage": "bootstrap",
        "status": "failed",
        "detail": "No luck.",
        "seconds": 0,
    }


def test_a_failed_step_is_told_with_its_cause_and_what_to_do_next(apply) -> None:
    with pytest.raises(BootError) as caught:
        apply([bad("SL-09", OnefedError("The engine is off.", hint="Switch it on."))])
    error = caught.value
    assert error.step_id == "SL-09"
    assert str(error) == "Step SL-09 (Step SL-09) failed: The engine is off.\nSwitch it on."


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OnefedError("x"), ExitCode.BOOT),
        (InUseError("x"), ExitCode.IN_USE),
        (StorageError("x"), ExitCode.STORAGE),
    ],
)
def test_the_exit_code_is_that_of_the_cause_if_it_has_one_of_its_own(
    apply, error: OnefedError, code: ExitCode
) -> None:
    with pytest.raises(BootError) as caught:
        apply([bad("A", error)])
    assert caught.value.exit_code is code


def test_an_error_of_the_disk_is_a_failed_step_that_names_the_file(
    apply, status_file: Path
) -> None:
    with pytest.raises(BootError, match="No space left on device: /var/full") as caught:
        apply([bad("A", OSError(errno.ENOSPC, "No space left on device", "/var/full"))])
    assert caught.value.exit_code is ExitCode.STORAGE
    assert caught.value.hint
    assert document(status_file)["steps"][0]["status"] == "failed"


def test_a_failure_is_told_even_when_the_status_file_cannot_be_written(
    apply, tmp_path: Path
) -> None:
    with pytest.raises(BootError, match="The disk is full"):
        apply([bad("A", StorageError("The disk is full."))], status_file=tmp_path / "no" / "status")
    assert [report.id for report in apply.reports] == ["A"]


def test_a_status_file_that_cannot_be_written_ends_the_boot(apply, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no/status"):
        apply([good("A"), good("B")], status_file=tmp_path / "no" / "status")
    assert [report.id for report in apply.reports] == ["A"]


def test_who_stops_a_boot_between_two_steps_is_asked_before_each(apply, status_file: Path) -> None:
    class EnoughError(Exception):
        """Not a failure of any step."""

    def enough() -> None:
        if apply.diary.ran == ["A"]:
            raise EnoughError

    with pytest.raises(EnoughError):
        apply([good("A"), good("B")], before_step=enough)
    assert apply.diary.ran == ["A"]
    assert [each["status"] for each in document(status_file)["steps"]] == ["done"]


@pytest.mark.parametrize(
    ("table", "ids"),
    [
        pytest.param(superlink.STEPS, SUPERLINK_IDS, id="superlink"),
        pytest.param(supernode.STEPS, SUPERNODE_IDS, id="supernode"),
    ],
)
def test_the_plan_is_that_of_the_reference(table: Sequence[Step[Any]], ids: Sequence[str]) -> None:
    assert tuple(step.id for step in table) == ids
    assert all(step.name and step.effect for step in table)
    assert len({step.name for step in table}) == len(table)


@pytest.mark.parametrize("table", [superlink.STEPS, supernode.STEPS], ids=["SL", "SN"])
def test_configure_comes_before_bootstrap(table: Sequence[Step[Any]]) -> None:
    stages = [step.stage for step in table if step.stage is not Stage.PLATFORM]
    assert stages == sorted(stages, key=[Stage.CONFIGURE, Stage.BOOTSTRAP].index)
    assert table[-1].stage is Stage.PLATFORM
