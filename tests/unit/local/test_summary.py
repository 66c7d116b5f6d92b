"""The outcome of a federation, and the page that describes it."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onefed import arrays
from onefed.appliance.paths import Paths
from onefed.checkpoint import RecoveryStore, RoundRecord, Snapshot
from onefed.errors import ExitCode, StorageError
from onefed.local import summary
from onefed.local.spec import Spec
from onefed.local.state import SUPERLINK, StateDir
from onefed.local.summary import Summary
from onefed.telemetry.status import FederationView, RoundView

PAGE = Path(__file__).parents[3] / "docs" / "summary.md"

TYPES = {
    str: "text",
    int: "integer",
    float: "number",
    str | None: "text or null",
    float | None: "number or null",
}
"""How the page calls the types of the fields."""

ANY_TEXT = st.text(st.characters(exclude_categories=()))
"""With halves of characters, as paths that are not UTF-8 have them."""

SPEC = Spec(
    name="demo",
    nodes=3,
    app="image-classification",
    managed=True,
    rounds=5,
    strategy="FedAvg",
    seed=7,
    context={},
)


@pytest.fixture
def directory(tmp_path: Path) -> StateDir:
    return StateDir(tmp_path)


@pytest.fixture
def save(directory: StateDir) -> Callable[..., Snapshot]:
    """Puts a committed round into the recovery store of the federation."""
    store = RecoveryStore(Paths(directory.root(SUPERLINK)).recovery)

    def commit(round_number: int, **changed: Any) -> Snapshot:
        model = {"w": np.full(3, round_number, np.float32)}
        record = RoundRecord(
            round_number=round_number,
            loss=1 / round_number,
            accuracy=0.5,
            contributors=("0", "1"),
            failures=0,
            seconds=1.0,
            model_sha256=arrays.digest(model),
        )
        made = Snapshot(
            run="run",
            round_number=round_number,
            rounds_total=5,
            seed=7,
            rule="FedAvg",
            rule_state={},
            arrays=model,
            history=(dataclasses.replace(record, **changed),),
            app_sha256="a" * 64,
            config_sha256="c" * 64,
        )
        store.save(made)
        return made

    return commit


def make(
    directory: StateDir, view: FederationView, spec: Spec = SPEC, error: str | None = None
) -> Summary:
    return summary.make(directory, spec, view, error=error, seconds=1.234)


# --- what it says ---------------------------------------------------------------------------------


def test_the_model_is_that_of_the_recovery_store(
    directory: StateDir, save: Callable[..., Snapshot]
) -> None:
    """Not what the events of this start say: rounds of earlier starts count, too."""
    saved = save(5)
    told = make(directory, FederationView(run_status="completed", restarts=1, failures=2))
    assert told.status == "finished"
    assert (told.rounds_done, told.rounds_total) == (5, 5)
    assert (told.accuracy, told.loss) == (0.5, 0.2)
    assert told.model_sha256 == arrays.digest(saved.arrays)
    assert (told.restarts, told.failures, told.seconds) == (1, 2, 1.23)
    assert (told.error, told.exit_code) == (None, ExitCode.OK)


def test_an_app_with_its_own_server_app_is_known_by_its_events(directory: StateDir) -> None:
    view = FederationView(
        run_status="completed",
        rounds_total=3,
        rounds=(RoundView(round=3, responded=2, loss=0.5, accuracy=0.75),),
    )
    told = make(directory, view, dataclasses.replace(SPEC, managed=False, rounds=0))
    assert told.status == "finished"
    assert (told.rounds_done, told.rounds_total) == (3, 3)
    assert (told.accuracy, told.loss, told.model_sha256) == (0.75, 0.5, None)


def test_before_the_first_round_there_is_no_model(directory: StateDir) -> None:
    told = make(directory, FederationView(), error="It did not boot.")
    assert (told.status, told.exit_code) == ("failed", ExitCode.FAILED)
    assert (told.rounds_done, told.model_sha256) == (0, None)
    assert told.error == "It did not boot."


@pytest.mark.parametrize("run_status", [None, "running", "failed"])
def test_a_run_that_neither_ended_nor_was_stopped_has_failed(
    directory: StateDir, save: Callable[..., Snapshot], run_status: str | None
) -> None:
    save(3)
    told = make(directory, FederationView(run_status=run_status, details="Nobody answers."))
    assert (told.status, told.rounds_done) == ("failed", 3)
    assert told.error == "Nobody answers."


def test_a_run_that_was_stopped_can_go_on(
    directory: StateDir, save: Callable[..., Snapshot]
) -> None:
    save(3)
    told = make(directory, FederationView(run_status="stopped"))
    assert (told.status, told.rounds_done) == ("stopped", 3)
    assert told.exit_code == ExitCode.INTERRUPTED


def test_a_stop_after_the_last_round_finds_it_finished(
    directory: StateDir, save: Callable[..., Snapshot]
) -> None:
    save(5)
    assert make(directory, FederationView(run_status="stopped")).status == "finished"


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (ExitCode.INTERRUPTED, "stopped"),
        (ExitCode.BOOT, "failed"),
        (ExitCode.STORAGE, "failed"),
        (ExitCode.OK, "finished"),
    ],
)
def test_the_code_of_the_program_decides_about_the_status(
    directory: StateDir, save: Callable[..., Snapshot], code: ExitCode, status: str
) -> None:
    save(5)
    told = summary.with_exit_code(make(directory, FederationView()), code)
    assert (told.status, told.exit_code) == (status, code)


def test_a_damaged_recovery_store_does_not_keep_the_summary_from_being_written(
    directory: StateDir, save: Callable[..., Snapshot]
) -> None:
    save(1)
    for path in Paths(directory.root(SUPERLINK)).recovery.iterdir():
        path.write_bytes(b"zeroes")
    assert make(directory, FederationView()).model_sha256 is None
    with pytest.raises(StorageError):
        summary.last_saved(directory)


# --- the document ---------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_run_that_diverged_has_a_summary(
    directory: StateDir, save: Callable[..., Snapshot], value: float
) -> None:
    """JSON knows no such numbers: they are null."""
    save(5, loss=value, accuracy=value)
    summary.write(make(directory, FederationView()), directory.summary)
    found = summary.read(directory.summary)
    assert (found["loss"], found["accuracy"]) == (None, None)


@settings(deadline=None, max_examples=50)
@given(
    name=ANY_TEXT,
    error=st.none() | ANY_TEXT,
    checkpoint=st.none() | ANY_TEXT,
    rounds=st.integers(0, 2**40),
)
def test_what_was_written_is_read(
    tmp_path_factory: pytest.TempPathFactory,
    name: str,
    error: str | None,
    checkpoint: str | None,
    rounds: int,
) -> None:
    folder = tmp_path_factory.mktemp("summary")
    told = make(
        StateDir(folder),
        FederationView(checkpoint=checkpoint),
        dataclasses.replace(SPEC, name=name, rounds=rounds),
        error,
    )
    summary.write(told, folder / "summary.json")
    assert summary.read(folder / "summary.json") == dataclasses.asdict(told)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"nan"])
def test_what_is_no_summary_is_a_storage_error(directory: StateDir, content: bytes) -> None:
    directory.summary.write_bytes(content)
    with pytest.raises(StorageError, match=r"summary\.json"):
        summary.read(directory.summary)


# --- the page -------------------------------------------------------------------------------------


def test_the_page_describes_every_field_with_its_type() -> None:
    rows = re.findall(r"^\| `(\w+)` \| ([^|]+) \| (.+) \|$", PAGE.read_text(), re.MULTILINE)
    hints = typing.get_type_hints(Summary)
    expected = [
        (field.name, TYPES.get(hints[field.name], "text")) for field in dataclasses.fields(Summary)
    ]
    assert [(name, kind) for name, kind, _ in rows] == expected
    assert all(meaning.endswith(".") for _, _, meaning in rows)


def test_the_page_names_every_status() -> None:
    [row] = [line for line in PAGE.read_text().splitlines() if line.startswith("| `status`")]
    for status in typing.get_args(summary.Status):
        assert f"`{status}`" in row


def test_the_example_on_the_page_is_a_summary() -> None:
    [text] = re.findall(r"```json\n(.+?)```", PAGE.read_text(), re.DOTALL)
    example = json.loads(text)
    assert list(example) == [field.name for field in dataclasses.fields(Summary)]
    assert len(example["model_sha256"]) == 64
    assert example["format"] == summary.FORMAT
