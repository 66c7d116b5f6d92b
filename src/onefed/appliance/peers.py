"""The peers of a service, as OneGate tells of them, and who of them founds the group.

Each peer publishes its contact: name, address, certificate. There is no coordinator that could say
who belongs together, so the oldest peer says it, once: as soon as enough contacts are there it
publishes the first roster, and every other one takes it from there and publishes it, too. Nobody
founds beside a roster that was published, so whatever the order of the boots there is one group.
A peer that is not on it joins.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from onefed import context
from onefed.appliance import discovery
from onefed.appliance.failures import KnownFailureError
from onefed.context import PeerContact
from onefed.context.peers import FOUNDERS_MAX, NAME
from onefed.opennebula import onegate
from onefed.tls import member_identity
from onefed.tls.errors import TlsError

ROLE = "peer"

CONTACT_NAME = "FL_PEER_NAME"
CONTACT_ADDRESS = "FL_PEER_ADDRESS"
CONTACT_CERTIFICATE = "FL_PEER_CERT"
"""Base64 of the DER form; published last of the three."""
ROSTER = "FL_PEER_ROSTER"
"""Base64 of the founders' contacts, one a line."""

WAIT_FIRST_S = 1.0
WAIT_MAX_S = 10.0
WAIT_LIMIT_S = 300.0
"""Of all waits together, as long as a supernode looks for its SuperLink."""

SIBLINGS_READ_MAX = 200
"""Peers of a service whose contacts are read one by one; younger ones are not let in."""

Roster = tuple[PeerContact, ...]
"""The founders, the oldest first."""

Found = TypeVar("Found")

_AGAIN = re.compile(r"r([1-9][0-9]{0,3})-(.+)")


class PeersNotFoundError(KnownFailureError):
    """There is no group to found or to join."""

    code = "peers_not_found"


@dataclass(frozen=True)
class Sibling:
    """One peer of the own service, the own machine among them."""

    vm_id: str
    contact: PeerContact | None
    """None: it has published none yet, or one that cannot be used."""
    roster: Roster | None
    has_unreadable_roster: bool


def name_of_vm(vm_id: str, partition: int) -> str:
    """The name of a peer that nobody has named: no other machine ever has it."""
    return f"peer-{vm_id}-{partition}"


def is_of_vm(name: str, vm_id: str) -> bool:
    """Whether a machine has made this name for itself; whoever published it under that machine."""
    return re.fullmatch(rf"(r[1-9][0-9]{{0,2}}-)?peer-{vm_id}-[0-9]{{1,5}}", name) is not None


def successor(name: str) -> str:
    """The name under which a peer comes back that has lost its disk, and its promises with it."""
    match = _AGAIN.fullmatch(name)
    return f"r{int(match[1]) + 1}-{match[2]}" if match else f"r1-{name}"


def partition_of(name: str) -> int:
    """The part of the data that a peer trains."""
    return int(name.rpartition("-")[2])


def contact(name: str, address: str, certificate: bytes) -> PeerContact:
    """The contact of a member, whose certificate is PEM."""
    der = base64.b64encode(member_identity.to_der(certificate)).decode()
    return context.parse_peer_contact(f"{name}={address}#{der}")


def check(found: PeerContact) -> None:
    """Raise unless the certificate is one, and of that name.

    Raises:
        ValueError: it is not; with the reason.
    """
    try:
        der = base64.b64decode(found.certificate, validate=True)
        if base64.b64encode(der).decode() != found.certificate:
            raise ValueError(f"the certificate of {found.name} is not written as others write it")
        certificate = member_identity.from_der(der)
        if member_identity.name_of(certificate) != found.name:
            raise ValueError(f"the certificate of {found.name} names another peer")
    except TlsError as error:
        raise ValueError(f"the certificate of {found.name}: {error.message}") from error


def attributes(own: PeerContact) -> dict[str, str]:
    """What a peer publishes of itself, in this order."""
    return {
        CONTACT_NAME: own.name,
        CONTACT_ADDRESS: str(own.address),
        CONTACT_CERTIFICATE: own.certificate,
    }


def encode(roster: Roster) -> str:
    """A roster as an attribute of OneGate."""
    return base64.b64encode("\n".join(map(str, roster)).encode()).decode()


def decode(text: str) -> Roster:
    """Read what ``encode`` wrote, whoever published it.

    Raises:
        ValueError: it is no roster.
    """
    try:
        lines = base64.b64decode(text, validate=True).decode("ascii").split("\n")
    except (binascii.Error, UnicodeDecodeError):
        raise ValueError("no base64") from None
    if len(lines) > FOUNDERS_MAX:
        raise ValueError(f"more than {FOUNDERS_MAX} founders")
    roster = tuple(context.parse_peer_contact(line) for line in lines)
    for each in roster:
        check(each)
    if len({each.name for each in roster}) < len(roster):
        raise ValueError("a name twice")
    return roster


