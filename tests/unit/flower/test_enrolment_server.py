"""Where a token is shown: at its socket, before a desk with a real roster."""

from __future__ import annotations

import contextlib
import json
import select
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
from tests.unit.flower.office import Office, request

from onefed.flower import enrolment_server, mailbox
from onefed.tls import enrolment


@pytest.fixture
def make_office(tmp_path: Path) -> Iterator[Callable[..., Office]]:
    made: list[Office] = []

    def build(**settings: float) -> Office:
        made.append(Office(tmp_path, **settings))
        return made[-1]

    yield build
    for each in made:
        each.go_on()
        each.close()


@pytest.fixture
def office(make_office: Callable[..., Office]) -> Office:
    return make_office()


def test_a_good_token_admits_its_key_once_and_the_lost_answer_is_given_again(
    office: Office,
) -> None:
    token, key = office.token(client="7"), office.key("mine")
    for _ in range(2):
        status, body = office.enrol(token, key)
        assert status == 200
        assert json.loads(body)["client"] == "7"
    [member] = office.roster.members()
    assert (member.client, member.source, member.standing) == ("7", "token", "admitted")


def test_a_used_a_foreign_and_an_expired_token_admit_nobody(office: Office) -> None:
    used, expired = office.token(), office.token(lifetime_s=10)
    assert office.enrol(used, office.key("first"))[0] == 200
    status, body = office.enrol(used, office.key("second"))
    assert (status, json.loads(body)["error"]) == (403, "the token was used by another key")
    assert office.enrol(enrolment.new_token(), office.key("second"))[0] == 403
    office.now += timedelta(seconds=10)
    status, body = office.enrol(expired, office.key("second"))
    assert (status, json.loads(body)["error"]) == (403, "the token is unknown or has expired")
    assert len(office.roster.members()) == 1


def test_a_revoked_key_does_not_come_back_by_a_token(office: Office) -> None:
    key = office.key("mine")
    office.roster.revoke(office.roster.admit(key.encode(), source="operator"))
    status, body = office.enrol(office.token(), key)
    assert status == 403
    assert "revoked" in body


def test_a_key_that_is_none_keeps_the_token_good(office: Office) -> None:
    token = office.token()
    assert office.enrol(token, "ssh-rsa AAAA")[0] == 403
    assert office.enrol(token, office.key("mine"))[0] == 200


@pytest.mark.parametrize(
    "sent",
    [
        request("{}"),
        request("[1]"),
        request("not json"),
        request("[" * 8000),
        request('{"token": 7, "public_key": "x"}'),
        request('{"token": "onefed-short", "public_key": "x"}'),
        request("", length="-1"),
        request("", length="+1"),
        request("", length="many"),
        request("", length=enrolment_server.BODY_BYTES_MAX + 1),
        request("", length=10**30),
        b"POST / HTTP/1.0\r\n\r\n",
    ],
)
def test_what_is_no_enrolment_is_refused_before_anybody_is_asked(
    office: Office, sent: bytes
) -> None:
    assert office.send(sent)[0] == 400
    assert office.roster.members() == ()


@pytest.mark.parametrize(
    ("sent", "answer"),
    [
        (request("", method="GET"), 501),
        (b"P" * 70_000 + b"\r\n\r\n", 414),
    ],
)
def test_other_requests_are_refused(office: Office, sent: bytes, answer: int) -> None:
    assert office.send(sent)[0] == answer


def test_a_client_that_sends_too_slowly_is_cut_off(make_office: Callable[..., Office]) -> None:
    """All its bytes together have one limit: neither a pause nor a drip holds a place."""
    office = make_office(read_timeout_s=0.2)
    with office.connect() as link:
        link.sendall(request("", length=100))
        assert link.recv(1) == b""
    with office.connect() as link, contextlib.suppress(BrokenPipeError):
        link.sendall(request("", length=1000))
        while not select.select([link], [], [], 0.05)[0]:  # until it is closed
            link.sendall(b"x")
    assert office.enrol(office.token(), office.key("mine"))[0] == 200


def test_more_than_a_few_at_once_are_told_to_come_back(office: Office) -> None:
    token, key = office.token(), office.key("mine")
    links = [office.connect() for _ in range(enrolment_server.AT_ONCE_MAX)]
    assert office.send(b"")[0] == 503
    assert office.enrol(token, key)[0] in (0, 503)
    for link in links:
        link.close()
    while (status := office.enrol(token, key)[0]) != 200:  # until their threads have ended
        assert status in (0, 503)


def test_one_token_shown_by_many_keys_at_once_admits_one(office: Office) -> None:
    office.pause()
    token = office.token()
    keys = [office.key(f"key-{n}") for n in range(enrolment_server.AT_ONCE_MAX)]
    with ThreadPoolExecutor(len(keys)) as pool:
        answers = [pool.submit(office.enrol, token, key) for key in keys]
        while office.waiting() < len(keys):
            pass
        office.go_on()
        statuses = sorted(answer.result()[0] for answer in answers)
    assert statuses == [200] + [403] * (len(keys) - 1)
    assert len(office.roster.members()) == 1


def test_a_supervisor_that_does_not_answer_is_no_refusal(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mailbox, "ANSWER_LIMIT_S", 0.0)
    office.pause()
    assert office.enrol(office.token(), office.key("mine"))[0] == 503
    assert office.waiting() == 0


def test_anybody_may_connect_and_no_token_is_kept(office: Office) -> None:
    """The gateway gave root up, so the socket is open; the token decides."""
    token = office.token()
    office.enrol(token, office.key("mine"))
    assert stat.S_IMODE(office.socket_file.stat().st_mode) == 0o666
    files = [path for path in office.folder.rglob("*") if path.is_file()]
    assert not any(token in path.read_text() for path in files)
