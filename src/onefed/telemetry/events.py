"""The vocabulary: one frozen dataclass per event.

The first twelve are those of the reference design, with its field names; the rest are ours.
Units are in the names: ``_seconds``, ``_mb``, ``_bytes``. A number that may be unknown is None,
and a number that is not finite becomes null on its way out, so every line stays valid JSON.

Flower's node and run ids are texts here: they use 64 bits, and JSON readers round above 2^53.
"""

from __future__ import annotations

import math
import typing
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeAlias, get_args

if TYPE_CHECKING:
    from collections.abc import Mapping

Level: TypeAlias = Literal["DEBUG", "INFO", "WARNING", "ERROR"]

MachineState: TypeAlias = Literal["booting", "ready", "running", "stopped", "failed"]

Metric = Annotated[float | None, 6]
"""A loss or an accuracy, given with 6 decimals."""

Seconds = Annotated[float | None, 2]
"""A duration, given with 2 decimals."""

PEER_WARNINGS = frozenset(
    {
        "no_quorum",
        "attempt_failed",
        "adoption_failed",
        "refused",
        "evicting",
        "evict_refused",
        "unsafe_eviction",
        "estranged",
        "left_out",
        "not_restored",
        "not_stashed",
    }
)
"""Kinds of ``PeerNotice`` that a person should look at."""

INTEGER_MAX = 2**63
"""Larger ones (in absolute value) are a mistake of the sender and become null."""


@dataclass(frozen=True, slots=True)
class _Base:
    EVENT: ClassVar[str]
    """The name in the ``event`` field of a line."""
    LEVEL: ClassVar[Level] = "INFO"
    LOGGER: ClassVar[str] = "onefed"

    @property
    def severity(self) -> Level:
        """The level of this very event."""
        return self.LEVEL


@dataclass(frozen=True, slots=True)
class _Reference(_Base):
    LOGGER: ClassVar[str] = "flwr"


# --- the twelve events of the reference design ---------------------------------------------------


@dataclass(frozen=True, slots=True)
class TrainingStart(_Reference):
    """The server application began its work (once per attempt)."""

    EVENT: ClassVar[str] = "training_start"
    strategy: str
    num_rounds: int
    min_clients: int


@dataclass(frozen=True, slots=True)
class RoundStart(_Reference):
    """The clients of a round were selected."""

    EVENT: ClassVar[str] = "round_start"
    round: int
    num_clients_selected: int
    strategy: str


@dataclass(frozen=True, slots=True)
class RoundEnd(_Reference):
    """A round is aggregated and committed: it will not be trained again."""

    EVENT: ClassVar[str] = "round_end"
    round: int
    num_clients_responded: int
    aggregated_loss: Metric
    aggregated_accuracy: Metric
    round_duration_seconds: Seconds


@dataclass(frozen=True, slots=True)
class TrainingEnd(_Reference):
    """All rounds are done."""

    EVENT: ClassVar[str] = "training_end"
    total_rounds: int
    final_loss: Metric
    final_accuracy: Metric
    total_duration_seconds: Seconds


@dataclass(frozen=True, slots=True)
class ClientJoin(_Reference):
    """A node connected."""

    EVENT: ClassVar[str] = "client_join"
    node_id: str
    client_address: str


@dataclass(frozen=True, slots=True)
class ClientLeave(_Reference):
    """A node disconnected."""

    EVENT: ClassVar[str] = "client_leave"
    node_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class CheckpointSaved(_Reference):
    """An operator's checkpoint file was written."""

    EVENT: ClassVar[str] = "checkpoint_saved"
    round: int
    path: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class EvaluationResult(_Reference):
    """A model was evaluated after a round."""

    EVENT: ClassVar[str] = "evaluation_result"
    round: int
    loss: Metric
    accuracy: Metric
    num_examples: int


@dataclass(frozen=True, slots=True)
class ClientFailure(_Reference):
    """A client lost its round: an error, no reply in time, or a reply that cannot be used."""

    EVENT: ClassVar[str] = "client_failure"
    LEVEL: ClassVar[Level] = "WARNING"
    round: int
    node_id: str
    error_type: str
    client: str | None = None
    """Stable key of the client. Ours, as is the reason."""
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class TrainingStalled(_Reference):
    """Training waits for clients longer than it should."""

    EVENT: ClassVar[str] = "training_stalled"
    LEVEL: ClassVar[Level] = "WARNING"
    round: int
    waiting_since_seconds: Seconds
    connected_clients: int
    required_clients: int


@dataclass(frozen=True, slots=True)
class GpuDetected(_Reference):
    """A node trains on a GPU."""

    EVENT: ClassVar[str] = "gpu_detected"
    gpu_name: str
    gpu_memory_mb: int
    driver_version: str


@dataclass(frozen=True, slots=True)
class GpuUnavailable(_Reference):
    """A GPU was asked for and there is none that works."""

    EVENT: ClassVar[str] = "gpu_unavailable"
    LEVEL: ClassVar[Level] = "WARNING"
    fallback_device: str


