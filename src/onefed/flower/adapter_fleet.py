"""A node's touches of names that Flower does not publish, for flwr 1.41.0 and no other.

``Fleet`` is Flower's own Fleet connection, one method per request, without the waits and the exits
that Flower's SuperNode has around it. ``execute`` runs a ClientApp on one message as Flower's
``flwr-clientapp`` does. Messages travel as Flower's own bytes between them (``Task``, ``Answer``).
``tests/unit/flower/test_adapter_fleet.py`` is the contract, and says so when a new flwr breaks it.

Sources: flwr 1.41.0, ``fleet_http_connection.py``, ``start_client_internal.py`` and
``runtime/run_clientapp.py`` in ``supernode``.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import ssl
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
from flwr.app import Context, Error, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.cli.install import install_from_fab
from flwr.clientapp import ClientApp
from flwr.clientapp.client_app import LoadClientAppError
from flwr.clientapp.utils import get_load_client_app_fn
from flwr.common.config import get_fused_config_from_fab, parse_config_args
from flwr.common.constant import HEARTBEAT_DEFAULT_INTERVAL, ErrorCode
from flwr.common.serde import (
    context_from_proto,
    context_to_proto,
    message_from_proto,
    message_to_proto,
    run_from_proto,
)
from flwr.proto.fab_pb2 import GetFabRequest
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
    RegisterNodeFleetRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    ObjectTree,
    PullObjectRequest,
    PushObjectRequest,
)
from flwr.proto.message_pb2 import Context as ProtoContext
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.node_pb2 import Node
from flwr.proto.run_pb2 import GetRunRequest
from flwr.proto.run_pb2 import Run as ProtoRun
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from onefed.errors import ExitCode, OnefedError
from onefed.flower import packing

_LOG = logging.getLogger(__name__)

ONLINE_TIME_S = HEARTBEAT_DEFAULT_INTERVAL
"""A SuperLink calls a node offline when it heard nothing for twice as long."""

APP_NOT_LOADED = ErrorCode.LOAD_CLIENT_APP_EXCEPTION
APP_RAISED = ErrorCode.CLIENT_APP_RAISED_EXCEPTION
APP_CRASHED = ErrorCode.CLIENT_APP_CRASHED
NODE_UNAVAILABLE = ErrorCode.NODE_UNAVAILABLE

_BUSY = (httpx.codes.BAD_GATEWAY, httpx.codes.SERVICE_UNAVAILABLE, httpx.codes.GATEWAY_TIMEOUT)
_TOO_MANY = httpx.codes.TOO_MANY_REQUESTS
"""A gateway's answer to a node that asks too often."""

ANSWER_CHARS_MAX = 300
"""Of what a SuperLink says about a refusal."""


class FleetError(OnefedError):
    """The SuperLink refused a request of this node, for good."""

    exit_code = ExitCode.FAILED


class UnreachableError(FleetError):
    """Nobody answered, or somebody who has no time: worth another try."""

    arrived = False
    """Whether the request may have been acted on, and only the answer was lost."""


class UnknownNodeError(FleetError):
    """The SuperLink does not know this node's key, or not under this node id."""


class RunOverError(FleetError):
    """The run has ended, or is about to begin anew: nothing more is wanted of it."""


class ObjectMissingError(FleetError):
    """A part of a message is not there, and never will be."""


@dataclass(frozen=True)
class Instruction:
    """A message to this node, without its content."""

    run_id: int
    message_id: str
    message_type: str
    round_name: str
    """Flower's group id: the round, where the ServerApp says so."""
    repeats: bool
    """It comes from a round loop that asks again only where an answer may be lost."""
    object_ids: tuple[str, ...]
    """SHA-256 of the parts of its content, every part after those that it is made of."""
    expires_at_s: float
    """Seconds since 1970; a reply after it is refused."""
    message: bytes
    """Flower's own bytes of it."""


@dataclass(frozen=True)
class Run:
    """What a node has to know of a run."""

    run_id: int
    series_id: int
    """Runs of one series share the state that an app keeps on the node."""
    fab_id: str
    fab_version: str
    fab_hash: str
    bytes_: bytes
    """Flower's own bytes of it."""


@dataclass(frozen=True)
class AppReference:
    """Which ClientApp."""

    fab_id: str
    fab_version: str
    fab_hash: str


@dataclass(frozen=True)
class Task:
    """One message and what its ClientApp gets with it."""

    app: AppReference
    task_id: int
    message_id: str
    context: bytes
    objects: Mapping[str, bytes]
    """Part of the message's content by its id."""


