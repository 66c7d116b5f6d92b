"""What is in the certificates, and that real TLS peers agree with it."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

from onefed.tls import authority, material, names

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

    from onefed.tls.material import Material


@pytest.fixture
def made(folder: Path, now: datetime) -> Material:
    return material.ensure(folder, addresses=["127.0.0.1"], now=now)


def handshake(server: Material, ca_certificate_path: Path, dialled: str) -> str | None:
    """The TLS version that a client agrees on with a server on loopback."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(server.server_certificate_path, server.server_key_path)

    def serve(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection, contextlib.suppress(OSError):  # a refused handshake is the client's say
            context.wrap_socket(connection, server_side=True).close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        client = ssl.create_default_context(cafile=str(ca_certificate_path))
        client.verify_flags |= ssl.VERIFY_X509_STRICT  # the default of newer Pythons
        try:
            with (
                socket.create_connection(listener.getsockname(), timeout=5) as plain,
                client.wrap_socket(plain, server_hostname=dialled) as wrapped,
            ):
                return wrapped.version()
        finally:
            thread.join(timeout=5)


@pytest.mark.parametrize("dialled", ["127.0.0.1", "localhost", "::1"])
def test_a_node_with_the_authority_accepts_the_server(made: Material, dialled: str) -> None:
    assert handshake(made, made.ca_certificate_path, dialled) == "TLSv1.3"


def test_a_node_with_a_foreign_authority_refuses_the_server(
    made: Material, tmp_path: Path, now: datetime
) -> None:
    foreign = material.ensure(tmp_path / "other" / "certs", addresses=[], now=now)
    with pytest.raises(ssl.SSLCertVerificationError, match="certificate verify failed"):
        handshake(made, foreign.ca_certificate_path, "127.0.0.1")


def test_a_name_that_the_certificate_does_not_cover_is_refused(made: Material) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match=r"not valid for 'elsewhere"):
        handshake(made, made.ca_certificate_path, "elsewhere.example")


def test_extra_names_are_accepted(folder: Path, now: datetime) -> None:
    made = material.ensure(
        folder, addresses=["10.1.2.3"], extra_sans=["DNS:Flower.example.com"], now=now
    )
    assert handshake(made, made.ca_certificate_path, "flower.example.com") == "TLSv1.3"
    assert handshake(made, made.ca_certificate_path, "10.1.2.3") == "TLSv1.3"


def test_a_node_that_pinned_the_authority_accepts_its_renewal(
    folder: Path, tmp_path: Path, now: datetime
) -> None:
    old = material.ensure(
        folder, addresses=[], now=now - authority.CA_LIFETIME + timedelta(hours=12)
    )
    pinned = tmp_path / "pinned.crt"
    pinned.write_bytes(old.ca_certificate_path.read_bytes())
    renewed = material.ensure(folder, addresses=[], now=now)
    assert renewed.created
    assert renewed.ca_certificate_path.read_bytes() != pinned.read_bytes()
    assert handshake(renewed, pinned, "localhost") == "TLSv1.3"
    assert handshake(renewed, renewed.ca_certificate_path, "localhost") == "TLSv1.3"


def test_certificates_say_what_the_reference_demands(now: datetime) -> None:
    ca = authority.create_ca(now)
    required = names.required(["10.1.2.3"], ["IP:2001:DB8::1", " DNS:a.example "])
    server = authority.create_server_certificate(ca, required, now).certificate

    assert ca.certificate.subject.rfc4514_string() == "CN=Flower CA,O=Flower FL"
    assert server.subject.rfc4514_string() == "CN=10.1.2.3,O=Flower FL"
    assert names.of(server) == {
        "DNS:localhost",
        "IP:127.0.0.1",
        "IP:::1",
        "IP:10.1.2.3",
        "IP:2001:db8::1",
        "DNS:a.example",
    }
    for certificate, is_ca in ((ca.certificate, True), (server, False)):
        assert isinstance(certificate.signature_hash_algorithm, hashes.SHA256)
        lifetime = certificate.not_valid_after_utc - certificate.not_valid_before_utc
        assert lifetime == (authority.CA_LIFETIME if is_ca else timedelta(days=365))
        extensions = certificate.extensions
        assert extensions.get_extension_for_class(x509.BasicConstraints).value.ca is is_ca
        usage = extensions.get_extension_for_class(x509.KeyUsage).value
        assert usage.key_cert_sign is is_ca
        assert usage.digital_signature is not is_ca
    purposes = server.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(purposes) == [ExtendedKeyUsageOID.SERVER_AUTH]


def test_rsa_is_4096_bits() -> None:
    key = authority.generate_key(authority.KeyKind.RSA_4096)
    assert isinstance(key, rsa.RSAPrivateKey)
    assert key.key_size == 4096


def test_the_chain_may_pass_through_intermediates_that_are_authorities(now: datetime) -> None:
    root = authority.create_ca(now)
    other = authority.create_ca(now)
    leaf = authority.create_server_certificate(root, names.LOOPBACK, now)
    below = authority.create_server_certificate(
        authority.Issued(leaf.certificate, leaf.key), names.LOOPBACK, now
    )
    assert (
        authority.chain_problem([leaf.certificate], [other.certificate, root.certificate]) is None
    )
    assert authority.chain_problem([leaf.certificate], [other.certificate]) is not None
    assert (
        authority.chain_problem([below.certificate, leaf.certificate], [root.certificate])
        is not None
    ), "a server certificate must not sign others"
