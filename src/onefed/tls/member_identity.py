"""The certificate by which the members of a peer group know each other.

There is no coordinator that could hold an authority: a member signs its own certificate, and the
others pin exactly that one. So its life is long, and replacing it is a change of the roster.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from onefed.tls import authority, files, pem
from onefed.tls.errors import TlsError, TlsMaterialError

if TYPE_CHECKING:
    from pathlib import Path

CERTIFICATE = "member.crt"
PRIVATE_KEY = "member.key"

LIFETIME = timedelta(days=3650)
"""Pinned, not chained: nothing is gained by renewing it, and a roster change is needed to do so."""

BACKDATE = timedelta(days=365)
"""So that a member whose clock is behind (a machine that takes local time for UTC, or lost its
battery's) lets the others in: the pin says who they are, and no begin adds anything to it."""

DER_BYTES_MAX = 1024
"""Ours have about 370 bytes; every heartbeat carries one a member."""


@dataclass(frozen=True, slots=True)
class MemberIdentity:
    """What a member shows, and the key it speaks for. PEM."""

    certificate: bytes
    private_key: bytes


def ensure(folder: Path, name: str, now: datetime) -> MemberIdentity:
    """Keep the member's identity, or make one.

    One that cannot be used is an error: a silent new one would be another member.
    """
    files.make_folder(folder)
    certificate, key = files.read(folder / CERTIFICATE), files.read(folder / PRIVATE_KEY)
    if key is None or certificate is None:
        made = _create(name, now)
        files.write_secret(folder / PRIVATE_KEY, pem.dump_private_key(made.key))
        files.write_public(folder / CERTIFICATE, pem.dump_certificates([made.certificate]))
        return ensure(folder, name, now)
    path = folder / PRIVATE_KEY
    if (exposure := files.exposure(path)) is not None:
        raise TlsError(
            f"The member's private key cannot be trusted: {exposure}",
            hint=f"Restore {path} with mode 0600, or let the member join under another name.",
        )
    pem.private_key(str(path), key)
    if name_of(certificate) != name:
        raise TlsError(
            f"{folder / CERTIFICATE} is of the member {name_of(certificate)!r}, not of {name!r}",
            hint="Give every member a folder of its own.",
        )
    return MemberIdentity(certificate, key)


def to_der(certificate: bytes) -> bytes:
    """The one certificate of a PEM text, in the form that is compared."""
    return _one("a member's certificate", certificate).public_bytes(serialization.Encoding.DER)


def from_der(der: bytes) -> bytes:
    """PEM of a certificate; anything else is a TlsMaterialError."""
    source = "a member's certificate"
    if len(der) > DER_BYTES_MAX:
        raise TlsMaterialError(f"{source} is longer than {DER_BYTES_MAX} bytes")
    try:
        found = x509.load_der_x509_certificate(der)
    except (ValueError, TypeError):
        raise TlsMaterialError(f"{source} is not an X.509 certificate") from None
    return pem.dump_certificates(pem.certificates(source, pem.dump_certificates([found])))


def name_of(certificate: bytes) -> str:
    """The member that a certificate (PEM) names; what counts is the pin, this only finds it."""
    subject = _one("a member's certificate", certificate).subject
    names = subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if names else ""


def _one(source: str, content: bytes) -> x509.Certificate:
    found = pem.certificates(source, content)
    if len(found) != 1:
        raise TlsMaterialError(f"{source} must be one certificate, not {len(found)}")
    return found[0]


def _create(name: str, now: datetime) -> authority.Issued:
    key = authority.generate_key(authority.KeyKind.EC_P256)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    begin = now.replace(microsecond=0) - BACKDATE
    usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + LIFETIME)
        # No authority: with it a member could sign certificates in other members' names.
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
    )
    return authority.Issued(builder.sign(key, hashes.SHA256()), key)
