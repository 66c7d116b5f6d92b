"""Processes forked from a nursery: like ones that were started, and gone with those they depend on.

What they become is a script of the test's; ``test_adapter_runtime`` has Flower's ServerApp.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

LIMIT_S = 20.0

EXECUTOR = """
import json, os, random, signal, sys, time
from pathlib import Path
from onefed.flower import nursery

def look(argv):
    if argv[1] == "sleep":
        time.sleep(1000)
    Path(argv[2]).write_text(json.dumps({
        "argv": Path("/proc/self/cmdline").read_bytes().decode().split(chr(0)),
        "name": Path("/proc/self/comm").read_text().strip(),
        "state": Path("/proc/self/environ").read_bytes().count(b"ONEFED_STATE_DIR=here"),
        "files": sorted(int(each) for each in os.listdir("/proc/self/fd") if int(each) < 3),
        "sockets": [each for each in os.listdir("/proc/self/fd")
                    if os.path.lexists(f"/proc/self/fd/{each}")
                    and os.readlink(f"/proc/self/fd/{each}").startswith("socket")],
        "group": os.getpgid(0),
        "term": signal.getsignal(signal.SIGTERM) == signal.SIG_DFL,
        "int": signal.getsignal(signal.SIGINT) == signal.default_int_handler,
        "drawn": random.random(),
        "more": "colorsys" in sys.modules,
    }))
    print("into nowhere")
    raise SystemExit(3)

random.seed(7)
made = nursery.start(lambda: None, look, lambda: __import__("colorsys"))
while not made.is_ready():
    time.sleep(0.01)
print(json.dumps({"pid": os.getpid()}), flush=True)
for line in sys.stdin:
    forked = made.fork(json.loads(line))
    print(json.dumps({"pid": forked.pid, "started_at": forked.started_at}), flush=True)
