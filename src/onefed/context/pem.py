"""PEM material in base64, as far as its form can be checked without cryptography.

Whether signatures, dates and keys fit together is for ``tls``.
As in ``syntax``, a ``ValueError`` holds a detail that repeats no part of the value.
"""

from __future__ import annotations

import base64
import re


def parse_certificate(value: str) -> bytes:
    """PEM bytes with one certificate or a chain, from base64."""
    pem = decode_base64(value)
    if b"PRIVATE KEY" in pem:
        raise ValueError("it holds a private key, which belongs in FL_SSL_KEYFILE only")
    labels = _labels(pem)
    if not labels or set(labels) != {b"CERTIFICATE"}:
        raise ValueError("PEM blocks 'CERTIFICATE' only")
    return pem


def parse_private_key(value: str) -> bytes:
    """PEM bytes with one private key that needs no passphrase, from base64."""
    pem = decode_base64(value)
    if b"ENCRYPTED" in pem:
        raise ValueError("a key without passphrase")
    labels = [label for label in _labels(pem) if label != _EC_PARAMETERS]
    if len(labels) != 1 or not labels[0].endswith(b"PRIVATE KEY"):
        raise ValueError("exactly one PEM block 'PRIVATE KEY'")
    return pem


_BLOCK = re.compile(rb"-----BEGIN ([A-Z ]+)-----\r?\n([A-Za-z0-9+/=\r\n]+)-----END \1-----")

_EC_PARAMETERS = b"EC PARAMETERS"
"""OpenSSL writes this block, the name of a curve, before an elliptic curve key."""


def decode_base64(value: str) -> bytes:
    """The bytes of one line of base64."""
    try:
        return base64.b64decode(value, validate=True)
    except ValueError:
        raise ValueError("one line of base64, as 'base64 -w0 FILE' prints it") from None


def _labels(pem: bytes) -> list[bytes]:
    """Label of each block, after a look at what it holds."""
    blocks = [(match[1], match[2]) for match in _BLOCK.finditer(pem)]
    if len(blocks) != pem.count(b"-----BEGIN "):
        raise ValueError("a PEM block is cut or garbled")
    for label, body in blocks:
        try:
            der = base64.b64decode(b"".join(body.split()), validate=True)
        except ValueError:
            raise ValueError("a PEM block is garbled") from None
        if label != _EC_PARAMETERS and not _is_der_sequence(der):
            raise ValueError("a PEM block is cut or garbled")
    return [label for label, _ in blocks]


def _is_der_sequence(der: bytes) -> bool:
    """One ASN.1 sequence, as long as it says (X.690, section 8.1.3)."""
    if len(der) < 2 or der[0] != 0x30:
        return False
    if der[1] < 0x80:
        return len(der) == 2 + der[1]
    size_bytes = der[1] & 0x7F
    return len(der) == 2 + size_bytes + int.from_bytes(der[2 : 2 + size_bytes], "big")
