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
import contextlib
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
import record

from onefed.local import victims
from onefed.local.state import StateDir

PROGRAM = (sys.executable, "-m", "onefed.cli.main")
NAME = "restarts"

ROUNDS = 100_000
"""More than there will be."""

ROUNDS_BETWEEN = 3
"""Committed before the next kill: the first of them still warms up."""

GAP_LIMIT_S = 120.0
LOOK_S = 0.02

VICTIMS = {
    "ServerApp": victims.SERVER_APP,
    "executor": "superexec",
    "SuperLink": "superlink",
    "supervisor": "supervisor",
    "one node": "supernode/0",
    "ClientApp": "supernode/0",
}
"""What is killed, and its name in ``onefed.local.victims``; a ClientApp is the last that the node
has forked: the process of a message, or the one that has the app loaded."""


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

    def kill(self, victim: str) -> float:
        """Kill one process; returns when, seconds since 1970."""
        while True:
            with contextlib.suppress(psutil.Error):
                process = victims.find(StateDir(self.folder), VICTIMS[victim])
                while victim == "ClientApp" and process is not None and process.children():
                    process = process.children()[-1]
                if process is not None:
                    process.kill()
                    return time.time()

    def _onefed(self, *arguments: str) -> None:
        subprocess.run(
            [*PROGRAM, *arguments], env=self.environment, stdout=subprocess.DEVNULL, check=True
        )


def measure(federation: Federation, victim: str, draw: random.Random) -> dict[str, float]:
    """One kill: the gap, a usual round just before, and the load of the machine."""
    before = federation.wait_for(len(federation.committed()) + ROUNDS_BETWEEN)
    usual_s = statistics.median(
        b - a for a, b in zip(before[-ROUNDS_BETWEEN:], before[1 - ROUNDS_BETWEEN :], strict=False)
    )
    time.sleep(draw.random() * usual_s)
    killed_s = federation.kill(victim)
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
                found = [measure(federation, victim, draw) for _ in range(options.kills)]
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
