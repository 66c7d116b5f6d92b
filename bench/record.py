"""Where benchmarks leave their numbers: ``bench/results/``, newest of each name in ``latest.json``.

An entry of ``latest.json`` has the keys of ``KEYS``. Raw numbers go to a file of their own, with
the date, the commit and the machine they belong to.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench/results"
LATEST = RESULTS / "latest.json"

KEYS = (
    *("name", "parameters", "clients", "limit_multiple", "peer", "peer_version"),
    *("peer_multiple", "ratio", "extra_memory_models", "threads"),
)
"""Of one result: what was measured, its cost as a multiple of the limit (reading what must be read
once), the peer's, peer's cost over ours, and memory beside the inputs in sizes of the model."""


def save_latest(results: list[dict[str, Any]]) -> None:
    """Replace the results of the same names; others in the file stay."""
    for result in results:
        assert tuple(result) == KEYS, result
    before = json.loads(LATEST.read_text()) if LATEST.exists() else []
    names = {result["name"] for result in results}
    kept = [each for each in before if each["name"] not in names]
    RESULTS.mkdir(exist_ok=True)
    LATEST.write_text(json.dumps([*kept, *results], indent=1) + "\n")
    print(f"saved in {LATEST.relative_to(ROOT)}")


def save_raw(name: str, raw: dict[str, Any]) -> None:
    """Write the numbers of one run, with where they come from."""
    now = datetime.datetime.now(datetime.UTC)
    origin = {"date": now.isoformat(timespec="seconds"), "commit": _commit(), **_machine()}
    path = RESULTS / f"{name}-{now:%Y%m%dT%H%M%S}.json"
    RESULTS.mkdir(exist_ok=True)
    path.write_text(json.dumps({**origin, **raw}, indent=1) + "\n")
    print(f"raw numbers in {path.relative_to(ROOT)}")


def _commit() -> str:
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or "unknown"


def _machine() -> dict[str, Any]:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": models[0] if models else platform.processor(),
        "architecture": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
    }
