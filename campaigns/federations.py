"""One federation in this process, under our round loop or under a strategy of stock Flower."""

from __future__ import annotations

import logging
import random
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord
from flwr.serverapp import strategy as flower

from onefed import aggregate, arrays
from onefed.arrays import Arrays
from onefed.checkpoint import RecoveryStore
from onefed.errors import OnefedError
from onefed.flower import loop, payload
from onefed.flower.virtual import Node, VirtualGrid
from onefed.telemetry import events

SEED = 5
"""Of every run; the apps get it in their messages."""


@dataclass(frozen=True)
class Outcome:
    """What became of a run."""

    rounds: int
    """Committed, or all that were asked for where a strategy of Flower came to its end."""
    model: Arrays
    contributors: tuple[tuple[str, ...], ...] = ()
    """Of each round; ours only."""
    failures: tuple[events.ClientFailure, ...] = ()
    error: str = ""
    """Why the run ended before its last round."""

    @property
    def is_finite(self) -> bool:
        """Whether there is a model that can be used."""
        return arrays.is_finite(self.model)


@dataclass
class _Clock:
    """Seconds that pass when somebody sleeps."""

    now_s: float = 0.0
    told: list[events.Event] = field(default_factory=list)

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


def ours(
    nodes: Mapping[str, Node], rule: aggregate.Rule, model: Arrays, *, rounds: int, quorum: int
) -> Outcome:
    """Our loop, with its recovery store in a folder that is gone afterwards."""
    clock = _Clock()
    plan = loop.Plan(
        run="campaign",
        rounds_total=rounds,
        seed=SEED,
        strategy=rule.name,
        min_fit_clients=quorum,
        min_evaluate_clients=1,
        min_available_clients=len(nodes),
        round_timeout_s=60.0,
        app_sha256="0" * 64,
        config_sha256="0" * 64,
        versions={},
        round_timeout_min_s=10.0,
    )
    first = loop.first_snapshot(plan, rule, model)
    with tempfile.TemporaryDirectory() as name:
        store = RecoveryStore(Path(name) / "recovery")
        world = loop.World(
            grid=VirtualGrid(nodes),
            rule=rule,
            store=store,
            exporter=None,
            spool=Path(name) / "spool",
            evaluate=lambda _model: payload.Score(None, None, 0),
            emit=clock.told.append,
            clock=lambda: clock.now_s,
            now=lambda: datetime(2026, 1, 1, tzinfo=UTC),
            sleep=clock.sleep,
            should_stop=lambda: False,
        )
        error = ""
        try:
            last = loop.run(plan, world, first)
        except OnefedError as stopped:
            error = stopped.message
            loaded = store.load(plan.run)
            last = first if loaded is None else loaded.snapshot
    return Outcome(
        last.round_number,
        last.arrays,
        tuple(record.contributors for record in last.history),
        tuple(event for event in clock.told if isinstance(event, events.ClientFailure)),
        error,
    )


def stock(
    nodes: Mapping[str, Node], strategy: flower.FedAvg, model: Arrays, *, rounds: int
) -> Outcome:
    """Flower's own loop with a strategy of its own; what it raises ends the run, as it does there.

    Flower samples with the global generator, so that is seeded.
    """
    logging.getLogger("flwr").setLevel(logging.CRITICAL)
    random.seed(SEED)
    try:
        with np.errstate(all="ignore"):
            result = strategy.start(
                VirtualGrid(nodes),
                payload.to_record(model),
                num_rounds=rounds,
                timeout=1.0,
                train_config=ConfigRecord({"seed": SEED}),
            )
    except Exception as error:  # noqa: BLE001 - what a strategy lets through
        return Outcome(0, model, error=f"{type(error).__name__}")
    final = result.arrays or ArrayRecord()
    return Outcome(rounds, {name: array.numpy() for name, array in final.items()})


def strategy_of_flower(name: str, clients: int, hostile: int) -> flower.FedAvg:
    """A strategy of stock Flower for so many clients, all of whom take part in every round."""
    everyone = {
        "fraction_evaluate": 0.0,
        "min_train_nodes": clients,
        "min_available_nodes": clients,
    }
    of_its_own: Mapping[str, Mapping[str, float]] = {
        "FedTrimmedAvg": {"beta": 0.2},
        "Krum": {"num_malicious_nodes": hostile},
        "MultiKrum": {
            "num_malicious_nodes": hostile,
            "num_nodes_to_select": clients - hostile - 2,
        },
        "Bulyan": {"num_malicious_nodes": hostile},
    }
    made: flower.FedAvg = getattr(flower, name)(**everyone, **of_its_own.get(name, {}))
    return made


def rule_of_ours(name: str, hostile: int) -> aggregate.Rule:
    """The rule of the same name, with the same parameters."""
    of_its_own: Mapping[str, Mapping[str, float]] = {
        "FedTrimmedAvg": {"beta": 0.2},
        **{name: {"num_malicious": hostile} for name in ("Krum", "MultiKrum", "Bulyan")},
    }
    return aggregate.rule(name, **of_its_own.get(name, {}))
