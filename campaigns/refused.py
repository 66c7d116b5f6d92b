"""Who is refused: a coordinator with its gateway, and everybody who should not get in.

``python -m campaigns.refused`` starts a real SuperLink and a real gateway on loopback, tries every
way in of the table, and prints it. Exit 1 where somebody got in, or where nothing wrote it down.
"""

from __future__ import annotations

import base64
import contextlib
import os
import signal
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    PullMessagesRequest,
    RegisterNodeFleetRequest,
)
from flwr.proto.node_pb2 import Node

from onefed import context
from onefed.appliance import gateway, machine, programs, superlink
from onefed.appliance.paths import Paths
from onefed.appliance.process import Program
from onefed.checkpoint import files
from onefed.flower import adapter
from onefed.tls import material

START_LIMIT_S = 60.0
ANSWER_LIMIT_S = 20.0
LOG_LIMIT_S = 5.0
"""A line of a log may come a moment after the answer."""

REFUSALS = (401, 403, 404, 409, 412, 413)
"""What says no to who asks, not to how. 412 is Flower's for a key that it does not know."""

BIG_BODY_BYTES = 768 * 2**20


@dataclass(frozen=True)
class Refusal:
    """What happened to one who tried."""

    who: str
    where: str
    answer: str
    """Status, or why there was no connection."""
    refused: bool
    logged_in: str
    """Who wrote it down; empty: nobody."""


class Key:
    """A node's key, and the headers that it signs."""

    def __init__(self) -> None:
        self.private = ec.generate_private_key(ec.SECP384R1())
        self.public = self.private.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    def headers(
        self, at: datetime | None = None, signed_at: datetime | None = None
    ) -> dict[str, str]:
        """Flower's own; ``signed_at`` is another time than the one that is said."""
        said = (at or datetime.now(UTC)).isoformat()
        text = said if signed_at is None else signed_at.isoformat()
        signature = self.private.sign(text.encode(), ec.ECDSA(hashes.SHA256()))
        return {
            "flwr-public-key": base64.b64encode(self.public).decode(),
            "flwr-timestamp": said,
            "flwr-signature": base64.b64encode(signature).decode(),
        }


class Coordinator:
    """The programs of a coordinator, as the appliance starts them, on free ports of loopback."""

    def __init__(self, folder: Path) -> None:
        self.paths = Paths(folder)
        ports = [machine.free_port() for _ in range(3)]
        resolution = context.resolve(
            context.Role.SUPERLINK,
            explicit={
                "FL_GATEWAY": "always",
                "FL_FLEET_API_ADDRESS": f"127.0.0.1:{ports[0]}",
                "FL_CONTROL_API_ADDRESS": f"127.0.0.1:{ports[1]}",
                "FL_SUPERLINK_PORT": str(ports[2]),
            },
        )
        self.settings = context.superlink_settings(resolution)
        self.fleet, self.control, self.behind = (f"127.0.0.1:{port}" for port in ports)
        self.ca_certificate = self.paths.certificates / material.CA_CERTIFICATE
        self._running: list[subprocess.Popen[bytes]] = []

    @contextlib.contextmanager
    def running(self) -> Iterator[Coordinator]:
        """Started and healthy; ended with all it has started."""
        paths = self.paths
        for made in (paths.config, paths.state, paths.gateway, paths.logs, paths.flower_home):
            files.make_folder(made)
        machine.write_secret_once(paths.superexec_secret, os.urandom(32).hex().encode())
        material.ensure(
            paths.certificates, addresses=["127.0.0.1"], extra_sans=[], now=datetime.now(UTC)
        )
        text = gateway.configuration(superlink.gateway_of(self.settings, paths))
        paths.gateway_configuration.write_text(text)
        base = programs.environment(
            paths, {}, state_folder=paths.root, events=paths.root / "events.jsonl"
        )
        try:
            for program in programs.superlink(self.settings, paths, base):
                if program.name in ("superlink", "gateway"):
                    self._running.append(_start(program))
            ends_at = time.monotonic() + START_LIMIT_S
            while not machine.healthy(self.fleet, self.ca_certificate):
                assert time.monotonic() < ends_at, self.log("superlink") + self.log("gateway")
                time.sleep(0.1)
            yield self
        finally:
            for process in self._running:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def log(self, name: str) -> str:
        path = self.paths.logs / f"{name}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def trust(self) -> ssl.SSLContext:
        """What a node of this coordinator trusts."""
        return ssl.create_default_context(cafile=self.ca_certificate)

    def pids(self) -> list[int]:
        """Of the SuperLink and of the gateway."""
        return [process.pid for process in self._running]

    def client(self, trust: ssl.SSLContext | None = None) -> httpx.Client:
        return httpx.Client(verify=trust or self.trust(), timeout=ANSWER_LIMIT_S, trust_env=False)

    def memory_bytes(self, index: int = 0) -> int:
        """Resident memory of the SuperLink, at this moment."""
        statm = Path(f"/proc/{self._running[index].pid}/statm").read_text().split()
        return int(statm[1]) * os.sysconf("SC_PAGE_SIZE")


