"""Real federations, started as a user starts them and looked at from outside."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

ONEFED = Path(sys.executable).parent / "onefed"

LIMIT_S = 240.0
"""A federation that takes longer has hung. About eight times what it takes on an idle machine."""


class Started:
    """A running ``onefed`` program whose standard output is JSON lines."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: list[dict[str, Any]] = []

    def wait_for(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Read lines until one is wanted; fails when the program ends first."""
        assert self.process.stdout is not None
        for text in self.process.stdout:
            line = json.loads(text)
            self.lines.append(line)
            if wanted(line):
                return line
        raise AssertionError(f"it ended first ({self.process.wait()}): {self.lines[-5:]}")

    def wait_for_round(self, number: int) -> dict[str, Any]:
        """Read until a round is announced as done."""
        return self.wait_for(
            lambda line: line["event"] == "round_end" and line["data"]["round"] == number
        )

    def finish(self) -> dict[str, Any]:
        """Read to the end; returns the summary."""
        summary: dict[str, Any] = self.wait_for(lambda line: line["event"] == "summary")["data"]
        assert self.process.wait(LIMIT_S) == summary["exit_code"]
        return summary


class Home:
    """A state home of its own, and the programs started in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {**os.environ, "ONEFED_HOME": str(folder)}
        self._started: list[subprocess.Popen[str]] = []

    def start(self, *arguments: str) -> Started:
        """Start ``onefed ARGUMENTS --log-format json``."""
        process = subprocess.Popen(
            [ONEFED, *arguments, "--log-format", "json"],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._started.append(process)
        return Started(process)

    def run(self, *arguments: str, code: int = 0) -> str:
        """Run ``onefed ARGUMENTS`` to its end; returns what it printed."""
        done = subprocess.run(
            [ONEFED, *arguments],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout

    def processes(self, name: str) -> list[str]:
        """Command lines of all processes that carry the federation's state directory."""
        wanted = str(self.folder / name)
        found = []
        for process in psutil.process_iter():
            try:
                command = " ".join(process.cmdline())
                if process.environ().get("ONEFED_STATE_DIR") == wanted or wanted in command:
                    found.append(command)
            except psutil.Error:
                continue
        return found

    def end(self) -> None:
        """End whatever a failed test left."""
        for process in self._started:
            if process.poll() is None:
                process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()
        for entry in self.folder.iterdir():
            subprocess.run(
                [ONEFED, "down", entry.name, "--now"],
                env=self.environment,
                capture_output=True,
                timeout=LIMIT_S,
                check=False,
            )


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    """A fresh state home; nothing that was started in it outlives the test."""
    yield from _home(tmp_path / "home")


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Home]:
    """A state home beside it, as on another machine."""
    yield from _home(tmp_path / "elsewhere")


def _home(folder: Path) -> Iterator[Home]:
    found = Home(folder)
    found.folder.mkdir()
    yield found
    found.end()
