"""A cloud, a clock and a disk for one machine: its boot meets a real OneGate and programs that
answer as Flower's do."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import json
import os
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from onefed import context
from onefed.appliance import gpu, machine, programs, stages, steps
from onefed.appliance.paths import Paths
from onefed.appliance.platform import Platform, Processes
from onefed.appliance.process import Program
from onefed.checkpoint import life_lock
from onefed.local import peer_machine
from onefed.local.onegate import OneGateServer
from onefed.local.service import ServiceModel, VmRecord
from onefed.opennebula import onegate
from onefed.telemetry.events import Event
from onefed.tls import material, node_keys

ADDRESS = "127.0.0.1"
PROGRAMS_WITH_HEALTH = ("superlink", "supernode")


class RecordingModel(ServiceModel):
    """A service that also remembers in which order its machines published."""

    def __init__(self) -> None:
        super().__init__("6", "fed-1")
        self.published: list[tuple[str, str, str]] = []
        """Machine, name, value."""

    def update_attributes(self, vm_id: str, attributes: Mapping[str, str]) -> None:
        self.published += [(vm_id, name, value) for name, value in attributes.items()]
        super().update_attributes(vm_id, attributes)


class Cloud:
    """One service with its OneGate on loopback."""

    def __init__(self, model: RecordingModel, endpoint: str) -> None:
        self.model = model
        self.endpoint = endpoint
        for role in context.Role:
            model.add_role(role.value, 1)

    def add(self, role: str, **attributes: str) -> VmRecord:
        """A new machine which has published these attributes."""
        vm = self.model.add_vm(role, f"{role}_(service_6)", ADDRESS, {}, attributes)
        return self.model.snapshot().vms[vm.vm_id]

    def gate(self, vm: VmRecord, **changed: str) -> onegate.OneGate:
        """OneGate as that machine sees it."""
        token = changed.get("token", vm.token)
        return onegate.OneGate(self.endpoint, token, vm.vm_id)

    def published(self, vm: VmRecord) -> list[tuple[str, str]]:
        """Name and value of what the machine published, or was told, in order."""
        return [(name, value) for vm_id, name, value in self.model.published if vm_id == vm.vm_id]

    def attributes(self, vm: VmRecord) -> Mapping[str, str]:
        return self.model.attributes(vm.vm_id)


class Time:
    """A clock that moves while somebody sleeps, and only then."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.slept: list[float] = []
        self._plans: list[Callable[[], None]] = []

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now_s += seconds
        for plan in self._plans:
            plan()

    def after_every_sleep(self, plan: Callable[[], None]) -> None:
        """What others do meanwhile."""
        self._plans.append(plan)


