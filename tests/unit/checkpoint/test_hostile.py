"""Files made to harm: refused with their reason, in bounded memory and time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_hostile_files_are_refused_with_their_reason_in_bounded_memory_and_time() -> None:
    """In a process of their own, whose address space is limited."""
    done = subprocess.run(
        [sys.executable, "-m", "campaigns.hostile"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) > 20
    for line in lines:
        assert line["round"] == 1, line
        assert any(line["expected"] in reason for reason in line["reasons"]), line
        # A sidecar of another run is whole; what is wrong with it, only the run knows.
        assert bool(line["problems"]) == (line["case"] != "foreign"), line
        assert max(line["loading_s"], line["verifying_s"]) < 30, line
        assert line["memory_mib"] < 1000, line
    elements = next(line for line in lines if line["case"] == "sparse")
    assert elements["memory_mib"] < 200, "memory was taken before the digest was right"
