"""The aggregation rules beside Flower's own strategy classes and the speed of memory.

``python bench/rules.py`` makes 20 updates of 10 M float32 parameters and gives them to each rule:
compiled with one and two threads, in numpy, and to Flower's strategy, as real messages and through
the method that Flower calls. ``--curve`` goes over sizes and numbers of clients: the work of a mean
grows with the clients, that of sorting a little faster, that of Krum and Bulyan, which compare all
pairs, with their square.

A *multiple* is the time over that of reading all updates once, which numpy's ``max`` does at the
speed of memory in one thread; that probe runs before each measurement, so that a busy machine slows
down both. Memory is the high-water mark of the process during the call, in models, the result
included and the updates not.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import logging
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import record
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import strategy
from flwr.supercore.task_identity import TaskIdentity
from rich.console import Console
from rich.table import Table

from onefed import aggregate
from onefed.aggregate import Update
from onefed.aggregate.kernels import selection
from onefed.arrays import Arrays, nbytes

LAYERS = 16
"""Arrays of a model; the first is as large as all others together."""
SEED = 7
CURVE = ((1_000_000, 10_000_000, 25_000_000), (5, 10, 20, 50))
"""Parameters and clients of ``--curve``."""
CURVE_ELEMENTS_MAX = 50_000_000
"""Parameters times clients up to which ``--curve`` measures numpy and Flower too: beyond, they take
minutes, and Flower tens of gigabytes."""

VARIANTS = {
    "1 thread": ("native", "1"),
    "2 threads": ("native", "2"),
    "numpy": ("reference", "1"),
}
"""How our rules run: ``ONEFED_KERNELS`` and ``ONEFED_THREADS``."""


@dataclass(frozen=True)
class Contest:
    """One rule and what Flower has for it."""

    name: str
    run: Callable[[Arrays, Sequence[Update]], object]
    flower: Callable[[], strategy.FedAvg]
    flower_repeats: int = 2


@dataclass
class Cell:
    """Measurements of one implementation of one rule."""

    seconds: list[float] = field(default_factory=list)
    multiples: list[float] = field(default_factory=list)
    memory_models: float = 0.0

    @property
    def multiple(self) -> float:
        """Median over the repeats."""
        return statistics.median(self.multiples)


def contests(clients: int) -> list[Contest]:
    """Every rule that so many clients allow."""
    hostile = max(0, (clients - 3) // 4)

    def ours(name: str, **parameters: float) -> Callable[[Arrays, Sequence[Update]], object]:
        rule = aggregate.rule(name, **parameters)
        return lambda model, updates: rule.step(rule.init(model), model, updates, 1)

    def streamed(model: Arrays, updates: Sequence[Update]) -> object:
        fold = aggregate.MeanFold(model)
        for update in updates:
            fold.add(update)
        return fold.result()

    robust = {"num_malicious_nodes": hostile}
    found = [
        Contest("FedAvg", ours("FedAvg"), strategy.FedAvg),
        Contest("FedAvg, one update at a time", streamed, strategy.FedAvg),
        Contest("FedAdam", ours("FedAdam"), strategy.FedAdam),
        Contest(
            "FedTrimmedAvg, 0.2",
            ours("FedTrimmedAvg", beta=0.2),
            lambda: strategy.FedTrimmedAvg(beta=0.2),
        ),
        Contest("FedMedian", ours("FedMedian"), strategy.FedMedian),
    ]
    if hostile:
        found += [
            Contest("Krum", ours("Krum", num_malicious=hostile), lambda: strategy.Krum(**robust)),
            Contest(
                "Bulyan",
                ours("Bulyan", num_malicious=hostile),
                lambda: strategy.Bulyan(**robust),
                flower_repeats=1,
            ),
        ]
    return found


def main() -> None:
    """Measure, print the table, save the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parameters", type=int, default=10_000_000)
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=7, help="of the compiled kernels")
    parser.add_argument("--rules", help="only rules whose name contains this")
    parser.add_argument("--curve", action="store_true", help="over sizes and numbers of clients")
    parser.add_argument("--no-flower", action="store_true", help="leave Flower out")
    options = parser.parse_args()
    logging.getLogger("flwr").setLevel(logging.ERROR)
    sizes, counts = CURVE if options.curve else ((options.parameters,), (options.clients,))
    raw, results = [], []
    for parameters in sizes:
        for clients in counts:
            others = not options.curve or parameters * clients <= CURVE_ELEMENTS_MAX
            chosen = [
                contest
                for contest in contests(clients)
                if options.rules is None or options.rules.lower() in contest.name.lower()
            ]
            variants = list(VARIANTS) if others else ["1 thread", "2 threads"]
            flower = others and not options.no_flower
            measured = measure(
                chosen, parameters, clients, variants, options.repeats, flower=flower
            )
            show(measured, parameters, clients)
            raw += raw_of(measured, parameters, clients)
            results += results_of(measured, parameters, clients)
    record.save_raw("rules-curve" if options.curve else "rules", {"cells": raw})
    if not options.curve:
        record.save_latest(results)