@dataclass(frozen=True)
class Answer:
    """A reply, ready to be sent."""

    message: bytes
    tree: bytes
    """Which part is made of which, the reply itself on top."""
    objects: Mapping[str, bytes]
    context: bytes | None = None
    """The context as the app left it; None where no app was reached."""
    failed: bool = False
    """It is an error reply."""


class Fleet:
    """A node's connection to the Fleet API. May be used by several threads at a time.

    Every request blocks for at most 30 s (Flower's client timeout), and is made once.
    """

    def __init__(
        self,
        address: str,
        ca_certificate: Path | None,
        private_key: Any,
        socket_options: Sequence[tuple[int, int, int]] = (),
    ) -> None:
        """
        Args:
            ca_certificate: None: plain HTTP.
            private_key: an EC private key of cryptography.
            socket_options: of every connection (``node.keepalive``).
        """
        public_key = private_key.public_key()
        self._public_key = public_key_to_bytes(public_key)
        try:
            self._client = FleetHttpClient.from_server_address(
                address,
                ca_certificate is None,
                None if ca_certificate is None else ca_certificate.read_bytes(),
                interceptors=[
                    RuntimeVersionHttpInterceptor(component_name="SuperNode"),
                    NodeAuthHttpInterceptor(private_key, public_key),
                ],
            )
        except (OSError, ValueError) as error:
            raise FleetError(
                f"The CA certificate {ca_certificate} cannot be used: {error}",
                hint="Boot the node again: step SN-07b puts it there.",
            ) from error

        if socket_options:
            _set_options(self._client, ca_certificate, socket_options)

    def close(self) -> None:
        self._client.close()

    def register(self) -> None:
        """Make the key known; only a SuperLink without node keys takes it from the node itself."""
        with contextlib.suppress(FleetError), _asking("register this node"):
            # Refused where it is registered already: activate decides.
            self._client.RegisterNode(RegisterNodeFleetRequest(public_key=self._public_key))

    def activate(self) -> int:
        """Say that the node is there; returns its node id, the same for the same key.

        Raises:
            FleetError: the key is not registered, or the node is there already as far as the
                SuperLink knows.
        """
        with _asking("activate this node"):
            answer = self._client.ActivateNode(
                ActivateNodeRequest(public_key=self._public_key, heartbeat_interval=ONLINE_TIME_S)
            )
        return int(answer.node_id)

    def deactivate(self, node_id: int) -> None:
        """Say that the node leaves."""
        with _asking("deactivate this node"):
            self._client.DeactivateNode(DeactivateNodeRequest(node_id=node_id))

    def heartbeat(self, node_id: int) -> None:
        """Say that the node is still there; one that was taken for dead is there again."""
        with _asking("send a heartbeat"):
            answer = self._client.SendNodeHeartbeat(
                SendNodeHeartbeatRequest(
                    node=Node(node_id=node_id), heartbeat_interval=ONLINE_TIME_S
                )
            )
        if not answer.success:
            raise UnknownNodeError("The SuperLink does not know this node any more.")

    def pull(self, node_id: int) -> Instruction | None:
        """The oldest message that waits for this node. It is given out once, to nobody else."""
        with _asking("ask for a message"):
            answer = self._client.PullMessages(PullMessagesRequest(node=Node(node_id=node_id)))
        if not answer.messages_list:
            return None
        proto, tree = answer.messages_list[0], answer.message_object_trees[0]
        return Instruction(
            run_id=proto.metadata.run_id,
            message_id=proto.metadata.message_id,
            message_type=proto.metadata.message_type,
            round_name=proto.metadata.group_id.removesuffix(packing.OFFER),
            repeats=proto.metadata.group_id.endswith(packing.OFFER),
            object_ids=tuple(dict.fromkeys(part.object_id for part in iterate_object_tree(tree))),
            expires_at_s=proto.metadata.created_at + proto.metadata.ttl,
            message=proto.SerializeToString(),
        )

    def run(self, node_id: int, run_id: int) -> Run:
        """Raises RunOverError unless the run is under way."""
        with _asking(f"ask for run {run_id}"):
            request = GetRunRequest(node=Node(node_id=node_id), run_id=run_id)
            proto = self._client.GetRun(request).run
        return Run(
            run_id=proto.run_id,
            series_id=proto.series_id,
            fab_id=proto.fab_id,
            fab_version=proto.fab_version,
            fab_hash=proto.fab_hash,
            bytes_=proto.SerializeToString(),
        )

    def fab(self, node_id: int, run: Run) -> bytes:
        """The app of a run, whose hash is checked."""
        with _asking(f"ask for the app of run {run.run_id}"):
            answer = self._client.GetFab(
                GetFabRequest(node=Node(node_id=node_id), hash_str=run.fab_hash, run_id=run.run_id)
            )
        content = bytes(answer.fab.content)
        if hashlib.sha256(content).hexdigest() != run.fab_hash:
            raise FleetError(f"The app of run {run.run_id} does not have the hash {run.fab_hash}.")
        return content

    def pull_object(self, node_id: int, run_id: int, object_id: str) -> bytes | None:
        """A part of a message, whose hash is checked; None while its sender still sends it."""
        with _asking("ask for a part of a message"):
            answer = self._client.PullObject(
                PullObjectRequest(node=Node(node_id=node_id), run_id=run_id, object_id=object_id)
            )
        if not answer.object_found:
            raise ObjectMissingError(f"Part {object_id[:12]} of a message is gone.")
        if not answer.object_available:
            return None
        content = bytes(answer.object_content)
        if hashlib.sha256(content).hexdigest() != object_id:
            raise ObjectMissingError(f"Part {object_id[:12]} of a message has other bytes.")
        return content

    def confirm(self, node_id: int, instruction: Instruction) -> None:
        """Say that a message is here as a whole: the SuperLink may forget it."""
        with _asking("confirm a message"):
            self._client.ConfirmMessageReceived(
                ConfirmMessageReceivedRequest(
                    node=Node(node_id=node_id),
                    run_id=instruction.run_id,
                    message_object_id=instruction.message_id,
                )
            )

    def push(self, node_id: int, answer: Answer, seconds: float) -> tuple[frozenset[str], str]:
        """Send a reply without its parts; returns the ids of those that are wanted, and a session.

        Args:
            seconds: that the app took.
        """
        with _asking("send a reply"):
            response = self._client.PushMessages(
                PushMessagesRequest(
                    node=Node(node_id=node_id),
                    messages_list=[ProtoMessage.FromString(answer.message)],
                    message_object_trees=[ObjectTree.FromString(answer.tree)],
                    clientapp_runtime_list=[seconds],
                )
            )
        return frozenset(response.objects_to_push), str(response.session_id)

    def push_object(
        self, node_id: int, run_id: int, session: str, object_id: str, content: bytes
    ) -> None:
        """Send a part of a reply.

        Raises:
            FleetError: the session of this reply has ended.
        """
        with _asking("send a part of a reply"):
            response = self._client.PushObject(
                PushObjectRequest(
                    node=Node(node_id=node_id),
                    run_id=run_id,
                    object_id=object_id,
                    object_content=content,
                    session_id=session,
                )
            )
        if not response.stored:
            raise FleetError(f"Part {object_id[:12]} of a reply was not taken.")


