"""Lossless deltas of consecutive models: how small on a real run, how fast on 10 M parameters.

``python bench/deltas.py`` trains the digits network, made wider, with FedAvg over five partitions,
stores every round as a delta against the one before, and compares the size with zstd over the whole
model and with ``numpy.savez_compressed``. Then it stretches two of these models to 10 M parameters,
each weight with its update by a random factor, and takes medians of several repeats of each way,
one after the other. A multiple is the time over that of reading base and model once, which numpy's
``max`` does at the speed of memory in one thread just before; a peer, which reads the model only,
is held to the same.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import record
import zstandard

from onefed.aggregate import FedAvg, Update
from onefed.apps.image_classification import data, model, randomness
from onefed.apps.image_classification.randomness import Stream
from onefed.arrays import Arrays, digest, nbytes
from onefed.checkpoint import delta, delta_file
from onefed.checkpoint.archive import manifest
from onefed.checkpoint.delta import DeltaStore

SEED = 3
CLIENTS = 5
LEARNING_RATE = 0.05
STRETCHED_PARAMETERS = 10_000_000


def main() -> None:
    """Measure, print the tables, save the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--hidden", type=int, default=2048, help="units of the hidden layer")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    run = _train(options.rounds, options.hidden)
    size, sizes = _sizes(run)
    speed, seconds = _speeds(*_stretched(run[-2], run[-1]), options.repeats)
    record.save_latest([size, speed])
    raw = {
        "model_over_delta": round(4 * size["parameters"] / statistics.median(sizes["delta"]), 3),
        "megabytes_per_second": {
            name: round(4 * STRETCHED_PARAMETERS / 1e6 / statistics.median(taken))
            for name, taken in seconds.items()
        },
        "bytes_by_round": sizes,
        "seconds_by_repeat": seconds,
    }
    record.save_raw("deltas", raw)


# --- Size, on a real run --------------------------------------------------------------------------


def _train(rounds: int, hidden: int) -> list[Arrays]:
    """The global models of a run, from the initial one on."""
    pool, test = data.digits()
    generator = np.random.default_rng(SEED)

    def weight(inputs: int, outputs: int) -> Any:
        return generator.normal(0, np.sqrt(2 / inputs), (inputs, outputs)).astype(np.float32)

    arrays: Arrays = {
        "hidden.weight": weight(model.FEATURES, hidden),
        "hidden.bias": np.zeros(hidden, np.float32),
        "output.weight": weight(hidden, model.CLASSES),
        "output.bias": np.zeros(model.CLASSES, np.float32),
    }
    shares = [
        pool.take(data.partition(pool.y, client, CLIENTS, "iid", 1.0, SEED))
        for client in range(CLIENTS)
    ]
    rule, run = FedAvg(), [arrays]
    state = rule.init(arrays)
    for number in range(1, rounds + 1):
        updates = []
        for client, share in enumerate(shares):
            trained, _ = model.train(
                arrays,
                share.x,
                share.y,
                epochs=1,
                batch_size=32,
                learning_rate=LEARNING_RATE,
                proximal_mu=0.0,
                generator=randomness.generator(Stream.EXAMPLE_ORDER, SEED, number, client),
            )
            updates.append(Update(str(client), len(share), dict(trained)))
        state, arrays = rule.step(state, arrays, updates, number)
        run.append(arrays)
    _, accuracy = model.evaluate(arrays, test.x, test.y)
    parameters = sum(array.size for array in arrays.values())
    print(f"digits, {parameters} parameters, {CLIENTS} clients, {rounds} rounds: {accuracy:.1%}\n")
    return run


def _sizes(run: list[Arrays]) -> tuple[dict[str, Any], dict[str, list[int]]]:
    """The result, and the bytes of each round in each form."""
    elements = nbytes(run[0])
    found: dict[str, list[int]] = {"delta": [], "full": [], "zstd": [], "savez": []}
    with tempfile.TemporaryDirectory() as folder:
        store = DeltaStore(Path(folder) / "chain", chain_max=delta.CHAIN_READ_MAX)
        full = DeltaStore(Path(folder) / "full", chain_max=0)
        before = store.put(run[0], None)
        for arrays in run[1:]:
            before = store.put(arrays, before)
            found["delta"].append(store.path(before).stat().st_size)
            found["full"].append(full.path(full.put(arrays, None)).stat().st_size)
            found["zstd"].append(len(_zstd(arrays)))
            found["savez"].append(len(_savez_compressed(arrays)))
        assert all((store.get(before)[key] == run[-1][key]).all() for key in run[-1])
    print(f"{'elements / file':28}{'round 1':>9}{'median':>9}{'last':>9}")
    names = {"delta": "delta", "full": "full model, our format", "zstd": "zstd 1 of the whole"}
    for name, measured in found.items():
        shown = (measured[0], statistics.median(measured), measured[-1])
        cells = "".join(f"{elements / size:>9.2f}" for size in shown)
        print(f"{names.get(name, 'numpy.savez_compressed'):28}{cells}")
    print()
    ours, theirs = (statistics.median(found[name]) for name in ("delta", "savez"))
    result = _result(
        "delta of consecutive models, size",
        parameters=elements // 4,
        clients=CLIENTS,
        peer="numpy.savez_compressed",
        peer_version=np.__version__,
        ratio=theirs / ours,
    )
    return result, found


