"""Programs kept alive by a real runtime: started, restarted, given up, ended with all they started.

The programs are tiny and say what they are through files; nobody waits for a span of time.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from onefed.appliance import process
from onefed.appliance.process import ProcessRuntime, Program, Restart

LIMIT_S = 20.0
"""What does not happen within this does not happen. Each of it takes milliseconds."""

POLL_S = 0.005

RUN_FOREVER = "import signal; signal.pause()"

SAY_PID = "import os; open(f'alive-{os.getpid()}', 'w').close();"
"""A file of its own for each process that got so far."""

WITH_CHILD = f"""
import subprocess, sys
subprocess.Popen([sys.executable, "-c", {SAY_PID + RUN_FOREVER!r}])
{SAY_PID + RUN_FOREVER}
"""

WITH_STUBBORN_CHILD = f"""
import signal, subprocess, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
subprocess.Popen([sys.executable, "-c", {SAY_PID + RUN_FOREVER!r}])
signal.signal(signal.SIGTERM, signal.SIG_DFL)
{SAY_PID + RUN_FOREVER}
"""
"""The child goes on ignoring SIGTERM, as an ignored signal is handed down."""

IGNORE_SIGTERM = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN);{SAY_PID}" + (
    "\nwhile True: signal.pause()"
)


@dataclass
class Bench:
    """A runtime, its folder, and what it said about restarts."""

    folder: Path
    runtime: ProcessRuntime
    restarts: list[Restart]

    def program(
        self,
        source: str,
        *,
        name: str = "program",
        stop_timeout_s: float = LIMIT_S,
        environment: Mapping[str, str] | None = None,
    ) -> Program:
        """A Python program that runs in the folder, and prints into ``NAME.log``."""
        return Program(
            name=name,
            argv=(sys.executable, "-c", source),
            environment=environment or {},
            folder=self.folder,
            log=self.folder / "logs" / f"{name}.log",
            stop_timeout_s=stop_timeout_s,
        )

    def alive(self) -> set[int]:
        """Ids of the processes that said so and still live."""
        said = (int(path.name.partition("-")[2]) for path in self.folder.glob("alive-*"))
        return {pid for pid in said if is_alive(pid)}

    async def until(self, happened: Callable[[], bool]) -> None:
        """Wait for something that the programs or the runtime bring about."""
        async with asyncio.timeout(LIMIT_S):
            while not happened():  # noqa: ASYNC110 - other processes have no event to set
                await asyncio.sleep(POLL_S)

    async def processes(self, count: int) -> set[int]:
        """The ids of that many processes which live at the same time."""
        await self.until(lambda: len(self.alive()) == count)
        return self.alive()

    async def death(self, pids: set[int]) -> None:
        await self.until(lambda: not any(is_alive(pid) for pid in pids))


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


Scene = Callable[[Bench], Coroutine[Any, Any, None]]


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Scene], Bench]:
    """Play a scene in an event loop; whatever it started is stopped afterwards."""
    monkeypatch.setattr(process, "RESTART_DELAY_S", 0.01)

    @asynccontextmanager
    async def bench() -> AsyncIterator[Bench]:
        restarts: list[Restart] = []
        runtime = ProcessRuntime(restarts.append)
        try:
            yield Bench(tmp_path, runtime, restarts)
        finally:
            await runtime.stop()

    async def scene_and_end(scene: Scene) -> Bench:
        async with bench() as made:
            await scene(made)
        return made

    return lambda scene: asyncio.run(scene_and_end(scene))


def test_a_program_starts_runs_and_stops(play) -> None:
    async def scene(bench: Bench) -> None:
        assert not bench.runtime.running("program")
        await bench.runtime.start(bench.program(SAY_PID + RUN_FOREVER))
        assert bench.runtime.running("program")
        pids = await bench.processes(1)
        await bench.runtime.stop()
        assert not bench.runtime.running("program")
        assert not any(map(is_alive, pids))

    assert play(scene).restarts == []


def test_a_killed_program_is_started_again(play) -> None:
    async def scene(bench: Bench) -> None:
        await bench.runtime.start(bench.program(SAY_PID + RUN_FOREVER))
        first = await bench.processes(1)
        os.kill(*first, signal.SIGKILL)
        await bench.until(lambda: bool(bench.alive() - first))
        assert bench.runtime.running("program")
        assert not bench.runtime.given_up("program")

    [restart] = play(scene).restarts
    assert restart == Restart("program", -signal.SIGKILL, attempt=1, delay_s=0.01, given_up=False)


def test_a_program_that_ends_well_is_started_again_too(play) -> None:
    """As with ``Restart=always``: a SuperNode leaves with 0 when its SuperLink restarts."""

    async def scene(bench: Bench) -> None:
        await bench.runtime.start(bench.program("raise SystemExit(0)"))
        await bench.until(lambda: len(bench.restarts) >= 2)

    assert {restart.exit_code for restart in play(scene).restarts} == {0}


def test_what_a_dead_program_left_behind_is_gone_before_the_next_one_starts(play) -> None:
    async def scene(bench: Bench) -> None:
        await bench.runtime.start(bench.program(WITH_STUBBORN_CHILD))
        first = await bench.processes(2)
        leader = next(pid for pid in first if os.getpgid(pid) == pid)
        os.kill(leader, signal.SIGKILL)
        await bench.death(first)
        await bench.processes(2)

    assert len(play(scene).restarts) == 1


def test_a_program_that_keeps_dying_young_is_given_up(
    play, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "EARLY_DEATHS_MAX", 4)
    monkeypatch.setattr(process, "RESTART_DELAY_MAX_S", 0.03)

    async def scene(bench: Bench) -> None:
        await bench.runtime.start(bench.program(f"{SAY_PID} raise SystemExit(3)"))
        await bench.until(lambda: bench.runtime.given_up("program"))
        assert not bench.runtime.running("program")
        assert len(list(bench.folder.glob("alive-*"))) == 4

    restarts = play(scene).restarts
    assert [restart.attempt for restart in restarts] == [1, 2, 3, 4]
    assert [restart.delay_s for restart in restarts] == [0.01, 0.02, 0.03, 0.03]
    assert [restart.given_up for restart in restarts] == [False, False, False, True]
    assert {restart.exit_code for restart in restarts} == {3}


def test_a_program_that_lived_long_enough_is_never_given_up(
    play, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "EARLY_DEATHS_MAX", 2)
    monkeypatch.setattr(process, "EARLY_DEATH_S", 0.0)

    async def scene(bench: Bench) -> None:
        await bench.runtime.start(bench.program("raise SystemExit(3)"))
        await bench.until(lambda: len(bench.restarts) >= 4)
        assert not bench.runtime.given_up("program")

    restarts = play(scene).restarts
    assert {(restart.attempt, restart.delay_s) for restart in restarts} == {(1, 0.01)}


def test_a_program_that_worked_is_started_again_at_once_however_often_it_is_killed(
    play, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "EARLY_DEATHS_MAX", 2)
    monkeypatch.setattr(process, "RESTART_DELAY_S", LIMIT_S)
    monkeypatch.setattr(process, "RESTART_DELAY_WORKED_S", 0.005)
    work = "open('worked', 'w').close(); raise SystemExit(3)"

    async def scene(bench: Bench) -> None:
        program = bench.program(work)
        await bench.runtime.start(replace(program, worked_file=bench.folder / "worked"))
        await bench.until(lambda: len(bench.restarts) >= 4)

    restarts = play(scene).restarts
    assert {(each.attempt, each.delay_s, each.given_up) for each in restarts} == {(1, 0.005, False)}


def test_what_the_process_before_had_done_does_not_count(
    play, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "EARLY_DEATHS_MAX", 2)
    monkeypatch.setattr(process, "RESTART_DELAY_WORKED_S", 0.005)
    once = """
