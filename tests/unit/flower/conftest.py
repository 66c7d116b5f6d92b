"""A hub without a cloud: a grid over a virtual clock, app folders, and SuperLinks of both kinds.

``grid`` and ``clock`` run rounds without a process.
``superlink_server`` is Flower's own server in a thread, whose state a test may change;
``plain_superlink`` and ``tls_superlink`` are the program that a coordinator runs.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import ssl
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import tomli_w
import uvicorn
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Error,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp import ClientApp
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from numpy.typing import NDArray

from onefed.flower import clients, exchange
from onefed.tls import material

Behaviour = Callable[[Message], Message | Sequence[tuple[float, Message]] | None]
"""What a node does with a message: its reply at once, replies after so many seconds, or nothing."""

DAY_S = 86_400.0
SUPERLINK_NODE_ID = 1
"""In whose name Flower's SuperLink answers when a node cannot."""
APP_RAISED = 2
"""Flower's error code of a ClientApp that raised."""

START_LIMIT_S = 50.0

IN_MEMORY = ":flwr-in-memory:"
"""Flower's name for a database that is gone with its process."""


class VirtualClock:
    """Seconds that pass when somebody sleeps; whoever sleeps for a day waits for ever."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.slept: list[float] = []
        self._later: list[tuple[float, Callable[[], None]]] = []

    def __call__(self) -> float:
        return self.now_s

    def at(self, when_s: float, action: Callable[[], None]) -> None:
        """Do something as soon as a sleep has come to ``when_s``."""
        self._later.append((when_s, action))

    def sleep(self, seconds: float) -> None:
        assert seconds >= 0
        self.slept.append(seconds)
        self.now_s += seconds
        assert self.now_s < DAY_S, "it waits for ever"
        for due in [each for each in self._later if each[0] <= self.now_s]:
            self._later.remove(due)
            due[1]()


class VirtualGrid(Grid):
    """Flower's grid with nodes that are functions, over a virtual clock."""

    def __init__(self, clock: VirtualClock) -> None:
        self.sent: list[Message] = []
        self.polls_at: list[float] = []
        self.strays: list[Message] = []
        """Given out by the next poll, whatever it asks for."""
        self.undecodable: set[int] = set()
        """Nodes whose replies have bytes that Flower cannot turn into a message."""
        self._lost: set[str] = set()
        self.loses_answer = False
        """The SuperLink dies while it answers the next look that finds something."""
        self.interruptions = 0
        """Looks that were tried again because of that."""
        self.full = False
        """Refuses messages as too large together, as Flower's grid does: without an id for any."""
        self.fab_hash = "a" * 64
        self._clock = clock
        self._nodes: dict[int, tuple[str, Behaviour]] = {}
        self._activations: dict[int, int] = {}
        self._under_way: list[tuple[float, int, Message]] = []

    def add(self, key: str, behaviour: Behaviour, node_id: int | None = None) -> int:
        """Connect a node as the client ``key``; node ids have 64 bits, as Flower's have."""
        node_id = node_id or 2**63 + len(self._nodes)
        self._nodes[node_id] = (clients.node_name(key), behaviour)
        self._activations[node_id] = self._activations.get(node_id, 0) + 1
        return node_id

    def remove(self, node_id: int) -> None:
        del self._nodes[node_id]

    def get_node_ids(self) -> Iterable[int]:
        return list(self._nodes)

    def get_nodes(self) -> Iterable[NodeInfo]:
        return [
            NodeInfo(node_id=node_id, name=name, last_activated_at=str(self._activations[node_id]))
            for node_id, (name, _) in self._nodes.items()
        ]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        if self.full:
            return []
        return [self._push(message) for message in messages]

    def _push(self, message: Message) -> str:
        if message.metadata.dst_node_id not in self._nodes:
            return ""
        self.sent.append(message)
        message.metadata.__dict__["_message_id"] = f"message-{len(self.sent)}"
        _, behaviour = self._nodes[message.metadata.dst_node_id]
        came = behaviour(message)
        timed = [(0.0, came)] if isinstance(came, Message) else came or []
        for delay_s, reply in timed:
            self._under_way.append((self._clock() + delay_s, len(self._under_way), reply))
        return message.metadata.message_id

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        self.polls_at.append(self._clock())
        asked = set(message_ids)
        due = [
            each
            for each in sorted(self._under_way, key=lambda each: each[:2])
            if each[0] <= self._clock() and each[2].metadata.reply_to_message_id in asked
        ]
        self._under_way = [each for each in self._under_way if each not in due]
        lost = [sent for sent in self.sent if sent.metadata.message_id in self._lost & asked]
        if any(reply.metadata.src_node_id in self.undecodable for _, _, reply in due):
            # The SuperLink has given all of them out. Up to the one that cannot be read, Flower has
            # confirmed them, and they are gone; asked again for the others it says nothing.
            ids = [reply.metadata.reply_to_message_id for _, _, reply in due]
            bad = [reply.metadata.src_node_id in self.undecodable for _, _, reply in due]
            self._lost |= set(ids[: bad.index(True) + 1])
            raise ValueError("Unknown object type")
        if due and self.loses_answer:
            # It has given them out; asked again, it says nothing of them.
            self.loses_answer = False
            self.interruptions += 1
            return []
        if lost:
            return [error_of(sent, 3, "unavailable", by_superlink=True) for sent in lost]
        strays, self.strays = self.strays, []
        return [*strays, *(message for _, _, message in due)]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        raise NotImplementedError("our loop polls by itself")

    def set_run(self, run: object) -> None:
        raise NotImplementedError

    @property
    def run(self) -> Run:
        run = Run.create_empty(1)
        run.fab_hash = self.fab_hash
        return run

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        raise NotImplementedError