def table(coordinator: Coordinator, *, big_body_bytes: int = BIG_BODY_BYTES) -> list[Refusal]:
    """Try every way in; a row for each.

    Raises:
        AssertionError: one that should get in is refused, so the table would show nothing.
    """
    known, other, stranger = Key(), Key(), Key()
    control = adapter.Control(coordinator.behind, coordinator.ca_certificate)
    control.register_node(known.public, "client:0")
    other_id = control.register_node(other.public, "client:1")
    control.close()
    fleet, commands, behind = coordinator.fleet, coordinator.control, coordinator.behind
    pull = "/v1/fleet/pull-messages"
    activate = "/v1/fleet/activate-node"

    def activation(key: Key) -> bytes:
        return ActivateNodeRequest(
            public_key=key.public, heartbeat_interval=30.0
        ).SerializeToString()

    def post(
        who: str,
        where: str,
        address: str,
        path: str,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
    ) -> Refusal:
        written = _written(coordinator)
        with coordinator.client() as client:
            answer = client.post(
                f"https://{address}{path}",
                content=body,
                headers={"content-type": "application/protobuf", **(headers or {})},
            )
        refused = answer.status_code in REFUSALS
        return Refusal(who, where, str(answer.status_code), refused, _logged(coordinator, written))

    honest = post("honest", "Fleet", fleet, activate, activation(known), known.headers())
    assert not honest.refused, honest
    now = datetime.now(UTC)
    mine = activation(known)
    as_other = PullMessagesRequest(node=Node(node_id=other_id)).SerializeToString()
    itself = RegisterNodeFleetRequest(public_key=stranger.public).SerializeToString()
    return [
        post("nobody: no key", "Fleet", fleet, activate, activation(stranger)),
        post(
            "a key that nobody registered",
            "Fleet",
            fleet,
            activate,
            activation(stranger),
            stranger.headers(),
        ),
        post(
            "a key that registers itself",
            "Fleet",
            fleet,
            "/v1/fleet/register-node",
            itself,
            stranger.headers(),
        ),
        post(
            "a registered key without its signature",
            "Fleet",
            fleet,
            activate,
            mine,
            {**stranger.headers(), "flwr-public-key": known.headers()["flwr-public-key"]},
        ),
        post(
            "the signature of another time",
            "Fleet",
            fleet,
            activate,
            mine,
            known.headers(signed_at=now - timedelta(seconds=9)),
        ),
        post(
            "a signature of 10 minutes ago",
            "Fleet",
            fleet,
            activate,
            mine,
            known.headers(at=now - timedelta(minutes=10)),
        ),
        post("a node that says it is another", "Fleet", fleet, pull, as_other, known.headers()),
        _revoked(coordinator, other, activation(other), post),
        _foreign_ca(coordinator),
        _plaintext(coordinator),
        _old_tls(coordinator),
        *(
            post(
                "a node with a key",
                f"Fleet, `{path}`",
                fleet,
                path,
                b"",
                known.headers(),
            )
            for path in (
                "/v1/control/start-run",
                "//v1/control/start-run",
                "/v1/fleet/%2e%2e/control/start-run",
                "/v1/runtime/acquire-task",
            )
        ),
        post(
            "a program of this machine",
            "Runtime through Control",
            commands,
            "/v1/runtime/acquire-task",
        ),
        post(
            "a program of this machine, no secret",
            "Runtime, the SuperLink itself",
            behind,
            "/v1/runtime/acquire-task",
        ),
        _big_body(coordinator, big_body_bytes),
    ]


