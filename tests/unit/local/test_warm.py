"""Warm processes: what they fork is a process like any other, and is lost with them."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path

import psutil
import pytest

from onefed.appliance import programs
from onefed.appliance.process import ProcessRuntime, Program, Restart
from onefed.local import victims, warm

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="warm processes are for Linux"),
    pytest.mark.timeout(120),
]

LIMIT_S = 60.0
EXECUTOR = (sys.executable, "-P", "-m", "onefed.flower.executor")
"""Ends at once with its usage; with arguments it lives and complains that nobody answers."""


def run(scenario: Callable[[warm.Warm], Coroutine[None, None, None]], folder: Path) -> None:
    async def all_of_it() -> None:
        environment = {**programs.common({}), "HOME": str(folder), "PYTHONPATH": str(folder)}
        started = warm.start(environment, folder)
        assert started is not None
        try:
            await scenario(started)
        finally:
            started.close()

    asyncio.run(asyncio.wait_for(all_of_it(), LIMIT_S))


def living(folder: Path) -> tuple[str, ...]:
    secret = folder / "superexec.secret"
    secret.write_text("a" * 64)
    secret.chmod(0o600)
    return (
        *EXECUTOR,
        *("--insecure", "--runtime-api-address", "127.0.0.1:9"),
        *("--superexec-auth-secret-file", str(secret), "--record", str(folder / "record.json")),
    )


async def until(reached: Callable[[], bool]) -> None:
    while not reached():  # noqa: ASYNC110 - of another process
        await asyncio.sleep(0.02)


def command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []  # it is just ending


def outputs(pid: int) -> set[str]:
    return {str(Path(f"/proc/{pid}/fd/{number}").readlink()) for number in (1, 2)}


def test_a_forked_program_is_like_one_that_was_started(tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    log = tmp_path / "log"

    async def scenario(it: warm.Warm) -> None:
        environment = programs.common({})
        with log.open("wb") as file:
            ends = await it.spawn(EXECUTOR, environment, work, file.fileno())
            assert await ends.wait() == 2
            assert "usage:" in log.read_text()

            lives = await it.spawn(living(tmp_path), environment, work, file.fileno())
            await until(lambda: "Could not ask for a task" in log.read_text())
        process = psutil.Process(lives.pid)
        assert lives.returncode is None
        assert process.cwd() == str(work)
        assert [part for part in process.cmdline() if part] == list(living(tmp_path))
        assert os.getsid(lives.pid) == lives.pid
        assert outputs(lives.pid) == {str(log)}
        lives.terminate()
        assert await lives.wait() == 0
        again = await it.spawn(living(tmp_path), environment, work, 2)
        again.kill()
        assert await again.wait() == -signal.SIGKILL

    run(scenario, tmp_path)


def test_what_it_has_forked_dies_with_it_and_the_next_one_is_started_plainly(
    tmp_path: Path,
) -> None:
    restarts: list[Restart] = []

    async def scenario(it: warm.Warm) -> None:
        runtime = ProcessRuntime(restarts.append, it.spawn_program)
        log = tmp_path / "log"
        program = Program("executor", living(tmp_path), programs.common({}), tmp_path, log, 5.0)
        await runtime.start(program)
        mine = psutil.Process()

        def children(of: str) -> list[psutil.Process]:
            return [each for each in mine.children() if of in command(each)]

        await until(lambda: log.exists() and "Could not ask" in log.read_text())
        assert not children("onefed.flower.executor"), "it is a child of the warm process"
        (server,) = children(victims.WARM)
        server.kill()
        await until(lambda: bool(children("onefed.flower.executor")))
        with pytest.raises(warm.WarmError):
            await it.spawn(EXECUTOR, {}, tmp_path, 2)
        await runtime.stop()
        assert not children("onefed.flower.executor")

    run(scenario, tmp_path)
    assert [restart.exit_code for restart in restarts] == [-signal.SIGKILL]


def test_one_with_libraries_forks_as_the_first_does_and_dies_with_it(tmp_path: Path) -> None:
    (tmp_path / "slow_to_import.py").write_text("print('imported', flush=True)")
    environment = programs.common({})
    log = tmp_path / "log"

    async def scenario(it: warm.Warm) -> None:
        with log.open("wb") as file:
            more = await it.with_libraries(
                ["slow_to_import", "not_there"], environment, tmp_path, file.fileno()
            )
            children = [
                await more.spawn(living(tmp_path), environment, tmp_path, file.fileno())
                for _ in range(2)
            ]
        (server,) = [each for each in psutil.Process().children() if victims.WARM in command(each)]
        assert psutil.Process(children[0].pid).parent() in server.children()
        assert log.read_text().count("imported") == 1
        server.kill()
        assert [await child.wait() for child in children] == [-signal.SIGKILL] * 2
        with pytest.raises(warm.WarmError):
            await more.spawn(living(tmp_path), environment, tmp_path, 2)

    run(scenario, tmp_path)


@pytest.mark.parametrize(
    "source",
    [
        "import threading, time\nthreading.Thread(target=time.sleep, args=(999,)).start()",
        "import os\nos._exit(0)",
    ],
)
def test_libraries_that_forbid_forks_leave_the_first_one_as_it_was(
    tmp_path: Path, source: str
) -> None:
    (tmp_path / "hazardous.py").write_text(source)
    environment = programs.common({})

    async def scenario(it: warm.Warm) -> None:
        more = await it.with_libraries(["hazardous"], environment, tmp_path, 2)
        with pytest.raises(warm.WarmError):
            await more.spawn(EXECUTOR, environment, tmp_path, 2)
        lives = await it.spawn(living(tmp_path), environment, tmp_path, 2)
        lives.kill()
        assert await lives.wait() == -signal.SIGKILL

    run(scenario, tmp_path)


REFUSES_ONCE = """
import os, sys
from onefed.local import warm_server