def answer(
    message: Message,
    arrays: Mapping[str, NDArray[Any]] | None = None,
    **metrics: float | int | list[float],
) -> Message:
    """A reply as Flower's own examples make it; dashes in metric names are underscores here."""
    content = RecordDict()
    if arrays is not None:
        content["arrays"] = ArrayRecord({key: Array(value) for key, value in arrays.items()})
    if metrics:
        named = {key.replace("num_examples", "num-examples"): metrics[key] for key in metrics}
        content["metrics"] = MetricRecord(named)
    return Message(content, reply_to=message)


def error_of(message: Message, code: int, reason: str | None, *, by_superlink: bool) -> Message:
    """An error reply; the SuperLink's own come in the name of its node, not of the silent one."""
    reply = Message(Error(code, reason), reply_to=message)
    if by_superlink:
        reply.metadata.__dict__["_src_node_id"] = SUPERLINK_NODE_ID
    return reply


def running(
    client_app: ClientApp,
    *,
    partition: int = 0,
    partitions: int = 1,
    run_config: Mapping[str, bool | int | float | str] | None = None,
) -> Behaviour:
    """A node that runs a ClientApp: what the app raises becomes Flower's error reply."""
    context = Context(
        run_id=1,
        node_id=partition,
        node_config={"partition-id": partition, "num-partitions": partitions},
        state=RecordDict(),
        run_config=dict(run_config or {}),
    )

    def behave(message: Message) -> Message:
        try:
            return client_app(message, context)
        except Exception as error:  # noqa: BLE001 - as Flower's process around a ClientApp does
            return error_of(message, APP_RAISED, f"{type(error)}:<'{error}'>", by_superlink=False)

    return behave


@pytest.fixture(autouse=True)
def _task_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower's messages can be made only in a process that knows its task."""
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(f"flwr.supercore.task_identity.TaskIdentity.{name}", 1)
    monkeypatch.delenv("ONEFED_DATA_DIR", raising=False)


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def grid(clock: VirtualClock) -> VirtualGrid:
    return VirtualGrid(clock)


@pytest.fixture(scope="session")
def hub() -> SimpleNamespace:
    """The pieces above, for modules that make several federations in one test."""
    return SimpleNamespace(
        VirtualClock=VirtualClock,
        VirtualGrid=VirtualGrid,
        answer=answer,
        error_of=error_of,
        running=running,
        APP_RAISED=APP_RAISED,
    )


