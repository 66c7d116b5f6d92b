"""What is done on the disks of the campaigns, and what must be found on them afterwards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from onefed.arrays import BFLOAT16, digest
from onefed.checkpoint import Exporter, Loaded, RecoveryStore, Retention, RoundRecord, Snapshot
from onefed.checkpoint.files import System

RUN = "run-1"
NOW = datetime(2026, 11, 3, 12, tzinfo=UTC)


def committed(round_number: int, variant: int = 0) -> Snapshot:
    """The snapshot of a round; another variant is what another future made of it."""
    value = round_number + variant / 8
    model = {
        "layer/weight": np.full((3, 5), value, np.float32),
        "half": np.full(4, round_number, np.uint16).view(BFLOAT16),
        "steps": np.array(round_number),
        "none": np.zeros((0, 2)),
    }
    record = RoundRecord(
        round_number=round_number,
        loss=1 / (1 + value),
        accuracy=None,
        contributors=("0", "1"),
        failures=variant,
        seconds=0.25,
        model_sha256=digest(model),
    )
    return Snapshot(
        run=RUN,
        round_number=round_number,
        rounds_total=9,
        seed=7,
        rule="FedAdam",
        rule_state={"m": np.full(15, -value), "v": np.full(15, value)},
        arrays=model,
        history=(record,),
        app_sha256="a" * 64,
        config_sha256="c" * 64,
    )


def identity(snapshot: Snapshot) -> str:
    """Equal for snapshots that are the same in every field, their arrays to the bit."""
    bits = [(list(arrays), digest(arrays)) for arrays in (snapshot.arrays, snapshot.rule_state)]
    return repr((replace(snapshot, arrays={}, rule_state={}), bits))


@dataclass(frozen=True)
class Workload:
    """A store, the snapshots that are saved into it one by one, and how it is read."""

    name: str
    saves: tuple[Snapshot, ...]
    opened: Callable[[Path, System], Callable[[Snapshot], object]]
    """Opens the store as a new process does; what comes back saves one snapshot."""
    load: Callable[[Path, System], Loaded | None]

    def violation(self, loaded: Loaded | None, announced: int) -> str | None:
        """What is wrong with finding ``loaded`` after so many saves were announced, or None.

        The last announced snapshot must be found, or the one that was on its way; and nothing
        damaged. While a save goes back to an earlier round, all that was committed may be found.
        """
        on_its_way = self.saves[announced : announced + 1]
        rewinds = any(
            save.round_number <= before.round_number
            for save in on_its_way
            for before in self.saves[:announced]
        )
        allowed = self.saves[0 if rewinds else max(announced - 1, 0) : announced + 1]
        if loaded is None:
            return None if announced == 0 else f"nothing is found after {announced} saves"
        if identity(loaded.snapshot) not in map(identity, allowed):
            return f"round {loaded.snapshot.round_number} is found after {announced} saves"
        if loaded.damaged and not rewinds:
            return f"{loaded.damaged[0]} after {announced} saves"
        return None

    def finish(self, folder: Path, system: System, announced: int) -> str | None:
        """Go on after a crash to the last save, as a new process; what is wrong then, or None."""
        save = self.opened(folder, system)
        for snapshot in self.saves[announced:]:
            save(snapshot)
        wrong = self.violation(self.load(folder, system), len(self.saves))
        litter = [name for name in system.names(folder) if name.startswith(".")]
        return wrong or (f"{litter} is left" if litter else None)


def _recovery(folder: Path, system: System) -> Callable[[Snapshot], object]:
    return RecoveryStore(folder, system=system).save


def _load_recovery(folder: Path, system: System) -> Loaded | None:
    return RecoveryStore(folder, system=system).load(RUN, committed(1).arrays)


def _exporter(
    retention: Retention,
) -> Callable[[Path, System], Callable[[Snapshot], object]]:
    def opened(folder: Path, system: System) -> Callable[[Snapshot], object]:
        exporter = Exporter(folder, RUN, 1, system, retention)
        return lambda snapshot: exporter.save(snapshot, now=NOW)

    return opened


def _load_export(folder: Path, system: System) -> Loaded | None:
    return Exporter(folder, RUN, 1, system).load(committed(1).arrays)


ROUNDS = tuple(committed(number) for number in range(1, 5))
"""Enough rounds for the recovery store to drop some."""
REWIND = (*ROUNDS[:3], committed(2, 1), committed(3, 1))
"""A run that goes back to round 2 and on from there with other results."""

WORKLOADS = (
    Workload("recovery", ROUNDS, _recovery, _load_recovery),
    Workload("recovery, rewound", REWIND, _recovery, _load_recovery),
    Workload("export", ROUNDS[:2], _exporter(Retention()), _load_export),
    Workload("export, rewound", REWIND, _exporter(Retention()), _load_export),
    Workload("retention", ROUNDS, _exporter(Retention(2, 2)), _load_export),
)
"""Everything that is written while a run goes on."""
