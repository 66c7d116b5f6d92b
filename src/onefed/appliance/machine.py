"""What the boot steps of either role work on: the machine's edge to the world.

Everything that touches time, the network or processes is handed in, so a boot can be tested step
by step against a real OneGate with programs that do nothing.
"""

from __future__ import annotations

import contextlib
import importlib.util
import ipaddress
import json
import os
import re
import socket
import ssl
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import httpx

from onefed import context, failpoints
from onefed.appliance import firewall as rules
from onefed.appliance import gpu, steps
from onefed.appliance.failures import KnownFailureError
from onefed.appliance.paths import Paths
from onefed.appliance.platform import Platform, Processes
from onefed.appliance.process import Program
from onefed.checkpoint import files
from onefed.errors import ExitCode, InUseError, OnefedError, StorageError
from onefed.opennebula import onegate
from onefed.telemetry.events import Event

HEALTH_TIMEOUT_S = 2.0

ERROR = "FL_ERROR"
"""Attribute: why the machine failed, a short code."""

LOG_TAIL_LINES = 8
"""Of a program that did not come up, in the error that says so."""

LOG_TAIL_BYTES = 16_384
"""Where these lines are looked for; longer ones are cut off at their beginning."""

LOG_LINE_CHARS_MAX = 300

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
"""What Flower's log lines are full of."""


class UnhealthyError(KnownFailureError):
    """A program of the machine did not come up."""

    code = "health_check_timeout"


class HeldByTestsError(OnefedError):
    """The environment asks for something that only tests of onefed may ask for."""

    exit_code = ExitCode.CONFIG


class StartError(KnownFailureError):
    """A program of the machine cannot be started at all."""

    code = "program_not_started"


@dataclass
class Edge:
    """The world, as a boot sees it."""

    gate: onegate.OneGate | None
    """None on a machine outside of any service: no token, no discovery, no publication."""
    gate_endpoint: str | None
    gate_token: str
    """For the programs that speak to OneGate themselves; the platform's file is root's."""
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
    """Aware; for certificates, and how old a file is."""
    sleep: Callable[[float], None]
    warn: Callable[[str], None]
    platform: Platform = field(default_factory=Processes)
    driver: gpu.Driver = field(default_factory=gpu.System)
    emit: Callable[[Event], None] = lambda _: None
    network: ipaddress.IPv4Network | None = None
    """Of the machine's first interface, where the platform says so."""
    has_module: Callable[[str], bool] = lambda name: importlib.util.find_spec(name) is not None
    """Whether programs of this machine could import a module; it is not imported."""
    facts: dict[str, str] = field(default_factory=dict)
    """What a step found out and a later one needs; begins with ``read_facts``."""
    failpoints: Path | None = None
    """Where a test holds the programs; a local cloud alone says so."""


def refuse_failpoints(edge: Edge) -> None:
    """Step 4 of both roles: whoever could set this variable could hold every program up.

    Raises:
        HeldByTestsError: it is set.
    """
    if failpoints.VARIABLE in edge.inherited:
        raise HeldByTestsError(
            f"{failpoints.VARIABLE} is set: it is for the tests of onefed, and holds programs up.",
            hint="Unset it, and boot again.",
        )


def report_context(edge: Edge, resolution: context.Resolution) -> steps.Outcome:
    """Step 3 of both roles: say what the context held that does not stop the boot."""
    severities = [finding.severity for finding in resolution.findings]
    for finding in resolution.findings:
        if finding.severity is context.Severity.WARNING:
            edge.warn(finding.message)
    count = sum(value.is_set for value in resolution.values.values())
    # INFO says that a variable is the other role's: OneFlow hands all of them to everybody.
    ignored = severities.count(context.Severity.INFO)
    return steps.unchanged(f"{count} variables set" + (f", {ignored} ignored" if ignored else ""))


