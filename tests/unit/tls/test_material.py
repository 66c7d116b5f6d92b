"""The certificate folder: made once, kept while fit, renewed in time, never readable by others."""

from __future__ import annotations

import base64
import os
import stat
import traceback
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from onefed.errors import ExitCode, StorageError
from onefed.tls import authority, files, material, names, pem
from onefed.tls.errors import CaChangedError, TlsMaterialError

if TYPE_CHECKING:
    from pathlib import Path

START = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
DAY = timedelta(days=1)


def ensure(folder: Path, now: datetime = START, *sans: str) -> material.Material:
    return material.ensure(folder, addresses=["10.0.0.5"], extra_sans=sans, now=now)


def contents(folder: Path) -> dict[str, bytes]:
    paths = (*folder.iterdir(), *folder.with_name("private").iterdir())
    return {path.name: path.read_bytes() for path in paths}


def b64(content: bytes) -> str:
    return base64.b64encode(content).decode()


class Operator:
    """An operator's own PKI, as PEM."""

    def __init__(self, now: datetime = START) -> None:
        issued_ca = authority.create_ca(now)
        self.issued = authority.create_server_certificate(
            issued_ca, names.required(["10.0.0.5"], ()), now
        )
        self.ca = pem.dump_certificates([issued_ca.certificate])
        self.ca_key = pem.dump_private_key(issued_ca.key)
        self.certificate = pem.dump_certificates([self.issued.certificate])
        self.key = pem.dump_private_key(self.issued.key)

    def install(self, folder: Path, now: datetime = START, **changed: Any) -> material.Material:
        parts = {"ca": self.ca, "certificate": self.certificate, "key": self.key} | changed
        return material.install_operator(
            folder,
            parts["ca"],
            parts["certificate"],
            parts["key"],
            now,
            addresses=parts.get("addresses", ()),
        )


# --- files -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("open_umask")
def test_secrets_are_private_before_their_first_byte(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, int] = {}
    real_open = os.open

    def spy(path: Path, flags: int, mode: int = 0o777, **more: Any) -> int:
        fd = real_open(path, flags, mode, **more)
        if flags & os.O_CREAT:
            seen[os.path.basename(path)] = stat.S_IMODE(os.fstat(fd).st_mode)  # noqa: PTH119
            assert flags & os.O_EXCL
            assert flags & os.O_NOFOLLOW
        return fd

    monkeypatch.setattr(os, "open", spy)
    ensure(folder)
    assert seen == {
        ".ca.key.new": 0o600,
        ".ca.crt.new": 0o644,
        ".server.key.new": 0o600,
        ".server.pem.new": 0o644,
    }


