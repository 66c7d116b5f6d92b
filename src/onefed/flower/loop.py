"""The rounds: true numbers, a quorum, a deadline, and nothing announced before it is on disk.

One round::

    wait for clients -> sample -> train on each -> check -> rule -> evaluate
                     -> recovery store -> operator's checkpoint -> round_end

The order at the end is the promise: every event that tells what came out of a round follows when
the recovery store holds it, so a restart never trains an announced round again.
Everything that is not Flower's grid is handed in, so that the same loop runs on real servers and
on virtual clients in one process.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Literal

from flwr.app import Message
from flwr.serverapp import Grid

from onefed import aggregate, arrays
from onefed.arrays import Arrays
from onefed.checkpoint import Exporter, RecoveryStore, RoundRecord, Snapshot
from onefed.errors import OnefedError, StorageError
from onefed.flower import clients, payload
from onefed.flower.clients import Client
from onefed.flower.exchange import Collected, Failure, Reply, exchange
from onefed.telemetry import events

STALL_REPORT_S = 10.0
"""How often a wait for clients is reported."""

NODE_POLL_S = 0.5
"""How often the list of nodes is asked for while clients are missing."""

REPEATS_MAX = 3
"""A round that found no quorum is repeated so often; then the run stops, and can be resumed."""

SAVE_TRIES = 5
SAVE_PAUSE_S = 2.0
"""Between two tries to write the recovery store; after the last one the run stops."""


class QuorumError(OnefedError):
    """A round found too few usable updates, again and again."""


@dataclass(frozen=True)
class Plan:
    """What a run is to do."""

    run: str
    """Identity of the run; recovery store and checkpoints belong to it."""
    rounds_total: int
    seed: int
    strategy: str
    min_fit_clients: int
    min_evaluate_clients: int
    min_available_clients: int
    round_timeout_s: float
    app_sha256: str
    config_sha256: str
    versions: Mapping[str, str]


@dataclass(frozen=True)
class World:
    """Everything outside of the loop."""

    grid: Grid
    rule: aggregate.Rule
    store: RecoveryStore
    exporter: Exporter | None
    evaluate: Callable[[Arrays], payload.Score] | None
    """Judges a model on the coordinator; None: the clients are asked."""
    emit: Callable[[events.Event], None]
    clock: Callable[[], float]
    """Monotonic seconds."""
    now: Callable[[], datetime]
    """Aware; for the time stamps of checkpoints only."""
    sleep: Callable[[float], None]
    should_stop: Callable[[], bool]
    """Whether to end after the round in flight."""


@dataclass(frozen=True)
class _Trained:
    contributors: tuple[Client, ...]
    """In client order, as are their updates."""
    updates: tuple[aggregate.Update, ...]
    failures: int


def run(plan: Plan, world: World, snapshot: Snapshot) -> Snapshot:
    """Train from ``snapshot`` to the last round, or until asked to stop.

    Args:
        snapshot: a fresh model at round 0, or what the recovery store held.

    Returns:
        The last committed round; it is in the recovery store.

    Raises:
        QuorumError: a round found no quorum, and neither did its ``REPEATS_MAX`` repetitions.
        StorageError: the recovery store cannot be written.
    """
    remarks: set[str] = set()
    while snapshot.round_number < plan.rounds_total and not world.should_stop():
        committed = _round(plan, world, snapshot, remarks)
        if committed is None:
            break
        snapshot = committed
    return snapshot


def first_snapshot(plan: Plan, rule: aggregate.Rule, model: Arrays) -> Snapshot:
    """Round 0: a fresh model, nothing trained."""
    return Snapshot(
        run=plan.run,
        round_number=0,
        rounds_total=plan.rounds_total,
        seed=plan.seed,
        rule=rule.name,
        rule_state=rule.init(model),
        arrays=model,
        history=(),
        app_sha256=plan.app_sha256,
        config_sha256=plan.config_sha256,
        versions=plan.versions,
    )


def _round(plan: Plan, world: World, before: Snapshot, remarks: set[str]) -> Snapshot | None:
    """Commit the round after ``before``; None when a stop was asked for before it had a quorum."""
    number = before.round_number + 1
    started = world.clock()
    required = plan.min_fit_clients
    for repeats_left in reversed(range(REPEATS_MAX + 1)):
        available = _wait_for_clients(plan, world, number)
        if available is None:
            return None
        selected = clients.sample(
            available, 1.0, at_least=plan.min_fit_clients, seed=plan.seed, round_number=number
        )
        world.emit(events.RoundStart(number, len(selected), plan.strategy))
        trained = _train(plan, world, before.arrays, selected, number)
        responded = len(trained.updates)
        required = max(plan.min_fit_clients, world.rule.updates_needed(len(selected)))
        if responded >= required:
            _remark(world, responded, remarks)
            return _commit(plan, world, before, trained, started)
        if world.should_stop():
            return None
        if repeats_left:
            reason = f"{responded} usable updates, {required} needed"
            world.emit(events.RoundRepeated(number, reason, responded, required))
    raise QuorumError(
        f"Round {number} found no quorum in {REPEATS_MAX + 1} tries: "
        f"{required} usable updates are needed (FL_MIN_FIT_CLIENTS={plan.min_fit_clients}, "
        f"FL_STRATEGY={plan.strategy}).",
        hint="The client_failure events say what each client lacked. "
        f"Rounds up to {before.round_number} are saved; resume when it is mended.",
    )


def _wait_for_clients(plan: Plan, world: World, number: int) -> tuple[Client, ...] | None:
    """The connected clients, once there are enough; None when a stop is asked for first."""
    needed = max(plan.min_available_clients, plan.min_fit_clients, world.rule.clients_min)
    started = reported = world.clock()
    while len(found := clients.connected(world.grid)) < needed:
        if world.should_stop():
            return None
        if world.clock() - reported >= STALL_REPORT_S:
            reported = world.clock()
            world.emit(
                events.TrainingStalled(
                    round=number,
                    waiting_since_seconds=reported - started,
                    connected_clients=len(found),
                    required_clients=needed,
                )
            )
        world.sleep(NODE_POLL_S)
    return found


def _train(
    plan: Plan, world: World, model: Arrays, selected: tuple[Client, ...], number: int
) -> _Trained:
    record = payload.to_record(model)
    collected = _exchange(
        plan,
        world,
        {
            client: payload.train_message(
                client.node_id, record, round_number=number, seed=plan.seed
            )
            for client in selected
        },
        number,
        "train",
    )
    read = [payload.read_update(reply) for reply in collected.replies]
    checked = aggregate.check([each for each in read if isinstance(each, aggregate.Update)], model)
    by_key = {client.key: client for client in selected}
    failures = [
        *collected.failures,
        *(each for each in read if isinstance(each, Failure)),
        *(
            Failure(by_key[rejected.client], "rejected_update", rejected.reason)
            for rejected in checked.rejected
        ),
    ]
    _report(world, number, failures)
    contributors = tuple(by_key[update.client] for update in checked.accepted)
    return _Trained(contributors, checked.accepted, len(failures))


def _commit(
    plan: Plan,
    world: World,
    before: Snapshot,
    trained: _Trained,
    started: float,
) -> Snapshot:
    number = before.round_number + 1
    state, model = world.rule.step(before.rule_state, before.arrays, trained.updates, number)
    score, failures = _evaluate(plan, world, model, trained.contributors, number)
    record = RoundRecord(
        round_number=number,
        loss=None if score is None else score.loss,
        accuracy=None if score is None else score.accuracy,
        contributors=tuple(client.key for client in trained.contributors),
        failures=trained.failures + failures,
        seconds=world.clock() - started,
        model_sha256=arrays.digest(model),
    )
    after = replace(
        before,
        round_number=number,
        rounds_total=plan.rounds_total,
        rule_state=state,
        arrays=model,
        history=(*before.history, record),
    )
    _save(world, after)
    world.emit(
        events.RecoverySaved(
            round=number, model_sha256=record.model_sha256, size_bytes=arrays.nbytes(model)
        )
    )
    if score is not None:
        world.emit(events.EvaluationResult(number, score.loss, score.accuracy, score.num_examples))
    _export(plan, world, after)
    world.emit(
        events.RoundEnd(
            round=number,
            num_clients_responded=len(trained.updates),
            aggregated_loss=record.loss,
            aggregated_accuracy=record.accuracy,
            round_duration_seconds=record.seconds,
        )
    )
    return after


def _remark(world: World, clients: int, told: set[str]) -> None:
    """What the rule has to say about so many clients, once each."""
    for remark in world.rule.remarks(clients):
        if remark not in told:
            told.add(remark)
            world.emit(events.Notice("WARNING", remark))


def _save(world: World, snapshot: Snapshot) -> None:
    """Write the recovery store; while it cannot be written the run waits, and then stops."""
    for left in reversed(range(SAVE_TRIES)):
        try:
            world.store.save(snapshot)
        except StorageError as error:
            if left == 0:
                raise
            world.emit(events.Notice("ERROR", f"Round {snapshot.round_number} waits: {error}"))
            world.sleep(SAVE_PAUSE_S)
        else:
            return


def _evaluate(
    plan: Plan, world: World, model: Arrays, contributors: tuple[Client, ...], number: int
) -> tuple[payload.Score | None, int]:
    """Judge a model on the coordinator if the app can, else on the clients; and failures.

    A client that lost the round is not asked: waiting for it again would double the round.
    """
    if world.evaluate is not None:
        return world.evaluate(model), 0
    record = payload.to_record(model)
    collected = _exchange(
        plan,
        world,
        {
            client: payload.evaluate_message(
                client.node_id, record, round_number=number, seed=plan.seed
            )
            for client in contributors
        },
        number,
        "evaluate",
    )
    in_order = sorted(collected.replies, key=lambda reply: aggregate.client_order(reply.client.key))
    score, malformed = payload.read_score(in_order)
    failures = [*collected.failures, *malformed]
    _report(world, number, failures)
    needed = max(plan.min_evaluate_clients, world.rule.scores_needed(len(contributors)))
    if len(in_order) - len(malformed) < needed:
        score = None  # too few to speak for the model; the round stands
    return score, len(failures)


def _exchange(
    plan: Plan,
    world: World,
    messages: Mapping[Client, Message],
    number: int,
    phase: Literal["train", "evaluate"],
) -> Collected:
    def progress(reply: Reply) -> None:
        world.emit(
            events.ClientReply(
                round=number,
                phase=phase,
                node_id=str(reply.client.node_id),
                client=reply.client.key,
                num_examples=payload.weight(reply) or 0,
                seconds=reply.seconds,
            )
        )

    return exchange(
        world.grid,
        messages,
        timeout_s=plan.round_timeout_s,
        clock=world.clock,
        sleep=world.sleep,
        on_reply=progress,
    )


def _export(plan: Plan, world: World, snapshot: Snapshot) -> None:
    """The operator's checkpoint; when it fails, training goes on."""
    number = snapshot.round_number
    if world.exporter is None or not world.exporter.due(number, plan.rounds_total):
        return
    try:
        saved = world.exporter.save(snapshot, now=world.now())
    except OnefedError as error:
        world.emit(events.Notice("WARNING", f"Checkpoint of round {number}: {error}"))
    else:
        world.emit(events.CheckpointSaved(number, str(saved.path), saved.size_bytes))


def _report(world: World, number: int, failures: list[Failure]) -> None:
    for failure in failures:
        world.emit(
            events.ClientFailure(
                round=number,
                node_id=str(failure.client.node_id),
                client=failure.client.key,
                error_type=failure.error_type,
                reason=failure.reason,
            )
        )
