"""Files that somebody made to harm: each refused with its reason, in bounded memory and time.

``python -m campaigns.hostile`` limits its own address space, plants each file as the newest round
of a folder whose older round is good, loads the folder, and prints a JSON line a case: what was
said, the round that was found, seconds, and the most memory so far. ``--large`` adds the cases of
many GiB, which take half a minute each.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import shutil
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from campaigns.workloads import RUN, committed
from onefed.checkpoint import RecoveryStore, files, inspect, snapshot
from onefed.checkpoint.archive import Entry

MEMORY_BYTES_MAX = 3 * 2**29
"""Of address space: libraries map half of it before the first file is opened."""
SPARSE_BYTES = 2**28
"""Elements of one sparse array."""
LARGE_BYTES = 16 * 2**30
"""The most that an archive may hold."""


class Planted:
    """A folder with a good round 1, and a round 2 to be spoilt."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        store = RecoveryStore(folder)
        for number in (1, 2):
            store.save(committed(number))
        self.sidecar = folder / "round_000002.json"
        (self.archive,) = folder.glob("round_000002-*.npz")

    def claim(self, *entries: Entry) -> None:
        """Let the sidecar claim other arrays, with the right digest of itself."""
        document = files.read_json(self.sidecar)
        sidecar = snapshot.decode(self.sidecar, document)
        forged = replace(sidecar, arrays=entries, rule_state=())
        files.write_json(self.sidecar, snapshot.encode(forged))

    def members(self, *members: tuple[str, bytes], compression: int = zipfile.ZIP_STORED) -> None:
        """Make the archive anew."""
        with zipfile.ZipFile(self.archive, "w", compression) as target:
            for name, content in members:
                target.writestr(name, content)


def _npy(header: bytes, body: bytes = b"") -> bytes:
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + body


class Trap:
    """What runs code when it is unpickled."""

    def __reduce__(self) -> tuple[object, ...]:
        return (os._exit, (99,))


def pickled(planted: Planted) -> None:
    stream = io.BytesIO()
    np.save(stream, np.array([Trap()], object))
    planted.members(*((f"arr_{index}.npy", stream.getvalue()) for index in range(6)))


def compressed(planted: Planted) -> None:
    planted.claim(Entry("w", "uint8", (2**26,), ""))
    header = _npy(b"{'descr': '|u1', 'fortran_order': False, 'shape': (67108864,), }")
    planted.members(("arr_0.npy", header + bytes(2**26)), compression=zipfile.ZIP_DEFLATED)


def escaping(planted: Planted) -> None:
    planted.members(*((f"../../arr_{index}.npy", _npy(b"")) for index in range(6)))


def absolute(planted: Planted) -> None:
    planted.members(*((f"/arr_{index}.npy", _npy(b"")) for index in range(6)))


def other_folder(planted: Planted) -> None:
    document = json.loads(planted.sidecar.read_text())
    document["snapshot"]["archive"] = "../../../etc/passwd"
    document["sha256"] = snapshot.self_digest(document["snapshot"])
    planted.sidecar.write_text(json.dumps(document))


def truncated(planted: Planted) -> None:
    os.truncate(planted.archive, planted.archive.stat().st_size // 2)


def longer(planted: Planted) -> None:
    planted.claim(Entry("w", "uint8", (9,), ""))
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (9,), }"
    planted.members(("arr_0.npy", _npy(header, bytes(10))))


def header(planted: Planted) -> None:
    planted.claim(Entry("w", "uint8", (9,), ""))
    planted.members(("arr_0.npy", _npy(b"(" * 65_000)))


def claimed(planted: Planted) -> None:
    planted.claim(Entry("w", "float32", (2**31,), ""))


def impossible(planted: Planted) -> None:
    planted.claim(Entry("w", "float32", (0, 2**62, 2**62), ""))


def directory(planted: Planted) -> None:
    planted.members(*((f"{index}.npy", b"") for index in range(60_000)))


def _sparse(planted: Planted, size_bytes: int) -> None:
    entry = Entry("w", "uint8", (size_bytes,), "0" * 64)
    planted.claim(entry)
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({size_bytes},), }}".encode()
    prefix = _npy(text + b" " * (-(len(text) + 10) % 64))
    with planted.archive.open("wb") as stream, zipfile.ZipFile(stream, "w") as target:
        member = zipfile.ZipInfo("arr_0.npy")
        member.CRC = member.header_offset = 0
        member.file_size = member.compress_size = len(prefix) + size_bytes
        stream.write(member.FileHeader(zip64=True))
        stream.write(prefix)
        stream.seek(size_bytes, os.SEEK_CUR)
        target.start_dir = stream.tell()
        target.filelist.append(member)
        target.NameToInfo[member.filename] = member
        target._didModify = True  # type: ignore[attr-defined]