made.close()
"""


class Executor:
    """A program with a nursery."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            # Its command line is as long as the real one's.
            [sys.executable, "-P", "-c", EXECUTOR, "--record", "x" * 200],
            env={**os.environ, "ONEFED_STATE_DIR": "here"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.pid = self._hear()["pid"]

    def fork(self, *argv: str) -> dict[str, Any]:
        """The number of a new process, and when it was started."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(argv) + "\n")
        self.process.stdin.flush()
        return self._hear()

    def _hear(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        heard: dict[str, Any] = json.loads(self.process.stdout.readline())
        return heard


@pytest.fixture
def executor() -> Iterator[Executor]:
    made = Executor()
    yield made
    made.process.kill()
    made.process.communicate()


def until_dead(process: psutil.Process) -> None:
    ends_s = time.monotonic() + LIMIT_S
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < ends_s
        time.sleep(0.01)


def seen(path: Path) -> dict[str, Any]:
    ends_s = time.monotonic() + LIMIT_S
    while True:
        assert time.monotonic() < ends_s
        try:
            found: dict[str, Any] = json.loads(path.read_text())
        except (FileNotFoundError, ValueError):
            time.sleep(0.01)
        else:
            return found


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_forked_process_is_like_one_that_was_started(executor: Executor, tmp_path: Path) -> None:
    looks = []
    for name in ("first", "second"):
        told = ("flwr-serverapp", "look", str(tmp_path / name), "--token", "s3cret", "--more")
        executor.fork(*told)
        looks.append(seen(tmp_path / name))

    first, second = looks
    shown = [word for word in first["argv"] if word]
    assert shown == ["flwr-serverapp", "look", str(tmp_path / "first"), "--more"]
    assert first["name"] == "flwr-serverapp"
    assert first["state"] == 1
    assert (first["files"], first["sockets"]) == ([0, 1, 2], [])
    assert first["group"] == executor.pid
    assert first["term"]
    assert first["int"]
    assert first["drawn"] != second["drawn"]
    assert first["more"], "the libraries of the app are imported already"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells children of such a death")
@pytest.mark.parametrize("victim", ["executor", "nursery"])
def test_it_dies_with_those_that_it_depends_on(executor: Executor, victim: str) -> None:
    said = executor.fork("flwr-serverapp", "sleep")
    child = psutil.Process(said["pid"])
    assert child.create_time() == said["started_at"]
    parents = {"nursery": child.parent(), "executor": psutil.Process(executor.pid)}
    dead = parents[victim]
    assert dead is not None
    dead.kill()
    until_dead(child)


class TestLauncher:
    """The quick way, and the slow one where there is no quick one; in a program of its own,
    since a nursery has to come from one without threads."""

    SOURCE = """
import os, signal, sys, time
from onefed.flower import launcher, nursery

def clock():
    return seconds[0]

seconds, said = [0.0], []
HOW
made = launcher.Launcher(forks, clock=clock, say=said.append)
try:
    for _ in range(2000):
        if made.is_ready():
            break
        time.sleep(0.01)
        LATER
    record = made.start(5, ["sleep", "1000"])
    print(record.run_id, record.lives(), len(said), "program" in said[0] if said else "quiet")
    record.kill()
    AFTER
    made.close()
except launcher.NurseryDiedError as error:
    print("begin anew")
"""

    @pytest.mark.parametrize(
        ("how", "later", "after", "printed"),
        [
            ("forks = None", "pass", "pass", "5 True 0 quiet"),
            (
                "forks = nursery.start(lambda: None, lambda argv: time.sleep(1000))",
                "pass",
                "pass",
                "5 True 1 False",
            ),
            ("forks = nursery.start(lambda: sys.exit(1), print)", "pass", "pass", "5 True 1 True"),
            (
                "forks = nursery.start(lambda: time.sleep(1000), print)",
                "seconds[0] += launcher.READY_LIMIT_S",
                "pass",
                "5 True 1 True",
            ),
            (
                "forks = nursery.start(lambda: __import__('threading').Thread("
                "target=time.sleep, args=(1000,), daemon=True).start(), print)",
                "pass",
                "pass",
                "5 True 1 True",
            ),
            *(
                (
                    f"def more(): {more}\n"
                    "forks = nursery.start(lambda: None, lambda argv: time.sleep(1000), more)",
                    "pass",
                    "pass",
                    "5 True 1 False",
                )
                for more in (
                    "__import__('threading').Thread(target=time.sleep, args=(1000,)).start()",
                    "os._exit(0)",
                    "__import__('a_module_that_is_not_there')",
                )
            ),
            (
                "forks = nursery.start(lambda: None, lambda argv: time.sleep(1000))",
                "pass",
                "os.kill(forks._pid, signal.SIGKILL); time.sleep(0.1); made.is_ready()",
                "5 True 1 False\nbegin anew",
            ),
        ],
        ids=[
            *("none", "forked", "died early", "never ready", "threads"),
            *("libraries have threads", "libraries end it", "no such library", "died later"),
        ],
    )
    def test_a_server_app_is_started_one_way_or_the_other(
        self, how: str, later: str, after: str, printed: str
    ) -> None:
        source = self.SOURCE.replace("HOW", how).replace("LATER", later).replace("AFTER", after)
        done = subprocess.run(
            [sys.executable, "-c", source], capture_output=True, text=True, timeout=60, check=False
        )
        assert done.stdout.strip() == printed, done.stderr

    def test_a_nursery_that_is_stopped_is_ended_so_that_it_cannot_start_a_second_one(self) -> None:
        how = (
            "nursery.FORK_LIMIT_S = 0.1\n"
            "forks = nursery.start(lambda: None, lambda argv: time.sleep(1000))\n"
        )
        later = "pass"
        source = self.SOURCE.replace("HOW", how).replace("LATER", later).replace("AFTER", "pass")
        source = source.replace(
            "    record = made", "    os.kill(forks._pid, signal.SIGSTOP)\n    record = made"
        )
        done = subprocess.run(
            [sys.executable, "-c", source], capture_output=True, text=True, timeout=60, check=False
        )
        assert done.stdout.strip() == "5 True 2 False", done.stderr