import pathlib
first = pathlib.Path("first")
if not first.exists():
    first.touch()
    pathlib.Path("worked").touch()
"""

    async def scene(bench: Bench) -> None:
        program = bench.program(once)
        await bench.runtime.start(replace(program, worked_file=bench.folder / "worked"))
        await bench.until(lambda: bench.runtime.given_up("program"))

    attempts = [(each.attempt, each.delay_s) for each in play(scene).restarts]
    assert attempts == [(1, 0.005), (1, 0.01), (2, 0.02)]


def test_a_program_that_took_a_connection_has_worked(play, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "PORT_LOOK_S", POLL_S)
    monkeypatch.setattr(process, "RESTART_DELAY_WORKED_S", 0.005)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    serve = f"import socket; socket.create_server(('127.0.0.1', {port})).accept()"

    async def scene(bench: Bench) -> None:
        await bench.runtime.start(replace(bench.program(serve), worked_port=port))
        await bench.until(lambda: len(bench.restarts) >= 2)

    assert {each.delay_s for each in play(scene).restarts} == {0.005}


def test_a_program_that_worked_and_then_vanished_from_the_disk_is_given_up(
    play, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "EARLY_DEATHS_MAX", 2)
    monkeypatch.setattr(process, "PORT_LOOK_S", POLL_S)
    monkeypatch.setattr(process, "RESTART_DELAY_WORKED_S", 0.005)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        async def scene(bench: Bench) -> None:
            program = bench.folder / "program"
            program.write_text("#!/bin/sh\nrm program\nwhile [ ! -e seen ]; do sleep 0.01; done\n")
            program.chmod(0o755)
            log = bench.folder / "program.log"
            await bench.runtime.start(
                Program("program", (str(program),), {}, bench.folder, log, 1, worked_port=port)
            )
            connection, _ = await asyncio.to_thread(server.accept)
            connection.close()
            server.close()
            (bench.folder / "seen").touch()
            await bench.until(lambda: bench.runtime.given_up("program"))

        restarts = play(scene).restarts
    assert [each.attempt for each in restarts] == [1, 1, 2]


def test_a_program_that_cannot_be_started_says_so_at_once(play) -> None:
    async def scene(bench: Bench) -> None:
        missing = Program("gone", ("/no/such/program",), {}, bench.folder, bench.folder / "log", 1)
        with pytest.raises(FileNotFoundError):
            await bench.runtime.start(missing)
        assert not bench.runtime.running("gone")

    assert play(scene).restarts == []


def test_a_program_that_vanishes_from_the_disk_is_given_up_and_the_others_stop_well(
    play, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "EARLY_DEATHS_MAX", 3)

    async def scene(bench: Bench) -> None:
        program = bench.folder / "program"
        program.write_text("#!/bin/sh\nrm program\nexit 0\n")
        program.chmod(0o755)
        log = bench.folder / "program.log"
        await bench.runtime.start(bench.program(SAY_PID + RUN_FOREVER, name="other"))
        await bench.runtime.start(Program("program", (str(program),), {}, bench.folder, log, 1))
        await bench.until(lambda: bench.runtime.given_up("program"))
        assert bench.restarts[-1].given_up
        assert "No such file" in log.read_text()
        pids = await bench.processes(1)
        await bench.runtime.stop()
        assert not any(map(is_alive, pids))

    play(scene)


def test_stop_ends_the_whole_group_the_last_started_first(play) -> None:
    told = f"""