# --- ours: the federation and its machines -------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FederationStart(_Base):
    """A federation was asked for; its machines come next. Again after a stop."""

    EVENT: ClassVar[str] = "federation_start"
    name: str
    nodes: int
    rounds: int
    strategy: str
    app: str
    seed: int
    directory: str


@dataclass(frozen=True, slots=True)
class FederationEnd(_Base):
    """Nothing more will happen in this federation unless somebody resumes it."""

    EVENT: ClassVar[str] = "federation_end"
    status: Literal["finished", "failed", "stopped"]
    rounds_done: int
    rounds_total: int
    loss: Metric
    accuracy: Metric
    model_sha256: str | None
    checkpoint: str | None
    """Path of the last checkpoint."""
    restarts: int
    failures: int
    seconds: Seconds

    @property
    def severity(self) -> Level:
        return "ERROR" if self.status == "failed" else "INFO"


@dataclass(frozen=True, slots=True)
class BootStep(_Base):
    """A step of a machine's boot came to its end."""

    EVENT: ClassVar[str] = "boot_step"
    vm: str
    role: str
    step: str
    """Id in the reference boot sequence: ``7a``."""
    name: str
    status: Literal["done", "skipped", "unchanged", "failed"]
    reason: str | None = None
    seconds: Seconds = None

    @property
    def severity(self) -> Level:
        return "ERROR" if self.status == "failed" else "INFO"


@dataclass(frozen=True, slots=True)
class VmState(_Base):
    """A machine went into another state."""

    EVENT: ClassVar[str] = "vm_state"
    vm: str
    role: str
    state: MachineState
    reason: str | None = None

    @property
    def severity(self) -> Level:
        return "ERROR" if self.state == "failed" else "INFO"


@dataclass(frozen=True, slots=True)
class ServiceRestart(_Base):
    """A process ended and is started again."""

    EVENT: ClassVar[str] = "service_restart"
    LEVEL: ClassVar[Level] = "WARNING"
    vm: str
    service: str
    exit_code: int | None
    """Negative: ended by that signal. None: not known."""
    attempt: int
    delay_seconds: Seconds


@dataclass(frozen=True, slots=True)
class ProcessKilled(_Base):
    """A process was killed on purpose, to show what becomes of it (``onefed up --chaos``)."""

    EVENT: ClassVar[str] = "process_killed"
    victim: str
    """``serverapp``, ``superlink``, ``superexec``, ``supervisor`` or ``supernode/N``."""
    round: int
    """The round in flight; 0 before the first."""
    number: int
    """Which kill it is: 1 for the first."""
    total: int


@dataclass(frozen=True, slots=True)
class ProcessRecovered(_Base):
    """Training has gone on after a kill: the next round was announced."""

    EVENT: ClassVar[str] = "process_recovered"
    victim: str
    round: int
    """The round that was announced."""
    number: int
    seconds: Seconds
    """From the kill to that round's end."""


@dataclass(frozen=True, slots=True)
class NodeRegistered(_Base):
    """The coordinator knows a node's key: from here on the node may connect."""

    EVENT: ClassVar[str] = "node_registered"
    vm: str
    node_id: str
    partition: int | None = None


# --- ours: runs and rounds -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RunSubmitted(_Base):
    """The app was handed to the coordinator; several attempts may make one run."""

    EVENT: ClassVar[str] = "run_submitted"
    run: str
    flower_run_id: str
    attempt: int
    """1 for the first."""


@dataclass(frozen=True, slots=True)
class RunResumed(_Base):
    """A run goes on from its recovery store."""

    EVENT: ClassVar[str] = "run_resumed"
    LEVEL: ClassVar[Level] = "WARNING"
    run: str
    round: int
    """The next round to be trained."""


@dataclass(frozen=True, slots=True)
class RunStatus(_Base):
    """What Flower says about the run."""

    EVENT: ClassVar[str] = "run_status"
    status: str
    details: str | None = None


@dataclass(frozen=True, slots=True)
class ClientReply(_Base):
    """A client's reply arrived and was accepted."""

    EVENT: ClassVar[str] = "client_reply"
    round: int
    phase: Literal["train", "evaluate"]
    node_id: str
    client: str
    """Stable key of the client: its partition id, else its node's key."""
    num_examples: int
    seconds: Seconds


@dataclass(frozen=True, slots=True)
class RoundRepeated(_Base):
    """A round had too few usable replies and is trained again under the same number."""

    EVENT: ClassVar[str] = "round_repeated"
    LEVEL: ClassVar[Level] = "WARNING"
    round: int
    reason: str
    responded: int
    required: int


