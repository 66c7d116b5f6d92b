"""A run that another machine began: this one goes on with it from the operator's checkpoints.

A machine that was deployed again, with the volume of the checkpoints of its predecessor, has no
recovery store. A checkpoint holds all that exact resume needs, so it becomes the first snapshot of
the new store, under the identity of its run (FL_CHECKPOINT_RESUME).
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from onefed.appliance.paths import Paths
from onefed.checkpoint import (
    DamagedError,
    Exporter,
    Loaded,
    RecoveryStore,
    Snapshot,
    files,
    inspect,
)
from onefed.errors import ExitCode, NotFoundError, OnefedError


class EarlierRunError(OnefedError):
    """The checkpoints are of a run that this machine was not asked for."""

    exit_code = ExitCode.CONFIG


def is_known(paths: Paths) -> bool:
    """Whether this machine has a run already."""
    return paths.supervisor_state.exists()


def newest(folder: Path) -> Loaded | None:
    """The newest whole checkpoint of a folder; None where there is none at all.

    Raises:
        StorageError: there are some, and a run can go on from none.
    """
    try:
        found = [each for each in inspect.open_folder(folder) if each.kind == "export"]
    except NotFoundError:
        return None
    # Without a run, load says what is wrong, or that a first save was cut off.
    return Exporter(folder, _run(found[0]), 1).load() if found else None


def _run(series: inspect.Series) -> str:
    """That of the newest sidecar that can be read; empty: there is none."""
    for each in series.rounds():
        with contextlib.suppress(DamagedError):
            return series.snapshot(each.round_number).run
    return ""


def require_same(snapshot: Snapshot, *, seed: int, strategy: str) -> None:
    """Refuse to go on as another run.

    Raises:
        EarlierRunError: seed or strategy are not those that it was trained with.
    """
    if (snapshot.seed, snapshot.rule) != (seed, strategy):
        raise EarlierRunError(
            f"The checkpoint of round {snapshot.round_number} was trained with {snapshot.rule} and "
            f"seed {snapshot.seed}; going on with {strategy} and seed {seed} would be another run.",
            hint="Set FL_STRATEGY and FL_SEED to its values; or train from the start: "
            "FL_CHECKPOINT_RESUME=NO and another FL_CHECKPOINT_PATH.",
        )


def plant(paths: Paths, snapshot: Snapshot) -> None:
    """Give a machine that has no run this one, as far as it has come.

    Raises:
        InUseError: its recovery store is of another run.
    """
    files.make_folder(paths.state, mode=0o700)
    store = RecoveryStore(paths.recovery)
    held = store.peek()  # where the power failed between the two, or the second was lost
    if held is None or held.run != snapshot.run or held.round_number < snapshot.round_number:
        store.save(snapshot)
    # What the run supervisor knows of its run (flower.run_watch): its identity, and nothing yet.
    known = json.dumps({"run": snapshot.run}).encode()
    files.write_bytes(paths.supervisor_state, known)
