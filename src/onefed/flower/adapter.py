"""Every touch of a name that Flower does not publish, for flwr 1.41.0 and no other.

Flower's public API has no way to submit a run, to register a node or to build a bundle from Python:
its own command line uses the modules below.
``tests/unit/flower/test_adapter.py`` is the contract, and says so when a new flwr breaks it.

Sources: flwr 1.41.0, ``cli/run/run.py``, ``cli/supernode/register.py``, ``cli/build.py``,
``cli/log.py``, ``supercore/control/control_http_client.py``.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from flwr.cli.build import build_fab_from_files
from flwr.cli.utils import collect_files, validate_project_name
from flwr.common.config import get_fab_config, validate_config
from flwr.common.serde import user_config_from_proto, user_config_to_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    StreamLogsRequest,
    UnregisterNodeRequest,
)
from flwr.proto.fab_pb2 import Fab
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor

from onefed.errors import OnefedError

FLOWER_VERSION = "1.41.0"
"""The only version whose private names this module knows."""

NODE_ONLINE = "online"
"""``NodeStatus.status`` of a node whose heartbeat is current (supercore/constant.py)."""

NODE_OFFLINE = "offline"
"""Of one that was online."""

NODE_UNREGISTERED = "unregistered"
"""Of a node whose key is refused for good."""

FINISHED = "finished"
"""``RunStatus.status`` of a run that nothing more will come of (common/constant.py)."""

KEY_KNOWN = "already in use"
"""In Flower's refusal of a key that it has (supercore/error/catalog.py)."""

ANSWER_LENGTH_MAX = 500
"""Characters of a refusal that are kept."""

RunConfig = Mapping[str, bool | int | float | str]


class SuperLinkError(OnefedError):
    """The SuperLink refused a request, or did not answer."""

    def __init__(
        self, message: str, *, hint: str | None = None, status: int | None = None, answer: str = ""
    ) -> None:
        super().__init__(message, hint=hint)
        self.status = status
        """HTTP status; None when there was no answer."""
        self.answer = answer
        """What it said: Flower's public words, bounded."""


class KeyKnownError(SuperLinkError):
    """The SuperLink has this node key already."""


class UnknownRunError(SuperLinkError):
    """The SuperLink has no run of this id: its database is another one by now."""


class RunRefusedError(SuperLinkError):
    """The SuperLink takes no run of this app with this configuration."""


@dataclass(frozen=True)
class NodeStatus:
    """A SuperNode as the SuperLink knows it."""

    node_id: int
    name: str
    """The name it was registered with; ours says which client it is (see ``clients``)."""
    status: str
    """``registered``, ``online``, ``offline`` or ``unregistered``."""
    public_key: bytes = b""
    """PEM."""
    seen_at: str = ""
    """When it came or went last, as Flower writes times (ISO 8601); empty: never."""


@dataclass(frozen=True)
class RunStatus:
    """State of a submitted run."""

    status: str
    """``pending``, ``starting``, ``running`` or ``finished``."""
    sub_status: str
    """``completed``, ``failed`` or ``stopped`` once finished, else empty."""
    details: str

    @property
    def finished(self) -> bool:
        return self.status == FINISHED


