"""Disks that fail, processes that die and power cuts, behind the one seam of the stores.

The disks of the campaigns (``campaigns/``) do more; these work on real folders.
"""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onefed.arrays import digest
from onefed.checkpoint import RoundRecord, Snapshot, files

sys.path.insert(0, str(Path(__file__).parents[3]))  # campaigns lie beside src


class Killed(BaseException):
    """The process is gone: no handler of ours runs after it."""


class FailingSystem(files.System):
    """Raises ``error`` at call ``at`` (from 1); after ``Killed`` at every later call too.

    A write that fails has written half of its bytes.
    """

    def __init__(self, at: int, error: BaseException) -> None:
        self.calls = 0
        self._at = at
        self._error = error

    def _call(self) -> None:
        self.calls += 1
        if self.calls == self._at or (isinstance(self._error, Killed) and self.calls > self._at):
            raise self._error

    def make_folder(self, path: Path, mode: int) -> None:
        self._call()
        super().make_folder(path, mode)

    def create(self, name: str, mode: int, folder: int) -> int:
        self._call()
        return super().create(name, mode, folder)

    def write(self, descriptor: int, data: memoryview) -> int:
        if self.calls + 1 == self._at:
            super().write(descriptor, data[: len(data) // 2])
        self._call()
        return super().write(descriptor, data)

    def sync(self, descriptor: int) -> None:
        self._call()
        super().sync(descriptor)

    def rename(self, source: str, target: str, folder: int) -> None:
        self._call()
        super().rename(source, target, folder)

    def symlink(self, target: str, name: str, folder: int) -> None:
        self._call()
        super().symlink(target, name, folder)

    def unlink(self, name: str, folder: int) -> None:
        self._call()
        super().unlink(name, folder)


class PowerCut(FailingSystem):
    """Dies at call ``at``, and knows what of one flat folder had reached the disk by then.

    Content is on the disk from the sync of its file on. Names are at the latest from the sync of
    the folder on, or already when they change: file systems do either.
    """

    def __init__(self, at: int) -> None:
        super().__init__(at, Killed())
        self._content: dict[int, bytes] = {}
        self._names: dict[int, dict[str, bytes]] = {}

    def create(self, name: str, mode: int, folder: int) -> int:
        descriptor = super().create(name, mode, folder)
        self._content.pop(os.fstat(descriptor).st_ino, None)
        return descriptor

    def sync(self, descriptor: int) -> None:
        super().sync(descriptor)
        path = Path(f"/proc/self/fd/{descriptor}")
        if path.is_dir():
            self._names[os.fstat(descriptor).st_ino] = self._seen(path)
        else:
            self._content[os.fstat(descriptor).st_ino] = path.read_bytes()

    def survivors(self, folder: Path, into: Path) -> list[Path]:
        """The two folders that may be found after the cut."""
        if not folder.is_dir():
            return []
        found = []
        late = self._names.get(folder.stat().st_ino, {})
        for case, names in (("late", late), ("early", self._seen(folder))):
            after = into / case
            after.mkdir(parents=True)
            for name, content in names.items():
                (after / name).write_bytes(content)
            found.append(after)
        return found

    def _seen(self, folder: Path) -> dict[str, bytes]:
        return {
            path.name: self._content.get(path.stat().st_ino, b"")
            for path in folder.iterdir()
            if path.is_file()
        }


class Disks:
    """What the tests hand to the stores."""

    Killed = Killed
    PowerCut = PowerCut

    @staticmethod
    def killed(at: int) -> FailingSystem:
        return FailingSystem(at, Killed())

    @staticmethod
    def failing(at: int, number: int = errno.ENOSPC) -> FailingSystem:
        return FailingSystem(at, OSError(number, os.strerror(number)))


@pytest.fixture(scope="session")
def disks() -> type[Disks]:
    return Disks


def make_snapshot(round_number: int, run: str = "run-1", **changed: Any) -> Snapshot:
    """A snapshot whose arrays and records depend on the round and the run."""
    model = {
        "layer/weight": np.full((2, 3), round_number + len(run) / 8, np.float32),
        "steps": np.array(round_number),
    }
    record = RoundRecord(
        round_number=round_number,
        loss=1 / max(round_number, 1),
        accuracy=None,
        contributors=("0", "1"),
        failures=1,
        seconds=0.25,
        model_sha256=digest(model),
    )
    fields: dict[str, Any] = {
        "run": run,
        "round_number": round_number,
        "rounds_total": 10,
        "seed": 2**63 + 1,
        "rule": "FedAvg",
        "rule_state": {"m": np.full(3, -round_number, np.float64)},
        "arrays": model,
        "history": (record,),
        "app_sha256": "a" * 64,
        "config_sha256": "c" * 64,
        "versions": {"onefed": "0.1.0"},
    }
    return Snapshot(**{**fields, **changed})


@pytest.fixture(scope="session")
def snapshot_of() -> Any:
    return make_snapshot
