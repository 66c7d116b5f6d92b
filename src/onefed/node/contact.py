"""How a member is reached and known: its address and its certificate, as one text.

It stands in the roster (``peer.messages.Member.contact``), so it changes by committed entries only.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Collection
from dataclasses import dataclass

from onefed.errors import ExitCode, OnefedError
from onefed.peer.messages import Member
from onefed.tls import member_identity
from onefed.tls.errors import TlsError

NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?")
"""Of a member: it becomes a folder's name and a host name in a certificate."""

ADDRESS = re.compile(r"[A-Za-z0-9.:\[\]_-]{1,255}:[0-9]{1,5}")


_AGAIN = re.compile(r"r[1-9][0-9]{0,3}-(.+)")


def family(name: str) -> str:
    """What a member and those that came in its place have in common: ``r1-node-0`` is node-0 again.

    A member that lost its disk has forgotten its votes, so it comes back under another name.
    """
    while match := _AGAIN.fullmatch(name):
        name = match[1]
    return name


def predecessors(name: str) -> tuple[str, ...]:
    """Names under which a member was here before it lost its disk, and lost it again."""
    match = re.fullmatch(r"r([1-9][0-9]{0,3})-(.+)", name)
    if match is None:
        return ()
    first = family(name)
    return (first, *(f"r{number}-{first}" for number in range(1, int(match[1]))))


def successor(name: str, taken: Collection[str]) -> str:
    """The next free name of a member that comes back without its disk."""
    first = family(name)
    return next(new for n in range(1, 10_000) if (new := f"r{n}-{first}") not in taken)


class ContactError(OnefedError):
    """Not the contact of a member."""

    exit_code = ExitCode.CONFIG


@dataclass(frozen=True, slots=True)
class Contact:
    """Where a member listens, and what it shows there."""

    address: str
    """``host:port``."""
    certificate: bytes
    """PEM, self-signed: pinned, whole."""

    def member(self, name: str) -> Member:
        """As it stands in a roster."""
        if not NAME.fullmatch(name):
            raise ContactError(
                f"{name!r} is not a name for a member.",
                hint="Use 1 to 63 lower-case letters, digits, dots and dashes, "
                "a letter or digit first and last.",
            )
        der = member_identity.to_der(self.certificate)
        return Member(name, f"{self.address} {base64.b64encode(der).decode()}")


def of(member: Member) -> Contact:
    """Read the contact of a member.

    Raises:
        ContactError: it has none that this program can use, or its certificate names another.
    """
    address, _, encoded = member.contact.partition(" ")
    try:
        if not NAME.fullmatch(member.node) or not ADDRESS.fullmatch(address):
            raise ValueError("no name, or no address")
        certificate = member_identity.from_der(base64.b64decode(encoded, validate=True))
        if member_identity.name_of(certificate) != member.node:
            raise ValueError("the certificate names another member")
    except (ValueError, binascii.Error, TlsError) as error:
        raise ContactError(
            f"The contact of {member.node[:64]!r} cannot be used: {error}",
            hint="List the member as it lists itself.",
        ) from error
    return Contact(address, certificate)
