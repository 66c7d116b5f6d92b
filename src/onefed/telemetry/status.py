"""What a person wants to see of a federation: a fold over the records of its event log.

One door: ``apply`` takes a record and gives the next view. The live view in the terminal,
``onefed status`` and the web page all read the result, so they cannot disagree.

Times are those of the records. Which clients a round selected is not in the vocabulary, so a node
counts as training when the round selected as many clients as there are connected nodes, until
its reply arrives.
"""

from __future__ import annotations

import bisect
import statistics
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, TypeAlias, assert_never

from onefed.telemetry import events as ev
from onefed.telemetry import sentences

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime

    from onefed.telemetry.lines import Record

NODES_MAX = 4096
"""More machines are not shown. The largest federation we plan for has a quarter of that."""

ROUNDS_KEPT_MAX = 10_000
"""Rounds in the history; the oldest are dropped. About 2 MB."""

NOTICES_KEPT_MAX = 10
KILLS_KEPT_MAX = 100

ETA_ROUNDS = 20
"""The estimate follows the last rounds: the first ones are slower than the rest."""

Status: TypeAlias = Literal[
    "waiting", "booting", "training", "stalled", "finished", "failed", "stopped"
]
NodeState: TypeAlias = Literal[
    "booting", "ready", "training", "idle", "failed", "disconnected", "stopped"
]


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundView:
    """One round. What is not known yet is None."""

    round: int
    selected: int | None = None
    responded: int | None = None
    """None while the round is being trained."""
    loss: float | None = None
    accuracy: float | None = None
    seconds: float | None = None
    repeats: int = 0

    @property
    def done(self) -> bool:
        """Committed: it will not be trained again."""
        return self.responded is not None

    def judged(self, score: ev.EvaluationResult) -> RoundView:
        """With how good its model is, as far as that was not known."""
        return replace(
            self,
            loss=_known(self.loss, score.loss),
            accuracy=_known(self.accuracy, score.accuracy),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeView:
    """One machine: the coordinator or a node."""

    vm: str | None = None
    """None for a node that no machine of this federation was seen to be."""
    role: str | None = None
    node_id: str | None = None
    partition: int | None = None
    state: NodeState = "booting"
    boot_step: str | None = None
    """The last step that ended: ``7a TLS setup``."""
    ready: bool = False
    """The machine says that its boot succeeded."""
    registered: bool = False
    """The coordinator knows its key."""
    online: bool = False
    """The coordinator has heard of it since it last went away."""
    last_reply_round: int | None = None
    last_train_seconds: float | None = None
    failures: int = 0
    restarts: int = 0
    reason: str | None = None
    """Why it is in this state, where that needs one."""


@dataclass(frozen=True, slots=True)
class KillView:
    """A process that was killed on purpose."""

    victim: str
    round: int
    """In flight when it was killed."""
    number: int
    total: int
    recovered_round: int | None = None
    seconds: float | None = None
    """From the kill to the end of that round; None until then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FederationView:
    """Everything; begins as ``FederationView()``."""

    name: str | None = None
    app: str | None = None
    strategy: str | None = None
    directory: str | None = None
    status: Status = "waiting"
    details: str | None = None
    """Why, in one sentence, where the status alone would not do."""
    run_status: str | None = None
    """Flower's word for the run."""
    attempt: int = 0
    rounds_total: int | None = None
    rounds: tuple[RoundView, ...] = ()
    """In order of their numbers, the one being trained last."""
    nodes: Mapping[str, NodeView] = field(default_factory=dict)
    """By machine name, else by node id, in the order of appearance. Never changed in place."""
    vm_by_node_id: Mapping[str, str] = field(default_factory=dict)
    """The keys in ``nodes`` of registered nodes."""
    failures: int = 0
    """Rounds that clients lost."""
    restarts: int = 0
    """Processes that were started again, on all machines."""
    kills: tuple[KillView, ...] = ()
    """Of ``onefed up --chaos``, the last few, oldest first."""
    checkpoint: str | None = None
    model_sha256: str | None = None
    notices: tuple[str, ...] = ()
    """The last few, oldest first."""
    started_at: datetime | None = None
    ended_at: datetime | None = None
    updated_at: datetime | None = None

    @property
    def rounds_done(self) -> int:
        """The highest round that is committed; 0 before the first."""
        return max((each.round for each in self.rounds if each.done), default=0)

    @property
    def round_current(self) -> int | None:
        """The round that is being trained."""
        if self.status not in ("training", "stalled"):
            return None
        return next((each.round for each in reversed(self.rounds) if not each.done), None)

    @property
    def loss(self) -> float | None:
        """Of the last round that has one."""
        return next((each.loss for each in reversed(self.rounds) if each.loss is not None), None)

    @property
    def accuracy(self) -> float | None:
        """Of the last round that has one."""
        known = (each.accuracy for each in reversed(self.rounds))
        return next((accuracy for accuracy in known if accuracy is not None), None)

    def elapsed_seconds(self, now: datetime) -> float | None:
        """Since the start, or from start to end; None before the start."""
        if self.started_at is None:
            return None
        return max(0.0, ((self.ended_at or now) - self.started_at).total_seconds())

    def eta_seconds(self) -> float | None:
        """What the remaining rounds will take if they are like the median of the last ones."""
        if self.rounds_total is None or self.ended_at is not None:
            return None
        return remaining_seconds(self.rounds, self.rounds_total - self.rounds_done)


def remaining_seconds(rounds: Sequence[RoundView], left: int) -> float | None:
    """What so many rounds will take if they are like the median of the last ones."""
    known = [each.seconds for each in rounds if each.seconds is not None][-ETA_ROUNDS:]
    return statistics.median(known) * max(0, left) if known else None


def fold(records: Iterable[Record], view: FederationView | None = None) -> FederationView:
    """The view after all of the records."""
    view = view or FederationView()
    for record in records:
        view = apply(view, record)
    return view


def apply(view: FederationView, record: Record) -> FederationView:
    """The view after one more record. A record without an event only moves the time."""
    view = replace(view, updated_at=record.timestamp)
    match record.event:
        case ev.FederationStart() as event:
            return replace(
                view,
                name=event.name,
                app=event.app,
                strategy=event.strategy,
                directory=event.directory,
                rounds_total=event.rounds,
                status="booting",
                details=None,
                started_at=record.timestamp,
                ended_at=None,
            )
        case ev.FederationEnd() as event:
            return replace(
                _all_nodes(view, "training", "idle"),
                status=event.status,
                rounds_total=event.rounds_total,
                model_sha256=event.model_sha256 or view.model_sha256,
                checkpoint=event.checkpoint or view.checkpoint,
                restarts=max(view.restarts, event.restarts),
                failures=max(view.failures, event.failures),
                ended_at=record.timestamp,
            )
        case ev.TrainingStart() as event:
            return replace(
                view,
                status="training",
                details=None,
                strategy=event.strategy,
                rounds_total=event.num_rounds,
                started_at=view.started_at or record.timestamp,
                ended_at=None,
            )
        case ev.TrainingEnd():
            return replace(view, status="finished", details=None, ended_at=record.timestamp)
        case ev.TrainingStalled() as event:
            return replace(view, status="stalled", details=sentences.sentence(event))
        case ev.RunSubmitted() as event:
            if event.attempt == 1:  # another run than the one before, with its own round 1
                view = replace(view, run_status=None, rounds=())
            if view.status in ("waiting", "stalled") and event.attempt == 1:
                view = replace(view, status="waiting", details="The app starts.")
            again = 1 if event.attempt > 1 else 0
            return replace(view, attempt=event.attempt, restarts=view.restarts + again)
        case ev.RunResumed() as event:
            return replace(view, details=sentences.sentence(event))
        case ev.RunStatus(status="waiting") as event:
            return replace(
                view, status="waiting", run_status=event.status, details=sentences.sentence(event)
            )
        case ev.RunStatus() as event:
            if event.status == "running" and view.status in ("waiting", "booting"):
                # An unmanaged app says nothing else.
                view = replace(view, status="training", details=None)
            failed = sentences.sentence(event) if event.status == "failed" else view.details
            return replace(view, run_status=event.status, details=failed)
        case ev.Notice() as event:
            text = sentences.sentence(event)
            return replace(view, notices=(*view.notices, text)[-NOTICES_KEPT_MAX:])
        case ev.ProcessKilled() as event:
            kill = KillView(event.victim, event.round, event.number, event.total)
            return replace(view, kills=(*view.kills, kill)[-KILLS_KEPT_MAX:])
        case ev.ProcessRecovered() as event:
            kills = [
                replace(kill, recovered_round=event.round, seconds=event.seconds)
                if kill.number == event.number
                else kill
                for kill in view.kills
            ]
            return replace(view, kills=tuple(kills))
        case ev.CheckpointSaved() as event:
            return replace(view, checkpoint=event.path)
        case ev.RecoverySaved() as event:
            return replace(view, model_sha256=event.model_sha256)
        case ev.RoundStart() | ev.RoundEnd() | ev.RoundRepeated() | ev.EvaluationResult() as event:
            return _apply_round(view, event)
        case ev.BootStep() | ev.VmState() | ev.ServiceRestart() | ev.NodeRegistered() as event:
            return _apply_machine(view, event)
        case ev.ClientJoin() | ev.ClientLeave() | ev.ClientReply() | ev.ClientFailure() as event:
            return _apply_client(view, event)
        case None | ev.Unknown() | ev.AppLog() | ev.GpuDetected() | ev.GpuUnavailable():
            return view
        case ev.PeerRound() | ev.PeerNotice():
            return view  # of groups without a coordinator, which have a view of their own
        case other:
            assert_never(other)


def _apply_round(
    view: FederationView,
    event: ev.RoundStart | ev.RoundEnd | ev.RoundRepeated | ev.EvaluationResult,
) -> FederationView:
    old = next((each for each in reversed(view.rounds) if each.round == event.round), None)
    old = old or RoundView(round=event.round)
    match event:
        case ev.RoundStart():
            if event.num_clients_selected >= sum(node.online for node in view.nodes.values()):
                view = _all_nodes(view, "online", "training")
            view = replace(view, status="training", details=None)
            return _with_round(
                view, replace(old, selected=event.num_clients_selected, responded=None)
            )
        case ev.RoundEnd():
            view = replace(_all_nodes(view, "training", "idle"), status="training", details=None)
            return _with_round(
                view,
                replace(
                    old,
                    responded=event.num_clients_responded,
                    loss=_known(event.aggregated_loss, old.loss),
                    accuracy=_known(event.aggregated_accuracy, old.accuracy),
                    seconds=event.round_duration_seconds,
                ),
            )
        case ev.RoundRepeated():
            view = replace(_all_nodes(view, "training", "idle"), details=sentences.sentence(event))
            return _with_round(view, replace(old, repeats=old.repeats + 1))
        case ev.EvaluationResult():
            return _with_round(view, old.judged(event))


def _apply_machine(
    view: FederationView, event: ev.BootStep | ev.VmState | ev.ServiceRestart | ev.NodeRegistered
) -> FederationView:
    node = view.nodes.get(event.vm) or NodeView(vm=event.vm)
    match event:
        case ev.BootStep():
            node = replace(node, role=event.role, boot_step=f"{event.step} {event.name}")
            if event.status == "failed":
                node = replace(node, state="failed", reason=event.reason)
        case ev.VmState():
            node = replace(node, role=event.role, reason=event.reason)
            match event.state:
                case "ready" | "running":
                    node = replace(node, ready=True, state=node.state if node.online else "ready")
                case "booting" | "stopped" | "failed" as state:
                    node = replace(node, ready=False, online=False, state=state)
        case ev.ServiceRestart():
            view = replace(view, restarts=view.restarts + 1)
            node = replace(node, restarts=node.restarts + 1)
        case ev.NodeRegistered():
            return _register(view, node, event)
    return _with_node(view, event.vm, node)


def _apply_client(
    view: FederationView,
    event: ev.ClientJoin | ev.ClientLeave | ev.ClientReply | ev.ClientFailure,
) -> FederationView:
    key = view.vm_by_node_id.get(event.node_id, event.node_id)
    node = view.nodes.get(key) or NodeView(node_id=event.node_id)
    match event:
        case ev.ClientJoin():
            node = replace(node, online=True, state="idle", reason=None)
        case ev.ClientLeave():
            node = replace(node, online=False, state="disconnected", reason=event.reason)
        case ev.ClientReply():
            node = replace(node, online=True, state="idle", reason=None)
            node = replace(node, last_reply_round=event.round)
            if event.phase == "train":
                node = replace(node, last_train_seconds=event.seconds)
            if view.status == "stalled":
                view = replace(view, status="training", details=None)
        case ev.ClientFailure():
            node = replace(node, state="failed", reason=event.error_type)
            node = replace(node, failures=node.failures + 1)
            view = replace(view, failures=view.failures + 1)
    return _with_node(view, key, node)


def _register(view: FederationView, node: NodeView, event: ev.NodeRegistered) -> FederationView:
    """Join what was seen under the machine's name and under the node's id."""
    stray = view.nodes.get(event.node_id)
    if stray is not None and event.node_id != event.vm:
        remaining = {key: each for key, each in view.nodes.items() if key != event.node_id}
        view = replace(view, nodes=remaining)
        node = replace(
            node,
            online=stray.online,
            state=stray.state,
            failures=node.failures + stray.failures,
            last_reply_round=stray.last_reply_round,
            last_train_seconds=stray.last_train_seconds,
        )
    node = replace(node, node_id=event.node_id, partition=event.partition, registered=True)
    if len(view.vm_by_node_id) < NODES_MAX:
        view = replace(view, vm_by_node_id={**view.vm_by_node_id, event.node_id: event.vm})
    return _with_node(view, event.vm, node)


def _with_node(view: FederationView, key: str, node: NodeView) -> FederationView:
    if key not in view.nodes and len(view.nodes) >= NODES_MAX:
        return view
    return replace(view, nodes={**view.nodes, key: node})


def _all_nodes(
    view: FederationView, which: Literal["online", "training"], state: NodeState
) -> FederationView:
    nodes = {
        key: replace(node, state=state, reason=None)
        if (node.online if which == "online" else node.state == which)
        else node
        for key, node in view.nodes.items()
    }
    return replace(view, nodes=nodes)


def _with_round(view: FederationView, new: RoundView) -> FederationView:
    """Replace the round of that number, or put it in its place."""
    place = bisect.bisect_left(view.rounds, new.round, key=lambda each: each.round)
    after = place
    if place < len(view.rounds) and view.rounds[place].round == new.round:
        after += 1
    rounds = (*view.rounds[:place], new, *view.rounds[after:])
    return replace(view, rounds=rounds[-ROUNDS_KEPT_MAX:])


def _known(first: float | None, second: float | None) -> float | None:
    return second if first is None else first