# --- Measuring ------------------------------------------------------------------------------------


def measure(
    chosen: Sequence[Contest],
    parameters: int,
    clients: int,
    variants: Sequence[str],
    repeats: int,
    *,
    flower: bool,
) -> dict[str, dict[str, Cell]]:
    """Cells by rule and implementation."""
    model, updates = made(parameters, clients)
    measured: dict[str, dict[str, Cell]] = {}
    for contest in chosen:
        cells = {variant: Cell() for variant in variants}
        for repeat in range(repeats):  # interleaved: all meet the same noise
            for variant, cell in cells.items():
                if variant == "numpy" and repeat >= 2:
                    continue
                use(*VARIANTS[variant])
                time_once(cell, updates, lambda c=contest: c.run(model, updates))
        if flower:
            cells["Flower"] = Cell()
            for _ in range(contest.flower_repeats):
                flower_once(cells["Flower"], contest, model, updates)
        measured[contest.name] = cells
    return measured


def made(parameters: int, clients: int) -> tuple[Arrays, list[Update]]:
    """A model and updates near it: weights of size 0.1, steps of a hundredth of that."""
    rng = np.random.default_rng(SEED)
    rest = max(1, parameters // (2 * (LAYERS - 1)))
    shape = [parameters - rest * (LAYERS - 1), *[rest] * (LAYERS - 1)]
    names = [f"layer-{index:02}" for index in range(LAYERS)]
    model: Arrays = {
        name: rng.standard_normal(size, np.float32) * np.float32(0.1)
        for name, size in zip(names, shape, strict=True)
    }
    updates = []
    for client in range(clients):
        arrays: Arrays = {}
        for name, like in model.items():
            step = rng.standard_normal(like.size, np.float32)
            step *= np.float32(0.001)
            step += like
            arrays[name] = step
        updates.append(Update(str(client), 100 + client, arrays))
    return model, updates


def use(kernels: str, threads: str) -> None:
    """Have the rules use these kernels from now on."""
    os.environ |= {"ONEFED_KERNELS": kernels, "ONEFED_THREADS": threads}
    selection.selected.cache_clear()


def time_once(cell: Cell, updates: Sequence[Update], call: Callable[[], object]) -> None:
    """Probe, then time ``call`` and its memory; the result is freed before the next probe."""
    gc.collect()
    limit_s = probe(updates)
    before = start_of_peak()
    started = time.perf_counter()
    result = call()
    seconds = time.perf_counter() - started
    models = (peak_bytes() - before) / nbytes(updates[0].arrays)
    del result
    cell.seconds.append(seconds)
    cell.multiples.append(seconds / limit_s)
    cell.memory_models = max(cell.memory_models, models)


def probe(updates: Sequence[Update]) -> float:
    """Seconds to read all updates once."""
    started = time.perf_counter()
    for update in updates:
        for array in update.arrays.values():
            np.max(array)
    return time.perf_counter() - started


def flower_once(cell: Cell, contest: Contest, model: Arrays, updates: Sequence[Update]) -> None:
    """Time ``aggregate_train`` of Flower's strategy on fresh messages, which it empties."""
    rule = contest.flower()
    if isinstance(rule, strategy.FedAdam):
        rule.current_arrays = model  # as its configure_train does
    replies = list(messages(updates))
    time_once(cell, updates, lambda: rule.aggregate_train(1, replies))


def messages(updates: Sequence[Update]) -> Iterator[Message]:
    """Replies as they come out of a grid."""
    for identity in ("run_id", "task_id", "node_id"):  # set by Flower's own processes
        setattr(TaskIdentity, identity, 1)
    for update in updates:
        order = Message(RecordDict(), dst_node_id=int(update.client) + 1, message_type="train")
        content = RecordDict(
            {
                "arrays": ArrayRecord(
                    {name: Array(array) for name, array in update.arrays.items()}
                ),
                "metrics": MetricRecord({"num-examples": update.weight, "loss": 1.0}),
            }
        )
        yield Message(content, reply_to=order)


def start_of_peak() -> int:
    """Give free memory back and have the system forget the high-water mark; resident bytes now."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return peak_bytes()


def peak_bytes() -> int:
    """Most bytes that were resident since ``start_of_peak``."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("Linux says VmHWM")


# --- Showing and saving ---------------------------------------------------------------------------


def show(measured: dict[str, dict[str, Cell]], parameters: int, clients: int) -> None:
    """Print multiples, ratios and memory."""
    table = Table(
        title=f"{clients} updates of {parameters:,} float32 parameters: "
        "multiples of reading them once (memory beside them, in models)"
    )
    columns = list(dict.fromkeys(each for cells in measured.values() for each in cells))
    for heading in ("rule", *columns, "Flower / 1 thread"):
        table.add_column(heading, justify="left" if heading == "rule" else "right")
    for name, cells in measured.items():
        shown = [
            f"{cells[each].multiple:.2f} ({cells[each].memory_models:.2f})" for each in columns
        ]
        ratio = ratio_of(cells, "1 thread")
        table.add_row(name, *shown, "" if ratio is None else f"{ratio:.1f}")
    Console(width=120).print(table)


def ratio_of(cells: dict[str, Cell], variant: str) -> float | None:
    """Flower's cost over ours."""
    return cells["Flower"].multiple / cells[variant].multiple if "Flower" in cells else None


def raw_of(
    measured: dict[str, dict[str, Cell]], parameters: int, clients: int
) -> list[dict[str, Any]]:
    """Every measurement."""
    return [
        {
            "rule": name,
            "implementation": implementation,
            "parameters": parameters,
            "clients": clients,
            "seconds": cell.seconds,
            "multiples": cell.multiples,
            "extra_memory_models": cell.memory_models,
        }
        for name, cells in measured.items()
        for implementation, cell in cells.items()
    ]


def results_of(
    measured: dict[str, dict[str, Cell]], parameters: int, clients: int
) -> list[dict[str, Any]]:
    """Entries of ``latest.json``: each rule with one and two threads."""
    results = []
    for name, cells in measured.items():
        for variant, threads in (("1 thread", 1), ("2 threads", 2)):
            peer = cells.get("Flower")
            ratio = ratio_of(cells, variant)
            results.append(
                {
                    "name": f"rule {name}, {variant}",
                    "parameters": parameters,
                    "clients": clients,
                    "limit_multiple": round(cells[variant].multiple, 3),
                    "peer": "flwr.serverapp.strategy",
                    "peer_version": version("flwr"),
                    "peer_multiple": round(peer.multiple, 2) if peer else None,
                    "ratio": round(ratio, 2) if ratio else None,
                    "extra_memory_models": round(cells[variant].memory_models, 3),
                    "threads": threads,
                }
            )
    return results


if __name__ == "__main__":
    main()
