"""What the boot steps of either role work on: the machine's edge to the world.

Everything that touches time, the network or processes is handed in, so a boot can be tested step
by step against a real OneGate with programs that do nothing.
"""

from __future__ import annotations

import json
import os
import socket
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import httpx

from onefed import context
from onefed.appliance import steps
from onefed.appliance.paths import Paths
from onefed.appliance.process import Program
from onefed.checkpoint import files
from onefed.errors import ExitCode, InUseError, OnefedError, StorageError
from onefed.opennebula import onegate

HEALTH_TIMEOUT_S = 2.0


class UnhealthyError(OnefedError):
    """A program of the machine did not come up."""

    exit_code = ExitCode.BOOT


@dataclass
class Edge:
    """The world, as a boot sees it."""

    gate: onegate.OneGate | None
    """None on a machine outside of any service: no token, no discovery, no publication."""
    gate_endpoint: str | None
    vm_id: str
    paths: Paths
    inherited: Mapping[str, str]
    """The environment that the machine was started in; see ``programs.INHERITED``."""
    state_folder: Path
    """``ONEFED_STATE_DIR`` of every program, so that an operator can find them all."""
    events: Path
    start: Callable[[Program], None]
    running: Callable[[str], bool]
    given_up: Callable[[str], bool]
    clock: Callable[[], float]
    """Monotonic seconds."""
    now: Callable[[], datetime]
    """Aware; for certificates only."""
    sleep: Callable[[float], None]
    warn: Callable[[str], None]
    facts: dict[str, str] = field(default_factory=dict)
    """What a step found out and a later one needs; on disk between the stages."""


def report_context(edge: Edge, resolution: context.Resolution) -> steps.Outcome:
    """Step 3 of both roles: say what the context held that does not stop the boot."""
    for finding in resolution.findings:
        if not finding.severity.stops:
            edge.warn(finding.message)
    count = sum(value.is_set for value in resolution.values.values())
    return steps.unchanged(f"{count} variables set")


def publish(edge: Edge, attributes: Mapping[str, str]) -> list[str]:
    """Publish one attribute after the other, best effort; returns the names that went through."""
    published = []
    for name, value in attributes.items():
        if edge.gate is None:
            break
        try:
            edge.gate.publish(name, value)
        except onegate.OneGateError as error:
            edge.warn(f"{name} was not published: {error.message}")
        else:
            published.append(name)
    return published


def save_facts(edge: Edge, **facts: str) -> None:
    """Keep what was found out, for the stages after this one; 0600."""
    edge.facts.update(facts)
    document = json.dumps(edge.facts, indent=1, sort_keys=True).encode()
    files.write_bytes(edge.paths.facts, document, mode=0o600)


def make_folder(folder: Path, mode: int) -> bool:
    """Create a folder with exactly this mode; True when something had to change."""
    try:
        if folder.is_dir():
            if folder.stat().st_mode & 0o777 == mode:
                return False
            folder.chmod(mode)
            return True
        folder.mkdir(mode=mode, parents=True)
        folder.chmod(mode)
    except OSError as error:
        raise StorageError(
            f"{folder} cannot be created: {error.strerror}.",
            hint="Check the owner and the free space of the disk.",
        ) from error
    return True


def write_secret_once(path: Path, content: bytes) -> bool:
    """Create a file that only its owner can read, from its first byte; keep one that exists."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    except FileExistsError:
        return False
    with os.fdopen(descriptor, "wb") as out:
        out.write(content)
        out.flush()
        os.fsync(out.fileno())
    return True


def require_free_port(host: str, port: int, setting: str) -> None:
    """Raise unless ``host:port`` can be listened on."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise InUseError(
                f"Port {port} on {host} cannot be used: {error.strerror}.",
                hint=f"Stop the program that uses it, or set another port in {setting}.",
            ) from error


def free_port() -> int:
    """A port on loopback that nothing listens on at this moment."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def healthy(address: str, ca_certificate: Path | None) -> bool:
    """Whether Flower answers ``GET /health`` at ``address``; with a CA, over verified TLS."""
    scheme = "http" if ca_certificate is None else "https"
    verify = True if ca_certificate is None else ssl.create_default_context(cafile=ca_certificate)
    try:
        with httpx.Client(verify=verify, timeout=HEALTH_TIMEOUT_S, trust_env=False) as client:
            return client.get(f"{scheme}://{address}/health").status_code == httpx.codes.OK
    except (httpx.HTTPError, OSError):
        return False


def wait_until(
    edge: Edge,
    condition: Callable[[], bool],
    *,
    program: str,
    poll_s: float,
    limit_s: float,
    waiting_for: str,
) -> float:
    """Wait for a condition that a program is to bring about; returns the seconds it took.

    Raises:
        UnhealthyError: the program was given up, or the limit has passed; with its last log lines.
    """
    started = edge.clock()
    while not condition():
        waited = edge.clock() - started
        if edge.given_up(program) or waited > limit_s:
            why = "it keeps dying" if edge.given_up(program) else f"waited {limit_s:.0f} s"
            log = edge.paths.logs / f"{program}.log"
            raise UnhealthyError(
                f"{program}: {waiting_for} did not happen ({why}). Its last lines:\n"
                + "\n".join(f"  {line}" for line in last_lines(log, 8)),
                hint=f"The whole log is {log}.",
            )
        edge.sleep(poll_s)
    return edge.clock() - started


def last_lines(path: Path, count: int) -> list[str]:
    """The last lines of a log, however long it is; nothing when it cannot be read."""
    try:
        with path.open("rb") as log:
            log.seek(0, os.SEEK_END)
            log.seek(max(0, log.tell() - 16_384))
            return log.read().decode(errors="replace").splitlines()[-count:]
    except OSError:
        return []