import signal, sys
def end(*_):
    print(sys.argv[1], file=open("ended", "a"))
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
{SAY_PID + RUN_FOREVER}
"""

    async def scene(bench: Bench) -> None:
        for name in ("first", "second"):
            program = bench.program(told, name=name)
            await bench.runtime.start(
                Program(name, (*program.argv, name), {}, bench.folder, program.log, LIMIT_S)
            )
        await bench.processes(2)
        await bench.runtime.start(bench.program(WITH_CHILD, name="parent"))
        pids = await bench.processes(4)
        await bench.runtime.stop()
        assert not any(map(is_alive, pids))
        assert (bench.folder / "ended").read_text().split() == ["second", "first"]

    play(scene)


def test_a_grandchild_that_ignores_sigterm_ends_with_its_group(play) -> None:
    async def scene(bench: Bench) -> None:
        await bench.runtime.start(bench.program(WITH_STUBBORN_CHILD))
        pids = await bench.processes(2)
        await bench.runtime.stop()
        await bench.death(pids)

    play(scene)


def test_a_program_that_ignores_sigterm_is_killed_after_its_limit(play) -> None:
    async def scene(bench: Bench) -> None:
        await bench.runtime.start(bench.program(IGNORE_SIGTERM, stop_timeout_s=0.05))
        pids = await bench.processes(1)
        await bench.runtime.stop()
        assert not any(map(is_alive, pids))

    assert play(scene).restarts == []


def test_stop_while_a_restart_is_due_starts_nothing_more(
    play, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "RESTART_DELAY_S", LIMIT_S)

    async def scene(bench: Bench) -> None:
        await bench.runtime.start(bench.program(SAY_PID))
        await bench.until(lambda: len(bench.restarts) == 1)
        await bench.runtime.stop()
        assert len(list(bench.folder.glob("alive-*"))) == 1
        assert not bench.alive()

    play(scene)


def test_stop_twice_is_stop(play) -> None:
    async def scene(bench: Bench) -> None:
        await bench.runtime.start(bench.program(SAY_PID + RUN_FOREVER))
        await bench.runtime.stop()
        await bench.runtime.stop()

    play(scene)


def test_the_environment_is_exactly_what_was_given(play, monkeypatch: pytest.MonkeyPatch) -> None:
    planted = {
        "LD_PRELOAD": "/tmp/evil.so",
        "BASH_ENV": "/tmp/evil.sh",
        "PYTHONPATH": "/tmp/evil",
        "SECRET": "key",
    }
    for name, value in planted.items():
        monkeypatch.setenv(name, value)
    # LC_CTYPE would be set by Python itself, and is not inherited.
    given = {"GIVEN": "1", "PYTHONCOERCECLOCALE": "0"}
    dump = "import json, os; json.dump(dict(os.environ), open('new', 'w')); os.rename('new', 'env')"

    async def scene(bench: Bench) -> None:
        await bench.runtime.start(bench.program(dump, environment=given))
        await bench.until((bench.folder / "env").exists)
        assert json.loads((bench.folder / "env").read_text()) == given

    play(scene)


def test_a_program_has_no_input_a_session_of_its_own_and_no_open_file_of_ours(play) -> None:
    look = """
