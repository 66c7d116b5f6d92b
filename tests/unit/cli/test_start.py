"""up, run, resume and down, as far as they go without Flower."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from onefed.errors import ExitCode
from onefed.local import ownership

Run = Callable[..., Any]

ONEFED = Path(sys.executable).with_name("onefed")


# --- down -----------------------------------------------------------------------------------------


def test_what_does_not_run_is_left_as_it_is(onefed: Run, finished: Run) -> None:
    directory = finished("demo")
    before = sorted(directory.folder.rglob("*"))
    shown = onefed("down", "demo")
    assert (shown.code, shown.out, shown.err) == (0, "demo is not running.\n", "")
    assert sorted(directory.folder.rglob("*")) == before


def test_what_a_killed_cloud_left_is_ended(onefed: Run, finished: Run) -> None:
    directory = finished("demo")
    left = subprocess.Popen(
        ["env", f"{ownership.STATE_VARIABLE}={directory.folder}", "sleep", "600"]
    )
    assert "1 left-over processes were ended" in onefed("down", "demo").out
    assert left.wait() == -signal.SIGTERM


def test_a_cloud_is_stopped_and_told_of(onefed: Run, finished: Run, hold: Run) -> None:
    directory = finished("demo")
    cloud = hold(directory)
    shown = onefed("down", "demo", "--now")
    assert shown.code == 0
    assert shown.out.splitlines() == ["Stopping demo.", "demo is down after round 3 of 3."]
    assert cloud.wait() == -signal.SIGTERM


def test_a_cloud_that_left_no_summary_is_down_all_the_same(
    onefed: Run, make: Run, hold: Run
) -> None:
    hold(make("demo"))
    shown = onefed("down", "--now")
    assert (shown.code, shown.err) == (0, "")
    assert "onefed resume demo" in shown.out


def test_of_several_that_run_none_is_guessed(onefed: Run, make: Run, hold: Run) -> None:
    clouds = [hold(make(name)) for name in ("a", "b")]
    shown = onefed("down", "--now")
    assert shown.code == ExitCode.USAGE
    assert "a, b" in shown.err
    assert [cloud.poll() for cloud in clouds] == [None, None]


def test_nothing_is_discarded_by_a_guess(onefed: Run, finished: Run, home: Path) -> None:
    for name in ("a", "b"):
        finished(name)
    assert onefed("down", "--purge").code == ExitCode.USAGE
    assert sorted(entry.name for entry in home.iterdir()) == ["a", "b"]
    shown = onefed("down", "a", "--purge")
    assert "a and everything it trained is gone." in shown.out
    assert [entry.name for entry in home.iterdir()] == ["b"]
    assert onefed("down", "--purge").code == 0
    assert list(home.iterdir()) == []


def test_a_damaged_one_can_be_discarded_by_its_name(onefed: Run, make: Run, home: Path) -> None:
    make("demo").spec_file.write_text("{")
    assert onefed("down", "demo", "--purge").code == 0
    assert list(home.iterdir()) == []


# --- resume ---------------------------------------------------------------------------------------


def test_what_runs_is_not_resumed(onefed: Run, finished: Run, hold: Run) -> None:
    directory = finished("demo")
    cloud = hold(directory)
    shown = onefed("resume", "demo")
    assert shown.code == ExitCode.IN_USE
    assert "onefed status demo" in shown.err
    assert directory.summary.exists()
    assert cloud.poll() is None


def test_a_federation_that_cannot_start_is_told_of_and_summed_up(
    onefed: Run, make: Run, tmp_path: Path
) -> None:
    """Everything of a real start but Flower: its superlink refuses its context."""
    directory = make("demo", context={"FL_NUM_ROUNDS": "many"})
    directory.bundle.write_bytes(b"no app")
    copy = tmp_path / "summary.json"
    shown = onefed("resume", "demo", "--summary", copy)
    assert shown.code == ExitCode.CONFIG
    assert "Invalid FL_NUM_ROUNDS: 'many'" in shown.out
    assert "demo: failed" in shown.out.splitlines()
    told = json.loads(copy.read_text())
    assert (told["status"], told["exit_code"]) == ("failed", ExitCode.CONFIG)
    assert ownership.processes(directory) == []

    directory.write_spec(dataclasses.replace(directory.read_spec(), context={"FL_SEED": "none"}))
    shown = onefed("resume", "demo", "--rounds", "9", "--log-format", "json")
    lines = [json.loads(line) for line in shown.out.splitlines()]
    assert lines[0]["event"] == "federation_start"
    assert sum(line["event"] == "federation_start" for line in lines) == 1
    assert lines[-1]["event"] == "summary"
    assert lines[-1]["data"]["exit_code"] == shown.code == ExitCode.CONFIG
    assert lines[-1]["data"]["rounds_total"] == 9
    spec = directory.read_spec()
    assert (spec.rounds, spec.context) == (9, {"FL_SEED": "none", "FL_NUM_ROUNDS": "9"})


def test_a_cloud_that_ends_without_a_word_is_summed_up_in_its_place(
    onefed: Run, make: Run, tmp_path: Path
) -> None:
    """Its disk cannot be read: it never comes to its own summary."""
    directory = make("demo")
    directory.lock_file.unlink()
    directory.lock_file.mkdir()
    copy = tmp_path / "summary.json"
    shown = onefed("resume", "demo", "--summary", copy)
    assert shown.code == ExitCode.STORAGE
    told = json.loads(copy.read_text())
    assert (told["status"], told["exit_code"]) == ("failed", ExitCode.STORAGE)
    assert "cloud.lock" in told["error"]
    assert str(directory.log) in told["error"]
    assert "Traceback" not in told["error"]


def test_a_summary_that_cannot_be_written_is_refused_before_the_training(
    onefed: Run, finished: Run, tmp_path: Path
) -> None:
    directory = finished("demo")
    for path in (tmp_path, tmp_path / "nowhere/summary.json", Path("/proc/summary.json")):
        shown = onefed("resume", "demo", "--summary", path)
        assert shown.code == ExitCode.STORAGE
        assert str(path) in shown.err
    assert "federation_start" in directory.events.read_text()
    assert directory.summary.exists()


def test_a_reader_that_goes_takes_an_attached_federation_with_it(make: Run) -> None:
    directory = make("demo")
    directory.bundle.write_bytes(b"no app")
    read, write = os.pipe()
    os.close(read)
    shown = subprocess.run(
        [ONEFED, "resume", "demo"], stdout=write, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(write)
    assert shown.returncode == ExitCode.INTERRUPTED
    assert "demo was stopped" in shown.stderr
    assert "onefed resume demo" in shown.stderr
    assert "Traceback" not in shown.stderr
    assert ownership.owner(directory) is None
    assert ownership.processes(directory) == []


def test_ctrl_c_stops_it_and_says_how_to_go_on(make: Run) -> None:
    directory = make("demo")
    directory.bundle.write_bytes(b"no app")
    program = subprocess.Popen(
        [ONEFED, "resume", "demo", "--log-format", "json"], stdout=subprocess.PIPE, text=True
    )
    assert program.stdout is not None
    assert json.loads(program.stdout.readline())["event"] == "federation_start"
    program.send_signal(signal.SIGINT)
    *_, last = [json.loads(line) for line in program.stdout]
    program.stdout.close()
    assert program.wait() == ExitCode.INTERRUPTED
    assert (last["event"], last["data"]["status"]) == ("summary", "stopped")
    assert "onefed resume demo" in last["data"]["error"]
    assert ownership.processes(directory) == []


def test_ctrl_c_before_the_start_leaves_nothing(home: Path, tmp_path: Path) -> None:
    """While the app is imported to see whether it can be: nothing is written yet, nothing stays."""
    folder, said = tmp_path / "slow", tmp_path / "said"
    folder.mkdir()
    os.mkfifo(said)
    (folder / "pyproject.toml").write_text(
        '[project]\nname = "slow"\nversion = "1.0"\n'
        '[tool.flwr.app]\npublisher = "somebody"\n'
        '[tool.flwr.app.components]\nserverapp = "slow:app"\nclientapp = "slow:app"\n'
    )
    (folder / "slow.py").write_text(
        "import os, signal\n"
        f"with open({str(said)!r}, 'w') as out: out.write(str(os.getpid()))\n"
        "signal.pause()\n"
    )
    program = subprocess.Popen(
        [ONEFED, "run", folder, "--dir", tmp_path / "far"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    importing = psutil.Process(int(said.read_text()))
    program.send_signal(signal.SIGINT)
    out, err = program.communicate()
    assert (program.returncode, out) == (ExitCode.INTERRUPTED, "")
    assert "Traceback" not in err
    assert not home.exists()
    assert not (tmp_path / "far").exists()
    assert not importing.is_running() or importing.status() == psutil.STATUS_ZOMBIE


def test_a_terminal_gets_a_picture(make: Run) -> None:
    directory = make("demo", context={"FL_NUM_ROUNDS": "many"})
    directory.bundle.write_bytes(b"no app")
    screen, terminal = pty.openpty()
    program = subprocess.Popen(
        ["env", "TERM=xterm-256color", "COLUMNS=80", ONEFED, "resume", "demo"],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
    )
    os.close(terminal)
    with open(screen, "rb") as reader:  # noqa: PTH123
        seen = b""
        with contextlib.suppress(OSError):  # the other end was closed
            while chunk := reader.read1():
                seen += chunk
    assert program.wait() == ExitCode.CONFIG
    shown = seen.decode()
    for fact in ("demo · image-classification", "round 0 of 3", "superlink", "demo: failed"):
        assert fact in shown
    assert "Invalid FL_NUM_ROUNDS: 'many'" in shown
    assert "onefed resume demo" in shown