class FakeFlower:
    """Programs that answer ``GET /health`` where their command line says, and do nothing else.

    With TLS they use the certificate and key that they are told to use.
    A gateway is none of Flower's: it is the real program, and so is the exporter of metrics.
    """

    def __init__(self) -> None:
        self.healthy = True
        """While False, they answer 503."""
        self._servers: dict[str, http.server.HTTPServer] = {}
        self._real: list[subprocess.Popen[bytes]] = []
        self._lives = contextlib.ExitStack()
        """Of nodes of peers."""

    def start(self, program: Program) -> None:
        if program.name == programs.METRICS:
            exporter = subprocess.Popen(
                program.argv, env=dict(program.environment), stderr=subprocess.PIPE
            )
            assert exporter.stderr is not None
            program.log.parent.mkdir(parents=True, exist_ok=True)
            program.log.write_bytes(exporter.stderr.readline())  # it serves, or says why not
            exporter.stderr.close()
            self._real.append(exporter)
        if program.name == "gateway":
            self._real.append(
                subprocess.Popen(program.argv, cwd=program.folder, env=dict(program.environment))
            )
        if program.name == "peer" and self.healthy:
            self._lives.enter_context(_part(peer_machine.read(Path(program.argv[-1]))))
        if program.name not in PROGRAMS_WITH_HEALTH:
            return
        flags = dict(zip(program.argv, program.argv[1:], strict=False))
        fake = self

        class Health(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                known = self.path == "/health"
                self.send_response(200 if known and fake.healthy else 503 if known else 404)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        server = http.server.HTTPServer((flags["--host"], int(flags["--port"])), Health)
        if "--ssl-certfile" in flags:
            tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            tls.load_cert_chain(flags["--ssl-certfile"], flags["--ssl-keyfile"])
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        self._servers[program.name] = server

    def stop(self) -> None:
        for server in self._servers.values():
            server.shutdown()
            server.server_close()
        self._servers.clear()
        for each in self._real:
            each.terminate()
            each.wait()
        self._real.clear()
        self._lives.close()


def _part(told: peer_machine.Instructions) -> contextlib.AbstractContextManager[None]:
    """Write down what a node does that has found a leader; gives its life."""
    state = {
        "pid": os.getpid(),
        "state": "training",
        "leader": told.founders[0].name,
        "round_number": 0,
        "rounds_total": told.rounds,
        "voters": [each.name for each in told.founders],
    }
    folder = told.folder / "nodes" / told.name
    (folder / "state.json").write_text(json.dumps(state))
    return life_lock.hold(folder / life_lock.NAME)


@dataclass
class Computer:
    """The disk of one machine, and what happened on it; boots as often as it is told to."""

    role: context.Role
    vm: VmRecord
    gate: onegate.OneGate | None
    gate_endpoint: str | None
    paths: Paths
    time: Time
    flower: FakeFlower
    variables: dict[str, str]
    """The context."""
    inherited: dict[str, str] = field(default_factory=dict)
    started: list[Program] = field(default_factory=list)
    """Every start of a program."""
    running: set[str] = field(default_factory=set)
    given_up: set[str] = field(default_factory=set)
    warnings: list[str] = field(default_factory=list)
    told: list[Event] = field(default_factory=list)
    """Events."""
    platform: Platform = field(default_factory=Processes)
    driver: gpu.Driver = field(default_factory=gpu.System)
    modules: set[str] = field(default_factory=set)
    """Frameworks that are installed."""

    @property
    def steps(self) -> tuple[steps.Step[Any], ...]:
        return stages.STEPS[self.role]

    @property
    def names_started(self) -> list[str]:
        return [program.name for program in self.started]

    def edge(self) -> machine.Edge:
        return machine.Edge(
            gate=self.gate,
            gate_endpoint=self.gate_endpoint,
            gate_token=self.vm.token,
            vm_id=self.vm.vm_id,
            paths=self.paths,
            inherited=self.inherited,
            state_folder=self.paths.root,
            events=self.paths.root / "events.jsonl",
            start=self._start,
            running=self.running.__contains__,
            given_up=self.given_up.__contains__,
            clock=self.time,
            now=lambda: datetime.now(UTC),
            sleep=self.time.sleep,
            warn=self.warnings.append,
            platform=self.platform,
            driver=self.driver,
            emit=self.told.append,
            has_module=self.modules.__contains__,
            facts={**machine.read_facts(self.paths), "address": ADDRESS},
        )

    def resolution(self) -> context.Resolution:
        lines = "".join(f"{name}='{value}'\n" for name, value in self.variables.items())
        given = context.parse_context_file(lines.encode())
        return context.resolve(self.role, context_file=given)

    def subject(self) -> stages.Subject:
        return stages.SUBJECTS[self.role](self.edge(), self.resolution())

    def boot(
        self, wanted: Sequence[steps.Step[Any]] | None = None, *, cut_after: str | None = None
    ) -> dict[str, steps.Report]:
        """Boot; the power fails after the step ``cut_after``. Gives the reports by step."""
        reports: dict[str, steps.Report] = {}

        def on_report(report: steps.Report) -> None:
            reports[report.id] = report
            if report.id == cut_after:
                raise PowerCutError

        machine.make_folder(self.paths.config, 0o750)
        with contextlib.suppress(PowerCutError):
            steps.apply(
                self.steps if wanted is None else wanted,
                self.subject(),
                status_file=self.paths.status,
                clock=self.time,
                on_report=on_report,
            )
        return reports

    def power_off(self) -> None:
        self.flower.stop()
        self.running.clear()

    def files(self) -> dict[str, tuple[str, int, int]]:
        """Digest, mode and time of change of every file, but for the account of the last boot."""
        return {
            str(path.relative_to(self.paths.root)): (
                hashlib.sha256(path.read_bytes()).hexdigest(),
                path.stat().st_mode & 0o777,
                path.stat().st_mtime_ns,
            )
            for path in sorted(self.paths.root.rglob("*"))
            if path.is_file() and path != self.paths.status
        }

    def _start(self, program: Program) -> None:
        self.started.append(program)
        self.running.add(program.name)
        self.flower.start(program)


class PowerCutError(Exception):
    """The machine loses its power."""


class Coordinator:
    """What the supervisor of a coordinator does for a new node: reads its key, says it is known."""

    def __init__(self, cloud: Cloud, vm: VmRecord) -> None:
        self._cloud = cloud
        self._vm = vm

    def register(self) -> None:
        """Register the key of the one supernode, if it has published one."""
        attributes = self._cloud.attributes(self._vm)
        if "FL_NODE_KEY" not in attributes:
            return
        known = node_keys.fingerprint(node_keys.decode_published(attributes["FL_NODE_KEY"]))
        if attributes.get("FL_NODE_REGISTERED") != known:
            self._cloud.model.update_attributes(self._vm.vm_id, {"FL_NODE_REGISTERED": known})


class TokenTaker:
    """A coordinator that nodes show tokens to. It answers what it is told to, the last answer again
    and again, and remembers what was asked."""

    def __init__(self, folder: Path) -> None:
        self.answers: list[tuple[int, bytes]] = [(200, b"{}")]
        self.asked: list[tuple[str, Any]] = []
        self.now_s = 0.0
        made = material.ensure(
            folder, addresses=["127.0.0.1"], extra_sans=[], now=datetime.now(UTC)
        )
        self.ca_certificate = made.ca_certificate_path
        memory = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                memory.asked.append((self.path, json.loads(body)))
                status, said = memory.answers[0]
                if len(memory.answers) > 1:
                    del memory.answers[0]
                self.send_response(status)
                self.send_header("Content-Length", str(len(said)))
                self.end_headers()
                self.wfile.write(said)

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(folder / "server.pem", folder / "server.key")
        self._server.socket = tls.wrap_socket(
            self._server.socket, server_side=True, do_handshake_on_connect=False
        )
        self.endpoint = f"127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def token_taker(tmp_path: Path) -> Iterator[TokenTaker]:
    found = TokenTaker(tmp_path / "token-taker")
    yield found
    found.close()


@pytest.fixture(scope="session")
def background() -> Iterator[futures.Executor]:
    """For what takes its time and nobody waits for; done when the last test is."""
    with futures.ThreadPoolExecutor(max_workers=4) as pool:
        yield pool


@pytest.fixture
def cloud(background: futures.Executor) -> Iterator[Cloud]:
    model = RecordingModel()
    server = OneGateServer(model)
    yield Cloud(model, server.start())
    background.submit(server.stop)


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def flower() -> Iterator[FakeFlower]:
    fake = FakeFlower()
    yield fake
    fake.stop()


@pytest.fixture
def open_umask() -> Iterator[None]:
    """No help from the umask: modes must come from the program."""
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.fixture
def coordinator(cloud: Cloud, time: Time, flower: FakeFlower, tmp_path: Path) -> Iterator[Computer]:
    """A SuperLink's machine that has never booted."""
    yield from _computer(
        context.Role.SUPERLINK,
        cloud,
        time,
        flower,
        tmp_path,
        {"FL_FLEET_API_ADDRESS": f"{ADDRESS}:{machine.free_port()}"},
    )


@pytest.fixture
def node(cloud: Cloud, time: Time, flower: FakeFlower, tmp_path: Path) -> Iterator[Computer]:
    """A SuperNode's machine that has never booted."""
    yield from _computer(context.Role.SUPERNODE, cloud, time, flower, tmp_path, {})


@pytest.fixture
def new_peer(
    cloud: Cloud, time: Time, flower: FakeFlower, tmp_path: Path
) -> Iterator[Callable[..., Computer]]:
    """Makes machines of one group of peers which have never booted."""
    gates: list[onegate.OneGate] = []

    def make(**variables: str) -> Computer:
        vm = cloud.add("peer")
        paths = Paths(tmp_path / f"peer-{vm.vm_id}")
        paths.root.mkdir(mode=0o700)
        gates.append(cloud.gate(vm))
        own = {"FL_PEER_PORT": str(machine.free_port()), **variables}
        return Computer(context.Role.PEER, vm, gates[-1], cloud.endpoint, paths, time, flower, own)

    yield make
    for gate in gates:
        gate.close()


@pytest.fixture
def supervisor(cloud: Cloud, node: Computer, time: Time) -> Coordinator:
    """Registers the node's key while the node waits for it."""
    registrar = Coordinator(cloud, node.vm)
    time.after_every_sleep(registrar.register)
    return registrar


def _computer(
    role: context.Role,
    cloud: Cloud,
    time: Time,
    flower: FakeFlower,
    folder: Path,
    variables: dict[str, str],
) -> Iterator[Computer]:
    vm = cloud.add(role.value)
    paths = Paths(folder / "root")
    paths.root.mkdir(mode=0o700)
    gate = cloud.gate(vm)
    yield Computer(role, vm, gate, cloud.endpoint, paths, time, flower, variables)
    gate.close()


@pytest.fixture
def programs_of() -> Callable[..., tuple[Program, ...]]:
    """The programs of a role whose root is ``/``, with these variables set."""
    paths = Paths(Path("/"))

    def make(role: context.Role, **variables: str) -> tuple[Program, ...]:
        found = context.resolve(role, explicit=variables)
        if role is context.Role.SUPERLINK:
            chosen = context.superlink_settings(found)
            own = programs.superlink(chosen, paths, {})
            if not chosen.metrics_enabled:
                return own
            told = {"ONEFED_EVENTS": "/events.jsonl"}
            return (*own, programs.metrics(chosen, paths, told, address="10.0.0.1"))
        if role is context.Role.PEER:
            return programs.peer(paths, {}, log_level="INFO", log_format="text")
        return programs.supernode(
            context.supernode_settings(found),
            paths,
            {},
            endpoint="10.0.0.1:9092",
            tls=True,
            private_key=Path("/opt/flower/keys/node.key"),
            node_config="",
            runtime_port=9094,
        )

    return make