def node_config(pairs: str) -> dict[str, bool | int | float | str]:
    """``key=value`` pairs as Flower's SuperNode takes them in ``--node-config``."""
    return dict(parse_config_args([pairs] if pairs else None))


def new_context(run: Run, fab: bytes, node_id: int, node_config: Mapping[str, Any]) -> bytes:
    """What a ClientApp gets with its first message of a run.

    Raises:
        ValueError: the app has no readable configuration.
    """
    try:
        return _pack_context(
            Context(
                run_id=run.run_id,
                node_id=node_id,
                node_config=dict(node_config),
                state=RecordDict(),
                run_config=get_fused_config_from_fab(fab, _run(run)),
                series_id=run.series_id,
            )
        )
    except Exception as error:  # whatever hostile bytes make zipfile and zlib raise
        raise ValueError(f"the app cannot be read: {error}") from error


def keep_state(context: bytes, earlier: bytes) -> bytes:
    """The context with the state that an earlier run of the series left."""
    proto = ProtoContext.FromString(context)
    proto.state.CopyFrom(ProtoContext.FromString(earlier).state)
    return bytes(proto.SerializeToString())


def error_answer(instruction: Instruction, code: int, reason: str) -> Answer:
    """The reply to a message that no app has answered."""
    message = message_from_proto(ProtoMessage.FromString(instruction.message))
    return _pack(Message(Error(code, reason), reply_to=message), None)


