"""The hub beside stock Flower: same machine, same time, same client app, same number of nodes.

``python bench/hub.py`` runs ``examples/sklearn-logreg`` with everything of Flower's own (its FedAvg
loop, its SuperNodes, a process per message: ``FL_ISOLATION=subprocess``) and
``examples/sklearn-logreg-managed`` with everything of ours, one after the other.
Stock Flower asks the nodes to evaluate in every round; ours judges the model on the coordinator,
because the app can, and once more has the nodes evaluate, as any app may want.
A model of 100 MB then goes to a node and back, beside what this machine's loopback carries.
Seconds are noise on a shared machine; the ratios are what counts. About five minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import record

EXAMPLES = record.ROOT / "examples"
PROGRAM = (sys.executable, "-m", "onefed.cli.main")
STOCK = ("--set", "FL_ISOLATION=subprocess")

PARTS = ("rounds", "deploy", "large")

PARAMETERS = 650
"""Of the example's model: 10 x 64 coefficients and 10 intercepts."""

LARGE_ARRAYS, LARGE_SHAPE = 20, (1250, 1000)
"""100 MB of float32."""
LARGE_BYTES = LARGE_ARRAYS * LARGE_SHAPE[0] * LARGE_SHAPE[1] * 4

HOPS = 4
"""Ways that a model takes in a round with one node: to the SuperLink, to the node, and back."""

LOOPBACK_BYTES = 1 << 30
CHUNK_BYTES = 1 << 20

LARGE_APP = f"""
import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

app = ClientApp()
server = ServerApp()


@app.train()
def train(message, context):
    arrays = [array + np.float32(1) for array in message.content["arrays"].to_numpy_ndarrays()]
    content = {{"arrays": ArrayRecord(arrays), "metrics": MetricRecord({{"num-examples": 1}})}}
    return Message(RecordDict(content), reply_to=message)


def initial_arrays(run_config):
    return {{str(index): np.zeros({LARGE_SHAPE}, np.float32) for index in range({LARGE_ARRAYS})}}


def evaluate(arrays, run_config):
    return {{"loss": 1.0}}
"""

LARGE_PROJECT = """
[project]
name = "large"
version = "1.0.0"
description = "A model of 100 MB, for the bench"
license = "Apache-2.0"

[tool.flwr.app]
publisher = "onefed"

[tool.flwr.app.components]
serverapp = "large:server"
clientapp = "large:app"

[tool.onefed]
initial-arrays = "large:initial_arrays"
evaluate = "large:evaluate"
"""


@dataclass
class Measured:
    """One federation."""

    deploy_s: float = 0.0
    """From the command to the end of the first aggregated round."""
    up_s: float = 0.0
    """From the command to when the last machine reported itself ready."""
    rounds_s: list[float] = field(default_factory=list)

    @property
    def first_s(self) -> float:
        """From when the machines are up to the end of the first aggregated round."""
        return self.deploy_s - self.up_s

    @property
    def round_s(self) -> float:
        """Median; the first round imports the app, so it is left out where there are others."""
        return statistics.median(self.rounds_s[1:] or self.rounds_s)