def sparse(planted: Planted) -> None:
    _sparse(planted, SPARSE_BYTES)


def sparse_large(planted: Planted) -> None:
    _sparse(planted, LARGE_BYTES)


def too_long(planted: Planted) -> None:
    os.truncate(planted.archive, 2**40)


def deep(planted: Planted) -> None:
    planted.sidecar.write_text("[" * 2**20)


def flood(planted: Planted) -> None:
    """Objects of one field: the most memory for the bytes that are allowed."""
    text = '{"":0},' * ((files.JSON_BYTES_MAX - 200) // 7)
    planted.sidecar.write_text(
        f'{{"format":"{snapshot.FORMAT}","version":2,"sha256":"","snapshot":{{"x":[{text}0]}}}}'
    )


def long_document(planted: Planted) -> None:
    os.truncate(planted.sidecar, 2**40)


def swapped(planted: Planted) -> None:
    shutil.copy(planted.folder / "round_000001.json", planted.sidecar)


def foreign(planted: Planted) -> None:
    with tempfile.TemporaryDirectory() as name:
        store = RecoveryStore(Path(name))
        store.save(replace(committed(2), run="run-2"))
        shutil.copy(Path(name) / "round_000002.json", planted.sidecar)


def pipe(planted: Planted) -> None:
    planted.archive.unlink()
    os.mkfifo(planted.archive)


def pipe_for_sidecar(planted: Planted) -> None:
    planted.sidecar.unlink()
    os.mkfifo(planted.sidecar)


def link(planted: Planted) -> None:
    planted.archive.rename(planted.folder / "elsewhere")
    planted.archive.symlink_to("elsewhere")


def folder(planted: Planted) -> None:
    planted.archive.unlink()
    planted.archive.mkdir()


CASES: tuple[tuple[Callable[[Planted], None], str], ...] = (
    (pickled, "arr_0.npy is not a float32(3, 5) array"),
    (compressed, "arr_0.npy is compressed"),
    (escaping, "it does not hold exactly the 6 arrays it should"),
    (absolute, "it does not hold exactly the 6 arrays it should"),
    (other_folder, "it names the archive"),
    (truncated, "it is not a whole .npz archive"),
    (longer, "arr_0.npy has not the size of its array"),
    (header, "arr_0.npy is not a uint8(9,) array"),
    (claimed, "it does not hold exactly the 1 arrays it should"),
    (impossible, "an array is larger than any archive"),
    (directory, "it is not an .npz archive of ours"),
    (sparse, "'w' has not the digest"),
    (too_long, "it is longer than"),
    (deep, "it is not a JSON document"),
    (flood, "its content has not the digest it was saved with"),
    (long_document, "it is longer than"),
    (swapped, "it holds round 1"),
    (foreign, "it belongs to run 'run-2'"),
    (pipe, "it is not a regular file"),
    (pipe_for_sidecar, "it is not a regular file"),
    (link, "it is a symbolic link"),
    (folder, "it is not a regular file"),
)
"""How a file is spoilt, and what must be said."""
LARGE = ((sparse_large, "'w' has not the digest"),)


def run(spoil: Callable[[Planted], None]) -> dict[str, object]:
    """Spoil a folder and load it."""
    with tempfile.TemporaryDirectory() as name:
        planted = Planted(Path(name))
        spoil(planted)
        started = time.monotonic()
        loaded = RecoveryStore(planted.folder).load(RUN)
        loading_s = time.monotonic() - started
        (series,) = inspect.open_folder(planted.folder)
        started = time.monotonic()
        problems = series.verify(2)
        return {
            "case": spoil.__name__,
            "round": loaded.snapshot.round_number if loaded else None,
            "reasons": [entry.reason for entry in loaded.damaged] if loaded else [],
            "problems": problems,
            "loading_s": round(loading_s, 2),
            "verifying_s": round(time.monotonic() - started, 2),
            "memory_mib": peak_memory_mib(),
        }


def peak_memory_mib() -> int:
    """Most memory that was resident since this program began.

    ``getrusage`` would count that of the process which started it, too.
    """
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) // 1024


def _lines(*, large: bool) -> Iterator[dict[str, object]]:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES_MAX, MEMORY_BYTES_MAX))
    for spoil, expected in (*CASES, *(LARGE if large else ())):
        yield {**run(spoil), "expected": expected}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m campaigns.hostile", description=__doc__)
    parser.add_argument("--large", action="store_true")
    for line in _lines(large=parser.parse_args().large):
        sys.stdout.write(json.dumps(line) + "\n")