@pytest.fixture
def reply_of() -> Callable[..., exchange.Reply]:
    """Makes a reply with exactly these records in it."""

    def make(key: str = "0", **records: ArrayRecord | MetricRecord | ConfigRecord) -> Any:
        return exchange.Reply(clients.Client(key, 7), RecordDict(records), 0.5)

    return make


# --- app folders ---------------------------------------------------------------------------------

CLIENT_MODULE = """
from flwr.clientapp import ClientApp

app = ClientApp()
"""

SERVER_MODULE = """
from flwr.serverapp import ServerApp

app = ServerApp()
"""

TASK_MODULE = """


def initial_arrays(run_config):
    return {"w": np.zeros(2, np.float32)}


def evaluate(arrays, run_config):
    return {"accuracy": 1.0}
"""


PROJECT = {"name": "tiny", "version": "1.0.0"}
COMPONENTS = {"clientapp": "client:app", "serverapp": "server:app"}
CONFIG = {"local-epochs": 1, "optimizer": {"momentum": 0.5}}
MANAGED = {"initial-arrays": "task:initial_arrays", "evaluate": "task:evaluate"}


@pytest.fixture
def app_folder(tmp_path: Path) -> Callable[..., Path]:
    """Writes an app directory; without a ``managed`` table it has its own ServerApp."""

    def write(
        name: str = "app",
        *,
        project: Any = PROJECT,
        components: Any = COMPONENTS,
        config: Any = CONFIG,
        managed: Any = MANAGED,
        files: Mapping[str, str] | None = None,
        **settings: Any,
    ) -> Path:
        flower = {"publisher": "somebody", "components": components, "config": config, **settings}
        tool = {"flwr": {"app": {key: flower[key] for key in flower if flower[key] is not None}}}
        document = {
            **({} if project is None else {"project": project}),
            "tool": tool if managed is None else {**tool, "onefed": managed},
        }
        contents = {
            "pyproject.toml": tomli_w.dumps(document),
            "client.py": CLIENT_MODULE,
            "server.py": SERVER_MODULE,
            "task.py": TASK_MODULE,
            **(files or {}),
        }
        folder = tmp_path / name
        for path, content in contents.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(textwrap.dedent(content), encoding="utf-8")
        return folder

    return write


# --- SuperLinks ----------------------------------------------------------------------------------


class SuperLinkServer:
    """Flower's own server in a thread of this process, its state in memory and in our hands."""

    def __init__(self) -> None:
        # Imported here: it takes seconds, and most tests need no server.
        from flwr.superlink.main import create_app

        self._app = create_app()
        self.state = self._app.state.linkstate_factory.state()
        # asyncio turns Nagle's algorithm off only where the protocol is named.
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        self.address = f"127.0.0.1:{listener.getsockname()[1]}"
        self._server = uvicorn.Server(
            uvicorn.Config(
                self._app,
                access_log=False,
                http="h11",
                log_config=None,
                loop="asyncio",
                timeout_graceful_shutdown=1,
                ws="none",
            )
        )
        self._thread = threading.Thread(
            target=self._server.run, args=([listener],), name="superlink"
        )
        self._thread.start()

    def stop(self) -> None:
        self.end_runs()
        self._server.should_exit = True
        self._thread.join()

    def end_runs(self) -> None:
        """End what runs: whoever follows a log comes to its end."""
        for run in self.state.get_run_info():
            self.state.stop_run(run.run_id)

    def forget(self) -> None:
        """Lose the database, as a SuperLink does whose disk is gone."""
        from flwr.superlink import config_loader

        self.end_runs()
        manager = config_loader.get_federation_manager(is_simulation=False)
        _, factory = config_loader.get_objectstore_linkstate_factories(IN_MEMORY, manager)
        self._app.state.linkstate_factory = self._app.state.runtime_state_factory = factory
        self.state = factory.state()

    def connect(self, node_id: int) -> None:
        """What a SuperNode does when it starts."""
        assert self.state.activate_node(node_id, DAY_S)

    def disconnect(self, node_id: int) -> None:
        assert self.state.deactivate_node(node_id)

    def run_starts(self, run_id: int) -> None:
        """What a SuperExec does with a pending run."""
        assert self.state.claim_task(self._task(run_id)) is not None
        assert self.state.activate_task(self._task(run_id))

    def run_prints(self, run_id: int, text: str) -> None:
        self.state.add_task_log(self._task(run_id), text)

    def run_ends(self, run_id: int, sub_status: str, details: str = "") -> None:
        assert self.state.finish_task(self._task(run_id), sub_status, details)

    def _task(self, run_id: int) -> int:
        [run] = self.state.get_run_info(run_ids=[run_id])
        return int(run.primary_task_id)


