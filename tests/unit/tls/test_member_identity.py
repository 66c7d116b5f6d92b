"""A member's identity is made once, names the member, and cannot be mixed up."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from onefed.tls import member_identity
from onefed.tls.errors import TlsError, TlsMaterialError

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)


def test_an_identity_is_made_once_and_its_key_is_private(tmp_path: Path) -> None:
    made = member_identity.ensure(tmp_path, "node-0", NOW)

    assert member_identity.ensure(tmp_path, "node-0", NOW) == made
    assert member_identity.name_of(made.certificate) == "node-0"
    assert (tmp_path / "member.key").stat().st_mode & 0o777 == 0o600


def test_a_folder_is_of_one_member(tmp_path: Path) -> None:
    member_identity.ensure(tmp_path, "node-0", NOW)

    with pytest.raises(TlsError, match="is of the member 'node-0'"):
        member_identity.ensure(tmp_path, "node-1", NOW)


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    member_identity.ensure(tmp_path, "node-0", NOW)
    (tmp_path / "member.key").chmod(0o644)

    with pytest.raises(TlsError, match="open to other users"):
        member_identity.ensure(tmp_path, "node-0", NOW)


def test_a_certificate_survives_its_way_through_a_roster(tmp_path: Path) -> None:
    made = member_identity.ensure(tmp_path, "node-0", NOW)

    assert member_identity.from_der(member_identity.to_der(made.certificate)) == made.certificate


@pytest.mark.parametrize("der", [b"", b"\x30\x03abc", b"x" * 2000])
def test_other_bytes_are_no_certificate(der: bytes) -> None:
    with pytest.raises(TlsMaterialError):
        member_identity.from_der(der)
