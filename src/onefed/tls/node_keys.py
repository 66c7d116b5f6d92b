"""The key pair by which the coordinator knows a node, beside and below TLS.

The private file is what ``flower-supernode --auth-supernode-private-key`` of Flower 1.41 reads:
OpenSSH format, not encrypted. Flower registers the public key as PEM and compares those bytes
with what the node sends, so ``public_key_bytes`` is the one place where they are made.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from onefed.tls import files, pem
from onefed.tls.errors import TlsError, TlsMaterialError

if TYPE_CHECKING:
    from pathlib import Path

    from onefed.tls.files import Owner

PRIVATE_KEY = "node.key"

PUBLIC_KEY_BYTES_MAX = 1024
"""OpenSSH text: P-384 needs 204 bytes, P-521 268, a comment some more."""

_CURVES = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)
"""What both OpenSSH's format and Flower's registration take."""


@dataclass(frozen=True, slots=True)
class NodeKey:
    """A node's identity. It outlives the virtual machine's reboots, not its disk."""

    private_key_path: Path
    public_key: bytes
    """OpenSSH text, one line, without a comment."""
    fingerprint: str
    """SHA-256, 64 hex digits, of the public key (DER SubjectPublicKeyInfo)."""
    created: bool
    """True when the node has a new identity, which the coordinator has to learn."""


def ensure(folder: Path, *, owner: Owner | None = None) -> NodeKey:
    """Keep the node's key, or make an EC P-384 one.

    A key that cannot be used is an error: a silent new one would be another node.
    """
    path = folder / PRIVATE_KEY
    files.make_folder(folder, owner)
    content = files.read(path)
    if content is None:
        key = ec.generate_private_key(ec.SECP384R1())
        files.write_secret(path, _dump(key), owner)
    else:
        key = _load(path, content, owner)
    public_key = _openssh(key.public_key())
    return NodeKey(path, public_key, pem.fingerprint(key.public_key()), created=content is None)


def private_key(path: Path, *, owner: Owner | None = None) -> ec.EllipticCurvePrivateKey:
    """The node's private key, for the connection that signs with it."""
    content = files.read(path)
    if content is None:
        raise TlsError(f"There is no key {path}", hint="Boot the node again: it makes one.")
    return _load(path, content, owner)


def encode_for_publication(public_key: bytes) -> str:
    """A public key (OpenSSH text) for OneGate: base64, one line."""
    return pem.encode(_openssh(_public("the node's key", public_key)))


def decode_published(text: str, *, source: str = "a node's published key") -> bytes:
    """The public key (OpenSSH text, without a comment) that a node published.

    Anything but an elliptic curve key of NIST P-256, P-384 or P-521 is a TlsMaterialError.
    """
    if len(text) > PUBLIC_KEY_BYTES_MAX * 2:
        raise TlsMaterialError(f"{source} is longer than {PUBLIC_KEY_BYTES_MAX} bytes")
    return _openssh(_public(source, pem.decode(source, text)))


def public_key_bytes(openssh: bytes) -> bytes:
    """The form in Flower's ``RegisterNodeRequest.public_key``: PEM SubjectPublicKeyInfo."""
    return _public("the node's key", openssh).public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def normal(openssh: bytes, *, source: str) -> bytes:
    """A public key (OpenSSH text) in its one spelling, without a comment.

    Anything but an elliptic curve key of NIST P-256, P-384 or P-521 is a TlsMaterialError.
    """
    return _openssh(_public(source, openssh))


def fingerprint_of_pem(pem_bytes: bytes) -> str:
    """The same as ``fingerprint``, from what Flower keeps of a node; empty for anything else."""
    try:
        key = serialization.load_pem_public_key(pem_bytes)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return ""
    return pem.fingerprint(key) if isinstance(key, ec.EllipticCurvePublicKey) else ""


def fingerprint(openssh: bytes) -> str:
    """The same as ``NodeKey.fingerprint``, from the public key."""
    return pem.fingerprint(_public("the node's key", openssh))


def _dump(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.OpenSSH,
        serialization.NoEncryption(),
    )


def _load(path: Path, content: bytes, owner: Owner | None) -> ec.EllipticCurvePrivateKey:
    hint = f"Restore {path} with mode 0600, or delete it: the node then comes back as a new one."
    if (exposure := files.exposure(path, owner)) is not None:
        raise TlsError(f"The node's private key cannot be trusted: {exposure}", hint=hint)
    try:
        key = serialization.load_ssh_private_key(content, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise TlsError(f"{path} is not an OpenSSH private key", hint=hint) from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise TlsError(f"{path} is not an elliptic curve key", hint=hint)
    return key


def _public(source: str, openssh: bytes) -> ec.EllipticCurvePublicKey:
    if len(openssh) > PUBLIC_KEY_BYTES_MAX:
        raise TlsMaterialError(f"{source} is longer than {PUBLIC_KEY_BYTES_MAX} bytes")
    if b"PRIVATE KEY" in openssh:
        raise TlsMaterialError(f"{source} is a private key; only the public one may leave a node")
    try:
        key = serialization.load_ssh_public_key(openssh)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise TlsMaterialError(f"{source} is not an OpenSSH public key") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, _CURVES):
        raise TlsMaterialError(f"{source} is not an elliptic curve key of NIST P-256, 384 or 521")
    return key


def _openssh(key: ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