@pytest.mark.parametrize("umask", [0, 0o077])
def test_modes_do_not_depend_on_the_umask(folder: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        ensure(folder)
    finally:
        os.umask(before)
    found = {
        path.name: stat.S_IMODE(path.stat().st_mode)
        for path in (folder, *folder.iterdir(), folder.parent / "private" / "ca.key")
    }
    assert found == {
        "certs": 0o700,
        "ca.crt": 0o644,
        "server.pem": 0o644,
        "server.key": 0o600,
        "ca.key": 0o600,
    }
    assert stat.S_IMODE((folder.parent / "private").stat().st_mode) == 0o700


def test_a_link_in_the_folder_is_replaced_and_not_followed(folder: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    folder.mkdir()
    for name in ("server.key", ".server.key.new"):
        (folder / name).symlink_to(victim)
    ensure(folder)
    assert victim.read_text() == "precious"
    assert not (folder / "server.key").is_symlink()


def test_a_link_in_place_of_the_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    folder.symlink_to(tmp_path)
    with pytest.raises(StorageError, match="certs"):
        ensure(folder)


def test_a_pipe_does_not_hold_the_boot(folder: Path) -> None:
    folder.mkdir()
    os.mkfifo(folder / "ca.crt")
    with pytest.raises(StorageError, match="not a regular file"):
        files.read(folder / "ca.crt")
    assert ensure(folder).created


# --- keep or renew -----------------------------------------------------------------------------


def test_a_second_boot_changes_nothing(folder: Path) -> None:
    first = ensure(folder)
    before = contents(folder)
    second = ensure(folder, START + DAY)
    assert first.created
    assert first.reason == f"{folder / 'ca.crt'} does not exist"
    assert not second.created
    assert contents(folder) == before


@pytest.mark.parametrize(
    ("age", "created"),
    [(363 * DAY, False), (363 * DAY + timedelta(hours=23), True), (400 * DAY, True)],
    ids=["two days left", "a day left but for the backdated hour", "ended"],
)
def test_certificates_are_renewed_a_day_before_they_end(
    folder: Path, age: timedelta, created: bool
) -> None:
    ensure(folder)
    before = contents(folder)
    again = ensure(folder, START + age + timedelta(seconds=1))
    assert again.created is created
    assert (contents(folder) == before) is not created
    assert contents(folder)["ca.key"] == before["ca.key"], "renewed, not replaced"
    assert not ensure(folder, START + age + timedelta(minutes=1)).created


def test_a_new_name_needs_a_new_certificate_of_the_same_authority(folder: Path) -> None:
    ensure(folder)
    before = contents(folder)
    again = ensure(folder, START, "DNS:flower.example")
    assert again.created
    assert again.reason == "server.pem does not cover DNS:flower.example"
    changed = {name for name, content in contents(folder).items() if content != before[name]}
    assert changed == {"server.pem", "server.key"}
    assert not ensure(folder).created, "more names than needed are fine"


@pytest.mark.parametrize("name", ["server.pem", "server.key"])
@pytest.mark.parametrize("damage", ["missing", "torn", "foreign"])
def test_a_damaged_server_file_costs_only_the_server_certificate(
    folder: Path, tmp_path: Path, name: str, damage: str
) -> None:
    ensure(folder)
    ca = (folder / "ca.crt").read_bytes()
    path = folder / name
    if damage == "missing":
        path.unlink()
    elif damage == "torn":
        path.write_bytes(path.read_bytes()[:100])
    else:
        ensure(tmp_path / "other" / "certs")
        path.write_bytes((tmp_path / "other" / "certs" / name).read_bytes())
    assert ensure(folder).created
    assert (folder / "ca.crt").read_bytes() == ca
    assert not ensure(folder).created


def test_an_exposed_server_key_is_replaced(folder: Path) -> None:
    ensure(folder)
    before = (folder / "server.key").read_bytes()
    (folder / "server.key").chmod(0o644)
    assert ensure(folder).reason == "server.key is open to other users (mode 0644)"
    assert (folder / "server.key").read_bytes() != before


@pytest.mark.parametrize("damage", ["missing", "exposed", "foreign"])
def test_without_its_key_the_authority_is_made_anew_when_it_is_needed(
    folder: Path, tmp_path: Path, damage: str
) -> None:
    ensure(folder)
    ca = (folder / "ca.crt").read_bytes()
    ca_key = folder.parent / "private" / "ca.key"
    if damage == "missing":
        ca_key.unlink()
    elif damage == "exposed":
        ca_key.chmod(0o640)
    else:
        ensure(tmp_path / "other" / "certs")
        ca_key.write_bytes((tmp_path / "other" / "private" / "ca.key").read_bytes())
    assert not ensure(folder).created, "nothing needs the authority's key yet"
    assert ensure(folder, START, "DNS:new.example").created
    assert (folder / "ca.crt").read_bytes() != ca
    assert not ensure(folder, START, "DNS:new.example").created


# --- operator ----------------------------------------------------------------------------------


def test_operator_certificates_are_installed_once(folder: Path) -> None:
    ensure(folder)
    operator = Operator()
    first = operator.install(folder)
    assert first.created
    assert not operator.install(folder).created
    assert first.server_key_path.read_bytes() == operator.key
    assert not (folder.parent / "private" / "ca.key").exists()
    assert Operator().install(folder).created, "other certificates"


def test_an_address_the_operator_forgot_is_a_warning(folder: Path) -> None:
    warning = Operator().install(folder, addresses=["10.9.9.9", "10.0.0.5"]).warning
    assert warning is not None
    assert warning.startswith("FL_SSL_CERTFILE does not cover IP:10.9.9.9: ")


def test_operator_material_is_checked_and_all_problems_reported(folder: Path) -> None:
    operator, other = Operator(), Operator()
    cases: dict[str, dict[str, bytes]] = {
        "not signed by the CA in FL_SSL_CA_CERTFILE": {"ca": other.ca},
        "FL_SSL_KEYFILE does not belong": {"key": other.key},
        "FL_SSL_KEYFILE is not a valid private key": {"key": b"junk"},
        "FL_SSL_CERTFILE is not a PEM X.509 certificate": {"certificate": b"junk"},
        "FL_SSL_CA_CERTFILE is not a PEM X.509 certificate": {"ca": b""},
        "FL_SSL_CERTFILE holds a private key": {"certificate": operator.certificate + operator.key},
        "FL_SSL_KEYFILE is protected by a passphrase": {"key": encrypted(operator)},
        "FL_SSL_KEYFILE is an RSA key of 1024 bits": {"key": short_rsa()},
        "FL_SSL_CA_CERTFILE is longer than": {"ca": b"x" * 65537},
    }
    for message, changed in cases.items():
        with pytest.raises(TlsMaterialError, match=message) as caught:
            operator.install(folder, **changed)
        assert caught.value.exit_code is ExitCode.CONFIG
    with pytest.raises(TlsMaterialError) as caught:
        operator.install(folder, ca=b"junk", certificate=b"junk", key=b"junk")
    assert [line.split()[0] for line in caught.value.message.splitlines()] == [
        "FL_SSL_CA_CERTFILE",
        "FL_SSL_CERTFILE",
        "FL_SSL_KEYFILE",
    ]
    assert not folder.exists(), "nothing is written before everything is checked"


@pytest.mark.parametrize("days", [-2, 366])
def test_operator_certificates_out_of_date_are_refused(folder: Path, days: int) -> None:
    with pytest.raises(TlsMaterialError, match=r"the certificate (begins|ended) at"):
        Operator().install(folder, START + days * DAY)


def encrypted(operator: Operator) -> bytes:
    return operator.issued.key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"passphrase"),
    )