class Control:
    """The SuperLink's Control API. Whoever holds one may run code on every node: loopback only.

    Every call blocks for at most 30 s (Flower's client timeout).
    """

    def __init__(self, address: str, ca_certificate: Path | None) -> None:
        """``ca_certificate`` is a PEM file; None means plain HTTP."""
        try:
            self._client = ControlHttpClient.from_server_address(
                server_address=address,
                insecure=ca_certificate is None,
                root_certificates=None if ca_certificate is None else ca_certificate.read_bytes(),
                interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr CLI")],
            )
        except (OSError, ValueError) as error:
            raise SuperLinkError(
                f"The CA certificate {ca_certificate} cannot be used: {error}",
                hint="The boot step SL-07a makes it; boot the coordinator again.",
            ) from error

    def close(self) -> None:
        """Close idle connections; a SuperLink waits for them when it stops."""
        self._client.close()

    def register_node(self, public_key: bytes, name: str) -> int:
        """Allow the node with this public key to connect.

        Args:
            public_key: PEM, an EC key on a NIST curve.
            name: kept with the node and shown wherever nodes are listed.

        Returns:
            The node id that Flower gave; it stays with the key.

        Raises:
            KeyKnownError: it is registered already.
            SuperLinkError: it is not acceptable.
        """
        try:
            with _asking(f"register the key of node {name}"):
                answer = self._client.RegisterNode(
                    RegisterNodeRequest(public_key=public_key, name=name)
                )
        except SuperLinkError as error:
            if KEY_KNOWN in error.answer:
                raise KeyKnownError(error.message, status=error.status) from error
            raise
        return int(answer.node_id)

    def unregister_node(self, node_id: int) -> None:
        """Refuse a node from now on. Flower never takes its key again, in this database."""
        with _asking(f"refuse node {node_id}"):
            self._client.UnregisterNode(UnregisterNodeRequest(node_id=node_id))

    def nodes(self) -> tuple[NodeStatus, ...]:
        """Every registered node, by node id."""
        with _asking("list the nodes"):
            answer = self._client.ListNodes(ListNodesRequest())
        return tuple(
            NodeStatus(
                node_id=info.node_id,
                name=info.name,
                status=info.status,
                public_key=bytes(info.public_key),
                seen_at=max(info.last_activated_at, info.last_deactivated_at),
            )
            for info in sorted(answer.nodes_info, key=lambda info: info.node_id)
        )

    def start_run(self, fab: bytes, overrides: RunConfig) -> int:
        """Submit a run of ``fab``; every key of ``overrides`` must exist in the app's config.

        Raises:
            RunRefusedError: this app with this configuration will never be accepted.
            SuperLinkError: it was not accepted now.
        """
        try:
            request = StartRunRequest(
                fab=Fab(hash_str=hashlib.sha256(fab).hexdigest(), content=fab),
                override_config=user_config_to_proto(dict(overrides)),
            )
        except ValueError as error:
            raise RunRefusedError(f"The run configuration cannot be sent: {error}") from error
        try:
            with _asking("submit the run"):
                answer = self._client.StartRun(request)
        except SuperLinkError as error:
            if httpx.codes.is_client_error(error.status or 0):
                raise RunRefusedError(
                    error.message, hint=error.hint, status=error.status, answer=error.answer
                ) from error
            raise
        if not answer.HasField("run_id"):
            raise RunRefusedError("The SuperLink accepted no run.", hint="Its log says why.")
        return int(answer.run_id)

    def unfinished_run(self, run: str) -> int | None:
        """The newest run whose config has this ``run``, unless it has finished; of the last 20."""
        with _asking("list the runs"):
            answer = self._client.ListRuns(ListRunsRequest())
        found = [
            (each.pending_at, run_id)
            for run_id, each in answer.run_dict.items()
            if each.status.status != FINISHED
            and user_config_from_proto(each.override_config).get("run") == run
        ]
        return max(found)[1] if found else None

    def runs(self) -> tuple[tuple[int, str, RunStatus], ...]:
        """Run id, time of submission (ISO 8601) and state of the last 20 runs, the newest first."""
        with _asking("list the runs"):
            answer = self._client.ListRuns(ListRunsRequest())
        found = [
            (
                run_id,
                each.pending_at,
                RunStatus(each.status.status, each.status.sub_status, each.status.details),
            )
            for run_id, each in answer.run_dict.items()
        ]
        return tuple(sorted(found, key=lambda run: run[1], reverse=True))

    def run_status(self, run_id: int) -> RunStatus:
        """Current state of a run. Note: Flower notices a dead ServerApp only after 60 s."""
        try:
            with _asking(f"ask for the state of run {run_id}"):
                answer = self._client.ListRuns(ListRunsRequest(run_id=run_id))
        except SuperLinkError as error:
            if error.status == httpx.codes.NOT_FOUND:
                raise UnknownRunError(f"The SuperLink does not know run {run_id}.") from error
            raise
        if run_id not in answer.run_dict:
            raise UnknownRunError(f"The SuperLink does not know run {run_id}.")
        status = answer.run_dict[run_id].status
        return RunStatus(status.status, status.sub_status, status.details)

    def stop_run(self, run_id: int) -> None:
        """Ask Flower to stop a run; its ServerApp is told by the next heartbeat."""
        with _asking(f"stop run {run_id}"):
            self._client.StopRun(StopRunRequest(run_id=run_id))

    def log_output(self, run_id: int) -> Iterator[str]:
        """What the ServerApp of a run prints, in pieces, until the run has finished.

        The SuperLink looks for new output first and for the end of the run after it, so what is
        printed in between is missing from the stream: the rest is asked for once more.
        """
        latest = 0.0
        with _asking(f"read the log of run {run_id}"):
            for _ in ("until the end", "the rest"):
                request = StreamLogsRequest(run_id=run_id, after_timestamp=latest)
                for piece in self._client.StreamLogs(request):
                    latest = max(latest, piece.latest_timestamp)
                    yield piece.log_output


