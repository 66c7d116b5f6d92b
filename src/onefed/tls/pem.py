"""From text that somebody gave us to certificates and keys that were parsed.

Errors name the source (a variable or a file) and never its content: what is in a variable by
mistake may be a private key. For the same reason the causes of parse errors are dropped.
"""

from __future__ import annotations

import base64
import hashlib
from typing import TYPE_CHECKING, TypeAlias

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa

from onefed.tls.errors import TlsMaterialError
from onefed.tls.files import FILE_BYTES_MAX

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes

PrivateKey: TypeAlias = (
    rsa.RSAPrivateKey
    | ec.EllipticCurvePrivateKey
    | ed25519.Ed25519PrivateKey
    | ed448.Ed448PrivateKey
)
"""The kinds that TLS servers take."""

RSA_BITS_MIN = 2048
"""OpenSSL at its usual security level refuses shorter ones in the handshake."""

_UNREADABLE = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)


def decode(source: str, text: str) -> bytes:
    """What is in a base64 variable; white space in it is ignored."""
    packed = "".join(text.split())
    if len(packed) > FILE_BYTES_MAX * 4 // 3 + 4:
        raise TlsMaterialError(f"{source} is longer than {FILE_BYTES_MAX} bytes")
    if "-----BEGIN" in text:
        raise TlsMaterialError(
            f"{source} is PEM text, not base64 of it",
            hint="Encode the file with `base64 -w0 FILE`.",
        )
    try:
        return base64.b64decode(packed, validate=True)
    except ValueError:
        raise TlsMaterialError(
            f"{source} is not base64", hint="Encode the file with `base64 -w0 FILE`."
        ) from None


def encode(content: bytes) -> str:
    """Base64 in one line, as OneGate and context variables need it."""
    return base64.b64encode(content).decode("ascii")


def certificates(source: str, pem: bytes) -> tuple[x509.Certificate, ...]:
    """The X.509 certificates of a PEM text: at least one, in order. Refuses private keys."""
    if len(pem) > FILE_BYTES_MAX:
        raise TlsMaterialError(f"{source} is longer than {FILE_BYTES_MAX} bytes")
    if b"PRIVATE KEY" in pem:
        raise TlsMaterialError(
            f"{source} holds a private key where only certificates belong",
            hint="Put the certificate there. Treat that key as disclosed: make a new one.",
        )
    try:
        found = tuple(x509.load_pem_x509_certificates(pem))
        for certificate in found:  # both are parsed late; what follows relies on them
            certificate.public_key()
            _ = certificate.extensions
    except _UNREADABLE:
        raise TlsMaterialError(
            f"{source} is not a PEM X.509 certificate",
            hint="It must hold -----BEGIN CERTIFICATE----- blocks, encoded with `base64 -w0 FILE`.",
        ) from None
    return found


def private_key(source: str, pem: bytes) -> PrivateKey:
    """The private key of a PEM text: RSA of at least 2048 bits, elliptic curve or Edwards curve."""
    hint = "It must hold one PEM private key without a passphrase."
    if len(pem) > FILE_BYTES_MAX:
        raise TlsMaterialError(f"{source} is longer than {FILE_BYTES_MAX} bytes", hint=hint)
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except TypeError:
        raise TlsMaterialError(f"{source} is protected by a passphrase", hint=hint) from None
    except _UNREADABLE:
        raise TlsMaterialError(f"{source} is not a valid private key", hint=hint) from None
    if not isinstance(key, PrivateKey):
        raise TlsMaterialError(f"{source} is of a kind that TLS servers do not use", hint=hint)
    if isinstance(key, rsa.RSAPrivateKey) and key.key_size < RSA_BITS_MIN:
        raise TlsMaterialError(
            f"{source} is an RSA key of {key.key_size} bits, at least {RSA_BITS_MIN} are needed",
            hint=hint,
        )
    return key


def dump_certificates(chain: Iterable[x509.Certificate]) -> bytes:
    """PEM of certificates and of nothing else that stood around them."""
    return b"".join(each.public_bytes(serialization.Encoding.PEM) for each in chain)


def dump_private_key(key: PrivateKey) -> bytes:
    """PEM, PKCS #8, not encrypted: for a file of mode 0600."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def fingerprint(key: PublicKeyTypes) -> str:
    """SHA-256, 64 hex digits, of the DER SubjectPublicKeyInfo."""
    return hashlib.sha256(
        key.public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    ).hexdigest()
