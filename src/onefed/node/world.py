"""What a node is given of the world, and what it shows of itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime

from onefed import failpoints
from onefed.checkpoint import files
from onefed.errors import ExitCode, OnefedError
from onefed.node.contact import Contact
from onefed.node.transport import Transport
from onefed.peer.messages import Eviction, NodeId
from onefed.telemetry import events
from onefed.tls.member_identity import MemberIdentity

MakeTransport = Callable[
    [NodeId, MemberIdentity, str, Callable[[], Mapping[NodeId, Contact]]], Transport
]


class NodeError(OnefedError):
    """A node cannot do what it was asked to do."""

    exit_code = ExitCode.CONFIG


class EstrangedError(OnefedError):
    """The operator has let others go on, and this node has gone on by itself."""

    @classmethod
    def of(cls, name: NodeId, detail: str) -> EstrangedError:
        """Of a node, and where the histories part."""
        return cls(
            f"The group has gone on without {name}, by its operator's decision, from before what "
            f"this node has: {detail}.",
            hint="Keep the folder for its models. To train on with the group, join it under "
            "another name.",
        )


class ContributionsError(NodeError):
    """A round did not get the updates that its rule needs, so the run has failed."""

    exit_code = ExitCode.FAILED

    @classmethod
    def of(cls, reason: str) -> ContributionsError:
        """As the leader has told it."""
        return cls(
            reason,
            hint="Start the group again once those nodes train, or choose a rule that needs fewer "
            "updates.",
        )


@dataclass(frozen=True, slots=True)
class World:
    """What a node is given of the world, so that it can be tested without it."""

    make_transport: MakeTransport
    clock: Callable[[], float]
    """Monotonic seconds."""
    now: Callable[[], datetime]
    """Aware; for certificates only."""
    jitter: Callable[[], float]
    """From 0 up to 1, another number at each call."""
    emit: Callable[[events.Event], None]
    system: files.System = files.SYSTEM
    """The disk."""
    reach: failpoints.Reach | None = None
    """Called at every place of ``points``, for tests."""


@dataclass(frozen=True, slots=True)
class NodeState:
    """A look at a node."""

    name: NodeId
    state: str
    """``idle``, ``training``, ``no quorum``, ``finished``, ``stopped`` or ``failed``."""
    role: str
    leader: NodeId | None
    term: int
    round_number: int
    """Of the newest model that is installed."""
    rounds_total: int
    model_sha256: str | None
    voters: tuple[NodeId, ...]
    """Who decides on the next round."""
    roster: tuple[NodeId, ...]
    """Voters by the newest commit: those that the operator has called gone among them."""
    experiment: str = ""
    epochs: int | None = None
    evictions: tuple[Eviction, ...] = ()
    """Decisions of the operator without a majority, oldest first."""
