"""What the platform put on the disk of a machine before its boot: context, token, OneGate.

Used by the process that keeps a machine of processes, and by ``onefed appliance``.
"""

from __future__ import annotations

import contextlib
import hashlib
import ipaddress
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from onefed import context
from onefed.appliance import drain, firewall, steps
from onefed.appliance.failures import KnownFailureError
from onefed.appliance.paths import Paths
from onefed.errors import ExitCode, OnefedError, StorageError
from onefed.opennebula import onegate

LOOPBACK = "127.0.0.1"

TOKEN_BYTES_MAX = 4096
"""A token has about 50."""

ERROR_CODE: Mapping[ExitCode, str] = {
    ExitCode.CONFIG: "config_invalid",
    ExitCode.IN_USE: "port_in_use",
    ExitCode.DATA: "data_unreadable",
    ExitCode.STORAGE: "storage",
}
"""``FL_ERROR`` of a failure that is no ``KnownFailureError``."""


class ProgramDiedError(KnownFailureError):
    """A program of the machine keeps dying."""

    code = "program_died"


@dataclass(frozen=True)
class Surroundings:
    """What a machine was given."""

    context: context.ContextFile
    context_sha256: str
    """Of the file; tells whether a machine was told something else since."""
    gate_token: str | None = field(repr=False)
    """What OneGate lets this machine in by; None: nothing was given."""

    def variable(self, name: str) -> str:
        """A variable of the platform, which the table does not hold."""
        given = self.context.assignments.get(name)
        return "" if given is None else given.text

    @property
    def address(self) -> str:
        """Of the machine's first network."""
        return self.variable("ETH0_IP") or LOOPBACK

    @property
    def network(self) -> ipaddress.IPv4Network | None:
        """Of the machine's first network."""
        return firewall.network_of(self.address, self.variable("ETH0_MASK"))

    def gate(
        self, warn: Callable[[str], None], *, timeout_s: float = onegate.TIMEOUT_S
    ) -> onegate.OneGate | None:
        """OneGate, if the machine has what it takes; a static address works without."""
        endpoint = self.variable("ONEGATE_ENDPOINT")
        token = self.gate_token
        if not endpoint or token is None:
            return None
        try:
            return onegate.OneGate(endpoint, token, self.variable("VMID"), timeout_s=timeout_s)
        except onegate.OneGateError as error:
            warn(f"This machine goes without OneGate. {error}")
            return None


def look(paths: Paths, warn: Callable[[str], None], file: Path | None = None) -> Surroundings:
    """Read the context, from ``file`` or from where the platform puts it.

    Raises:
        StorageError: it is there and cannot be read.
    """
    place = paths.context if file is None else file
    content = read(place, context.FILE_BYTES_MAX + 1)
    if content is None:
        warn(f"There is no {place}: every variable has its default.")
    return given(content or b"", read(paths.token, TOKEN_BYTES_MAX))


def given(content: bytes, token: bytes | None = None) -> Surroundings:
    """What a context file says, and the token beside it; the platform's own file holds one, too."""
    parsed = context.parse_context_file(content)
    within = parsed.assignments.get("TOKENTXT")
    text = (within.text or None) if within else None
    if token is not None:
        text = token.decode(errors="replace")
    return Surroundings(parsed, hashlib.sha256(content).hexdigest(), text)


def publish_failure(gate: onegate.OneGate | None, role: context.Role, error: OnefedError) -> None:
    """Tell OneGate, best effort, that this machine is not ready, and why in a short code."""
    if gate is None:
        return
    for name, value in {"FL_ERROR": error_code(error), drain.READY[role]: "NO"}.items():
        with contextlib.suppress(onegate.OneGateError):
            gate.publish(name, value)


def error_code(error: OnefedError) -> str:
    """What ``FL_ERROR`` says of a failure."""
    cause = error.__cause__ if isinstance(error, steps.BootError) else error
    if isinstance(cause, KnownFailureError):
        return cause.code
    return ERROR_CODE.get(error.exit_code, "boot_failed")


def read(path: Path, bytes_max: int) -> bytes | None:
    """The beginning of a file that the platform wrote; None when there is none."""
    try:
        with path.open("rb") as stream:
            return stream.read(bytes_max)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(
            f"{path} cannot be read: {error.strerror or error}.",
            hint="The platform writes it before the boot: look at the guest agent's log.",
        ) from error
