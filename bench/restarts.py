"""From the kill of one process of a federation to the next committed round.

``python bench/restarts.py`` starts a federation as ``make demo`` does (three nodes, the built-in
app), kills one process with SIGKILL at a drawn moment of a round, waits for the next round, lets
some more pass, and goes on to the next victim. The gap is from the kill to the next
``recovery_saved`` in the events: what was announced before is on disk, so this is all that is lost.
The rounds before each kill say what the machine does when nobody is killed: seconds are noise on a
shared one, so the last column is the gap in such rounds. About four minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
import record

PROGRAM = (sys.executable, "-m", "onefed.cli.main")
NAME = "restarts"

ROUNDS = 100_000
"""More than there will be."""

ROUNDS_BETWEEN = 3
"""Committed before the next kill: the first of them still warms up."""

GAP_LIMIT_S = 120.0
LOOK_S = 0.02

Matches = Callable[[psutil.Process], bool]


def _runs(module: str) -> Matches:
    """The oldest process of a program: what it has forked shows the same command line."""

    def matches(process: psutil.Process) -> bool:
        parent = process.parent()
        return f" -m {module} " in _line(process) and (
            parent is None or f" -m {module} " not in _line(parent)
        )

    return matches


def _is_client_app(process: psutil.Process) -> bool:
    """The process that has the app, or handles a message: the last of its line."""
    return "onefed.flower.node" in _line(process) and not process.children()


def _line(process: psutil.Process) -> str:
    return " ".join(process.cmdline()) + " "


VICTIMS: dict[str, Matches] = {
    "ServerApp": lambda process: process.name() == "flwr-serverapp",
    "executor": _runs("onefed.flower.executor"),
    "SuperLink": lambda process: "flower-superlink" in _line(process),
    "supervisor": _runs("onefed.flower.supervisor"),
    "one node": _runs("onefed.flower.node"),
    "ClientApp": _is_client_app,
}


class Federation:
    """One that runs, and its events."""

    def __init__(self, home: str, nodes: int, rounds: int = ROUNDS) -> None:
        self.environment = {**os.environ, "ONEFED_HOME": home}
        self.folder = Path(home) / NAME
        size = ("--nodes", str(nodes), "--rounds", str(rounds), "--detach")
        self._onefed("up", "--name", NAME, *size)

    def down(self) -> None:
        self._onefed("down", NAME, "--now")

    def committed(self) -> list[float]:
        """When each round was committed, seconds since 1970."""
        lines = (self.folder / "events.jsonl").read_text().splitlines()
        said = [json.loads(line) for line in lines if '"recovery_saved"' in line]
        return [datetime.fromisoformat(each["timestamp"]).timestamp() for each in said]

    def wait_for(self, count: int) -> list[float]:
        """Until so many rounds are committed."""
        ends_s = time.monotonic() + GAP_LIMIT_S
        while len(found := self.committed()) < count:
            if time.monotonic() > ends_s:
                sys.exit(f"No round in {GAP_LIMIT_S:.0f} s: see {self.folder}")
            time.sleep(LOOK_S)
        return found

    def kill(self, matches: Matches, draw: random.Random) -> float:
        """Kill one process; returns when, seconds since 1970."""
        while True:
            found = []
            for process in psutil.process_iter():
                try:
                    mine = process.environ().get("ONEFED_STATE_DIR") == str(self.folder)
                    if mine and matches(process):
                        found.append(process)
                except psutil.Error:
                    continue
            if found:
                draw.choice(sorted(found, key=lambda each: each.pid)).kill()
                return time.time()

    def _onefed(self, *arguments: str) -> None:
        subprocess.run(
            [*PROGRAM, *arguments], env=self.environment, stdout=subprocess.DEVNULL, check=True
        )


def measure(federation: Federation, matches: Matches, draw: random.Random) -> dict[str, float]:
    """One kill: the gap, a usual round just before, and the load of the machine."""
    before = federation.wait_for(len(federation.committed()) + ROUNDS_BETWEEN)
    usual_s = statistics.median(
        b - a for a, b in zip(before[-ROUNDS_BETWEEN:], before[1 - ROUNDS_BETWEEN :], strict=False)
    )
    time.sleep(draw.random() * usual_s)
    killed_s = federation.kill(matches, draw)
    count = sum(each < killed_s for each in federation.committed())
    gap_s = federation.wait_for(count + 1)[count] - killed_s
    return {"gap_s": gap_s, "round_s": usual_s, "load": os.getloadavg()[0]}


def main() -> None:
    """Measure, print a line per victim, and keep the numbers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=5, help="of each victim")
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--victims", nargs="+", choices=list(VICTIMS), default=list(VICTIMS))
    options = parser.parse_args()
    draw = random.Random(options.seed)  # noqa: S311 - which moment, not which key
    raw: dict[str, Any] = {"nodes": options.nodes, "seed": options.seed}
    print(f"{'killed':12}{'median s':>10}{'max s':>8}{'a round s':>11}{'in rounds':>11}{'load':>7}")
    with tempfile.TemporaryDirectory() as home:
        federation = Federation(home, options.nodes)
        try:
            for victim in options.victims:
                found = [measure(federation, VICTIMS[victim], draw) for _ in range(options.kills)]
                raw[victim] = found
                gaps = [each["gap_s"] for each in found]
                rounds = [each["gap_s"] / each["round_s"] for each in found]
                print(
                    f"{victim:12}{statistics.median(gaps):>10.1f}{max(gaps):>8.1f}"
                    f"{statistics.median(each['round_s'] for each in found):>11.2f}"
                    f"{statistics.median(rounds):>11.1f}"
                    f"{statistics.mean(each['load'] for each in found):>7.1f}",
                    flush=True,
                )
        finally:
            federation.down()
    record.save_raw("restarts", raw)


if __name__ == "__main__":
    main()
