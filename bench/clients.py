"""Many virtual clients in one process: what a client costs the round loop, and how much memory.

``python bench/clients.py`` gives the same tiny ClientApp to our loop and to stock Flower's
``FedAvg.start``, on the same grid: rounds of 100 and of 1,000 clients, one after the other. Linear
means that ten times the clients take ten times the seconds. Memory is the high-water mark of
Python's allocations in a round, in sizes of the model: the app of one client at a time is in it.
What the coordinator alone holds is measured with clients that send back what they got: resident
memory of a process of its own, 25 M parameters, 8 clients, two rounds.
Seconds are those of the CPU, and noisy on a shared machine; the ratios are what counts.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
import time
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import record
from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # campaigns lie beside src

from campaigns import federations

from onefed import aggregate
from onefed.arrays import Arrays, nbytes
from onefed.flower import payload, virtual

PARAMETERS = 4_810
"""Of the timed model: 64 x 64 + 64 + 64 x 10 + 10, the digits with one hidden layer."""
LARGE = 2**20
"""Parameters of the model whose copies are counted."""

COORDINATOR_PARAMETERS, COORDINATOR_CLIENTS = 25_000_000, 8

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """As little as an app can do."""
    moved = {name: array.numpy() * 0.9 for name, array in message.content["arrays"].items()}
    metrics = MetricRecord({"num-examples": 1 + int(context.node_config["partition-id"]) % 7})
    content = RecordDict({"arrays": payload.to_record(moved), "metrics": metrics})
    return Message(content, reply_to=message)


def model_of(parameters: int) -> Arrays:
    """In two arrays."""
    return {"w": np.ones(parameters - 10, np.float32), "b": np.ones(10, np.float32)}


def ours(clients: int, model: Arrays, rounds: int = 1) -> None:
    """Our loop with FedAvg; the recovery store is written as always."""
    nodes = _nodes(clients)
    rule = aggregate.rule("FedAvg")
    done = federations.ours(nodes, rule, model, rounds=rounds, quorum=clients)
    assert len(done.contributors[-1]) == clients, done.error


def stock(clients: int, model: Arrays, rounds: int = 1) -> None:
    """Flower's FedAvg, without evaluation."""
    strategy = federations.strategy_of_flower("FedAvg", clients, 0)
    done = federations.stock(_nodes(clients), strategy, model, rounds=rounds)
    assert not done.error, done.error


def _nodes(count: int) -> dict[str, virtual.Node]:
    return {
        str(index): virtual.node(app, partition_id=index, num_partitions=count)
        for index in range(count)
    }


ENGINES: dict[str, Callable[[int, Arrays, int], None]] = {"onefed": ours, "Flower": stock}


def seconds_a_round(engine: Callable[[int, Arrays, int], None], clients: int) -> float:
    """CPU seconds of a later round: the first pays for imports, and others may use the machine."""
    model = model_of(PARAMETERS)
    taken = []
    for rounds in (1, 3):
        started = time.process_time()
        engine(clients, model, rounds)
        taken.append(time.process_time() - started)
    return (taken[1] - taken[0]) / 2


def peak_models(engine: Callable[[int, Arrays, int], None], clients: int) -> float:
    """High-water mark of allocations, the global model counted once."""
    model = model_of(LARGE)
    tracemalloc.start()
    try:
        engine(clients, model, 1)
        return 1 + tracemalloc.get_traced_memory()[1] / nbytes(model)
    finally:
        tracemalloc.stop()


def coordinator_models(clients: int) -> float:
    """High-water mark of resident memory in two rounds, over that before, in sizes of the model."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_coordinator_models, clients).result()


def _coordinator_models(clients: int) -> float:
    nodes = {str(index): _echo for index in range(clients)}
    rule = aggregate.rule("FedAvg")
    federations.ours(nodes, rule, model_of(PARAMETERS), rounds=1, quorum=clients)  # imports
    model = model_of(COORDINATOR_PARAMETERS)
    before = _status_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
    done = federations.ours(nodes, rule, model, rounds=2, quorum=clients)
    assert not done.error, done.error
    return (_status_bytes("VmHWM") - before) / nbytes(model)


def _echo(message: Message) -> Message:
    """A client without memory of its own."""
    metrics = MetricRecord({"num-examples": 3})
    content = RecordDict({"arrays": message.content["arrays"], "metrics": metrics})
    return Message(content, reply_to=message)


def _status_bytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))


def main() -> None:
    """Measure, print the table, save the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, nargs=2, default=(100, 1000))
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    few, many = options.clients
    seconds: dict[tuple[str, int], list[float]] = {}
    for _ in range(options.repeats):
        for name, engine in ENGINES.items():  # interleaved: all meet the same noise
            for clients in (few, many):
                measured = seconds_a_round(engine, clients)
                seconds.setdefault((name, clients), []).append(measured)
    medians = {key: statistics.median(values) for key, values in seconds.items()}
    memory = {
        (name, clients): peak_models(engine, clients)
        for name, engine in ENGINES.items()
        for clients in (10, 100)
    }
    print(f"{'':10}{f'ms a client, {few}':>20}{f'ms a client, {many}':>20}{'growth':>8}", end="")
    print(f"{'models, 10':>12}{'models, 100':>12}")
    for name in ENGINES:
        each = [1000 * medians[name, clients] / clients for clients in (few, many)]
        print(f"{name:10}{each[0]:20.3f}{each[1]:20.3f}{each[1] / each[0]:8.2f}", end="")
        print(f"{memory[name, 10]:12.1f}{memory[name, 100]:12.1f}")
    ratio = medians["Flower", many] / medians["onefed", many]
    print(f"Flower's time over ours with {many} clients: {ratio:.2f}")
    held = coordinator_models(COORDINATOR_CLIENTS)
    print(f"The coordinator alone, {COORDINATOR_CLIENTS} clients: {held:.1f} models")
    record.save_latest([_result(many, ratio, memory["onefed", 100])])
    raw = {"seconds": _plain(seconds), "memory_models": _plain(memory), "coordinator_models": held}
    record.save_raw("clients", raw)


def _result(clients: int, ratio: float, memory_models: float) -> dict[str, Any]:
    return {
        "name": f"round of {clients} virtual clients, FedAvg",
        "parameters": PARAMETERS,
        "clients": clients,
        "limit_multiple": None,
        "peer": "flwr FedAvg.start",
        "peer_version": version("flwr"),
        "peer_multiple": None,
        "ratio": round(ratio, 2),
        "extra_memory_models": round(memory_models, 2),
        "threads": 1,
    }


def _plain(values: dict[tuple[str, int], Any]) -> dict[str, Any]:
    return {f"{name}, {clients} clients": value for (name, clients), value in values.items()}


if __name__ == "__main__":
    main()
