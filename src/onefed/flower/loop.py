"""The rounds: true numbers, a quorum, a deadline, and nothing announced before it is on disk.

One round::

    wait for clients -> sample -> train on each -> check each -> rule -> evaluate
                     -> recovery store -> operator's checkpoint -> round_end

The order at the end is the promise: every event that tells what came out of a round follows when
the recovery store holds it, so a restart never trains an announced round again.
Everything that is not Flower's grid is handed in, so that the same loop runs on real servers and
on virtual clients in one process.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Literal

from flwr.serverapp import Grid

from onefed import aggregate, arrays, failpoints
from onefed.arrays import Arrays
from onefed.checkpoint import Exporter, RecoveryStore, RoundRecord, Snapshot
from onefed.errors import OnefedError, StorageError
from onefed.flower import clients, intake, payload
from onefed.flower.app_functions import Score
from onefed.flower.clients import Client
from onefed.flower.deadline import Deadline
from onefed.flower.exchange import STALL_REPORT_S, Failure, Patience, Reply, exchange
from onefed.telemetry import events

NODE_POLL_S = 0.5
"""How often the list of nodes is asked for while clients are missing."""

REPEATS_MAX = 3
"""A round that found no quorum is repeated so often; then the run stops, and can be resumed."""

MISSING_SHOWN_MAX = 5
"""Clients that the reason of a repeated round names; the rest is counted."""

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
    round_timeout_min_s: float = 60.0
    """A round that has its quorum waits at least so long for the others (``deadline``)."""


@dataclass(frozen=True)
class World:
    """Everything outside of the loop."""

    grid: Grid
    rule: aggregate.Rule
    store: RecoveryStore
    exporter: Exporter | None
    spool: Path
    """Folder for updates that come before their turn, where memory has no room for them."""
    evaluate: Callable[[Arrays], Score] | None
    """Judges a model on the coordinator; None: the clients are asked."""
    emit: Callable[[events.Event], None]
    clock: Callable[[], float]
    """Monotonic seconds."""
    now: Callable[[], datetime]
    """Aware; for the time stamps of checkpoints only."""
    sleep: Callable[[float], None]
    should_stop: Callable[[], bool]
    """Whether to end after the round in flight."""
    interruptions: Callable[[], int] = lambda: 0
    """How often the grid has lost its SuperLink so far, and has asked again."""
    reach: failpoints.Reach = failpoints.nothing
    """Where a test holds the process."""


class _Memory:
    """What a run learns from round to round; a resumed one learns it again."""

    def __init__(self, plan: Plan) -> None:
        self.remarks: set[str] = set()
        """Of the rule, those that were told."""
        times = plan.round_timeout_min_s, plan.round_timeout_s
        self.suspects: set[str] = set()
        """Clients that sent replies which Flower cannot read."""
        self.train = Deadline(*times)
        self.evaluate = Deadline(*times)


class _Training:
    """One attempt at a round: who was asked, what came of it, and what the rule has of it."""

    def __init__(
        self, plan: Plan, world: World, model: Arrays, asked: tuple[Client, ...], number: int
    ) -> None:
        self.asked = asked
        self.number = number
        self.required = max(plan.min_fit_clients, world.rule.updates_needed(len(asked)))
        self.intake = intake.of(world.rule, model, [each.key for each in asked], world.spool)
        self.usable: list[Client] = []
        """In the order in which they came."""
        self.failures: list[Failure] = []

    @property
    def has_quorum(self) -> bool:
        return len(self.usable) >= self.required

    @property
    def is_decided(self) -> bool:
        """Whether those that are missing change nothing: there is a quorum, or can be none."""
        return self.has_quorum or len(self.asked) - len(self.failures) < self.required

    @property
    def contributors(self) -> tuple[Client, ...]:
        return clients.in_order(self.usable)

    def accept(self, reply: Reply, model: Arrays) -> None:
        """Read, check and hand on an update; what is wrong with it costs its client the round."""
        update = payload.read_update(reply)
        if isinstance(update, Failure):
            self.lose(update)
            return
        checked = aggregate.check([update], model)
        for rejected in checked.rejected:
            self.lose(Failure(reply.client, "rejected_update", rejected.reason))
        for accepted in checked.accepted:
            refusal = self.intake.take(accepted)
            if refusal is None:
                self.usable.append(reply.client)
            else:
                self.lose(Failure(reply.client, "not_kept", refusal))

    def lose(self, failure: Failure) -> None:
        """The client gave nothing that can be used."""
        self.failures.append(failure)
        self.intake.lose(failure.client.key)

    def missing(self) -> str:
        """Who lacks, and why, in words."""
        names = [f"{failure.client.key} ({failure.error_type})" for failure in self.failures]
        shown = names[:MISSING_SHOWN_MAX]
        if len(names) > len(shown):
            shown.append(f"{len(names) - len(shown)} more")
        return ", ".join(shown) or "nobody who was asked"


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
    memory = _Memory(plan)
    intake.clear(world.spool)
    while snapshot.round_number < plan.rounds_total and not world.should_stop():
        committed = _round(plan, world, snapshot, memory)
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


def _round(plan: Plan, world: World, before: Snapshot, memory: _Memory) -> Snapshot | None:
    """Commit the round after ``before``; None when a stop was asked for before it had a quorum."""
    number = before.round_number + 1
    started = world.clock()
    required = plan.min_fit_clients
    for repeats_left in reversed(range(REPEATS_MAX + 1)):
        available = _wait_for_clients(plan, world, number)
        if available is None:
            return None
        world.reach("sampling", number)
        selected = clients.sample(
            available, 1.0, at_least=plan.min_fit_clients, seed=plan.seed, round_number=number
        )
        world.emit(events.RoundStart(number, len(selected), plan.strategy))
        training = _Training(plan, world, before.arrays, selected, number)
        with contextlib.closing(training.intake):
            _train(plan, world, before.arrays, training, memory)
            if training.has_quorum:
                _remark(world, len(training.usable), memory.remarks)
                return _commit(plan, world, before, training, memory, started)
        if world.should_stop():
            return None
        responded, required = len(training.usable), training.required
        if repeats_left:
            reason = f"{responded} usable updates, {required} needed; missing: {training.missing()}"
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


def _train(plan: Plan, world: World, model: Arrays, training: _Training, memory: _Memory) -> None:
    number = training.number
    outgoing = payload.Outgoing(model)
    extra = world.rule.told if isinstance(world.rule, aggregate.FedProx) else {}
    stalled = _stalled(world, number, training.required)
    world.reach("sending", number)
    for outcome in exchange(
        world.grid,
        training.asked,
        lambda client: payload.train_message(
            client.node_id, outgoing.record(), round_number=number, seed=plan.seed, extra=extra
        ),
        patience=_patience(world, memory.train, lambda: training.is_decided, stalled),
        reply_bytes=arrays.nbytes(model),
        clock=world.clock,
        sleep=world.sleep,
        suspects=memory.suspects,
        interruptions=world.interruptions,
        sent=lambda: world.reach("training", number),
    ):
        if isinstance(outcome, Reply):
            _progress(world, number, "train", outcome)
            usable = len(training.usable)
            training.accept(outcome, model)
            if len(training.usable) > usable:
                memory.train.observe(outcome.seconds)
        else:
            training.lose(outcome)
            if outcome.seconds is not None:
                memory.train.give_up(outcome.seconds)
        del outcome  # with the model in it, before the next comes
        world.reach("collecting", number)
    _report(world, number, training.failures)


def _commit(
    plan: Plan,
    world: World,
    before: Snapshot,
    training: _Training,
    memory: _Memory,
    started: float,
) -> Snapshot:
    number = training.number
    world.reach("aggregating", number)
    state, model = training.intake.step(before.rule_state, before.arrays, number)
    contributors = training.contributors
    score, failures = _evaluate(plan, world, model, contributors, number, memory)
    record = RoundRecord(
        round_number=number,
        loss=None if score is None else score.loss,
        accuracy=None if score is None else score.accuracy,
        contributors=tuple(client.key for client in contributors),
        failures=len(training.failures) + failures,
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
    world.reach("saving", number)
    _save(world, after)
    world.reach("saved", number)
    world.emit(
        events.RecoverySaved(
            round=number, model_sha256=record.model_sha256, size_bytes=arrays.nbytes(model)
        )
    )
    if score is not None:
        world.emit(events.EvaluationResult(number, score.loss, score.accuracy, score.num_examples))
    _export(plan, world, after)
    world.reach("announcing", number)
    world.emit(
        events.RoundEnd(
            round=number,
            num_clients_responded=len(contributors),
            aggregated_loss=record.loss,
            aggregated_accuracy=record.accuracy,
            round_duration_seconds=record.seconds,
        )
    )
    world.reach("announced", number)
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
    plan: Plan,
    world: World,
    model: Arrays,
    contributors: tuple[Client, ...],
    number: int,
    memory: _Memory,
) -> tuple[Score | None, int]:
    """Judge a model on the coordinator if the app can, else on the clients; and failures.

    A client that lost the round is not asked: waiting for it again would double the round.
    """
    if world.evaluate is not None:
        return world.evaluate(model), 0
    outgoing = payload.Outgoing(model)
    needed = max(plan.min_evaluate_clients, world.rule.scores_needed(len(contributors)))
    votes: list[payload.Vote] = []
    failures: list[Failure] = []
    for outcome in exchange(
        world.grid,
        contributors,
        lambda client: payload.evaluate_message(
            client.node_id, outgoing.record(), round_number=number, seed=plan.seed
        ),
        patience=_patience(
            world,
            memory.evaluate,
            lambda: len(votes) >= min(needed, len(contributors)),
            _stalled(world, number, needed),
        ),
        reply_bytes=payload.TOLD_BYTES_MAX,
        clock=world.clock,
        sleep=world.sleep,
        suspects=memory.suspects,
        interruptions=world.interruptions,
    ):
        if isinstance(outcome, Reply):
            _progress(world, number, "evaluate", outcome)
            vote = payload.read_vote(outcome)
            if isinstance(vote, Failure):
                failures.append(vote)
            else:
                votes.append(vote)
                memory.evaluate.observe(outcome.seconds)
        else:
            failures.append(outcome)
            if outcome.seconds is not None:
                memory.evaluate.give_up(outcome.seconds)
    _report(world, number, failures)
    # Too few speak for nothing; the round stands.
    return payload.score(votes) if len(votes) >= needed else None, len(failures)


def _patience(
    world: World,
    deadline: Deadline,
    enough: Callable[[], bool],
    stalled: Callable[[float, int, int], None],
) -> Patience:
    return Patience(
        enough=lambda: enough() or world.should_stop(),
        limit_s=lambda: deadline.cap_s,
        limit_enough_s=lambda: deadline.limit_s,
        stalled=stalled,
    )


def _stalled(world: World, number: int, required: int) -> Callable[[float, int, int], None]:
    def tell(waited_s: float, connected: int, missing: int) -> None:
        world.emit(
            events.TrainingStalled(
                round=number,
                waiting_since_seconds=waited_s,
                connected_clients=connected,
                required_clients=max(required, connected + missing),
            )
        )

    return tell


def _progress(world: World, number: int, phase: Literal["train", "evaluate"], reply: Reply) -> None:
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
