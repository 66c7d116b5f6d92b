"""Two real processes and one recovery store: who may write, and from when on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from onefed.checkpoint import RecoveryStore, writer_lock
from onefed.errors import InUseError

WRITER = """
import sys, time
from pathlib import Path
from onefed.checkpoint import writer_lock
writer_lock.take(Path(sys.argv[1]), clock=time.monotonic, sleep=time.sleep, waiting=print)
forked = __import__("os").fork() if len(sys.argv) > 2 else 0
if not forked:  # the only one, or the child
    print("has it", flush=True)
time.sleep(1000)
"""


class Clock:
    """Seconds that pass when somebody sleeps."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


def try_to_take(folder: Path) -> list[int]:
    """Wait for it in virtual time; returns whom it waited for."""
    told: list[int] = []
    clock = Clock()
    writer_lock.take(folder, clock=clock, sleep=clock.sleep, waiting=told.append)
    return told


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that has the lock."""
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path / "recovery")],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "has it\n"
        yield process
        process.kill()


def test_a_writer_that_is_stopped_in_the_middle_keeps_others_out_until_it_is_dead(
    writer: subprocess.Popen[str], tmp_path: Path
) -> None:
    folder = tmp_path / "recovery"
    os.kill(writer.pid, signal.SIGSTOP)
    with pytest.raises(InUseError, match=f"Process {writer.pid} has been writing"):
        try_to_take(folder)

    writer.kill()
    writer.wait()
    assert try_to_take(folder) == []


def test_the_wait_is_told_once_with_the_holder(
    writer: subprocess.Popen[str], tmp_path: Path
) -> None:
    told: list[int] = []
    clock = Clock()

    def sleep(seconds: float) -> None:
        clock.sleep(seconds)
        if clock.now_s > writer_lock.WAIT_S / 2:
            writer.kill()
            writer.wait()

    writer_lock.take(tmp_path / "recovery", clock=clock, sleep=sleep, waiting=told.append)
    assert told == [writer.pid]


def test_a_child_of_a_dead_writer_does_not_keep_the_lock(tmp_path: Path) -> None:
    """An app may fork workers, which live on for a moment."""
    folder = tmp_path / "recovery"
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(folder), "and a child"],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "has it\n"
        process.kill()
        process.wait()
        try:
            assert try_to_take(folder) == []
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def test_the_lock_is_no_snapshot(tmp_path: Path) -> None:
    try_to_take(tmp_path)
    assert RecoveryStore(tmp_path).peek() is None
    assert RecoveryStore(tmp_path).load("a run") is None
