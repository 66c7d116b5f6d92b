"""PEM material in base64, as ``base64 -w0`` prints it."""

from __future__ import annotations

import base64
import dataclasses
import datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec


@dataclasses.dataclass(frozen=True)
class Material:
    certificate: str
    key: str
    encrypted_key: str


@pytest.fixture(scope="session")
def material() -> Material:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    start = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(start)
        .not_valid_after(start + datetime.timedelta(days=365))
        .sign(key, hashes.SHA256())
    )

    def private(encryption: serialization.KeySerializationEncryption) -> str:
        return encode(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption
            )
        )

    return Material(
        certificate=encode(certificate.public_bytes(serialization.Encoding.PEM)),
        key=private(serialization.NoEncryption()),
        encrypted_key=private(serialization.BestAvailableEncryption(b"secret")),
    )


def encode(pem: bytes) -> str:
    return base64.b64encode(pem).decode()
