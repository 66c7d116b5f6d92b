"""The ServerApp of a managed app: one process per submission, which may die at any moment.

Everything it needs to go on lies in the recovery store, so the supervisor only has to submit it
again: it finds the last committed round of its run there and trains the next one.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import flwr
import numpy as np
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

import onefed
from onefed import aggregate, arrays, failpoints
from onefed.arrays import Arrays
from onefed.checkpoint import Exporter, RecoveryStore, Retention, Snapshot, writer_lock
from onefed.errors import ExitCode, InUseError, NotFoundError, OnefedError
from onefed.flower import (
    adapter_grid,
    adapter_runtime,
    app_functions,
    loop,
    packing,
    payload,
    strategy,
)
from onefed.telemetry import events
from onefed.telemetry.log import EventLog

_NOT_PART_OF_THE_MODEL = frozenset(
    {
        *("num-server-rounds", "round-timeout-s", "round-timeout-min-s"),
        *("checkpoint-enabled", "checkpoint-interval", "checkpoint-path"),
        *("checkpoint-keep-last", "checkpoint-keep-every"),
    }
)
"""run_config keys that may change between two parts of one run."""


class ResumeError(OnefedError):
    """What the recovery store holds does not fit what is to be run."""

    exit_code = ExitCode.CONFIG


@dataclass(frozen=True)
class Surroundings:
    """What the machine tells the process, in its environment (``appliance.programs``)."""

    recovery: Path
    stop_request: Path
    events: Path

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Surroundings:
        """Read ``ONEFED_RECOVERY_DIR``, ``ONEFED_STOP_FILE`` and ``ONEFED_EVENTS``."""
        try:
            return cls(
                recovery=Path(environ["ONEFED_RECOVERY_DIR"]),
                stop_request=Path(environ["ONEFED_STOP_FILE"]),
                events=Path(environ["ONEFED_EVENTS"]),
            )
        except KeyError as missing:
            raise NotFoundError(
                f"{missing.args[0]} is not set, so there is no place for the recovery store.",
                hint="Start the app with onefed up or onefed run; flwr run alone does not do it.",
            ) from None


def managed(initial_arrays: str, evaluate: str | None) -> ServerApp:
    """The ServerApp that ``bundle.build`` adds to a managed app.

    Args:
        initial_arrays: ``module:function``, ``f(run_config) -> {name: array}``.
        evaluate: ``module:function``, ``f(arrays, run_config) -> {"loss": x, "accuracy": y}``.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        surroundings = Surroundings.from_environ(os.environ)
        interruptions = adapter_runtime.hurry(grid)
        log = EventLog(surroundings.events, role="superlink", clock=lambda: datetime.now(UTC))
        try:
            _train(
                packing.PackingGrid(adapter_grid.without_waits(grid)),
                interruptions,
                context.run_config,
                surroundings,
                log.emit,
                initial_arrays,
                evaluate,
            )
        except Exception as error:
            known = isinstance(error, OnefedError)
            text = str(error) if known else f"{type(error).__name__}: {error}"
            log.emit(events.Notice("ERROR", text))
            raise

    return app


def _train(
    grid: Grid,
    interruptions: Callable[[], int],
    run_config: Mapping[str, Any],
    surroundings: Surroundings,
    emit: Callable[[events.Event], None],
    initial_arrays: str,
    evaluate: str | None,
) -> None:
    started = time.monotonic()
    plan = make_plan(run_config, app_sha256=grid.run.fab_hash)
    rule = strategy.rule(run_config)
    aggregate.require_clients(rule, plan.min_available_clients)
    _be_the_only_writer(surroundings.recovery, emit)
    store = RecoveryStore(surroundings.recovery)
    exporter = _exporter(run_config, plan)
    if exporter is not None:
        exporter.claim()  # another run's checkpoints stop us now, not in the last round
    emit(events.TrainingStart(plan.strategy, plan.rounds_total, plan.min_available_clients))
    fresh = first_model(initial_arrays, run_config)
    snapshot = resume(store, plan, fresh, emit) or loop.first_snapshot(plan, rule, fresh)
    judge = None if evaluate is None else app_functions.judge_of(evaluate, run_config)
    world = loop.World(
        grid=grid,
        rule=rule,
        store=store,
        exporter=exporter,
        spool=surroundings.recovery.with_name("spool"),
        evaluate=judge,
        emit=emit,
        clock=time.monotonic,
        now=lambda: datetime.now(UTC),
        sleep=time.sleep,
        should_stop=surroundings.stop_request.exists,
        interruptions=interruptions,
        reach=failpoints.from_environ(os.environ),
    )
    if snapshot.round_number >= plan.rounds_total:
        done, wanted = snapshot.round_number, plan.rounds_total
        emit(
            events.Notice("INFO", f"The run is complete: {done} rounds are done, {wanted} wanted.")
        )
    last = loop.run(plan, world, snapshot)
    if last.round_number >= plan.rounds_total:
        final = last.history[-1] if last.history else None
        emit(
            events.TrainingEnd(
                total_rounds=last.round_number,
                final_loss=None if final is None else final.loss,
                final_accuracy=None if final is None else final.accuracy,
                total_duration_seconds=time.monotonic() - started,
            )
        )