def config_errors(config: Mapping[str, object]) -> list[str]:
    """What Flower finds wrong with an app's ``pyproject.toml``.

    Its look at the modules is left out: it imports the packages above them, into this process.
    """
    try:
        _, errors, _ = validate_config(dict(config), check_module=False)
    except (ValueError, TypeError, AttributeError) as error:
        return [str(error)]
    return list(errors)


def name_error(name: str) -> str | None:
    """Why Flower takes no app of this name, or None."""
    try:
        validate_project_name(name, "[project] name")
    except ValueError as error:
        return str(error)
    return None


def app_files(app_folder: Path) -> dict[str, Path]:
    """The files of an app folder that may go into a bundle, by relative POSIX path."""
    return dict(collect_files(app_folder))


def fab_config(fab: bytes) -> Mapping[str, Any]:
    """The ``pyproject.toml`` of a bundle.

    Raises:
        ValueError: it is not a bundle.
    """
    try:
        return get_fab_config(fab)
    except Exception as error:  # whatever hostile bytes make zipfile and zlib raise
        raise ValueError(f"not a Flower app bundle: {error}") from error


def build_fab(files: Mapping[str, bytes | Path]) -> bytes:
    """Pack files into a Flower app bundle: a zip of at most 10 MB, equal bytes for equal files.

    Raises:
        ValueError: too large, too deep, or an invalid configuration.
    """
    with warnings.catch_warnings():
        # Flower names its ignore patterns in a way that pathspec 1 deprecates.
        warnings.simplefilter("ignore", DeprecationWarning)
        return build_fab_from_files(files)[0]


@contextlib.contextmanager
def _asking(action: str) -> Iterator[None]:
    """Turn what Flower's HTTP client raises into a SuperLinkError that says what was tried."""
    try:
        yield
    except httpx.HTTPStatusError as error:
        status, answer = error.response.status_code, _words(error.response)
        raise SuperLinkError(
            f"Could not {action}: the SuperLink answered {status}: {answer}",
            hint="The SuperLink's log says why.",
            status=status,
            answer=answer,
        ) from error
    except (httpx.HTTPError, OSError, RuntimeError) as error:  # RuntimeError: closed meanwhile
        raise SuperLinkError(
            f"Could not {action}: {type(error).__name__}: {error}",
            hint="The SuperLink may be down; its log says why.",
        ) from error
    except ValueError as error:
        raise SuperLinkError(
            f"Could not {action}: {error}",
            hint="What answers there is no SuperLink, or not one of this version.",
        ) from error


def _words(response: httpx.Response) -> str:
    """Why a request was refused: Flower puts it into a small JSON document (supercore/error)."""
    text = response.text
    try:
        said = json.loads(text)
        text = " ".join(str(said[key]) for key in ("detail", "extra") if key in said)
    except (ValueError, TypeError):
        pass
    return " ".join(text.split())[:ANSWER_LENGTH_MAX] or "no reason given"