def answer_again(instruction: Instruction, answer: Answer) -> Answer:
    """What the app has answered to another message, as the reply to this one."""
    given = ProtoMessage.FromString(answer.message).metadata.message_id
    given_reply = packing.inflate(given, dict(answer.objects))
    message = message_from_proto(ProtoMessage.FromString(instruction.message))
    reply = Message(given_reply.content, reply_to=message)
    if isinstance(given_reply, packing.Packed):
        reply = packing.Packed(reply)
    return replace(_pack(reply, None), context=answer.context)


def load(app: AppReference, fab: bytes) -> ClientApp:
    """Install an app below ``FLWR_HOME`` and import it, as Flower does."""
    with contextlib.redirect_stdout(io.StringIO()):  # it would praise itself in the log
        install_from_fab(fab, skip_prompt=True)
    loader = get_load_client_app_fn(default_app_ref="", app_path=None, multi_app=True)
    return loader(app.fab_id, app.fab_version, app.fab_hash)


def _set_options(
    client: FleetHttpClient,
    ca_certificate: Path | None,
    options: Sequence[tuple[int, int, int]],
) -> None:
    """Flower's client takes no options of a socket: give it another connection pool."""
    trust: ssl.SSLContext | bool = False
    if ca_certificate is not None:
        trust = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        trust.load_verify_locations(cafile=ca_certificate)
    timeout = client._client.timeout
    client._client.close()
    client._client = httpx.Client(
        transport=httpx.HTTPTransport(verify=trust, socket_options=list(options)), timeout=timeout
    )


def execute(task: Task, find_app: Callable[[], ClientApp]) -> Answer:
    """Let a ClientApp answer a message; what it raises becomes Flower's error reply.

    In its own process, which knows only this task afterwards.
    """
    context = context_from_proto(ProtoContext.FromString(task.context))
    TaskIdentity.run_id = context.run_id
    TaskIdentity.node_id = context.node_id
    TaskIdentity.task_id = task.task_id
    message = packing.inflate(task.message_id, dict(task.objects))
    # The bytes of a message do not hold its own id.
    message.metadata.__dict__["_message_id"] = task.message_id
    try:
        may_pack = packing.take_offer(message)
        reply = find_app()(message, context)
        return _pack(packing.pack(reply) if may_pack else reply, context)
    except Exception as error:  # noqa: BLE001 - whatever an app raises
        _LOG.error("The ClientApp raised an exception", exc_info=error)
        code, reason = APP_RAISED, f"{type(error)}:<'{error}'>"
        if isinstance(error, LoadClientAppError):
            code = APP_NOT_LOADED
            reason = "An exception was raised when attempting to load `ClientApp`"
        return _pack(Message(Error(code, reason), reply_to=message), context)


def _pack(reply: Message, context: Context | None) -> Answer:
    reply.metadata.__dict__["_message_id"] = reply.object_id
    proto = message_to_proto(remove_content_from_message(reply))
    with no_object_id_recompute():
        tree = get_object_tree(reply)
        objects = {name: part.deflate() for name, part in get_all_nested_objects(reply).items()}
    return Answer(
        message=proto.SerializeToString(),
        tree=tree.SerializeToString(),
        objects=objects,
        context=None if context is None else _pack_context(context),
        failed=reply.has_error(),
    )


def _pack_context(context: Context) -> bytes:
    return bytes(context_to_proto(context).SerializeToString())


def _run(run: Run) -> Any:
    return run_from_proto(ProtoRun.FromString(run.bytes_))


@contextlib.contextmanager
def _asking(action: str) -> Iterator[None]:
    """Turn what Flower's HTTP client raises into a FleetError that says what was tried."""
    try:
        yield
    except httpx.HTTPStatusError as error:
        status = error.response.status_code
        words = " ".join(error.response.text.split())[:ANSWER_CHARS_MAX]
        raise _REFUSALS.get(status, FleetError)(
            f"Could not {action}: the SuperLink answered {status}: {words or 'no reason given'}"
        ) from error
    except (httpx.HTTPError, OSError, RuntimeError) as error:  # RuntimeError: closed meanwhile
        lost = UnreachableError(f"Could not {action}: {type(error).__name__}: {error}")
        lost.arrived = not isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout))
        raise lost from error
    except ValueError as error:
        raise UnreachableError(f"Could not {action}: {error}") from error


_REFUSALS: Mapping[int, type[FleetError]] = {
    httpx.codes.UNAUTHORIZED: UnknownNodeError,
    httpx.codes.FORBIDDEN: RunOverError,
    **dict.fromkeys((*_BUSY, _TOO_MANY), UnreachableError),
}