def _zstd(arrays: Arrays) -> bytes:
    """The whole model as one zstd frame, at the level of our own."""
    return zstandard.ZstdCompressor(level=delta_file.LEVEL).compress(
        b"".join(map(bytes, arrays.values()))
    )


def _savez_compressed(arrays: Arrays) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()


# --- Speed, on 10 M parameters --------------------------------------------------------------------


def _stretched(before: Arrays, after: Arrays) -> tuple[Arrays, Arrays]:
    """Consecutive models of 10 M parameters whose relative updates are those of a real run."""
    flat = [np.concatenate([array.ravel() for array in each.values()]) for each in (before, after)]
    factor = np.random.default_rng(SEED).uniform(0.5, 1, STRETCHED_PARAMETERS).astype(np.float32)
    base, target = (np.resize(each, STRETCHED_PARAMETERS) * factor for each in flat)
    return {"w": base}, {"w": target}


class _Nowhere(io.RawIOBase):
    """Takes what is written and forgets it: the disk is no part of the measurement."""

    size_bytes = 0

    def write(self, data: Any, /) -> int:
        self.size_bytes += len(data)
        return len(data)


def _speeds(
    base: Arrays, target: Arrays, repeats: int
) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """The result, and the seconds of each repeat of each way."""
    elements = nbytes(target)
    threads = min(delta.THREADS_MAX, os.cpu_count() or 1)
    with tempfile.TemporaryDirectory() as at:
        stores = {count: DeltaStore(Path(at) / str(count), threads=count) for count in (1, threads)}
        names = {count: store.put(base, None) for count, store in stores.items()}

        def put(count: int) -> None:
            store = stores[count]
            for name in set(store.names()) - {names[count]}:
                store.path(name).unlink()
            store._keep(names[count], base)  # as after the put of the round before
            store.put(target, names[count])

        header = delta_file.Header(names[1], digest(target), manifest(target))

        def encode(count: int) -> None:
            with ThreadPoolExecutor(count) as pool:
                delta_file.encode(pool, _Nowhere(), header, target, base)

        ways: dict[str, Callable[[], object]] = {
            "encode, 1 thread": lambda: encode(1),
            f"encode, {threads} threads": lambda: encode(threads),
            "put, durable and verified": lambda: put(threads),
            "get, a delta and its base": lambda: stores[threads].get(header.target),
            "zstd 1 of the whole": lambda: _zstd(target),
            "numpy.savez_compressed": lambda: _savez_compressed(target),
        }
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        limits: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(repeats):
            for name, way in ways.items():
                limits[name].append(_timed(lambda: [_read(each["w"]) for each in (base, target)]))
                seconds[name].append(_timed(way))
        tracemalloc.start()
        encode(threads)
        extra = tracemalloc.get_traced_memory()[1] / elements
        tracemalloc.stop()
    multiples = {
        name: [taken / limit for taken, limit in zip(seconds[name], limits[name], strict=True)]
        for name in ways
    }
    print(f"10 M float32 parameters, {elements / 1e6:.0f} MB; medians of {repeats}")
    print(f"{'':28}{'MB/s':>9}{'multiple':>9}")
    for name in ways:
        rate = elements / statistics.median(seconds[name]) / 1e6
        print(f"{name:28}{rate:>9.0f}{statistics.median(multiples[name]):>9.1f}")
    ours, theirs = multiples[f"encode, {threads} threads"], multiples["zstd 1 of the whole"]
    result = _result(
        "delta encode, 10 M parameters",
        parameters=STRETCHED_PARAMETERS,
        clients=1,
        limit_multiple=statistics.median(ours),
        peer="zstandard level 1, whole model",
        peer_version=zstandard.__version__,
        peer_multiple=statistics.median(theirs),
        ratio=statistics.median(theirs) / statistics.median(ours),
        extra_memory_models=extra,
        threads=threads,
    )
    return result, seconds


def _read(array: Any) -> object:
    return array.view(np.int64).max()


def _timed(way: Callable[[], object]) -> float:
    started = time.perf_counter()
    way()
    return time.perf_counter() - started


# --- Results --------------------------------------------------------------------------------------


def _result(name: str, *, threads: int = 1, **figures: Any) -> dict[str, Any]:
    fields = ("parameters", "clients", "limit_multiple", "peer", "peer_version", "peer_multiple")
    found = {"name": name} | {
        field: figures.get(field) for field in (*fields, "ratio", "extra_memory_models")
    }
    rounded = {
        field: round(value, 3) if isinstance(value, float) else value
        for field, value in found.items()
    }
    return rounded | {"threads": threads}


if __name__ == "__main__":
    main()