@dataclass(frozen=True, slots=True)
class RecoverySaved(_Base):
    """A round is in the recovery store: whatever dies now, it is not lost."""

    EVENT: ClassVar[str] = "recovery_saved"
    LEVEL: ClassVar[Level] = "DEBUG"
    round: int
    model_sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class PeerRound(_Base):
    """A member of a peer group installed the model that a majority has agreed on."""

    EVENT: ClassVar[str] = "peer_round"
    round: int
    model_sha256: str
    contributors: str
    """Names of the members whose updates are in it, with commas."""
    term: int
    """Of the leader under which it was decided."""
    round_duration_seconds: Seconds
    """Since this member installed the model before."""


@dataclass(frozen=True, slots=True)
class PeerNotice(_Base):
    """What a member of a peer group noticed: a leader, no quorum, an attempt that failed."""

    EVENT: ClassVar[str] = "peer_notice"
    kind: str
    detail: str

    @property
    def severity(self) -> Level:
        return "WARNING" if self.kind in PEER_WARNINGS else "DEBUG"


@dataclass(frozen=True, slots=True)
class AppLog(_Base):
    """A line that an unmanaged app wrote."""

    EVENT: ClassVar[str] = "app_log"
    line: str


@dataclass(frozen=True, slots=True)
class Notice(_Base):
    """Something a person should know and no other event says."""

    EVENT: ClassVar[str] = "notice"
    level: Level
    message: str

    @property
    def severity(self) -> Level:
        return self.level


# --- the registry, and the way to data and back --------------------------------------------------

Event: TypeAlias = (
    TrainingStart
    | RoundStart
    | RoundEnd
    | TrainingEnd
    | ClientJoin
    | ClientLeave
    | CheckpointSaved
    | EvaluationResult
    | ClientFailure
    | TrainingStalled
    | GpuDetected
    | GpuUnavailable
    | FederationStart
    | FederationEnd
    | BootStep
    | VmState
    | ServiceRestart
    | ProcessKilled
    | ProcessRecovered
    | NodeRegistered
    | RunSubmitted
    | RunResumed
    | RunStatus
    | ClientReply
    | RoundRepeated
    | RecoverySaved
    | PeerRound
    | PeerNotice
    | AppLog
    | Notice
)

EVENTS: Mapping[str, type[Event]] = {kind.EVENT: kind for kind in get_args(Event)}
"""By name; the order is that of the classes above."""


@dataclass(frozen=True, slots=True)
class Unknown:
    """An event of another version, or one whose fields are not what its name promises."""

    event: str
    data: Mapping[str, Any]


def to_data(event: Event) -> dict[str, Any]:
    """The ``data`` object of a line: rounded, finite, made of JSON's own types.

    Never raises: training does not stop for a number that cannot be shown.
    """
    kinds = _FIELDS[type(event)]
    return {name: _out(kind, getattr(event, name)) for name, kind in kinds.items()}


def from_record(record: Mapping[str, Any]) -> Event | Unknown:
    """The event in a parsed line (keys ``event`` and ``data``). Fields that we do not know
    are left out: a newer program wrote them."""
    name, data = record.get("event"), record.get("data")
    name, data = name if isinstance(name, str) else "", data if isinstance(data, dict) else {}
    kind = EVENTS.get(name)
    if kind is None:
        return Unknown(name, data)
    known = {key: value for key, value in data.items() if key in _FIELDS[kind]}
    try:
        return kind(**{key: _in(_FIELDS[kind][key], value) for key, value in known.items()})
    except (TypeError, ValueError, OverflowError):
        return Unknown(name, data)


@dataclass(frozen=True, slots=True)
class _Kind:
    """What a field holds, read once from its annotation."""

    base: type
    """``str``, ``int`` or ``float``."""
    optional: bool
    decimals: int = 0
    choices: tuple[str, ...] = ()


def _kind(hint: Any) -> _Kind:
    if typing.get_origin(hint) is Annotated:
        _, decimals = get_args(hint)
        return _Kind(float, optional=True, decimals=decimals)
    if typing.get_origin(hint) is Literal:
        return _Kind(str, optional=False, choices=get_args(hint))
    parts = get_args(hint) or (hint,)
    return _Kind(parts[0], optional=type(None) in parts)


def _out(kind: _Kind, value: Any) -> str | int | float | None:
    if value is None:
        return None
    try:
        if kind.base is float:
            number = float(value)
            return round(number, kind.decimals) if math.isfinite(number) else None
        if kind.base is int:
            whole = int(value)
            return whole if abs(whole) <= INTEGER_MAX else None
        return str(value)
    except (TypeError, ValueError, OverflowError):
        return None


def _in(kind: _Kind, value: Any) -> Any:
    if value is None and kind.optional:
        return None
    if kind.base is float and type(value) in (int, float):
        number = float(value)
        return number if math.isfinite(number) else None
    if type(value) is not kind.base or (kind.choices and value not in kind.choices):
        raise ValueError
    return value


_FIELDS: Mapping[type, Mapping[str, _Kind]] = {
    kind: {
        field.name: _kind(hint)
        for hints in [typing.get_type_hints(kind, include_extras=True)]
        for field in fields(kind)
        for hint in [hints[field.name]]
    }
    for kind in EVENTS.values()
}
