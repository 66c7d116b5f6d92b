"""Damaged files: never a model that was not committed, and no other exception than ours.

Each seed damages one to three files of a folder with both kinds of checkpoints, then loads and
verifies it. A seed that damages a sidecar may give it the right digest of itself again, to get past
the first check; fields that no array proves (such as the seed of the run) are left alone then.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

from campaigns import results
from campaigns.workloads import NOW, RUN, committed, identity
from onefed.arrays import Arrays, digest
from onefed.checkpoint import Exporter, Loaded, RecoveryStore, inspect
from onefed.errors import OnefedError

ROUNDS = (1, 2, 3)
MEMORY = Path("/dev/shm")  # noqa: S108 - a folder of its own is made there
"""A file system in memory, where there is one: nothing here is about durability."""

Mutation = Callable[[bytes, Random], bytes]


def flip(data: bytes, random: Random) -> bytes:
    """Flip one bit."""
    mutated = bytearray(data)
    mutated[random.randrange(len(data))] ^= 1 << random.randrange(8)
    return bytes(mutated)


def overwrite(data: bytes, random: Random) -> bytes:
    """Write garbage, zeros or text over a few bytes."""
    start, length = random.randrange(len(data)), random.randint(1, 16)
    new = random.choice([random.randbytes(length), bytes(length), b"9" * length])
    return data[:start] + new + data[start + length :]


def insert(data: bytes, random: Random) -> bytes:
    """Move the rest back."""
    start = random.randint(0, len(data))
    return data[:start] + random.randbytes(random.randint(1, 9)) + data[start:]


def cut(data: bytes, random: Random) -> bytes:
    """Take a piece out."""
    start = random.randrange(len(data))
    return data[:start] + data[start + random.randint(1, 64) :]


def truncate(data: bytes, random: Random) -> bytes:
    """End early."""
    return data[: random.randrange(len(data))]


def extend(data: bytes, random: Random) -> bytes:
    """Add to the end."""
    return data + random.choice([bytes(random.randint(1, 600)), data, b"\n"])


def count(data: bytes, random: Random) -> bytes:
    """Put another number into four or eight bytes: a size, an offset, a check sum."""
    layout, bits = random.choice([("<I", 32), ("<Q", 64), ("<H", 16)])
    start = random.randrange(max(1, len(data) - 8))
    number = random.choice([0, 1, 2**bits - 1, 2 ** (bits - 1), random.getrandbits(bits)])
    return data[:start] + struct.pack(layout, number) + data[start + bits // 8 :]


def forge(data: bytes, random: Random) -> bytes:
    """Change what a sidecar says about files and arrays, and sign it anew."""
    try:
        document = json.loads(data)
        body = document["snapshot"]
        field = random.choice(["archive", "state_archive", "arrays", "rule_state", "round_number"])
        body[field] = _bent(body[field], random)
        text = json.dumps(body, sort_keys=True, separators=(",", ":"))
        document["sha256"] = hashlib.sha256(text.encode()).hexdigest()
        return json.dumps(document).encode()
    except (ValueError, KeyError, TypeError):
        return flip(data, random)


def _bent(value: Any, random: Random) -> Any:
    """Another value in the place of one somewhere inside."""
    if isinstance(value, (list, dict)) and value and random.random() < 0.8:
        places = list(value) if isinstance(value, dict) else range(len(value))
        # The name of an array is proved by nothing but the digest of the sidecar.
        if places := [place for place in places if place != "key"]:
            place = random.choice(places)
            value[place] = _bent(value[place], random)
            return value
    odd: list[object] = [
        None,
        0,
        -1,
        2**63,
        1e308,
        "",
        "../x",
        "float64",
        [],
        {},
        [[]],
        True,
        [2**40],
        "a" * 99,
    ]
    return random.choice(odd)


MUTATIONS: tuple[Mutation, ...] = (*(flip, overwrite, insert, cut, truncate, extend, count, forge),)


@functools.cache
def pristine() -> dict[str, bytes]:
    """Content by name of a folder with three rounds of each kind."""
    with _scratch() as folder:
        store, exporter = RecoveryStore(folder), Exporter(folder, RUN, 1)
        for number in ROUNDS:
            store.save(committed(number))
            exporter.save(committed(number), now=NOW)
        return {path.name: path.read_bytes() for path in folder.iterdir() if not path.is_symlink()}


@functools.cache
def template() -> Arrays:
    """The app's model."""
    return committed(1).arrays


@functools.cache
def identities() -> dict[int, str]:
    """What may be found, by round."""
    return {number: identity(committed(number)) for number in ROUNDS}


@functools.cache
def digests() -> frozenset[tuple[str, str]]:
    """Digests of the models and states that were committed."""
    snapshots = [committed(number) for number in ROUNDS]
    return frozenset((digest(each.arrays), digest(each.rule_state)) for each in snapshots)


def run(seed: int) -> results.Outcome:
    """One damaged folder."""
    random = Random(seed)  # noqa: S311 - chance that can be repeated, no secret
    content = dict(pristine())
    harm = []
    for name in random.sample(sorted(content), random.randint(1, 3)):
        if random.random() < 0.15:
            other = random.choice(sorted(content))
            content[name], content[other] = content[other], content[name]
            harm.append(f"{name} and {other} swapped")
        else:
            mutation = random.choice(MUTATIONS)
            content[name] = mutation(content[name], random)
            harm.append(f"{mutation.__name__} {name}")
    with _scratch() as folder:
        for name, data in content.items():
            (folder / name).write_bytes(data)
        (folder / "checkpoint_latest.npz").symlink_to("checkpoint_round_3.npz")
        try:
            found = [wrong for wrong in _wrong(folder) if wrong]
        except Exception as error:  # noqa: BLE001 - any exception but ours is the finding
            found = [f"{type(error).__name__}: {error}"]
    return results.Outcome(1, tuple(f"{', '.join(harm)}: {wrong}" for wrong in found))


def _wrong(folder: Path) -> Iterator[str | None]:
    with contextlib.suppress(OnefedError):
        yield _wrong_snapshot(RecoveryStore(folder).load(RUN))
    with contextlib.suppress(OnefedError):
        yield _wrong_snapshot(Exporter(folder, RUN, 1).load(template()))
    try:
        kinds = inspect.open_folder(folder)
    except OnefedError:
        return
    for series in kinds:
        for entry in series.rounds():
            verified = not series.verify(entry.round_number)
            try:
                model = series.arrays(entry.round_number)
                state = series.rule_state(entry.round_number)
            except OnefedError:
                yield "verify finds nothing where reading is refused" if verified else None
                continue
            if (digest(model), digest(state)) not in digests():
                yield f"{series.kind} reads a model that was not committed"


def _wrong_snapshot(loaded: Loaded | None) -> str | None:
    if loaded is None:
        return "nothing is found, and nothing is said"
    number = loaded.snapshot.round_number
    if identities().get(number) != identity(loaded.snapshot):
        return f"round {number} is not the one that was committed"
    return None


@contextlib.contextmanager
def _scratch() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(dir=MEMORY if MEMORY.is_dir() else None))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    results.main("mutations", __doc__ or "", run, option="count", count=1000, shard=1000)
