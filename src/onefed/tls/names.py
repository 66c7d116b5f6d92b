"""Subject alternative names, as text of the form ``IP:<address>`` or ``DNS:<name>``.

One spelling each: addresses as ``ipaddress`` writes them, names in lower case.
So two names are equal exactly when their texts are.
"""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING

from cryptography import x509

from onefed.tls.errors import TlsMaterialError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

LOOPBACK = ("DNS:localhost", "IP:127.0.0.1", "IP:::1")
"""In every server certificate: health checks and the command line dial loopback."""

NAMES_MAX = 100
"""Names in one certificate. A name costs up to 256 bytes in each handshake."""

DNS_CHARACTERS_MAX = 253
"""RFC 1035, section 3.1, without the trailing dot."""

_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_DNS = re.compile(rf"(?:\*\.)?{_LABEL}(?:\.{_LABEL})*")


def required(addresses: Sequence[str], extra_sans: Sequence[str]) -> tuple[str, ...]:
    """What a server certificate must cover: loopback, the machine's addresses, then the extras.

    All bad entries are reported together.
    """
    found = list(LOOPBACK)
    problems = []
    for entry in (*(f"IP:{address}" for address in addresses), *extra_sans):
        try:
            found.append(parse(entry))
        except ValueError as error:
            problems.append(str(error))
    if len(found) > NAMES_MAX:
        problems.append(f"{len(found)} names for one certificate, at most {NAMES_MAX}")
    if problems:
        raise TlsMaterialError(
            "\n".join(problems),
            hint="FL_CERT_EXTRA_SAN is a comma-separated list of IP:<address> and DNS:<name>.",
        )
    return tuple(dict.fromkeys(found))


def parse(entry: str) -> str:
    """One entry in its only spelling. ``ValueError`` says what is wrong with it."""
    kind, _, value = entry.strip().partition(":")
    value = value.strip()
    if kind == "IP":
        return f"IP:{_address(value)}"
    if kind != "DNS":
        raise ValueError(f"{entry!r:.300} is neither IP:<address> nor DNS:<name>")
    name = value.lower()
    if len(name) > DNS_CHARACTERS_MAX or not _DNS.fullmatch(name):
        raise ValueError(f"{value!r:.300} is not a DNS name")
    if name.replace(".", "").isdigit():
        raise ValueError(f"{value!r:.300} is an address: write IP:{value:.300}")
    return f"DNS:{name}"


def of(certificate: x509.Certificate) -> frozenset[str]:
    """The names a certificate holds; empty when it has none that we can read."""
    try:
        san = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, x509.ExtensionNotFound, x509.DuplicateExtension):
        return frozenset()
    hosts = {f"DNS:{name.lower()}" for name in san.get_values_for_type(x509.DNSName)}
    return frozenset(hosts | {f"IP:{ip}" for ip in san.get_values_for_type(x509.IPAddress)})


def missing(wanted: Iterable[str], held: frozenset[str]) -> tuple[str, ...]:
    """The wanted names that a certificate with ``held`` does not prove.

    A wildcard stands for exactly one label (RFC 6125, section 6.4.3).
    """
    return tuple(name for name in wanted if name not in held and _wildcard(name) not in held)


def general_names(names: Iterable[str]) -> list[x509.GeneralName]:
    """The same, for a certificate that is being made."""
    result: list[x509.GeneralName] = []
    for name in names:
        kind, _, value = name.partition(":")
        if kind == "IP":
            result.append(x509.IPAddress(ipaddress.ip_address(value)))
        else:
            result.append(x509.DNSName(value))
    return result


def _address(value: str) -> str:
    try:
        address = ipaddress.ip_address(value)
    except ValueError:
        raise ValueError(f"{value!r:.300} is not an IP address") from None
    if isinstance(address, ipaddress.IPv6Address) and address.scope_id is not None:
        raise ValueError(f"{value!r:.300} has a zone, which a certificate cannot hold")
    return str(address)


def _wildcard(name: str) -> str | None:
    kind, _, value = name.partition(":")
    _, dot, parent = value.partition(".")
    return f"DNS:*.{parent}" if kind == "DNS" and dot else None
