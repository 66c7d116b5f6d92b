"""status, list, logs and model export."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from onefed import arrays
from onefed.appliance.paths import Paths
from onefed.checkpoint import RecoveryStore
from onefed.errors import ExitCode
from onefed.local.state import SUPERLINK, StateDir
from onefed.telemetry import events
from onefed.telemetry.log import EventLog

Run = Callable[..., Any]

ONEFED = Path(sys.executable).with_name("onefed")

MODEL = {"layer/weight": np.full((2, 2), 3, np.float32)}
"""What a finished federation has trained."""


def logs_of(directory: StateDir, machine: str) -> Path:
    return Paths(directory.root(machine)).logs


# --- list -----------------------------------------------------------------------------------------


def test_an_empty_home_says_how_to_begin(onefed: Run, home: Path) -> None:
    shown = onefed("list")
    assert (shown.code, shown.err) == (0, "")
    assert shown.out == "There is no federation yet. Start one with: onefed up\n"
    assert json.loads(onefed("list", "--json").out) == []
    assert not home.exists()


def test_every_federation_is_one_line(onefed: Run, make: Run, finished: Run, home: Path) -> None:
    finished("done")
    make("asked")
    header, *rows = [line.split() for line in onefed("list").out.splitlines()]
    assert header == ["name", "status", "app", "nodes", "rounds", "accuracy", "folder"]
    assert rows == [
        ["asked", "waiting", "image-classification", "2", "0", "of", "3", str(home / "asked")],
        [
            *("done", "finished", "image-classification", "2", "3", "of", "3"),
            *("0.7500", str(home / "done")),
        ],
    ]


def test_programs_get_everything(onefed: Run, finished: Run, home: Path) -> None:
    finished("demo")
    [row] = json.loads(onefed("list", "--json").out)
    assert row == {
        "name": "demo",
        "status": "finished",
        "running": False,
        "directory": str(home / "demo"),
        "details": None,
        "app": "image-classification",
        "nodes": 2,
        "strategy": "FedAvg",
        "rounds_done": 3,
        "rounds_total": 3,
        "accuracy": 0.75,
        "loss": pytest.approx(1 / 3, abs=1e-6),
        "model_sha256": arrays.digest(MODEL),
        "checkpoint": f"{home}/demo/checkpoint.npz",
        "failures": 0,
        "restarts": 0,
    }


def test_one_that_cannot_be_read_does_not_hide_the_others(
    onefed: Run, make: Run, finished: Run
) -> None:
    finished("good")
    make("bad").spec_file.write_text("{")
    shown = onefed("list")
    assert shown.code == 0
    assert "good" in shown.out
    assert "unreadable" in shown.out
    bad, good = json.loads(onefed("list", "--json").out)
    assert set(bad) == set(good)
    assert (bad["name"], bad["nodes"]) == ("bad", None)


def test_names_and_folders_are_no_mark_up(onefed: Run, make: Run, tmp_path: Path) -> None:
    place = tmp_path / ("long-" * 30) / "[red]x[/]"
    make("demo", folder=place, app="\x1b[2J[b]app")
    shown = onefed("list").out
    assert str(place) in shown
    assert "\\x1b[2J[b]app" in shown


# --- status ---------------------------------------------------------------------------------------


def test_a_finished_federation_is_drawn(onefed: Run, finished: Run, home: Path) -> None:
    finished("demo")
    for shown in (onefed("status", "demo"), onefed("status")):
        assert (shown.code, shown.err) == (0, "")
        for fact in ("demo", "finished", "round 3 of 3", "supernode/1", str(home / "demo")):
            assert fact in shown.out


def test_machines_are_there_for_programs(onefed: Run, finished: Run) -> None:
    finished("demo")
    found = json.loads(onefed("status", "demo", "--json").out)
    assert (found["status"], found["running"]) == ("finished", False)
    assert [machine["name"] for machine in found["machines"]] == [
        "superlink",
        "supernode/0",
        "supernode/1",
    ]
    assert found["machines"][1] == {
        "name": "supernode/0",
        "role": "supernode",
        "state": "idle",
        "partition": 0,
        "last_reply_round": 3,
        "reason": None,
    }


def test_one_that_was_never_started_can_be_looked_at(onefed: Run, make: Run) -> None:
    make("demo")
    assert "waiting" in onefed("status", "demo").out


def test_one_whose_cloud_was_killed_is_stopped_and_not_training(
    onefed: Run, make: Run, hold: Run
) -> None:
    directory = make("demo")
    log = EventLog(directory.events, "cloud", lambda: datetime(2026, 1, 1, tzinfo=UTC))
    log.emit(events.FederationStart("demo", 2, 3, "FedAvg", "app", 0, str(directory.folder)))
    log.emit(events.TrainingStart("FedAvg", 3, 2))
    log.close()
    cloud = hold(directory)
    assert json.loads(onefed("status", "demo", "--json").out)["status"] == "training"
    cloud.kill()
    cloud.wait()
    shown = onefed("status", "demo")
    assert "stopped" in shown.out
    assert "onefed resume" in shown.out


def test_a_damaged_one_says_what_to_do(onefed: Run, make: Run) -> None:
    directory = make("demo")
    directory.spec_file.write_text("{")
    shown = onefed("status", "demo")
    assert shown.code == ExitCode.STORAGE
    assert str(directory.spec_file) in shown.err
    assert "next:" in shown.err


# --- logs -----------------------------------------------------------------------------------------


def test_events_are_lines_for_people(onefed: Run, finished: Run) -> None:
    finished("demo")
    lines = onefed("logs").out.splitlines()
    assert "federation demo: 2 nodes, 3 rounds of FedAvg" in lines[0]
    assert any("supernode/1 is registered as node 11" in line for line in lines)
    assert "federation finished after round 3 of 3" in lines[-1]


def test_a_long_history_is_shown_to_its_end(onefed: Run, make: Run) -> None:
    directory = make("demo")
    log = EventLog(directory.events, "cloud", lambda: datetime(2026, 1, 1, tzinfo=UTC))
    log.emit(events.Notice("INFO", "x" * 4000))
    one = directory.events.read_bytes()
    directory.events.write_bytes(one * (9 * 2**20 // len(one)))
    log.emit(events.Notice("INFO", "the last word"))
    log.close()
    assert onefed("logs").out.endswith("the last word\n")


@pytest.mark.parametrize(
    ("part", "machines"),
    [
        ("superlink", ["superlink"]),
        ("supernode", ["supernode/0", "supernode/1"]),
        ("supernode/1", ["supernode/1"]),
    ],
)
def test_a_role_or_a_machine_is_picked(
    onefed: Run, finished: Run, part: str, machines: list[str]
) -> None:
    finished("demo")
    assert onefed("logs", part).out.splitlines() == [
        f"{name} {name.partition('/')[0]} | {word} of {name}"
        for name in machines
        for word in ("first", "last")
    ]


@pytest.mark.parametrize("part", ["supernode/2", "superlink/0", "node", "", "../superlink"])
def test_a_machine_that_is_not_there_is_refused_with_those_that_are(
    onefed: Run, finished: Run, part: str
) -> None:
    finished("demo")
    shown = onefed("logs", part)
    assert (shown.code, shown.out) == (ExitCode.USAGE, "")
    assert repr(part) in shown.err
    assert "superlink, supernode/0, supernode/1" in shown.err


def test_what_programs_write_moves_no_cursor(onefed: Run, finished: Run) -> None:
    directory = finished("demo")
    (logs_of(directory, "superlink") / "superlink.log").write_bytes(
        b"\x1b[92mINFO\x1b[0m :      green\n"
        b"a\tb\n"
        b"\x1b[2J\x1b]0;title\x07gone\r\n"
        b"\xc2\x9b2J c1\n"
        b"\xff\xfe not utf-8\n"
        b"no line break"
    )
    shown = onefed("logs", "superlink").out
    assert [line.removeprefix("superlink superlink | ") for line in shown.splitlines()] == [
        "INFO :      green",
        "a       b",
        "\\x1b[2J\\x1b]0;title\\x07gone",
        "\\x9b2J c1",
        "\ufffd\ufffd not utf-8",
        "no line break",
    ]


def test_a_line_without_end_is_shown_in_pieces(onefed: Run, finished: Run) -> None:
    directory = finished("demo")
    (logs_of(directory, "superlink") / "superlink.log").write_bytes(b"x" * 200_000)
    lines = onefed("logs", "superlink").out.splitlines()
    assert len(lines) == 4
    assert all("x" * 1000 in line for line in lines)


def test_a_federation_that_runs_is_followed_until_nothing_runs(
    finished: Run, hold: Run, home: Path
) -> None:
    """What is written before the end is shown, and a line only when it is whole."""
    directory = finished("demo")
    log = EventLog(directory.events, "cloud", lambda: datetime(2026, 1, 1, tzinfo=UTC))
    program_log = logs_of(directory, "superlink") / "superlink.log"
    cloud = hold(directory)
    followers = [
        subprocess.Popen([ONEFED, "logs", *part, "-f"], stdout=subprocess.PIPE, text=True)
        for part in ([], ["superlink"])
    ]
    of_events, of_program = (follower.stdout for follower in followers)
    assert of_events is not None
    assert of_program is not None
    while "finished" not in of_events.readline():
        pass
    while "last of" not in of_program.readline():
        pass

    log.emit(events.Notice("INFO", "as it happens"))
    assert "as it happens" in of_events.readline()
    with program_log.open("a") as written:
        written.write("a whole line\nhalf of")
    assert of_program.readline() == "superlink superlink | a whole line\n"

    log.emit(events.Notice("INFO", "the last word"))
    log.close()
    with program_log.open("a") as written:
        written.write(" it")
    cloud.communicate()
    assert of_events.read().endswith("the last word\n")
    assert of_program.read() == "superlink superlink | half of it\n"
    assert [follower.wait() for follower in followers] == [0, 0]
    of_events.close()
    of_program.close()


def test_following_what_does_not_run_ends_at_once(onefed: Run, finished: Run) -> None:
    finished("demo")
    assert onefed("logs", "-f").code == 0


# --- model export ---------------------------------------------------------------------------------


def test_the_model_is_exported_with_what_is_known_of_it(
    onefed: Run, finished: Run, tmp_path: Path
) -> None:
    finished("demo")
    shown = onefed("model", "export", "demo", "-o", tmp_path / "[b] model.npz")
    assert (shown.code, shown.err) == (0, "")
    assert str(tmp_path / "[b] model.npz") in shown.out
    assert "1 arrays of round 3" in shown.out
    with np.load(tmp_path / "[b] model.npz", allow_pickle=False) as file:
        metadata = json.loads(str(file["__metadata__"]))
        np.testing.assert_array_equal(file["layer/weight"], MODEL["layer/weight"])
    assert metadata["model_sha256"] == arrays.digest(MODEL)
    assert (metadata["federation"], metadata["round"], metadata["seed"]) == ("demo", "3", "7")
    assert metadata["accuracy"] == "0.75"

    onefed("model", "export", "demo", "-o", tmp_path / "model.safetensors")
    loaded = load_file(tmp_path / "model.safetensors")
    np.testing.assert_array_equal(loaded["layer/weight"], MODEL["layer/weight"])


def test_a_file_that_is_there_is_replaced_only_when_asked(
    onefed: Run, finished: Run, tmp_path: Path
) -> None:
    finished("demo")
    (tmp_path / "model.npz").write_text("mine")
    shown = onefed("model", "export", "demo", "-o", tmp_path / "model.npz")
    assert shown.code == ExitCode.IN_USE
    assert (tmp_path / "model.npz").read_text() == "mine"
    assert onefed("model", "export", "demo", "-o", tmp_path / "model.npz", "--overwrite").code == 0
    assert (tmp_path / "model.npz").read_bytes().startswith(b"PK")


@pytest.mark.parametrize(
    ("output", "code"),
    [
        ("model.pt", ExitCode.USAGE),
        ("nowhere/model.npz", ExitCode.STORAGE),
        (".", ExitCode.USAGE),
    ],
)
def test_a_file_that_cannot_be_written_is_refused(
    onefed: Run, finished: Run, tmp_path: Path, output: str, code: ExitCode
) -> None:
    finished("demo")
    shown = onefed("model", "export", "demo", "-o", tmp_path / output)
    assert (shown.code, shown.out) == (code, "")
    assert "next:" in shown.err


@pytest.mark.parametrize(
    ("managed", "advice"), [(True, "onefed resume demo"), (False, "its own ServerApp")]
)
def test_before_the_first_round_there_is_no_model(
    onefed: Run, make: Run, tmp_path: Path, managed: bool, advice: str
) -> None:
    make("demo", managed=managed)
    shown = onefed("model", "export", "demo", "-o", tmp_path / "model.npz")
    assert shown.code == ExitCode.NOT_FOUND
    assert advice in shown.err
    assert not (tmp_path / "model.npz").exists()


def test_a_damaged_round_is_passed_over_and_named(
    onefed: Run, finished: Run, tmp_path: Path
) -> None:
    directory = finished("demo")
    recovery = Paths(directory.root(SUPERLINK)).recovery
    loaded = RecoveryStore(recovery).load("run")
    assert loaded is not None
    loaded.path.write_text("{")
    shown = onefed("model", "export", "demo", "-o", tmp_path / "model.npz")
    assert shown.code == 0
    assert "of round 2" in shown.out
    assert str(loaded.path) in shown.err

    for path in recovery.glob("*.json"):
        path.write_text("{")
    shown = onefed("model", "export", "demo", "-o", tmp_path / "none.npz")
    assert shown.code == ExitCode.STORAGE
    assert str(loaded.path) in shown.err
