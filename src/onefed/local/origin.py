"""A copied checkpoint as the origin of a new federation: ``onefed up --resume-from FOLDER``.

The new federation goes on with the same run, so its result is that of the machine where it began,
bit by bit. The folder is only read, and may be a recovery store, a folder of the operator's
checkpoints (FL_CHECKPOINT_PATH), or the whole folder of a federation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from onefed.appliance import earlier_run
from onefed.appliance.paths import Paths
from onefed.checkpoint import Exporter, Loaded, RecoveryStore, Snapshot, inspect
from onefed.errors import ExitCode, NotFoundError, OnefedError
from onefed.local.request import Prepared, Request, read_context
from onefed.local.state import SUPERLINK, StateDir

Value = TypeVar("Value")


class OriginError(OnefedError):
    """What is asked for is not the run that the folder holds."""

    exit_code = ExitCode.CONFIG


def load(folder: Path) -> Loaded:
    """The newest whole round in a folder.

    Raises:
        NotFoundError: there is none.
        StorageError: there are some, and none is whole.
    """
    inside = Paths(StateDir(folder).root(SUPERLINK)).recovery
    for series in inspect.open_folder(inside if inside.is_dir() else folder):
        store = RecoveryStore(series.folder)
        loaded = (
            _of_store(store)
            if series.kind == "recovery"
            else Exporter(series.folder, series.snapshot(series.newest()).run, 1).load()
        )
        if loaded is not None:
            return loaded
    raise NotFoundError(
        f"No round in {folder} is there to go on from.",
        hint="Name a recovery folder, a folder of checkpoints, or that of a federation.",
    )


def _of_store(store: RecoveryStore) -> Loaded | None:
    runs = store.runs()
    return store.load(runs[0] if runs else "")  # without a readable one, load says what is wrong


def complete(request: Request, snapshot: Snapshot, environ: Mapping[str, str]) -> Request:
    """The request, with the run's own seed, strategy and rounds where nothing else was said."""
    told = read_context(request.context_file)
    said = {
        *(item.partition("=")[0] for item in request.assignments),
        *(told.assignments if told is not None else ()),
        *environ,
    }

    def unless_said(name: str, given: Value | None, of_the_run: Value) -> Value | None:
        return of_the_run if given is None and name not in said else given

    return replace(
        request,
        seed=unless_said("FL_SEED", request.seed, snapshot.seed),
        rounds=unless_said("FL_NUM_ROUNDS", request.rounds, snapshot.rounds_total),
        strategy=unless_said("FL_STRATEGY", request.strategy, snapshot.rule),
    )


def check(prepared: Prepared, snapshot: Snapshot) -> tuple[str, ...]:
    """What the user should know about going on so.

    Raises:
        OriginError: it would be another run.
    """
    spec, packed = prepared.spec, prepared.packed
    if packed is None or not packed.managed:
        raise OriginError(
            "Only an app that onefed manages can go on from a checkpoint.",
            hint="Leave --resume-from out, or give the app that was trained.",
        )
    wrong = []
    if packed.sha256 != snapshot.app_sha256:
        wrong.append("it was trained by another app, or another version of it")
    if spec.seed != snapshot.seed:
        wrong.append(f"its seed is {snapshot.seed}, not {spec.seed}")
    if spec.strategy != snapshot.rule:
        wrong.append(f"its strategy is {snapshot.rule}, not {spec.strategy}")
    if wrong:
        raise OriginError(
            f"Round {snapshot.round_number} cannot be gone on from: {'; '.join(wrong)}.",
            hint="Give the same app, seed and strategy; without --seed and --strategy they are "
            "those of the checkpoint.",
        )
    notices = [f"Going on after round {snapshot.round_number} of run {snapshot.run}."]
    if snapshot.history and len(snapshot.history[-1].contributors) != spec.nodes:
        notices.append(
            f"Round {snapshot.round_number} was trained by "
            f"{len(snapshot.history[-1].contributors)} nodes, and there will be {spec.nodes}: "
            "the model will not be that of the undisturbed run."
        )
    return tuple(notices)


def plant(directory: StateDir, snapshot: Snapshot) -> None:
    """Give a federation that was never started a run that has come so far."""
    earlier_run.plant(Paths(directory.root(SUPERLINK)), snapshot)
