"""A round of the hub beside a round of stock Flower: same machine, same time, same app, same nodes.

``python bench/hub.py`` runs ``examples/sklearn-logreg`` (Flower's own FedAvg loop) and
``examples/sklearn-logreg-managed`` (ours) one after the other, several times, and takes medians of
the rounds. Both start stock SuperLinks and SuperNodes, so this is the round loop alone.
Stock Flower asks the nodes to evaluate in every round; ours judges the model on the coordinator,
because the app can. Seconds are noise on a shared machine; the ratio is what counts.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench/results/latest.json"
PROGRAM = (sys.executable, "-m", "onefed.cli.main")
PARAMETERS = 650
"""Of the example's model: 10 x 64 coefficients and 10 intercepts."""


def main() -> None:
    """Measure, print the table, save the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=2)
    options = parser.parse_args()
    seconds: dict[str, list[float]] = {"sklearn-logreg": [], "sklearn-logreg-managed": []}
    for _ in range(options.repeats):
        for example, measured in seconds.items():  # interleaved: both meet the same noise
            measured += _rounds(example, options.nodes, options.rounds)
    stock, ours = (statistics.median(measured) for measured in seconds.values())
    print(f"{'':24}{'seconds a round (median)':>26}{'rounds':>8}")
    for name, example in (("stock Flower", "sklearn-logreg"), ("onefed", "sklearn-logreg-managed")):
        measured = seconds[example]
        print(f"{name:24}{statistics.median(measured):>26.2f}{len(measured):>8}")
    print(f"{'ratio':24}{stock / ours:>26.2f}")
    _save(
        {
            "name": "hub round, small model",
            "parameters": PARAMETERS,
            "clients": options.nodes,
            "limit_multiple": None,
            "peer": "flwr FedAvg.start",
            "peer_version": version("flwr"),
            "peer_multiple": None,
            "ratio": round(stock / ours, 3),
            "extra_memory_models": None,
            "threads": 1,
        }
    )


def _rounds(example: str, nodes: int, rounds: int) -> list[float]:
    """Seconds of each round of one federation."""
    with tempfile.TemporaryDirectory() as home:
        arguments = ["--nodes", str(nodes), "--rounds", str(rounds), "--log-format", "json"]
        done = subprocess.run(
            [*PROGRAM, "run", ROOT / "examples" / example, *arguments],
            env={**os.environ, "ONEFED_HOME": home},
            capture_output=True,
            text=True,
            check=True,
        )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    ends = [line["data"] for line in lines if line["event"] == "round_end"]
    assert len(ends) == rounds, done.stdout[-2000:]
    return [float(end["round_duration_seconds"]) for end in ends]


def _save(result: dict[str, Any]) -> None:
    """Replace the result of that name; others in the file stay."""
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    kept = [each for each in results if each["name"] != result["name"]]
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps([*kept, result], indent=1) + "\n")
    print(f"saved in {RESULTS.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