def group_of(roster: Roster) -> str:
    """The name of the group that these found; another founding is another group."""
    text = "\n".join(sorted(map(str, roster)))
    return "peers-" + hashlib.sha256(text.encode()).hexdigest()[:12]


def siblings(gate: onegate.OneGate) -> list[Sibling]:
    """Every peer of the own service, the oldest first.

    Raises:
        onegate.OneGateError: OneGate does not answer, or not about all of them.
    """
    members = [
        node.vm_id for role in gate.service().roles if role.name == ROLE for node in role.nodes
    ]
    ordered = sorted(members, key=int)[:SIBLINGS_READ_MAX]
    return [_sibling(vm_id, gate.vm_by_id(vm_id).attributes) for vm_id in ordered]


def look(gate: onegate.OneGate, own_id: str, founders: int) -> Roster | str:
    """The roster of the own service, or a sentence that says what is missing.

    The oldest peer publishes it as it finds that all founders are there.

    Raises:
        PeersNotFoundError: there are two groups, which must not be.
        onegate.OneGateError: OneGate does not answer.
    """
    found = siblings(gate)
    if own_id not in [each.vm_id for each in found]:
        return "this machine is not among the service's peers yet"
    unreadable = [each.vm_id for each in found if each.has_unreadable_roster]
    if unreadable:
        return f"machine {unreadable[0]} has published a roster that cannot be read"
    rosters = {each.roster for each in found if each.roster is not None}
    if len(rosters) > 1:
        raise PeersNotFoundError(
            "The peers of this service have published two different rosters.",
            hint=f"See {ROSTER} of its machines: deploy those anew that are not of the group.",
        )
    if rosters:
        return rosters.pop()
    oldest = found[0]
    if oldest.vm_id != own_id:
        has = "has not yet said" if oldest.contact else "has published no contact, nor said"
        return f"machine {oldest.vm_id}, the oldest peer, {has} who founds the group"
    roster = _first(found, founders)
    if not isinstance(roster, str):
        gate.publish(ROSTER, encode(roster))
    return roster


def until(
    attempt: Callable[[], Found | str],
    *,
    waits: Iterator[float],
    sleep: Callable[[float], None],
    on_try: Callable[[int, str], None],
) -> Found:
    """Try until something other than a finding comes.

    Args:
        on_try: told the number and the finding of every try that failed.

    Raises:
        onegate.NotAuthorizedError: the token is wrong; trying again would not help.
        PeersNotFoundError: ``waits`` ran out.
    """
    return discovery.until(
        attempt,
        waits=waits,
        sleep=sleep,
        on_try=on_try,
        give_up=lambda tries, found: PeersNotFoundError(
            f"No group of peers after {tries} tries: {found}.",
            hint="Look at the boot logs of the other peers; FL_PEER_FOUNDERS is at most the "
            "number of peers of the service.",
        ),
    )


def waits(jitter: Callable[[], float]) -> Iterator[float]:
    """Seconds to wait after each failed try: doubled, shortened by up to half, bounded in all.

    Args:
        jitter: from 0 up to 1, so that machines that boot together do not ask together.
    """
    spent_s, wait_s = 0.0, WAIT_FIRST_S
    while spent_s < WAIT_LIMIT_S:
        shortened_s = wait_s * (1 - jitter() / 2)
        yield shortened_s
        spent_s += shortened_s
        wait_s = min(2 * wait_s, WAIT_MAX_S)


def _first(found: Sequence[Sibling], founders: int) -> Roster | str:
    """The oldest peers that have told their contact."""
    known = [each.contact for each in found if each.contact is not None]
    names = [each.name for each in known]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        return f"two machines have the name {twice[0]}"
    if len(known) >= founders:
        return tuple(known[:founders])
    silent = [each.vm_id for each in found if each.contact is None]
    missing = (
        f"no usable contact of machine {', '.join(silent)}"
        if silent
        else f"the service has {len(found)} peers"
    )
    return f"{len(known)} of {founders} founders are known, {missing}"


def _sibling(vm_id: str, told: Mapping[str, str]) -> Sibling:
    roster, text = None, told.get(ROSTER, "")
    if text:
        try:
            roster = decode(text)
        except ValueError:
            roster = None
    return Sibling(vm_id, _published(told), roster, bool(text) and roster is None)


def _published(told: Mapping[str, str]) -> PeerContact | None:
    """A contact as it was published; None where it is not whole, or makes no sense."""
    name, address = told.get(CONTACT_NAME, ""), told.get(CONTACT_ADDRESS, "")
    if not NAME.fullmatch(name):
        return None
    try:
        found = context.parse_peer_contact(f"{name}={address}#{told.get(CONTACT_CERTIFICATE, '')}")
        check(found)
    except ValueError:
        return None
    return found
