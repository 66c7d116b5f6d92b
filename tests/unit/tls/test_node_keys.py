"""A node's identity, as Flower reads it."""

from __future__ import annotations

import argparse
import os
import stat
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from onefed.errors import ExitCode
from onefed.tls import node_keys, pem
from onefed.tls.errors import TlsError, TlsMaterialError

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # what Flower's own imports cause
def test_flower_reads_the_key_and_registers_the_same_bytes(tmp_path: Path) -> None:
    from flwr.cli.supernode.register import try_load_public_key
    from flwr.supercore.primitives import asymmetric
    from flwr.supernode.cli.flower_supernode import _try_setup_client_authentication as load

    made = node_keys.ensure(tmp_path / "keys")
    loaded = load(
        argparse.Namespace(
            auth_supernode_private_key=str(made.private_key_path), auth_supernode_public_key=None
        )
    )
    assert loaded is not None
    _, public_key = loaded
    registered = node_keys.public_key_bytes(made.public_key)
    assert registered == asymmetric.public_key_to_bytes(public_key)
    assert asymmetric.uses_nist_ec_curve(public_key)
    assert isinstance(public_key.curve, ec.SECP384R1)

    public_path = tmp_path / "node.pub"
    public_path.write_bytes(made.public_key)
    assert try_load_public_key(public_path) == registered


@pytest.mark.usefixtures("open_umask")
def test_a_node_keeps_its_identity_to_itself(tmp_path: Path) -> None:
    first = node_keys.ensure(tmp_path / "keys")
    again = node_keys.ensure(tmp_path / "keys")
    assert first.created
    assert not again.created
    assert (first.public_key, first.fingerprint) == (again.public_key, again.fingerprint)
    assert first.fingerprint == node_keys.fingerprint(first.public_key)
    assert len(first.fingerprint) == 64
    assert stat.S_IMODE(first.private_key_path.stat().st_mode) == 0o600
    assert os.listdir(tmp_path / "keys") == ["node.key"]  # noqa: PTH208


@pytest.mark.parametrize("damage", ["torn", "exposed", "another kind", "not a key"])
def test_a_key_that_cannot_be_used_is_not_silently_another_identity(
    tmp_path: Path, damage: str
) -> None:
    path = node_keys.ensure(tmp_path / "keys").private_key_path
    if damage == "torn":
        path.write_bytes(path.read_bytes()[:80])
    elif damage == "exposed":
        path.chmod(0o604)
    elif damage == "another kind":
        path.write_bytes(
            ed25519.Ed25519PrivateKey.generate().private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.OpenSSH,
                serialization.NoEncryption(),
            )
        )
    else:
        path.write_bytes(b"")
    before = path.read_bytes()
    with pytest.raises(TlsError, match=r"node.key") as caught:
        node_keys.ensure(tmp_path / "keys")
    assert caught.value.exit_code is ExitCode.BOOT
    assert path.read_bytes() == before


def test_a_published_key_comes_back_without_its_comment(tmp_path: Path) -> None:
    public_key = node_keys.ensure(tmp_path / "keys").public_key
    text = node_keys.encode_for_publication(public_key + b" somebody@somewhere")
    assert "\n" not in text
    assert node_keys.decode_published(text) == public_key
    assert node_keys.decode_published(text[:40] + "\n " + text[40:]) == public_key


def openssh(key: ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"junk",
        b"ecdsa-sha2-nistp384 AAAA",
        openssh(ed25519.Ed25519PrivateKey.generate()),
        openssh(ec.generate_private_key(ec.SECP384R1())) + b" " + b"x" * 2000,
    ],
    ids=["empty", "junk", "torn", "another kind", "long"],
)
def test_published_junk_is_refused(content: bytes) -> None:
    with pytest.raises(TlsMaterialError, match=r"^the key of vm 7 "):
        node_keys.decode_published(pem.encode(content), source="the key of vm 7")


def test_a_private_key_is_never_published(tmp_path: Path) -> None:
    private = node_keys.ensure(tmp_path / "keys").private_key_path.read_bytes()
    for content in (private, private[:500]):
        with pytest.raises(TlsMaterialError) as caught:
            node_keys.encode_for_publication(content)
        assert private.decode()[60:90] not in str(caught.value)