def firewall(edge: Edge, openings: Sequence[rules.Opening] | None) -> steps.Outcome:
    """Let in ssh and what is served, or everything; best effort, since a machine works without.

    Args:
        openings: None: FL_FIREWALL is NO.
    """
    ssh = rules.Opening(rules.SSH_PORT, "ssh")
    text = None if openings is None else rules.rules([ssh, *openings])
    try:
        return edge.platform.firewall(text)
    except OnefedError as error:
        edge.warn(f"The firewall is not in force: everything is let in. {error}")
        return steps.skipped(error.message)


def publish(edge: Edge, attributes: Mapping[str, str]) -> steps.Outcome:
    """Publish what OneGate does not hold yet, one attribute after the other, best effort.

    What comes after one that does not go through is not published: who reads the last one may
    rely on the others. A machine that becomes ready takes back why an earlier boot has failed.
    """
    if edge.gate is None:
        return steps.skipped("this machine has no OneGate")
    held = _held(edge.gate)
    if ERROR in held and any(name.endswith("READY") for name in attributes):
        with contextlib.suppress(onegate.OneGateError):
            edge.gate.erase(ERROR)
    wanted = {name: value for name, value in attributes.items() if held.get(name) != value}
    for name, value in wanted.items():
        try:
            edge.gate.publish(name, value)
        except onegate.OneGateError as error:
            edge.warn(f"{name} was not published, nor what comes after it: {error.message}")
            return steps.skipped(f"OneGate did not take {name}")
    if not wanted:
        return steps.unchanged(f"OneGate holds {', '.join(attributes)}")
    return steps.done("published " + ", ".join(wanted))


def _held(gate: onegate.OneGate) -> Mapping[str, str]:
    """What this machine has published; nothing when OneGate does not say."""
    try:
        return gate.vm().attributes
    except onegate.OneGateError:
        return {}


def read_facts(paths: Paths) -> dict[str, str]:
    """What an earlier stage, or an earlier boot, found out; nothing when that cannot be read."""
    return facts_in(paths.facts)


def facts_in(file: Path) -> dict[str, str]:
    """The same, of a copy."""
    try:
        document = files.read_json(file)
    except StorageError:
        return {}
    if not isinstance(document, dict):
        return {}
    return {str(name): value for name, value in document.items() if isinstance(value, str)}


def save_facts(edge: Edge, **facts: str) -> bool:
    """Keep what was found out, for the stages after this one; 0600. True when that is news."""
    edge.facts.update(facts)
    if read_facts(edge.paths) == edge.facts:
        return False
    document = json.dumps(edge.facts, indent=1, sort_keys=True).encode()
    files.write_bytes(edge.paths.facts, document, mode=0o600)
    return True


def make_folder(folder: Path, mode: int) -> bool:
    """Create a folder with exactly this mode; True when something had to change."""
    try:
        if folder.is_dir():
            if folder.stat().st_mode & 0o777 == mode:
                return False
            folder.chmod(mode)
            return True
        files.make_folder(folder.parent)
        folder.mkdir(mode=mode)
        folder.chmod(mode)  # the umask took bits away
    except OSError as error:
        raise StorageError(
            f"{folder} cannot be created: {error.strerror}.",
            hint="Check the owner and the free space of the disk.",
        ) from error
    return True


def write_secret_once(path: Path, content: bytes) -> bool:
    """Create a file that only its owner can read, from its first byte; keep one that is fit.

    One that others could read, or that is empty, is made anew.

    Raises:
        StorageError: what has its name is a link or no file at all.
    """
    if os.path.lexists(path):
        with files.open_regular(path) as kept:
            found = os.fstat(kept.fileno())
        if found.st_size and not found.st_mode & 0o077:
            return False
    files.write_bytes(path, content, mode=0o600)
    return True


def write_secret(path: Path, content: bytes) -> bool:
    """Bring a file that only its owner can read to this content; True when it had another."""
    with contextlib.suppress(StorageError), files.open_regular(path) as kept:
        is_private = not os.fstat(kept.fileno()).st_mode & 0o077
        if is_private and kept.read(len(content) + 1) == content:
            return False
    files.write_bytes(path, content, mode=0o600)
    return True


