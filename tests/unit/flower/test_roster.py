"""Who may connect, over restarts: the roster, its tokens, and what it refuses."""

from __future__ import annotations

import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from onefed.errors import StorageError
from onefed.flower.roster import RefusedKeyError, Roster, UnknownMemberError
from onefed.tls import enrolment, node_keys

START = datetime(2026, 11, 25, tzinfo=UTC)


class Wall:
    """A wall clock that a test sets."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def wall() -> Wall:
    return Wall()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "nodes.json"


@pytest.fixture
def keys(tmp_path: Path) -> list[bytes]:
    return [node_keys.ensure(tmp_path / f"node-{index}").public_key for index in range(4)]


def test_what_was_decided_holds_after_a_restart(file: Path, wall: Wall, keys: list[bytes]) -> None:
    roster = Roster(file, wall)
    roster.admit(keys[0], source="service", partition="0", vm_id="7")
    roster.revoke(roster.admit(keys[1], source="operator"))
    again = Roster(file, wall)
    assert again.members() == roster.members()
    assert again.admit(keys[0], source="service", partition="0", vm_id="7").client == "0"
    with pytest.raises(RefusedKeyError, match="was revoked"):
        again.admit(keys[1], source="operator")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_revoked_machine_does_not_come_back_with_another_key(
    file: Path, wall: Wall, keys: list[bytes]
) -> None:
    roster = Roster(file, wall)
    member = roster.admit(keys[0], source="service", partition="0", vm_id="7")
    roster.revoke(member)
    with pytest.raises(RefusedKeyError, match="node 0 was revoked"):
        roster.admit(keys[1], source="service", partition="0", vm_id="7")
    replaced = roster.replace(roster.find("0"), keys[1])
    assert (replaced.client, replaced.vm_id) == ("0", "7")
    assert roster.admit(keys[1], source="service", partition="0", vm_id="7") == replaced
    assert roster.find("0") == replaced
    with pytest.raises(RefusedKeyError):
        roster.admit(keys[0], source="service", partition="0", vm_id="7")


def test_a_key_belongs_to_one_node_for_good(file: Path, wall: Wall, keys: list[bytes]) -> None:
    roster = Roster(file, wall)
    first = roster.admit(keys[0], source="operator", partition="0")
    roster.admit(keys[1], source="operator", partition="1")
    with pytest.raises(RefusedKeyError, match="known already"):
        roster.replace(first, keys[1])


def test_a_member_is_named_by_its_client_or_the_beginning_of_its_fingerprint(
    file: Path, wall: Wall, keys: list[bytes]
) -> None:
    roster = Roster(file, wall)
    first = roster.admit(keys[0], source="operator", partition="0")
    second = roster.admit(keys[1], source="operator")
    assert roster.find("0") == first
    assert roster.find(first.fingerprint[:12]) == first
    assert roster.find(second.client) == second
    for nobody in ("1", first.fingerprint[:4], ""):
        with pytest.raises(UnknownMemberError):
            roster.find(nobody)


def test_a_token_admits_one_key_once_and_an_answer_may_be_lost(
    file: Path, wall: Wall, keys: list[bytes]
) -> None:
    token = enrolment.new_token()
    roster = Roster(file, wall)
    roster.add_token(enrolment.digest(token), expires_at=START + timedelta(hours=1), client="5")
    assert token not in file.read_text()
    member = roster.enrol(enrolment.digest(token), keys[0])
    assert (member.client, member.source) == ("5", "token")
    again = Roster(file, wall)
    assert again.enrol(enrolment.digest(token), keys[0]) == member
    with pytest.raises(RefusedKeyError, match="another key"):
        again.enrol(enrolment.digest(token), keys[1])


def test_a_token_ends_with_its_time_and_no_other_is_one(
    file: Path, wall: Wall, keys: list[bytes]
) -> None:
    token = enrolment.new_token()
    roster = Roster(file, wall)
    roster.add_token(enrolment.digest(token), expires_at=START + timedelta(hours=1), client="")
    with pytest.raises(RefusedKeyError, match="unknown"):
        roster.enrol(enrolment.digest("another"), keys[0])
    wall.now += timedelta(hours=1)
    with pytest.raises(RefusedKeyError, match="expired"):
        roster.enrol(enrolment.digest(token), keys[0])


def test_a_revoked_key_does_not_come_back_by_a_token(
    file: Path, wall: Wall, keys: list[bytes]
) -> None:
    roster = Roster(file, wall)
    roster.revoke(roster.admit(keys[0], source="operator"))
    token = enrolment.new_token()
    roster.add_token(enrolment.digest(token), expires_at=START + timedelta(hours=1), client="")
    with pytest.raises(RefusedKeyError, match="was revoked"):
        roster.enrol(enrolment.digest(token), keys[0])
    assert roster.enrol(enrolment.digest(token), keys[1]).client, (
        "the token is not used up by a refusal"
    )


@pytest.mark.parametrize("content", ["{}", "[]", '{"format": 1, "members": [{}], "tokens": []}'])
def test_a_damaged_roster_is_an_error_and_not_an_empty_one(
    file: Path, wall: Wall, content: str
) -> None:
    file.write_text(content)
    with pytest.raises(StorageError):
        Roster(file, wall)
