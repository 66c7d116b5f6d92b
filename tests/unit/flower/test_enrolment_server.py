"""Where a token is shown: at its socket, before a desk with a real roster."""

from __future__ import annotations

import contextlib
import json
import select
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest

from onefed.flower import enrolment_server, mailbox
from onefed.flower.desk import Desk
from onefed.flower.roster import Roster
from onefed.tls import enrolment, node_keys

LIMIT_S = 30.0


class Office:
    """A roster, its desk, who looks into the mailbox, and the server before it."""

    def __init__(self, folder: Path, read_timeout_s: float = LIMIT_S) -> None:
        self.folder = folder
        self.now = datetime(2026, 1, 1, tzinfo=UTC)
        self.roster = Roster(folder / "nodes.json", lambda: self.now)
        self.socket_file = folder / "enrolment.sock"
        told = SimpleNamespace(requests=folder / "requests", enrolment_socket=self.socket_file)
        self._desk = Desk(
            told,  # type: ignore[arg-type]
            self.roster,
            None,  # type: ignore[arg-type]
            None,  # type: ignore[arg-type]
            control=None,  # type: ignore[arg-type]
            now=lambda: self.now,
        )
        self._closed = threading.Event()
        self._is_open = threading.Event()
        self._is_open.set()
        self._server = enrolment_server.Server(
            self.socket_file, told.requests, read_timeout_s=read_timeout_s
        )
        self._threads = [
            threading.Thread(target=self._server.serve_forever, args=(0.01,)),
            threading.Thread(target=self._look),
        ]
        for thread in self._threads:
            thread.start()

    def _look(self) -> None:
        while not self._closed.wait(0.01):
            if self._is_open.is_set():
                self._desk.look()

    def pause(self) -> None:
        """Whoever asks from now on waits, until ``go_on``."""
        self._is_open.clear()

    def go_on(self) -> None:
        self._is_open.set()

    def waiting(self) -> int:
        """Requests that nobody has looked at."""
        return len(list((self.folder / "requests").glob("*.request.json")))

    def token(self, *, client: str = "", lifetime_s: int = 60) -> str:
        made = enrolment.new_token()
        expires_at = self.now + timedelta(seconds=lifetime_s)
        self.roster.add_token(enrolment.digest(made), expires_at=expires_at, client=client)
        return made

    def key(self, name: str) -> str:
        return node_keys.ensure(self.folder / name).public_key.decode()

    def connect(self) -> socket.socket:
        link = socket.socket(socket.AF_UNIX)
        link.settimeout(LIMIT_S)
        link.connect(str(self.socket_file))
        return link

    def send(self, sent: bytes) -> tuple[int, str]:
        """Status and body of the answer; 0 where there is none."""
        received = b""
        with self.connect() as link, contextlib.suppress(OSError):
            link.sendall(sent)
            while piece := link.recv(65536):
                received += piece
        head, _, body = received.decode().partition("\r\n\r\n")
        return (int(head.split()[1]) if head else 0), body

    def enrol(self, token: object, public_key: object) -> tuple[int, str]:
        return self.send(request(json.dumps({"token": token, "public_key": public_key})))

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._closed.set()
        for thread in self._threads:
            thread.join(LIMIT_S)


def request(body: str, length: int | str | None = None, method: str = "POST") -> bytes:
    said = len(body) if length is None else length
    return f"{method} / HTTP/1.0\r\nContent-Length: {said}\r\n\r\n{body}".encode()


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