def start(edge: Edge, programs: Sequence[Program]) -> list[str]:
    """Start those programs that do not run; returns their names.

    Raises:
        StartError: one of them cannot be started.
    """
    started = []
    for program in programs:
        if edge.running(program.name) and edge.platform.current(program):
            continue
        try:
            edge.start(program)
        except OSError as error:
            raise StartError(
                f"{program.name} cannot be started: {error.strerror or error}: {program.argv[0]}.",
                hint="onefed doctor says what is missing on this machine.",
            ) from error
        started.append(program.name)
    return started


def require_free_port(host: str, port: int, setting: str) -> None:
    """Raise unless ``host:port`` can be listened on."""
    try:
        _bind(host, port)
    except OSError as error:
        raise InUseError(
            f"Port {port} on {host} cannot be used: {error.strerror}.",
            hint=f"Stop the program that uses it, or set another port in {setting}.",
        ) from error


def free_port(preferred: int = 0) -> int:
    """A port on loopback that nothing uses at this moment; the preferred one if it is free."""
    try:
        return _bind("127.0.0.1", preferred)
    except (OSError, OverflowError):
        return _bind("127.0.0.1", 0)


def _bind(host: str, port: int) -> int:
    """Take a port and let go of it; 0 takes any. Raises OSError when somebody has it."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        if port:
            # As Flower's servers do: connections of its last owner may still be closing.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))
        return int(probe.getsockname()[1])


def healthy(address: str, ca_certificate: Path | None) -> bool:
    """Whether Flower answers ``GET /health`` at ``address``; with a CA, over verified TLS."""
    if ca_certificate is None:
        # Trusts nobody, and spares loading the system's authorities: 20 ms at every look.
        scheme, trust = "http", ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    else:
        scheme, trust = "https", ssl.create_default_context(cafile=ca_certificate)
    try:
        with httpx.Client(verify=trust, timeout=HEALTH_TIMEOUT_S, trust_env=False) as client:
            return client.get(f"{scheme}://{address}/health").status_code == httpx.codes.OK
    except (httpx.HTTPError, OSError):
        return False


class Steady:
    """A condition that holds once what it looks at was true several times in a row."""

    def __init__(self, condition: Callable[[], bool], times: int) -> None:
        self.looks = 0
        """How often it was looked at so far."""
        self._condition = condition
        self._times = times
        self._in_a_row = 0

    def look(self) -> bool:
        """Look once more."""
        self.looks += 1
        self._in_a_row = self._in_a_row + 1 if self._condition() else 0
        return self._in_a_row >= self._times


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
            tail = "".join(f"\n  {line}" for line in last_lines(log, LOG_TAIL_LINES))
            if cause := edge.platform.why(program):
                why = f"{why}; {cause}"
            raise UnhealthyError(
                f"{program}: {waiting_for} did not happen ({why}). "
                + (f"Its last lines:{tail}" if tail else "It wrote nothing."),
                hint=f"The whole log is {log}.",
            )
        edge.sleep(poll_s)
    return edge.clock() - started


def last_lines(path: Path, count: int) -> list[str]:
    """The last lines of a log, however long it is, fit for a terminal; none if it has none."""
    try:
        with files.open_regular(path) as log:
            log.seek(0, os.SEEK_END)
            log.seek(max(0, log.tell() - LOG_TAIL_BYTES))
            tail = log.read(LOG_TAIL_BYTES).decode(errors="replace").splitlines()
    except (StorageError, OSError):
        return []
    return [_printable(line)[:LOG_LINE_CHARS_MAX] for line in tail[-count:]]


def _printable(line: str) -> str:
    line = _COLOUR.sub("", line).expandtabs()
    return line if line.isprintable() else ascii(line)
