"""A certificate authority of one federation, and the server certificates it signs.

Pure but for the keys, which come from the operating system's randomness.

EC P-256 is the default: made in under a millisecond, and every TLS 1.2 client knows it.
RSA 4096, which older deployments used, takes seconds of a booting machine's only core.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from onefed.tls import names, pem

if TYPE_CHECKING:
    from collections.abc import Sequence

LIFETIME = timedelta(days=365)
"""Of a server certificate."""

CA_LIFETIME = timedelta(days=3650)
"""Of the authority, so that server certificates can be renewed from it and no node has to trust
anything new. The older design gave both a year, and a redeployment after it."""

BACKDATE = timedelta(hours=1)
"""A node whose clock is this much behind still accepts a certificate made just now."""

ORGANIZATION = "Flower FL"
CA_COMMON_NAME = "Flower CA"


class KeyKind(enum.StrEnum):
    """What a key is made of. Both are offered; see the module text for the choice."""

    EC_P256 = "ec-p256"
    RSA_4096 = "rsa-4096"


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate and the private key it speaks for."""

    certificate: x509.Certificate
    key: pem.PrivateKey


def generate_key(kind: KeyKind) -> pem.PrivateKey:
    """A new private key."""
    match kind:
        case KeyKind.EC_P256:
            return ec.generate_private_key(ec.SECP256R1())
        case KeyKind.RSA_4096:
            return rsa.generate_private_key(public_exponent=65537, key_size=4096)


def create_ca(
    now: datetime, *, kind: KeyKind = KeyKind.EC_P256, key: pem.PrivateKey | None = None
) -> Issued:
    """A self-signed authority, ``/O=Flower FL/CN=Flower CA``.

    With the ``key`` of an earlier one it is that authority, renewed: nodes that pinned the old
    certificate accept what it signs for as long as the old certificate lasts.
    """
    key = key or generate_key(kind)
    subject = _subject(CA_COMMON_NAME)
    builder = (
        _builder(subject, subject, key, now, CA_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(sign_certificates=True), critical=True)
    )
    return Issued(builder.sign(key, hashes.SHA256()), key)


def create_server_certificate(
    ca: Issued, required: Sequence[str], now: datetime, *, kind: KeyKind = KeyKind.EC_P256
) -> Issued:
    """A certificate for the server that answers to all of ``required`` (see ``names``).

    Its common name, which nothing checks any more, is the first address beyond loopback.
    """
    key = generate_key(kind)
    own = [name for name in required if name not in names.LOOPBACK and name.startswith("IP:")]
    common_name = own[0].removeprefix("IP:") if own else "localhost"
    ca_identifier = ca.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    builder = (
        _builder(_subject(common_name), ca.certificate.subject, key, now)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(
            _usage(encipher_keys=isinstance(key, rsa.RSAPrivateKey), sign=True), critical=True
        )
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(names.general_names(required)), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(ca_identifier.value),
            critical=False,
        )
    )
    return Issued(builder.sign(ca.key, hashes.SHA256()), key)


def chain_problem(
    chain: Sequence[x509.Certificate], anchors: Sequence[x509.Certificate]
) -> str | None:
    """Why ``chain`` (the server's certificate, then intermediates) does not end at an anchor.

    Signatures and the CA flag only: validity and names are the caller's questions.
    """
    current, rest = chain[0], list(chain[1:])
    while not any(_issued(anchor, current) for anchor in anchors):
        issuer = next((each for each in rest if _issued(each, current)), None)
        if issuer is None:
            return "the server certificate is not signed by the CA"
        rest.remove(issuer)
        current = issuer
    return None


def _issued(issuer: x509.Certificate, subject: x509.Certificate) -> bool:
    try:
        subject.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    if issuer == subject:
        return True  # a self-signed server certificate that is its own anchor
    try:
        return issuer.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False


def _subject(common_name: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, ORGANIZATION),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: pem.PrivateKey,
    now: datetime,
    lifetime: timedelta = LIFETIME,
) -> x509.CertificateBuilder:
    assert now.tzinfo is not None, "a naive time means another moment on another machine"
    begin = now.replace(microsecond=0) - BACKDATE
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + lifetime)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _usage(
    *, sign: bool = False, encipher_keys: bool = False, sign_certificates: bool = False
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=sign,
        key_encipherment=encipher_keys,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        content_commitment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