def main() -> None:
    """Measure, print the table, save the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, nargs="*", default=[2, 4])
    parser.add_argument("--stock-rounds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=PARTS)
    options = parser.parse_args()
    raw: dict[str, Any] = {}
    results: list[dict[str, Any]] = []
    print(f"{'':44}{'stock s':>10}{'ours s':>10}{'ratio':>8}")
    with tempfile.TemporaryDirectory() as folder:
        evaluated_by_nodes = _without_own_evaluation(Path(folder))
        for nodes in options.nodes if "rounds" in options.parts else ():
            stock = _run(EXAMPLES / "sklearn-logreg", nodes, options.stock_rounds, *STOCK)
            ours = _run(EXAMPLES / "sklearn-logreg-managed", nodes, options.rounds)
            by_nodes = _run(evaluated_by_nodes, nodes, options.rounds)
            raw[f"{nodes} nodes"] = {
                "stock": vars(stock),
                "ours": vars(ours),
                "ours, evaluated by the nodes": vars(by_nodes),
            }
            for name, peer_s, our_s in (
                ("hub round", stock.round_s, ours.round_s),
                ("hub round, evaluated by the nodes", stock.round_s, by_nodes.round_s),
            ):
                results.append(_row(f"{name}, {nodes} nodes", peer_s, our_s, nodes))
        if "deploy" in options.parts:
            stock = _run(EXAMPLES / "sklearn-logreg", 3, 1, *STOCK)
            ours = _run(EXAMPLES / "sklearn-logreg-managed", 3, 1)
            raw["deploy, 3 nodes"] = {"stock": vars(stock), "ours": vars(ours)}
            for name, peer_s, our_s in (
                ("deploy to first aggregated round", stock.deploy_s, ours.deploy_s),
                ("machines up to first aggregated round", stock.first_s, ours.first_s),
            ):
                results.append(_row(f"{name}, 3 nodes", peer_s, our_s, 3))
        if "large" in options.parts:
            results.append(_large(Path(folder), raw))
    record.save_raw("hub", raw)
    record.save_latest(results)


def _run(app: Path, nodes: int, rounds: int, *options: str) -> Measured:
    """One federation, from the command to its end."""
    found = Measured()
    with tempfile.TemporaryDirectory() as home:
        arguments = ["--nodes", str(nodes), "--rounds", str(rounds), "--log-format", "json"]
        started_s = time.monotonic()
        with subprocess.Popen(
            [*PROGRAM, "run", app, *arguments, *options],
            env={**os.environ, "ONEFED_HOME": home},
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                said = json.loads(line)
                if said["event"] == "vm_state" and said["data"]["state"] == "running":
                    found.up_s = time.monotonic() - started_s
                if said["event"] != "round_end":
                    continue
                found.deploy_s = found.deploy_s or time.monotonic() - started_s
                found.rounds_s.append(float(said["data"]["round_duration_seconds"]))
    assert process.returncode == 0, f"{app.name} with {nodes} nodes: exit {process.returncode}"
    assert len(found.rounds_s) == rounds, found
    return found


def _large(folder: Path, raw: dict[str, Any]) -> dict[str, Any]:
    """A round with a model of 100 MB and one node, and what moving its bytes takes at least."""
    app = folder / "large"
    app.mkdir()
    (app / "pyproject.toml").write_text(LARGE_PROJECT)
    (app / "large.py").write_text(LARGE_APP)
    rate = statistics.median(_loopback_bytes_per_s() for _ in range(3))
    measured = _run(app, 1, 3, "--set", "FL_CHECKPOINT_ENABLED=NO")
    limit_s = HOPS * LARGE_BYTES / rate
    multiple = measured.round_s / limit_s
    raw["100 MB, 1 node"] = {**vars(measured), "loopback_bytes_per_s": rate, "limit_s": limit_s}
    print(f"{'100 MB, 1 node: loopback | round | multiple':44}", end="")
    print(f"{limit_s:>10.2f}{measured.round_s:>10.2f}{multiple:>8.1f}")
    return _result(
        "hub round, 100 MB, 1 node", LARGE_BYTES // 4, 1, multiple=multiple, peer="loopback TCP"
    )


def _loopback_bytes_per_s() -> float:
    """What one TCP connection carries, written and read by two threads."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def drain() -> None:
            connection, _ = listener.accept()
            with connection:
                buffer = bytearray(CHUNK_BYTES)
                while connection.recv_into(buffer):
                    pass

        reader = threading.Thread(target=drain)
        reader.start()
        content = bytes(CHUNK_BYTES)
        with socket.create_connection(listener.getsockname()) as connection:
            started_s = time.monotonic()
            for _ in range(LOOPBACK_BYTES // CHUNK_BYTES):
                connection.sendall(content)
        reader.join()
        return LOOPBACK_BYTES / (time.monotonic() - started_s)


def _without_own_evaluation(folder: Path) -> Path:
    """The managed example, whose model the nodes evaluate."""
    app = folder / "evaluated"
    shutil.copytree(EXAMPLES / "sklearn-logreg-managed", app)
    project = app / "pyproject.toml"
    lines = project.read_text().splitlines()
    project.write_text("\n".join(line for line in lines if not line.startswith("evaluate =")))
    return app


def _row(name: str, stock_s: float, our_s: float, nodes: int) -> dict[str, Any]:
    ratio = stock_s / our_s
    print(f"{name:44}{stock_s:>10.2f}{our_s:>10.2f}{ratio:>8.1f}", flush=True)
    return _result(name, PARAMETERS, nodes, ratio=ratio, peer="flwr, stock")


def _result(
    name: str,
    parameters: int,
    clients: int,
    *,
    ratio: float | None = None,
    multiple: float | None = None,
    peer: str,
) -> dict[str, Any]:
    return {
        "name": name,
        "parameters": parameters,
        "clients": clients,
        "limit_multiple": None if multiple is None else round(multiple, 3),
        "peer": peer,
        "peer_version": version("flwr"),
        "peer_multiple": None,
        "ratio": None if ratio is None else round(ratio, 3),
        "extra_memory_models": None,
        "threads": 1,
    }


if __name__ == "__main__":
    main()