forks, tried, server = os.fork, [], os.getpid()

def fork():
    tried.append(1)
    if len(tried) == 2 and os.getpid() == server:
        raise BlockingIOError("too many processes")
    return forks()

os.fork = fork
sys.exit(warm_server.main(sys.argv[1:]))
"""


def test_where_no_process_more_is_allowed_those_that_live_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warm, "PROGRAM", ("-c", REFUSES_ONCE))

    async def scenario(it: warm.Warm) -> None:
        lives = await it.spawn(living(tmp_path), programs.common({}), tmp_path, 2)
        with pytest.raises(warm.WarmError, match="too many processes"):
            await it.spawn(EXECUTOR, {}, tmp_path, 2)
        assert await (await it.spawn(EXECUTOR, {}, tmp_path, 2)).wait() == 2
        lives.terminate()
        assert await lives.wait() == 0

    run(scenario, tmp_path)


def test_one_that_is_stopped_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(it: warm.Warm) -> None:
        assert await (await it.spawn(EXECUTOR, {}, tmp_path, 2)).wait() == 2
        (server,) = psutil.Process().children()
        server.suspend()
        monkeypatch.setattr(warm, "FORK_LIMIT_S", 0.1)
        with pytest.raises(warm.WarmError, match="answer"):
            await it.spawn(EXECUTOR, {}, tmp_path, 2)
        await until(lambda: not server.is_running())

    run(scenario, tmp_path)


def test_a_program_that_it_does_not_know_is_started_plainly(tmp_path: Path) -> None:
    async def scenario(it: warm.Warm) -> None:
        log = tmp_path / "log"
        program = Program("true", ("/bin/echo", "it", "ran"), {}, tmp_path, log, 5.0)
        with log.open("wb") as file:
            process = await it.spawn_program(program, file.fileno())
            assert await process.wait() == 0
        assert log.read_text() == "it ran\n"

    run(scenario, tmp_path)