def short_rsa() -> bytes:
    return pem.dump_private_key(rsa.generate_private_key(public_exponent=65537, key_size=1024))


# --- the authority's certificate on its way to a node ------------------------------------------


def test_a_node_installs_what_the_coordinator_publishes(folder: Path, tmp_path: Path) -> None:
    ensure(folder)
    published = material.ca_for_publication(folder)
    assert "\n" not in published
    assert base64.b64decode(published) == (folder / "ca.crt").read_bytes()
    path = material.install_ca(tmp_path / "node", published)
    assert path.read_bytes() == (folder / "ca.crt").read_bytes()
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_nothing_but_certificates_is_ever_published(folder: Path) -> None:
    ensure(folder)
    key = (folder / "server.key").read_bytes()
    ca = folder / "ca.crt"
    ca.write_bytes(b"comment\n" + ca.read_bytes())
    assert b"comment" not in base64.b64decode(material.ca_for_publication(folder))
    ca.write_bytes(ca.read_bytes() + key)
    with pytest.raises(TlsMaterialError, match="private key"):
        material.ca_for_publication(folder)


def test_a_private_key_in_the_ca_variable_is_refused_and_not_shown(folder: Path) -> None:
    key = Operator().ca_key
    body = b"".join(key.splitlines()[1:-1])
    der = base64.b64decode(body)
    for offered in (b64(key), key.decode(), b64(der), b64(b64(key).encode()), body.decode()):
        for attempt in (
            lambda text=offered: material.install_ca(folder, text),
            lambda text=offered: material.install_operator(
                folder, pem.decode("FL_SSL_CA_CERTFILE", text), b"", b"", START
            ),
        ):
            with pytest.raises(TlsMaterialError) as caught:
                attempt()
            told = "".join(traceback.format_exception(caught.value)) + repr(caught.value.args)
            for secret in (offered, key.decode(), body.decode(), repr(der)):
                chunks = {secret[i : i + 12] for i in range(30, len(secret) - 12)}
                assert not any(chunk in told for chunk in chunks)
    assert not (folder / "ca.crt").exists()


@pytest.mark.parametrize(
    "text",
    ["", "%%%", "é", b64(b"junk"), "A" * 100_000, b64(b"-----BEGIN CERTIFICATE-----\nAAAA\n")],
    ids=["empty", "not base64", "not ascii", "junk", "long", "torn"],
)
def test_junk_in_the_ca_variable_is_refused(folder: Path, text: str) -> None:
    with pytest.raises(TlsMaterialError, match=r"^FL_SSL_CA_CERTFILE "):
        material.install_ca(folder, text, source="FL_SSL_CA_CERTFILE")


def test_a_node_keeps_its_authority_until_an_operator_says_otherwise(
    folder: Path, tmp_path: Path
) -> None:
    ensure(folder)
    mine = material.ca_for_publication(folder)
    node = tmp_path / "node"
    material.install_ca(node, mine)
    ensure(folder, START + authority.CA_LIFETIME)
    renewed = material.ca_for_publication(folder)
    assert renewed != mine
    path = material.install_ca(node, renewed)
    pinned = path.read_bytes()

    ensure(tmp_path / "other" / "certs")
    foreign = material.ca_for_publication(tmp_path / "other" / "certs")
    both = b64(base64.b64decode(renewed) + base64.b64decode(foreign))
    for offered in (foreign, both):
        with pytest.raises(CaChangedError) as caught:
            material.install_ca(node, offered)
        assert caught.value.pinned != caught.value.offered
        assert path.read_bytes() == pinned
    material.install_ca(node, foreign, keep_pin=False)
    assert path.read_bytes() == base64.b64decode(foreign)
