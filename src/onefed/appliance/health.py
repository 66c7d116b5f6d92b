"""What READY means for each role, asked quickly and without side effects."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from onefed import context
from onefed.appliance import machine, metrics, peer_state, programs
from onefed.appliance.paths import Paths
from onefed.tls import material

EXPIRY_WARNED_DAYS = 30


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    ok: bool
    detail: str
    decides: bool = True
    """READY depends on it; otherwise it is a warning."""


def look(
    role: context.Role,
    resolution: context.Resolution,
    paths: Paths,
    now: datetime,
    *,
    healthy: Callable[[str, Path | None], bool] = machine.healthy,
) -> list[Check]:
    """Every check of a role. A machine is healthy when those that decide are ok."""
    if resolution.errors:
        return [Check("context", False, f"{len(resolution.errors)} variables are not valid")]
    facts = machine.read_facts(paths)
    if role is context.Role.PEER:
        found = peer_state.look(paths, facts.get("peer_name", ""), now)
        return [Check("peer", found.takes_part, str(found))]
    exporter: list[Check] = []
    if role is context.Role.SUPERLINK:
        chosen = context.superlink_settings(resolution)
        address, tls = programs.loopback_address(chosen), chosen.tls_enabled
        if chosen.metrics_enabled:
            exporter = [_metrics(facts.get("address", ""), chosen.metrics_port)]
    else:
        port = facts.get("runtime_port")
        if port is None:
            return [Check("supernode", False, "it was never started")]
        address, tls = f"127.0.0.1:{port}", facts.get("tls") == "YES"
    # A node's own Runtime API is plain HTTP on loopback.
    authority = paths.certificates / material.CA_CERTIFICATE
    trusted = authority if tls and role is context.Role.SUPERLINK else None
    answers = _answers(address, trusted, healthy)
    checks = [Check(role.value, answers, f"GET /health on {address}")]
    if tls:
        checks += expiry(paths.certificates, now)
    return [*checks, *exporter]


def expiry(folder: Path, now: datetime) -> list[Check]:
    """A warning for each certificate that ends within 30 days; an error once it has ended."""
    return [
        Check(
            f"certificate {name}",
            ends_in_days > EXPIRY_WARNED_DAYS,
            f"ends in {ends_in_days} days" if ends_in_days >= 0 else "has ended",
            decides=ends_in_days < 0,
        )
        for name, ends_in_days in days_left(folder, now).items()
    ]


def _metrics(address: str, port: int) -> Check:
    """Nobody is unhealthy for want of them."""
    served = metrics.is_served(address, port)
    return Check("metrics", served, f"GET /metrics on {address}:{port}", decides=False)


def days_left(folder: Path, now: datetime) -> Mapping[str, int]:
    """Whole days until each certificate in a folder ends; negative: it has."""
    return {name: (end - now).days for name, end in material.ends(folder).items()}


def _answers(
    address: str, authority: Path | None, healthy: Callable[[str, Path | None], bool]
) -> bool:
    try:
        return healthy(address, authority)
    except OSError:
        return False  # the authority's certificate is not there