@pytest.fixture(scope="module")
def module_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SuperLinkServer]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLWR_HOME", str(tmp_path_factory.mktemp("flwr")))
        patch.setenv("FLWR_DATABASE", IN_MEMORY)
        server = SuperLinkServer()
        # Half a second from one look at a log to the next is much in a test.
        handlers = "flwr.superlink.servicer.control.control_handlers"
        patch.setattr(f"{handlers}.LOG_STREAM_INTERVAL", 0.01)
        yield server
        server.stop()


@pytest.fixture
def superlink_server(module_server: SuperLinkServer) -> SuperLinkServer:
    """A SuperLink without TLS, and without nodes, runs or programs that would run them."""
    module_server.forget()
    return module_server


@contextlib.contextmanager
def superlink_process(folder: Path, *arguments: str, tls: bool) -> Iterator[str]:
    """The program ``flower-superlink`` on a free port of loopback; gives its address.

    It is stopped with its process group, and every process of it carries the folder in its
    environment.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        str(Path(sys.executable).parent / "flower-superlink"),
        *("--isolation", "process", "--host", "127.0.0.1", "--port", str(port)),
        *("--database", str(folder / "state.db"), "--disable-runtime-dependency-installation"),
        *arguments,
    ]
    environ = {
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
        "FLWR_HOME": str(folder / "flwr"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "ONEFED_STATE_DIR": str(folder),
    }
    scheme, verify = ("https", ssl_context(folder)) if tls else ("http", False)
    with (folder / "superlink.log").open("wb") as log:
        process = subprocess.Popen(
            command, env=environ, stdout=log, stderr=log, start_new_session=True
        )
        try:
            _wait_for_health(process, f"{scheme}://127.0.0.1:{port}/health", verify, folder)
            yield f"127.0.0.1:{port}"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def ssl_context(folder: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(folder / "certificates" / "ca.crt"))


def _wait_for_health(
    process: subprocess.Popen[bytes], url: str, verify: ssl.SSLContext | bool, folder: Path
) -> None:
    ends_at = time.monotonic() + START_LIMIT_S
    while time.monotonic() < ends_at and process.poll() is None:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(url, verify=verify, trust_env=False).is_success:
                return
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.1)
    raise AssertionError((folder / "superlink.log").read_text())


@pytest.fixture(scope="module")
def plain_superlink(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a real SuperLink without TLS."""
    with superlink_process(
        tmp_path_factory.mktemp("superlink"), "--insecure", tls=False
    ) as address:
        yield address


@pytest.fixture
def guarded_superlink(tmp_path: Path) -> Iterator[str]:
    """Address of a real SuperLink without TLS whose Runtime API asks for a secret."""
    (tmp_path / "guard").write_text("9ua4d" * 10)
    secret = ("--superexec-auth-secret-file", str(tmp_path / "guard"))
    with superlink_process(tmp_path, "--insecure", *secret, tls=False) as address:
        yield address


@pytest.fixture(scope="module")
def tls_superlink(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """A real SuperLink with TLS and node keys, as a coordinator runs it."""
    folder = tmp_path_factory.mktemp("superlink")
    made = material.ensure(folder / "certificates", addresses=[], now=datetime.now(UTC))
    arguments = [
        *("--ssl-ca-certfile", str(made.ca_certificate_path)),
        *("--ssl-certfile", str(made.server_certificate_path)),
        *("--ssl-keyfile", str(made.server_key_path)),
        "--enable-supernode-auth",
    ]
    with superlink_process(folder, *arguments, tls=True) as address:
        yield SimpleNamespace(address=address, ca_certificate=made.ca_certificate_path)