def _be_the_only_writer(recovery: Path, emit: Callable[[events.Event], None]) -> None:
    """Take the recovery store for this process; ends it where another one keeps it.

    By SystemExit, since an exception would tell Flower that the app is at fault: the supervisor
    sees a death, and submits the run again.
    """

    def say(holder: int) -> None:
        emit(
            events.Notice(
                "WARNING",
                f"Another ServerApp (process {holder}) still has the recovery store; this one "
                f"waits for its end, {writer_lock.WAIT_S:.0f} s at most.",
            )
        )

    try:
        writer_lock.take(recovery, clock=time.monotonic, sleep=time.sleep, waiting=say)
    except InUseError as error:
        emit(events.Notice("ERROR", str(error)))
        raise SystemExit(int(error.exit_code)) from error


def make_plan(run_config: Mapping[str, Any], *, app_sha256: str) -> loop.Plan:
    """The run_config bridge, read back (``context.run_config``)."""
    fixed = {key: run_config[key] for key in sorted(run_config.keys() - _NOT_PART_OF_THE_MODEL)}
    return loop.Plan(
        run=str(run_config["run"]),
        rounds_total=int(run_config["num-server-rounds"]),
        seed=int(run_config["seed"]),
        strategy=str(run_config["strategy"]),
        min_fit_clients=int(run_config["min-fit-clients"]),
        min_evaluate_clients=int(run_config["min-evaluate-clients"]),
        min_available_clients=int(run_config["min-available-clients"]),
        round_timeout_s=float(run_config["round-timeout-s"]),
        round_timeout_min_s=float(run_config["round-timeout-min-s"]),
        app_sha256=app_sha256,
        config_sha256=hashlib.sha256(json.dumps(fixed).encode()).hexdigest(),
        versions={
            "onefed": onefed.__version__,
            "flwr": flwr.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
    )


def resume(
    store: RecoveryStore, plan: loop.Plan, model: Arrays, emit: Callable[[events.Event], None]
) -> Snapshot | None:
    """The last committed round of this run, or None when nothing is committed yet.

    Args:
        model: a fresh one of the app, which says what names, shapes and dtypes must be.

    Raises:
        ModelMismatchError: the app makes another model than was trained.
        ResumeError: it was trained with another seed or strategy, which would change the result.
        InUseError: the store belongs to another run.
        StorageError: rounds are there, but none is whole.
    """
    loaded = store.load(plan.run, model)
    if loaded is None:
        return None
    for damaged in loaded.damaged:
        emit(events.Notice("WARNING", f"A damaged snapshot was passed over: {damaged}"))
    snapshot = loaded.snapshot
    if (snapshot.seed, snapshot.rule) != (plan.seed, plan.strategy):
        raise ResumeError(
            f"Round {snapshot.round_number} was trained with {snapshot.rule} and seed "
            f"{snapshot.seed}; going on with {plan.strategy} and seed {plan.seed} would be "
            "another run.",
            hint="Resume with the same strategy and seed, or start a federation of another name.",
        )
    if snapshot.app_sha256 != plan.app_sha256:
        raise ResumeError(
            f"Round {snapshot.round_number} was trained by another app, or another version of it.",
            hint="Resume with that app, or start a federation of another name.",
        )
    if snapshot.config_sha256 != plan.config_sha256:
        emit(
            events.Notice(
                "WARNING",
                f"The run configuration is not the one of round {snapshot.round_number}: "
                "the result will be that of neither alone.",
            )
        )
    emit(events.RunResumed(run=plan.run, round=snapshot.round_number + 1))
    return replace(snapshot, config_sha256=plan.config_sha256, versions=plan.versions)


def first_model(reference: str, run_config: Mapping[str, Any]) -> Arrays:
    """The model before round 1, from the app; checked before anything is trained on it."""
    with app_functions.calling(reference, "must return arrays by name"):
        model = payload.to_arrays(app_functions.load(reference)(dict(run_config)))
        arrays.require_supported(model)
        if not model:
            raise ValueError("it returned no arrays")
    return model


def _exporter(run_config: Mapping[str, Any], plan: loop.Plan) -> Exporter | None:
    if not run_config["checkpoint-enabled"]:
        return None
    # FL_CHECKPOINT_KEEP_LAST=0 keeps all, whatever FL_CHECKPOINT_KEEP_EVERY is.
    keep_last = int(run_config["checkpoint-keep-last"])
    keep_every = int(run_config["checkpoint-keep-every"])
    return Exporter(
        Path(str(run_config["checkpoint-path"])),
        run=plan.run,
        interval=int(run_config["checkpoint-interval"]),
        retention=Retention(keep_last, keep_every if keep_last else 0),
    )
