"""A federation of real Flower processes, killed exactly where it hurts."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))  # campaigns lie beside src

from campaigns import train_calls

from onefed import failpoints
from onefed.local.state import StateDir

pytestmark = [pytest.mark.flower, pytest.mark.timeout(300)]

POLL_S = 0.02

LOOP = [point for point, text in failpoints.POINTS.items() if text.startswith("loop: ")]


class Killer(threading.Thread):
    """Kills whoever is held at a point, as long as the block runs."""

    def __init__(self, folder: Path) -> None:
        super().__init__(name="killer", daemon=True)
        self.folder = folder
        self.killed: list[str] = []
        """The points, in order."""
        self._over = threading.Event()

    def run(self) -> None:
        while not self._over.wait(POLL_S):
            for hit in sorted(self.folder.glob("*.hit")):
                if pid := hit.read_text():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(int(pid), signal.SIGKILL)
                    hit.unlink()
                    self.killed.append(hit.name.removesuffix(".hit"))

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        self.start()
        try:
            yield
        finally:
            self._over.set()
            self.join()


def test_a_process_killed_at_every_point_costs_no_bit_and_no_announced_round(
    home, tmp_path: Path
) -> None:
    """Each point once, all of them in one run."""
    points = {point: number for number, point in enumerate(LOOP, start=2)}
    points |= {"submitting": 4, "submitted": 6, "working": 3}
    assert points.keys() == failpoints.POINTS.keys()
    folder = tmp_path / "points"
    folder.mkdir()
    rounds = str(len(LOOP) + 2)
    size = ("--nodes", "2", "--rounds", rounds, "--strategy", "FedAdam")
    calm = home.start("up", "--name", "calm", *size)
    home.environment[failpoints.VARIABLE] = str(folder)
    for point, number in points.items():
        (folder / f"{point}.{number}").touch()
    killer = Killer(folder)
    with killer.at_work():
        rough = home.start("up", "--name", "rough", *size).finish()

    assert sorted(killer.killed) == sorted(f"{point}.{number}" for point, number in points.items())
    assert (rough["status"], rough["rounds_done"]) == ("finished", int(rounds))
    assert rough["model_sha256"] == calm.finish()["model_sha256"]
    directory = StateDir(home.folder / "rough")
    assert train_calls.retrained(directory) == []
    again = sum(count - 1 for count in train_calls.submissions(directory).values())
    assert again <= len(LOOP), "a kill costs the round in flight at most"


def test_chaos_ends_with_the_bits_of_the_undisturbed_run_and_leaves_nothing(home) -> None:
    program = home.start(
        *("up", "--chaos", "--chaos-seed", "1", "--kills", "2", "--rounds", "4"),
        *("--name", "storm", "--nodes", "2"),
    )
    summary = program.finish()

    assert (summary["status"], summary["exit_code"]) == ("finished", 0)
    found = summary["chaos"]
    assert (found["equal"], found["rounds_equal"], found["seed"]) == (True, 4, 1)
    assert found["undisturbed_sha256"] == summary["model_sha256"]
    killed = [line["data"] for line in program.lines if line["event"] == "process_killed"]
    assert [each["victim"] for each in killed] == [kill["victim"] for kill in found["kills"]]
    assert "serverapp" in {each["victim"] for each in killed}
    assert all(kill["recovered_s"] > 0 for kill in found["kills"])
    assert summary["restarts"] >= 2
    assert [entry.name for entry in home.folder.iterdir()] == ["storm"]
    assert home.processes("storm") == home.processes("storm-calm") == []
