"""What our executor relies on in flwr 1.41.0, against Flower's own server."""

from __future__ import annotations

import inspect
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import entry_points
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from flwr.superlink.grid import HttpGrid

from onefed.flower import adapter, adapter_runtime, bundle, executor, task_record
from onefed.flower.launcher import Launcher


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
    runtime = SleepingServerApps(superlink_server.address, None, secret)
    launcher = Launcher(None, clock=clock, say=print)
    made = executor.Executor(
        runtime, record=tmp_path / "record", launcher=launcher, clock=clock, sleep=clock.sleep
    )
    assert made.step() == executor.POLL_WORKING_S, "the SuperLink is left to the round"

    record = task_record.read(tmp_path / "record")
    assert record is not None
    assert record.run_id == run_id
    assert record.lives()
    record.kill()
    until(lambda: not record.lives())
    assert made.step() == executor.POLL_FAST_S
    clock.sleep(executor.FAST_FOR_S)
    assert made.step() == executor.POLL_S
    runtime.close()


class SleepingServerApps(adapter_runtime.Runtime):
    """Its tasks are programs that do nothing."""

    def server_app_command(self, task: adapter_runtime.Task, *, parent: int) -> list[str]:
        return ["sleep", "1000"]


def until(happened: Callable[[], bool]) -> None:
    ends_s = time.monotonic() + 20
    while not happened():
        assert time.monotonic() < ends_s
        time.sleep(0.01)


def test_nothing_is_taken_before_it_can_be_started(
    superlink_server: Any, secret: Path, run_id: int, tmp_path: Path, clock: Any
) -> None:
    class NotReady(Launcher):
        def is_ready(self) -> bool:
            return False

    runtime = adapter_runtime.Runtime(superlink_server.address, None, secret)
    made = executor.Executor(
        runtime,
        record=tmp_path / "record",
        launcher=NotReady(None, clock=clock, say=print),
        clock=clock,
        sleep=clock.sleep,
    )
    made.step()
    assert not made.asks
    task = runtime.acquire()
    assert task is not None
    assert task.run_id == run_id
    runtime.close()


FORKED = """
import json, sys, time
from onefed.flower import nursery
made = nursery.start()
while not made.is_ready():
    time.sleep(0.05)
print(made.fork(json.loads(sys.argv[1])).pid, flush=True)
sys.stdin.read()
made.close()
"""


def test_a_forked_process_is_flowers_server_app(
    superlink_server: Any, secret: Path, run_id: int, tmp_path: Path
) -> None:
    """The contract with ``flwr_serverapp``: it reads ``sys.argv`` and ends by SystemExit."""
    runtime = adapter_runtime.Runtime(superlink_server.address, None, secret)
    task = runtime.acquire()
    assert task is not None
    argv = runtime.server_app_command(task, parent=os.getpid())
    runtime.close()
    environment = {
        **os.environ,
        "FLWR_HOME": str(tmp_path),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "ONEFED_STATE_DIR": str(tmp_path),
    }
    with subprocess.Popen(
        [sys.executable, "-P", "-c", FORKED, json.dumps(argv)],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        control = adapter.Control(superlink_server.address, None)
        until(lambda: control.run_status(run_id).finished)
        status = control.run_status(run_id)
        control.close()
        process.kill()
    # It has got the app and run it: only our machine's folders are missing here.
    assert status.sub_status == "failed"
    assert "ONEFED_RECOVERY_DIR is not set" in status.details


def test_a_superlink_that_refuses_the_secret_says_so_with_its_status(
    guarded_superlink: str, secret: Path
) -> None:
    runtime = adapter_runtime.Runtime(guarded_superlink, None, secret)
    with pytest.raises(adapter.SuperLinkError) as refused:
        runtime.acquire()
    runtime.close()
    assert refused.value.status in {401, 403}
    assert "same secret" in str(refused.value)


@pytest.mark.parametrize(
    ("status", "limit_s"), [(401, executor.REFUSED_REPORT_S), (None, executor.SILENT_REPORT_S)]
)
def test_a_superlink_that_gives_no_tasks_for_long_is_told_once_and_again_when_it_does(
    status: int | None, limit_s: float, clock: Any
) -> None:
    told: list[Any] = []
    complaint = executor.Complaint(told.append, clock=clock, address="127.0.0.1:1")
    error = adapter.SuperLinkError("Refused.", hint="Look.", status=status)
    complaint.over()
    complaint.hear(error)
    clock.sleep(limit_s - 1)
    complaint.hear(error)
    assert told == []
    for _ in range(3):
        clock.sleep(1)
        complaint.hear(error)

    [notice] = told
    assert notice.level == "ERROR"
    assert "127.0.0.1:1" in notice.message
    assert "Refused." in notice.message
    complaint.over()
    complaint.over()
    assert [each.level for each in told] == ["ERROR", "INFO"]


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


def test_what_a_warm_process_runs_is_flowers_superlink() -> None:
    """Its entry point, what the HTTP server imports late, and the level of its log."""
    (entry,) = entry_points(group="console_scripts", name="flower-superlink")
    assert entry.value == "flwr.superlink.cli:flower_superlink"
    adapter_runtime.preload_superlink()
    assert "flwr.superlink.main" in sys.modules
    handler = next(each for each in logging.getLogger("flwr").handlers if each.level)
    before = logging.getLevelName(handler.level)
    try:
        adapter_runtime.log_as_told({"FLWR_LOG_LEVEL": "error"})
        assert handler.level == logging.ERROR
        with pytest.raises(ValueError, match="LOUD"):
            adapter_runtime.log_as_told({"FLWR_LOG_LEVEL": "loud"})
    finally:
        adapter_runtime.log_as_told({"FLWR_LOG_LEVEL": before})
