"""The certificate folder of a coordinator, and the pinned authority of a node.

``<folder>/ca.crt``             0644  the authority's certificate; the only file ever published
``<folder>/server.pem``         0644  the server's certificate, then intermediates if there are any
``<folder>/server.key``         0600  its private key
``<folder>/../private/ca.key``  0600  the authority's key: beside the folder, which a container
                                      mounts; absent with an operator's own certificates

The work is repeated at each boot and changes nothing while the files are fit.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, TypeVar

from onefed.errors import StorageError
from onefed.tls import authority, files, names, pem
from onefed.tls.authority import KeyKind
from onefed.tls.errors import CaChangedError, TlsError, TlsMaterialError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from cryptography import x509

    from onefed.tls.files import Owner

CA_CERTIFICATE = "ca.crt"
SERVER_CERTIFICATE = "server.pem"
SERVER_KEY = "server.key"

CA_VARIABLE = "FL_SSL_CA_CERTFILE"
CERTIFICATE_VARIABLE = "FL_SSL_CERTFILE"
KEY_VARIABLE = "FL_SSL_KEYFILE"

_Parsed = TypeVar("_Parsed")

RENEW_BEFORE = timedelta(hours=24)
"""A certificate with less time left than this is made anew."""


@dataclass(frozen=True, slots=True)
class Material:
    """What the server is started with."""

    ca_certificate_path: Path
    server_certificate_path: Path
    server_key_path: Path
    created: bool
    """False when the files were there already and nothing was written."""
    reason: str
    """Why they were written or kept, for the boot report."""
    warning: str | None = None
    """Something that will bite later, although the files can be used."""


def ensure(
    folder: Path,
    *,
    addresses: Sequence[str],
    extra_sans: Sequence[str] = (),
    now: datetime,
    key_kind: KeyKind = KeyKind.EC_P256,
    owner: Owner | None = None,
    renew_before: timedelta = RENEW_BEFORE,
) -> Material:
    """Keep the certificates if they are fit, else make what is missing.

    Fit: the chain verifies, everything is valid for ``renew_before`` longer, the key is the
    certificate's and private, and the names cover loopback, ``addresses`` and ``extra_sans``
    (entries ``IP:...`` or ``DNS:...``). When only the server's part is unfit, the kept authority
    signs a new one, and nodes notice nothing. An authority that ends is renewed with its key.
    """
    required = names.required(addresses, extra_sans)
    soon = now + renew_before
    unfit = _unfit(folder, required, soon, owner)
    if unfit is None:
        return _material(folder, created=False, reason="the certificates are valid and fit")
    files.make_folder(folder, owner)
    ca = _authority(folder, now, soon, key_kind, owner)
    server = authority.create_server_certificate(ca, required, now, kind=key_kind)
    files.write_secret(folder / SERVER_KEY, pem.dump_private_key(server.key), owner)
    files.write_public(
        folder / SERVER_CERTIFICATE, pem.dump_certificates([server.certificate]), owner
    )
    if (still := _unfit(folder, required, soon, owner)) is not None:
        raise TlsError(f"The certificates just made in {folder} cannot be used: {still}")
    return _material(folder, created=True, reason=unfit)


def install_operator(
    folder: Path,
    ca_pem: bytes,
    certificate_pem: bytes,
    key_pem: bytes,
    now: datetime,
    *,
    addresses: Sequence[str] = (),
    owner: Owner | None = None,
) -> Material:
    """Write the operator's certificates, checked: all problems are reported together.

    Only what was parsed is written, so nothing that stood around a certificate reaches a file
    that others read. Names are the operator's duty: missing ``addresses`` are a warning.
    """
    problems: list[str] = []
    anchors = _collect(problems, pem.certificates, CA_VARIABLE, ca_pem)
    chain = _collect(problems, pem.certificates, CERTIFICATE_VARIABLE, certificate_pem)
    key = _collect(problems, pem.private_key, KEY_VARIABLE, key_pem)
    if anchors and chain and (problem := authority.chain_problem(chain, anchors)):
        problems.append(f"{CERTIFICATE_VARIABLE}: {problem} in {CA_VARIABLE}")
    if chain and key and not _speaks_for(key, chain[0]):
        problems.append(f"{KEY_VARIABLE} does not belong to the first of {CERTIFICATE_VARIABLE}")
    for variable, found in ((CA_VARIABLE, anchors), (CERTIFICATE_VARIABLE, chain)):
        problems += [f"{variable}: {problem}" for problem in _out_of_date(found or (), now)]
    if problems or not (anchors and chain and key):
        raise TlsMaterialError(
            "\n".join(problems),
            hint="The three FL_SSL_* variables belong together: a CA, a server certificate that "
            "it signed, and the private key of that certificate.",
        )
    dialled = [name for name in names.required(addresses, ()) if name not in names.LOOPBACK]
    uncovered = names.missing(dialled, names.of(chain[0]))
    wanted = {
        CA_CERTIFICATE: pem.dump_certificates(anchors),
        SERVER_CERTIFICATE: pem.dump_certificates(chain),
        SERVER_KEY: pem.dump_private_key(key),
    }
    files.make_folder(folder, owner)
    created = _needs_writing(folder, wanted, owner)
    if created:
        files.write_public(folder / CA_CERTIFICATE, wanted[CA_CERTIFICATE], owner)
        files.write_secret(folder / SERVER_KEY, wanted[SERVER_KEY], owner)
        files.write_public(folder / SERVER_CERTIFICATE, wanted[SERVER_CERTIFICATE], owner)
    files.remove(_ca_key_path(folder))  # of an authority that was ours and is no more
    return _material(
        folder,
        created=created,
        reason="the operator's certificates",
        warning=f"{CERTIFICATE_VARIABLE} does not cover {', '.join(uncovered)}: "
        "nodes that dial this name or address will refuse it"
        if uncovered
        else None,
    )


def ca_for_publication(folder: Path) -> str:
    """The authority's certificate as base64 in one line, 0.8 KB for an EC P-256 authority.

    From ``ca.crt`` alone, and only what parses as certificates.
    """
    return pem.encode(pem.dump_certificates(_certificates(folder / CA_CERTIFICATE)))


def ends(folder: Path) -> dict[str, datetime]:
    """When each certificate that can be read ends, by the name of its file.

    A chain ends with its first certificate that does.
    """
    found = {}
    for name in (CA_CERTIFICATE, SERVER_CERTIFICATE):
        try:
            chain = _certificates(folder / name)
        except (TlsMaterialError, StorageError):
            continue
        found[name] = min(certificate.not_valid_after_utc for certificate in chain)
    return found


def install_ca(
    folder: Path,
    base64_text: str,
    *,
    source: str = "FL_CA_CERT",
    keep_pin: bool = True,
    owner: Owner | None = None,
) -> Path:
    """On a node: check the authority's certificate and write it to ``ca.crt``; returns the path.

    ``source`` is the variable named in errors. The first certificate is trusted as it comes; later
    ones only with the same public keys, so that a renewed certificate passes and another
    authority is a CaChangedError. An operator's own word needs no such caution: pass
    ``keep_pin=False`` for ``FL_SSL_CA_CERTFILE``.
    """
    offered = pem.certificates(source, pem.decode(source, base64_text))
    path = folder / CA_CERTIFICATE
    files.make_folder(folder, owner)
    if keep_pin and (pinned := _pinned(path)):
        _check_pin(path, pinned, _fingerprints(offered))
    content = pem.dump_certificates(offered)
    if files.read(path) != content:
        files.write_public(path, content, owner)
    return path


def _material(folder: Path, *, created: bool, reason: str, warning: str | None = None) -> Material:
    return Material(
        folder / CA_CERTIFICATE,
        folder / SERVER_CERTIFICATE,
        folder / SERVER_KEY,
        created,
        reason,
        warning,
    )


def _unfit(
    folder: Path, required: Sequence[str], soon: datetime, owner: Owner | None
) -> str | None:
    """Why the certificates in the folder cannot be kept until ``soon``, or None."""
    try:
        anchors = _certificates(folder / CA_CERTIFICATE)
        chain = _certificates(folder / SERVER_CERTIFICATE)
        key = _secret_key(folder / SERVER_KEY, owner)
    except (TlsMaterialError, StorageError) as error:
        return error.message
    if not _speaks_for(key, chain[0]):
        return f"{SERVER_KEY} does not belong to {SERVER_CERTIFICATE}"
    if (problem := authority.chain_problem(chain, anchors)) is not None:
        return problem
    for path, found in ((CA_CERTIFICATE, anchors), (SERVER_CERTIFICATE, chain)):
        if any(certificate.not_valid_after_utc < soon for certificate in found):
            return f"{path} ends soon: {min(each.not_valid_after_utc for each in found):%Y-%m-%d}"
    if uncovered := names.missing(required, names.of(chain[0])):
        return f"{SERVER_CERTIFICATE} does not cover {', '.join(uncovered)}"
    return None


def _authority(
    folder: Path, now: datetime, soon: datetime, kind: KeyKind, owner: Owner | None
) -> authority.Issued:
    """The kept authority if it can still sign; else renewed with its key; else a new one."""
    key_path = _ca_key_path(folder)
    try:
        key = _secret_key(key_path)
    except (TlsMaterialError, StorageError):
        key = None
    try:
        kept = _certificates(folder / CA_CERTIFICATE)
    except (TlsMaterialError, StorageError):
        kept = ()
    if key and len(kept) == 1 and _speaks_for(key, kept[0]) and kept[0].not_valid_after_utc >= soon:
        return authority.Issued(kept[0], key)
    made = authority.create_ca(now, kind=kind, key=key)
    files.make_folder(key_path.parent)
    files.write_secret(key_path, pem.dump_private_key(made.key))
    files.write_public(folder / CA_CERTIFICATE, pem.dump_certificates([made.certificate]), owner)
    return made


def _ca_key_path(folder: Path) -> Path:
    return folder.with_name("private") / "ca.key"


def _certificates(path: Path) -> tuple[x509.Certificate, ...]:
    return pem.certificates(str(path), _content(path))


def _secret_key(path: Path, owner: Owner | None = None) -> pem.PrivateKey:
    content = _content(path)
    if (exposure := files.exposure(path, owner)) is not None:
        raise TlsMaterialError(exposure)
    return pem.private_key(str(path), content)


def _content(path: Path) -> bytes:
    content = files.read(path)
    if content is None:
        raise TlsMaterialError(f"{path} does not exist")
    return content


def _collect(
    problems: list[str], parse: Callable[[str, bytes], _Parsed], variable: str, content: bytes
) -> _Parsed | None:
    try:
        return parse(variable, content)
    except TlsMaterialError as error:
        problems.append(error.message)
        return None


def _speaks_for(key: pem.PrivateKey, certificate: x509.Certificate) -> bool:
    return key.public_key() == certificate.public_key()


def _out_of_date(chain: Sequence[x509.Certificate], now: datetime) -> list[str]:
    problems = []
    for certificate in chain:
        if certificate.not_valid_after_utc <= now:
            problems.append(f"the certificate ended at {certificate.not_valid_after_utc}")
        if certificate.not_valid_before_utc > now:
            problems.append(
                f"the certificate begins at {certificate.not_valid_before_utc}, and this "
                f"machine's clock says {now:%Y-%m-%d %H:%M:%S%z}"
            )
    return problems


def _needs_writing(folder: Path, wanted: dict[str, bytes], owner: Owner | None) -> bool:
    try:
        same = all(files.read(folder / name) == content for name, content in wanted.items())
        return not same or files.exposure(folder / SERVER_KEY, owner) is not None
    except StorageError:
        return True


def _pinned(path: Path) -> frozenset[str]:
    """Fingerprints of the authority's keys in ``ca.crt``; none when there is no usable file."""
    try:
        return _fingerprints(_certificates(path))
    except TlsMaterialError:
        return frozenset()


def _fingerprints(chain: Sequence[x509.Certificate]) -> frozenset[str]:
    return frozenset(pem.fingerprint(certificate.public_key()) for certificate in chain)


def _check_pin(path: Path, pinned: frozenset[str], offered: frozenset[str]) -> None:
    # A subset passes: the public certificate of the old authority beside a foreign one must not.
    if not offered <= pinned:
        raise CaChangedError(
            path,
            pinned=", ".join(sorted(pinned)),
            offered=", ".join(sorted(offered - pinned)),
        )