def main() -> None:
    """Print the table as Markdown."""
    with tempfile.TemporaryDirectory() as folder, Coordinator(Path(folder)).running() as found:
        rows = table(found)
    print("| Who | Where | Answer | Written down by |")  # noqa: T201
    print("|---|---|---|---|")  # noqa: T201
    for row in rows:
        print(f"| {row.who} | {row.where} | {row.answer} | {row.logged_in} |")  # noqa: T201
    sys.exit(0 if all(row.refused and row.logged_in for row in rows) else 1)


def _revoked(
    coordinator: Coordinator, key: Key, body: bytes, post: Callable[..., Refusal]
) -> Refusal:
    control = adapter.Control(coordinator.behind, coordinator.ca_certificate)
    [node] = [each for each in control.nodes() if each.name == "client:1"]
    control.unregister_node(node.node_id)
    control.close()
    return post(
        "a key that was revoked",
        "Fleet",
        coordinator.fleet,
        "/v1/fleet/activate-node",
        body,
        key.headers(),
    )


def _foreign_ca(coordinator: Coordinator) -> Refusal:
    """A node that trusts another authority refuses the coordinator, and says so itself."""
    folder = coordinator.paths.root / "foreign"
    made = material.ensure(folder, addresses=[], now=datetime.now(UTC))
    trust = ssl.create_default_context(cafile=made.ca_certificate_path)
    answer, refused = _connects(coordinator, trust)
    return Refusal("a node that trusts another CA", "Fleet", answer, refused, "the node")


def _old_tls(coordinator: Coordinator) -> Refusal:
    trust = ssl.create_default_context(cafile=coordinator.ca_certificate)
    trust.set_ciphers("ECDHE-RSA-AES256-SHA384:ECDHE-RSA-AES128-SHA")
    trust.maximum_version = ssl.TLSVersion.TLSv1_2
    answer, refused = _connects(coordinator, trust)
    return Refusal("TLS without AEAD", "Fleet", answer, refused, "the node")


def _connects(coordinator: Coordinator, trust: ssl.SSLContext) -> tuple[str, bool]:
    try:
        with coordinator.client(trust) as client:
            return str(client.get(f"https://{coordinator.fleet}/health").status_code), False
    except httpx.ConnectError as error:
        words = str(error).partition("] ")[2].partition(" (_ssl")[0]
        return words or "no connection", True


def _plaintext(coordinator: Coordinator) -> Refusal:
    written = _written(coordinator)
    answer = httpx.post(
        f"http://{coordinator.fleet}/v1/fleet/activate-node", trust_env=False, content=b""
    )
    status = answer.status_code
    return Refusal("plain HTTP", "Fleet", str(status), status == 400, _logged(coordinator, written))


def _big_body(coordinator: Coordinator, size: int) -> Refusal:
    """The body is offered whole; what comes back before it is through ends the sending."""
    written, before = _written(coordinator), coordinator.memory_bytes()
    piece = bytes(2**20)

    def body() -> Iterator[bytes]:
        for _ in range(size // len(piece)):
            yield piece

    status = 0
    with coordinator.client() as client, contextlib.suppress(httpx.WriteError, httpx.ReadError):
        status = client.post(
            f"https://{coordinator.fleet}/v1/fleet/pull-messages", content=body()
        ).status_code
    grown = (coordinator.memory_bytes() - before) / 2**20
    answer = f"{status or 413}, SuperLink {grown:+.0f} MB"
    refused = status in (0, 413) and grown <= 32
    return Refusal(
        f"nobody, with {size // 2**20} MiB", "Fleet", answer, refused, _logged(coordinator, written)
    )


def _written(coordinator: Coordinator) -> tuple[int, int]:
    return len(coordinator.log("gateway-access")), len(coordinator.log("superlink"))


def _logged(coordinator: Coordinator, before: tuple[int, int]) -> str:
    """Whose log has grown since; the gateway's holds refusals only."""
    ends_at = time.monotonic() + LOG_LIMIT_S
    while time.monotonic() < ends_at:
        after = _written(coordinator)
        if after[0] > before[0]:
            return "gateway"
        if "40" in coordinator.log("superlink")[before[1] :]:
            return "SuperLink"
        time.sleep(0.02)
    return ""


def _start(program: Program) -> subprocess.Popen[bytes]:
    with program.log.open("ab") as log:
        return subprocess.Popen(
            program.argv,
            env=dict(program.environment),
            cwd=program.folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


if __name__ == "__main__":
    main()
