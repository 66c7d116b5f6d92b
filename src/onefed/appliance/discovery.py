"""Finding the SuperLink, and which part of the data a node trains.

The rules are those of docs/boot.md, with what the real OneGate of OpenNebula 7.5 does:
``GET /service`` carries neither addresses nor attributes, so the SuperLink's own
machine is read, and ``running`` says nothing.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from onefed.appliance import partitions
from onefed.appliance.failures import KnownFailureError
from onefed.errors import OnefedError
from onefed.opennebula import onegate

Found = TypeVar("Found")

STANDARD_WAIT_S = 10.0
STANDARD_TRIES = 30
"""Ten seconds thirty times: five minutes, then the boot fails."""

EDGE_WAIT_FIRST_S = 10.0
"""Doubles up to ``FL_EDGE_MAX_BACKOFF``; an edge node never gives up."""

SUPERLINK_ROLE = "superlink"
SUPERNODE_ROLE = "supernode"

CLAIM = "FL_PARTITION"
"""Attribute of a supernode: the partition that it trains."""

CLAIMS_READ_MAX = 200
"""Nodes whose claims are read one by one; a larger service takes places, which shift."""

CLAIM_TRIES = 5
CLAIM_LOOK_S = 1.0
"""Before the second look after a move, so that others see it."""

_ENDPOINT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,252}:[0-9]{1,5}")
"""A letter or digit first: what begins with a dash would be a flag to the program that gets it."""

SHOWN_CHARS_MAX = 80
"""Of an endpoint that is refused."""


class DiscoveryError(KnownFailureError):
    """The SuperLink was not found."""

    code = "superlink_not_found"


@dataclass(frozen=True)
class SuperLink:
    """What a SuperLink published about itself."""

    endpoint: str
    """``host:port`` of the Fleet API."""
    tls: bool | None
    ca_certificate: str | None
    """Base64 of its CA certificate, as published; not yet checked."""
    version: str | None
    isolation: str | None = None
    others: int = 0
    """Machines of the same role in the service, beside the one that was taken."""


def standard_waits() -> Iterator[float]:
    """Seconds to wait after each failed try."""
    return itertools.repeat(STANDARD_WAIT_S, STANDARD_TRIES - 1)


def edge_waits(wait_max_s: float) -> Iterator[float]:
    """Exponential and without end, for sites whose uplink comes and goes."""
    wait_s = EDGE_WAIT_FIRST_S
    while True:
        yield min(wait_s, wait_max_s)
        wait_s = min(wait_s * 2, wait_max_s)


def discover(
    gate: onegate.OneGate,
    *,
    waits: Iterator[float],
    sleep: Callable[[float], None],
    on_try: Callable[[int, str], None],
) -> SuperLink:
    """Ask OneGate until a SuperLink is ready.

    Args:
        on_try: told the number and the finding of every try that failed.

    Raises:
        onegate.NotAuthorizedError: the token is wrong; trying again would not help.
        DiscoveryError: ``waits`` ran out.
    """
    return until(
        lambda: _look(gate),
        waits=waits,
        sleep=sleep,
        on_try=on_try,
        give_up=lambda tries, found: DiscoveryError(
            f"No SuperLink was ready after {tries} tries: {found}.",
            hint="Look at the SuperLink's boot log, or set FL_SUPERLINK_ADDRESS=host:port.",
        ),
    )


def until(
    attempt: Callable[[], Found | str],
    *,
    waits: Iterator[float],
    sleep: Callable[[float], None],
    on_try: Callable[[int, str], None],
    give_up: Callable[[int, str], OnefedError],
) -> Found:
    """Try until something other than a finding, which is a text, comes.

    Args:
        on_try: told the number and the finding of every try that failed.
        give_up: makes the error for when ``waits`` ran out, of the number and the last finding.

    Raises:
        onegate.NotAuthorizedError: the token is wrong; trying again would not help.
        OnefedError: that of ``give_up``.
    """
    for number in itertools.count(1):
        try:
            found = attempt()
        except onegate.NotAuthorizedError:
            raise
        except onegate.OneGateError as error:
            found = error.message
        if not isinstance(found, str):
            return found
        on_try(number, found)
        wait_s = next(waits, None)
        if wait_s is None:
            raise give_up(number, found)
        sleep(wait_s)
    raise AssertionError("itertools.count does not end")


def waits(backoff: str | None, wait_max_s: float) -> Iterator[float]:
    """The schedule of a node: ``backoff`` is FL_EDGE_BACKOFF where somebody set it or its cap.

    Only the templates for the edge ask for these two, so a node that has them is one.
    """
    return edge_waits(wait_max_s) if backoff == "exponential" else standard_waits()


def partition(
    gate: onegate.OneGate, vm_id: str, role_name: str = SUPERNODE_ROLE
) -> partitions.Partition | None:
    """The partition of a machine of a role, by what the others claim; None when it is none."""
    members = [
        node.vm_id for role in gate.service().roles if role.name == role_name for node in role.nodes
    ]
    if len(members) > CLAIMS_READ_MAX:
        return partitions.assign(members, {}, vm_id)
    claims = {
        member: gate.vm_by_id(member).attributes.get(CLAIM, "")
        for member in members
        if vm_id in members
    }
    return partitions.assign(members, claims, vm_id)


def claim_partition(
    gate: onegate.OneGate,
    vm_id: str,
    sleep: Callable[[float], None],
    role_name: str = SUPERNODE_ROLE,
) -> partitions.Partition | None:
    """Take a partition and look again: of two that took the same one, the younger moves.

    Raises:
        onegate.OneGateError: OneGate does not answer or does not take the claim.
    """
    found = partition(gate, vm_id, role_name)
    for attempt in range(CLAIM_TRIES):
        if found is None or gate.vm().attributes.get(CLAIM) == str(found.id):
            return found
        gate.publish(CLAIM, str(found.id))
        if attempt:
            sleep(CLAIM_LOOK_S)
        again = partition(gate, vm_id, role_name)
        if again is None or again.id == found.id:
            return again
        found = again
    return found


def is_endpoint(text: str) -> bool:
    """Whether ``text`` is ``host:port``, whatever its origin (hostile values included)."""
    return _ENDPOINT.fullmatch(text) is not None and 0 < int(text.rpartition(":")[2]) < 65536


def _look(gate: onegate.OneGate) -> SuperLink | str:
    """The ready SuperLink of the own service, or a sentence that says what is missing."""
    candidates = [
        node.vm_id
        for role in gate.service().roles
        if role.name == SUPERLINK_ROLE
        for node in role.nodes
    ]
    if not candidates:
        return "the service has no superlink yet"
    finding = "the superlink is not ready yet"
    others = len(candidates) - 1
    for vm_id in candidates:
        attributes = gate.vm_by_id(vm_id).attributes
        if attributes.get("FL_READY") != "YES":
            continue
        endpoint = attributes.get("FL_ENDPOINT", "")
        if not is_endpoint(endpoint):
            shown = repr(endpoint[:SHOWN_CHARS_MAX])
            finding = f"machine {vm_id} published an endpoint that is not host:port: {shown}"
            continue
        published_tls = attributes.get("FL_TLS")
        return SuperLink(
            endpoint=endpoint,
            tls=None if published_tls is None else published_tls == "YES",
            ca_certificate=attributes.get("FL_CA_CERT"),
            version=attributes.get("FL_VERSION"),
            isolation=attributes.get("FL_ISOLATION"),
            others=others,
        )
    return finding
