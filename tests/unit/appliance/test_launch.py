"""What a unit starts becomes the program, with its environment and nothing else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from onefed.appliance import description
from onefed.appliance.description import Description
from onefed.errors import ExitCode


def launch(folder: Path, name: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-P", "-m", "onefed.appliance.launch", str(folder), name]
    return subprocess.run(
        argv, env={"PLANTED": "x"}, capture_output=True, text=True, check=False, timeout=60
    )


def test_the_process_is_the_program_and_sees_only_its_own_environment(tmp_path: Path) -> None:
    argv = ("/bin/sh", "-c", 'printf "%s|" "$@"; pwd; env | sort', "sh", "$(id)", "a b", "%h")
    wanted = Description("x", argv, {"SEEN": "1\t$HOME"}, tmp_path)
    description.write(tmp_path, wanted)
    said = launch(tmp_path, "x").stdout
    assert said.startswith(f"$(id)|a b|%h|{tmp_path}\n")
    assert "SEEN=1\t$HOME" in said
    assert "PLANTED" not in said


def test_a_program_without_description_says_what_to_do(tmp_path: Path) -> None:
    ended = launch(tmp_path, "none")
    assert ended.returncode == ExitCode.STORAGE
    (tmp_path / "bad.json").write_text('{"format": 2}')
    ended = launch(tmp_path, "bad")
    assert "onefed appliance configure" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_program_that_is_not_installed_is_named(tmp_path: Path) -> None:
    description.write(tmp_path, Description("x", ("/no/such",), {}, tmp_path))
    ended = launch(tmp_path, "x")
    assert (ended.returncode, "/no/such cannot be started" in ended.stderr) == (127, True)