import json, os, sys
json.dump({
    "input": sys.stdin.read(),
    "session": os.getsid(0) == os.getpid(),
    "open": [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")
             if int(fd) > 2 and os.path.exists(f"/proc/self/fd/{fd}")],
}, open("new", "w"))
os.rename("new", "seen")
"""

    async def scene(bench: Bench) -> None:
        with (bench.folder / "ours").open("w") as ours:
            os.set_inheritable(ours.fileno(), True)
            await bench.runtime.start(bench.program(look))
            await bench.until((bench.folder / "seen").exists)
        seen = json.loads((bench.folder / "seen").read_text())
        assert seen["input"] == ""
        assert seen["session"]
        assert not [path for path in seen["open"] if path.endswith("ours")]

    play(scene)


def test_output_of_every_start_is_appended_to_the_log(play) -> None:
    both = "import sys; print('out', flush=True); print('error', file=sys.stderr)"

    async def scene(bench: Bench) -> None:
        await bench.runtime.start(bench.program(both))
        await bench.until(lambda: len(bench.restarts) >= 2)

    bench = play(scene)
    log = bench.folder / "logs" / "program.log"
    assert log.read_text().split()[:4] == ["out", "error"] * 2
    assert log.stat().st_mode & 0o777 & ~0o640 == 0


def test_a_link_in_place_of_the_log_is_not_followed(play) -> None:
    async def scene(bench: Bench) -> None:
        victim = bench.folder / "victim"
        victim.write_text("precious")
        program = bench.program("print('over you')")
        program.log.parent.mkdir()
        program.log.symlink_to(victim)
        with pytest.raises(OSError, match="symbolic links"):
            await bench.runtime.start(program)
        assert victim.read_text() == "precious"

    play(scene)


PARENT = f"""
import asyncio, sys
from pathlib import Path
from onefed.appliance.process import ProcessRuntime, Program

async def main():
    runtime = ProcessRuntime(print)
    here = Path.cwd()
    argv = (sys.executable, "-c", {SAY_PID + RUN_FOREVER!r})
    await runtime.start(Program("child", argv, {{}}, here, here / "child.log", 1.0))
    await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells children of such a death")
def test_programs_die_with_their_runtime_when_that_is_killed(play) -> None:
    async def scene(bench: Bench) -> None:
        parent = await asyncio.create_subprocess_exec(
            sys.executable, "-c", PARENT, cwd=bench.folder
        )
        try:
            pids = await bench.processes(1)
        finally:
            parent.kill()
            await parent.wait()
        await bench.death(pids)

    play(scene)
