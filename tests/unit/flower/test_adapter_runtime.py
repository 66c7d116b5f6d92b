"""What our executor relies on in flwr 1.41.0, against Flower's own server."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from flwr.superlink.grid import HttpGrid

from onefed.flower import adapter, adapter_runtime, bundle, executor, task_record


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "superexec.secret"
    path.write_text("5ec7e7" * 10)
    return path


@pytest.fixture
def run_id(superlink_server: Any, app_folder: Callable[..., Path]) -> int:
    """A run that waits for its ServerApp."""
    control = adapter.Control(superlink_server.address, None)
    started = control.start_run(bundle.build(bundle.load(app_folder())).fab, {})
    control.close()
    return started


def test_a_waiting_run_is_taken_once_and_its_program_is_flowers(
    superlink_server: Any, secret: Path, run_id: int
) -> None:
    runtime = adapter_runtime.Runtime(superlink_server.address, None, secret)
    task = runtime.acquire()
    assert task is not None
    assert task.run_id == run_id
    assert runtime.acquire() is None

    command = runtime.server_app_command(task, parent=42)
    runtime.close()
    assert command == [
        *("flwr-serverapp", "--runtime-api-address", superlink_server.address),
        *("--token", task.token, "--insecure", "--parent-pid", "42"),
    ]
    flowers = subprocess.run(
        [Path(sys.executable).parent / command[0], "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert all(word in flowers.stdout for word in command if word.startswith("--"))


def test_a_superlink_that_is_away_is_an_error_of_ours(secret: Path) -> None:
    runtime = adapter_runtime.Runtime("127.0.0.1:1", None, secret)
    with pytest.raises(adapter.SuperLinkError, match="Could not ask for a task"):
        runtime.acquire()
    runtime.close()


def test_an_empty_secret_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    with pytest.raises(adapter.SuperLinkError, match="cannot be used"):
        adapter_runtime.Runtime("127.0.0.1:1", None, tmp_path / "empty")


def test_a_hurried_grid_looks_for_its_superlink_every_second() -> None:
    grid = HttpGrid("127.0.0.1:1", insecure=True, token="t")
    assert "wait_gen_factory" in inspect.signature(type(grid._retry_invoker)).parameters

    failures = adapter_runtime.hurry(grid)

    assert failures() == 0
    pauses = list(islice(grid._retry_invoker.wait_gen_factory(), 50))
    assert max(pauses) == adapter_runtime.GRID_RETRY_MAX_S
    assert failures() == 50, "each pause follows a request that failed"
    grid.close()


def test_the_executor_writes_down_which_process_it_started_and_hurries_after_a_death(
    superlink_server: Any, secret: Path, run_id: int, tmp_path: Path, clock: Any
) -> None:
    started: list[subprocess.Popen[bytes]] = []

    def spawn(argv: list[str]) -> subprocess.Popen[bytes]:
        started.append(subprocess.Popen(["sleep", "1000"]))
        return started[-1]

    runtime = adapter_runtime.Runtime(superlink_server.address, None, secret)
    made = executor.Executor(runtime, record=tmp_path / "record", spawn=spawn, clock=clock)
    assert made.step() == executor.POLL_FAST_S
    clock.sleep(executor.FAST_FOR_S)
    assert made.step() == executor.POLL_S

    [process] = started
    record = task_record.read(tmp_path / "record")
    assert record is not None
    assert (record.run_id, record.pid) == (run_id, process.pid)
    assert record.lives()
    record.kill()
    process.wait()
    assert not record.lives()
    assert made.step() == executor.POLL_FAST_S
    runtime.close()


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"run_id": 1, "pid": "x"}'])
def test_a_record_that_cannot_be_read_is_none(tmp_path: Path, content: str) -> None:
    assert task_record.read(tmp_path / "missing") is None
    (tmp_path / "record").write_text(content)
    assert task_record.read(tmp_path / "record") is None


def test_a_process_that_got_the_number_of_a_dead_one_is_another(tmp_path: Path) -> None:
    process = subprocess.Popen(["sleep", "1000"])
    real = task_record.TaskRecord.of(1, process.pid)
    older = task_record.TaskRecord(1, process.pid, real.started_at - 100)
    assert not older.lives()
    older.kill()
    assert process.poll() is None
    process.kill()
    process.wait()
