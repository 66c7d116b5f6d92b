"""How a node shows its token: to a server with TLS, and to nobody else."""

from __future__ import annotations

import http.server
import json
import ssl
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from onefed.appliance import enrolment, gateway
from onefed.errors import ExitCode
from onefed.tls import material

TOKEN = "onefed-" + "a" * 43
KEY = b"ecdsa-sha2-nistp384 AAAA"


class Coordinator:
    """Answers what it is told to, the last answer again and again, and remembers what was asked."""

    def __init__(self, folder: Path) -> None:
        self.answers: list[tuple[int, bytes]] = [(200, b"{}")]
        self.asked: list[tuple[str, Any]] = []
        self.now_s = 0.0
        made = material.ensure(
            folder, addresses=["127.0.0.1"], extra_sans=[], now=datetime.now(UTC)
        )
        self.ca_certificate = made.ca_certificate_path
        memory = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                memory.asked.append((self.path, json.loads(body)))
                status, said = memory.answers[0]
                if len(memory.answers) > 1:
                    del memory.answers[0]
                self.send_response(status)
                self.send_header("Content-Length", str(len(said)))
                self.end_headers()
                self.wfile.write(said)

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(folder / "server.pem", folder / "server.key")
        self._server.socket = tls.wrap_socket(
            self._server.socket, server_side=True, do_handshake_on_connect=False
        )
        self.endpoint = f"127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds

    def enrol(self, ca_certificate: Path | None = None) -> None:
        enrolment.enrol(
            self.endpoint,
            ca_certificate or self.ca_certificate,
            TOKEN,
            KEY,
            clock=lambda: self.now_s,
            sleep=self.sleep,
        )

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def coordinator(tmp_path: Path) -> Iterator[Coordinator]:
    found = Coordinator(tmp_path / "certs")
    yield found
    found.close()


def refusal(error: str) -> bytes:
    return json.dumps({"error": error}).encode()


def test_token_and_key_are_shown_once_where_the_gateway_takes_them(
    coordinator: Coordinator,
) -> None:
    coordinator.enrol()
    shown = {"token": TOKEN, "public_key": KEY.decode()}
    assert coordinator.asked == [(gateway.ENROLMENT_PATH, shown)]
    assert coordinator.now_s == 0.0


@pytest.mark.parametrize("status", [404, 429, 502, 503, 504])
def test_a_coordinator_that_is_not_ready_is_asked_again(
    coordinator: Coordinator, status: int
) -> None:
    coordinator.answers = [(status, b"<html>"), (status, b""), (200, b"{}")]
    coordinator.enrol()
    assert len(coordinator.asked) == 3
    assert coordinator.now_s == 2 * enrolment.RETRY_S


@pytest.mark.parametrize(
    ("status", "answer", "reason"),
    [
        (403, refusal("the token was used by another key"), "the token was used by another key"),
        (400, b"\xff\x00", "no reason given"),
        (413, b"[]", "no reason given"),
        (403, refusal("\x1b[2J" + "a" * 1000), "\\x1b[2J" + "a" * 296),
    ],
)
def test_a_refusal_is_told_with_its_reason_and_is_the_end(
    coordinator: Coordinator, status: int, answer: bytes, reason: str
) -> None:
    coordinator.answers = [(status, answer)]
    with pytest.raises(enrolment.EnrolmentError) as caught:
        coordinator.enrol()
    assert f"it answered {status}: '{reason}'." in caught.value.message
    assert caught.value.exit_code == ExitCode.BOOT
    assert "onefed nodes token" in (caught.value.hint or "")
    assert TOKEN not in str(caught.value)
    assert len(coordinator.asked) == 1


def test_one_who_is_never_ready_is_given_up(coordinator: Coordinator) -> None:
    coordinator.answers = [(503, b"")]
    with pytest.raises(enrolment.EnrolmentError, match="503"):
        coordinator.enrol()
    assert coordinator.now_s >= enrolment.LIMIT_S


@pytest.mark.parametrize("kind", ["another authority", "nobody"])
def test_the_token_goes_to_nobody_whose_certificate_is_not_the_coordinators(
    coordinator: Coordinator, tmp_path: Path, kind: str
) -> None:
    trusted = coordinator.ca_certificate
    if kind == "another authority":
        elsewhere = tmp_path / "foreign/certs"  # the authority's key lies beside the folder
        foreign = material.ensure(elsewhere, addresses=[], now=datetime.now(UTC))
        trusted = foreign.ca_certificate_path
    else:
        coordinator.close()
    with pytest.raises(enrolment.EnrolmentError) as caught:
        enrolment.enrol(
            coordinator.endpoint,
            trusted,
            TOKEN,
            KEY,
            clock=lambda: coordinator.now_s,
            sleep=lambda _: coordinator.sleep(enrolment.LIMIT_S),
        )
    assert coordinator.asked == []
    assert "FL_SSL_CA_CERTFILE" in (caught.value.hint or "")
    assert TOKEN not in str(caught.value)
