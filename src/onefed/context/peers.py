"""Rows of the table about a group without coordinator, and which of the other rows a peer reads."""

from __future__ import annotations

import base64
import binascii
import dataclasses
import re
from collections.abc import Mapping

from onefed.context import syntax
from onefed.context.requirements import NON_NEGATIVE, PEER
from onefed.context.syntax import Address, Rule
from onefed.context.variable import Level, Variable

FOUNDERS_MAX = 50
"""All of them vote, and each heartbeat carries the contact of each."""

LISTED_MAX = 100
"""Entries of ``FL_PEERS``; a contact has about 550 characters."""

CERTIFICATE_BYTES_MAX = 1024
"""As ``tls.member_identity`` has it; ours have about 370."""

NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,57}[a-z0-9])?-[0-9]{1,5}")
"""Of a peer. The number at its end is the part of the data that it trains."""


@dataclasses.dataclass(frozen=True)
class PeerContact:
    """How a peer is reached, and what it shows there."""

    name: str
    address: Address
    certificate: str
    """Base64 of the DER form, in one line. Whether it is a certificate is for ``tls``."""

    def __str__(self) -> str:
        """As an entry of ``FL_PEERS``."""
        return f"{self.name}={self.address}#{self.certificate}"


def parse_contact(text: str) -> PeerContact:
    """One entry of ``FL_PEERS``: ``NAME=HOST:PORT#CERTIFICATE``."""
    name, equals, rest = text.partition("=")
    address, hash_, certificate = rest.partition("#")
    if not equals or not hash_:
        raise ValueError("NAME=HOST:PORT#CERTIFICATE")
    parse_name(name)
    try:
        content = base64.b64decode(certificate, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError(f"the certificate of {name} is not base64") from None
    if not 0 < len(content) <= CERTIFICATE_BYTES_MAX:
        raise ValueError(f"the certificate of {name} has 1 to {CERTIFICATE_BYTES_MAX} bytes")
    return PeerContact(name, syntax.parse_address(address), certificate)


def parse_contacts(value: str) -> tuple[PeerContact, ...]:
    """Contacts separated by commas; no name, address or certificate comes twice."""
    entries = value.split(",")
    if len(entries) > LISTED_MAX:
        raise ValueError(f"at most {LISTED_MAX} peers")
    found = tuple(parse_contact(entry.strip()) for entry in entries)
    for what, seen in (
        ("name", [each.name for each in found]),
        ("address", [str(each.address) for each in found]),
        ("certificate", [each.certificate for each in found]),
    ):
        if len(set(seen)) < len(seen):
            raise ValueError(f"no {what} twice")
    return found


def parse_name(value: str) -> str:
    """The name of a peer."""
    if not NAME.fullmatch(value):
        raise ValueError("lower-case letters, digits, dots, dashes, and -NUMBER at the end")
    return value


ROWS = (
    Variable(
        name="FL_PEER_FOUNDERS",
        appliances=PEER,
        level=Level.ROLE,
        default="3",
        rule=syntax.integer(f"must be an integer 1-{FOUNDERS_MAX}", 1, FOUNDERS_MAX),
        example="4",
        help="Peers that found the group together; training begins with them, later ones join.",
        maps_to="first roster of the group",
        ours=True,
    ),
    Variable(
        name="FL_PEERS",
        appliances=PEER,
        level=Level.MULTI_SITE,
        default="",
        rule=Rule(
            "must be comma-separated NAME=HOST:PORT#CERTIFICATE entries",
            parse_contacts,
            chars_max=LISTED_MAX * 2048,
        ),
        example="site-0=203.0.113.50:9095#MIIBbTCC",
        help="All peers of a group over several sites, the same list at each of them; "
        "empty asks OneGate for those of the service.",
        maps_to="who is let in",
        ours=True,
    ),
    Variable(
        name="FL_PEER_NAME",
        appliances=PEER,
        level=Level.MULTI_SITE,
        default="",
        rule=Rule("must be a name that ends with a dash and a number", parse_name),
        example="site-0",
        help="Name of this peer in FL_PEERS; its number is the part of the data that it trains. "
        "Empty makes one of the VM's id.",
        maps_to="the peer's certificate",
        ours=True,
    ),
    Variable(
        name="FL_PEER_PORT",
        appliances=PEER,
        level=Level.INSTANCE,
        default="9095",
        rule=syntax.integer("must be an integer 1024-65535", 1024, 65535),
        example="9195",
        help="Port at which a peer listens for the others, at the address of its first network.",
        maps_to="the peer's contact",
        ours=True,
    ),
    Variable(
        name="FL_PEER_EVICT_AFTER",
        appliances=PEER,
        level=Level.INSTANCE,
        default="10",
        rule=NON_NEGATIVE,
        example="100",
        help="Rounds after which a peer that gave no sign of life loses its vote; it gets it back "
        "when it returns. 0: never.",
        maps_to="roster of the group",
        ours=True,
    ),
    Variable(
        name="FL_PEER_TOPOLOGY",
        appliances=PEER,
        level=Level.ROLE,
        default="full",
        rule=syntax.one_of(("full", "ring", "line", "star")),
        example="ring",
        help="Which peers have a connection to each other, in the order of their names.",
        maps_to="connections",
        ours=True,
    ),
)

ALSO_READ = frozenset(
    {
        *("FLOWER_VERSION", "FL_LOG_LEVEL", "FL_LOG_FORMAT", "FL_USE_CASE", "ML_FRAMEWORK"),
        *("FL_NUM_ROUNDS", "FL_STRATEGY", "FL_SEED", "FL_RUN_CONFIG"),
        *("FL_PROXIMAL_MU", "FL_SERVER_LR", "FL_CLIENT_LR", "FL_FEDADAM_TAU"),
        *("FL_NUM_MALICIOUS", "FL_TRIM_BETA"),
        *("FL_CHECKPOINT_ENABLED", "FL_CHECKPOINT_KEEP_LAST"),
        *("FL_GRPC_KEEPALIVE_TIME", "FL_GRPC_KEEPALIVE_TIMEOUT", "FL_FIREWALL"),
        *("TOKEN", "NETWORK", "REPORT_READY", "READY_SCRIPT_PATH", "SSH_PUBLIC_KEY"),
    }
)
"""Variables of the hub's machines that mean the same on a peer."""


def with_readers(groups: Mapping[str, tuple[Variable, ...]]) -> dict[str, tuple[Variable, ...]]:
    """The same rows, those of ``ALSO_READ`` read by a peer as well."""
    return {heading: tuple(_with_reader(row) for row in rows) for heading, rows in groups.items()}


def _with_reader(row: Variable) -> Variable:
    if row.name not in ALSO_READ:
        return row
    return dataclasses.replace(row, appliances=row.appliances | PEER)
