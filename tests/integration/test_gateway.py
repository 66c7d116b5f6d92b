"""A real nginx with our configuration, in front of a server that remembers all it is asked."""

from __future__ import annotations

import contextlib
import http.server
import re
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from tests.unit.flower.office import Office

from onefed.appliance import enrolment, gateway, machine
from onefed.tls import material

ANSWER_LIMIT_S = 30.0
"""Above every limit of the gateway."""

STOP_LIMIT_S = 10.0


class Behind:
    """What stands in the SuperLink's place: TLS, and a memory of every request that arrives."""

    def __init__(self, certificates: Path) -> None:
        self.seen: list[str] = []
        """``METHOD path body-length``, in order."""
        memory = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _answer(self) -> None:
                length = int(self.headers.get("Content-Length", 0))
                self.rfile.read(length)
                memory.seen.append(f"{self.command} {self.path} {length}")
                self.send_response(200)
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"ok")

            do_GET = do_POST = do_PUT = do_HEAD = _answer  # noqa: N815

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(certificates / "server.pem", certificates / "server.key")
        self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.address = f"127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class Rig:
    """The gateway, what is behind it, and a way to send bytes to it."""

    def __init__(self, folder: Path, nginx: str) -> None:
        self.nginx = nginx
        self.folder = folder
        self.certificates = folder / "certs"
        material.ensure(
            self.certificates, addresses=["127.0.0.1"], extra_sans=[], now=datetime.now(UTC)
        )
        self.behind = Behind(self.certificates)
        self.log = folder / "access.log"
        self.fleet = machine.free_port()
        self.control = machine.free_port()
        (folder / "gateway").mkdir()
        self._trust = ssl.create_default_context(cafile=self.certificates / "ca.crt")
        self._nginx: subprocess.Popen[bytes] | None = None

    def start(self, **changed: str) -> None:
        certificates = self.certificates
        text = gateway.configuration(
            gateway.Gateway(
                fleet_address=f"127.0.0.1:{self.fleet}",
                control_address=f"127.0.0.1:{self.control}",
                superlink_address=self.behind.address,
                tls=gateway.Tls(
                    ca_certificate=certificates / changed.get("ca", "ca.crt"),
                    certificate=certificates / "server.pem",
                    key=certificates / "server.key",
                    superlink_name=changed.get("name", "localhost"),
                ),
                folder=self.folder / "gateway",
                access_log=self.log,
                enrolment_socket="gateway/enrolment.sock",
                connections_per_address=512,
                requests_per_s=200,
                keepalive_time_s=60,
                keepalive_timeout_s=20,
                workers_stay_root=True,
            )
        )
        file = self.folder / "gateway.conf"
        file.write_text(text)
        argv = [self.nginx, *gateway.arguments(self.folder / "gateway", file)]
        gateway.check(argv, self.folder)
        with (self.folder / "error.log").open("wb") as errors:
            self._nginx = subprocess.Popen(argv, cwd=self.folder, env={}, stderr=errors)
        while self.ask(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n") == b"":
            assert self._nginx.poll() is None, (self.folder / "error.log").read_text()
        self.behind.seen.clear()

    def connect(self, port: int | None = None) -> ssl.SSLSocket:
        plain = socket.create_connection(("127.0.0.1", port or self.fleet), ANSWER_LIMIT_S)
        return self._trust.wrap_socket(plain, server_hostname="127.0.0.1")

    def ask(self, sent: bytes, port: int | None = None) -> bytes:
        """Send bytes, and nothing after them; what comes back before the connection is closed, or
        the first answer. Nothing when there is nobody."""
        received = b""
        try:
            with self.connect(port) as link:
                link.sendall(sent)
                while b"\r\n\r\n" not in received:
                    piece = link.recv(65536)
                    if not piece:
                        break
                    received += piece
        except OSError:
            return received
        return received

    def status(self, sent: bytes, port: int | None = None) -> int:
        """Status of the answer; 0 when the connection was closed without one."""
        words = self.ask(sent, port).split(b" ", 2)
        return int(words[1]) if len(words) > 1 and words[0].startswith(b"HTTP/") else 0

    def stop(self) -> None:
        if self._nginx is not None:
            self._nginx.terminate()
            self._nginx.wait(STOP_LIMIT_S)
        self.behind.stop()


@pytest.fixture(scope="module")
def rig(nginx: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    found = Rig(tmp_path_factory.mktemp("gateway"), nginx)
    try:
        found.start()
        yield found
    finally:
        found.stop()


@pytest.fixture(autouse=True)
def _forget(rig: Rig) -> None:
    rig.behind.seen.clear()


def request(path: str, *lines: str, method: str = "POST", body: bytes = b"") -> bytes:
    head = [f"{method} {path} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", *lines]
    return "\r\n".join(head).encode("latin-1") + b"\r\n\r\n" + body


# --- what goes through ---------------------------------------------------------------------------


def test_fleet_and_health_go_through_and_control_by_its_own_address(rig: Rig) -> None:
    assert rig.status(request("/v1/fleet/pull-messages", body=b"abc")) == 200
    assert rig.status(request("/health", method="GET")) == 200
    assert rig.status(request("/v1/control/list-runs"), rig.control) == 200
    assert rig.behind.seen == [
        "POST /v1/fleet/pull-messages 3",
        "GET /health 0",
        "POST /v1/control/list-runs 0",
    ]


def test_a_chunk_of_a_model_goes_through_whole(rig: Rig) -> None:
    chunk = bytes(5 * 2**20)
    assert rig.status(request("/v1/fleet/push-object", body=chunk)) == 200
    assert rig.behind.seen == [f"POST /v1/fleet/push-object {len(chunk)}"]


def test_a_node_with_a_token_gets_in_and_nobody_else(rig: Rig) -> None:
    """The node's own client, this nginx, and the coordinator's server of enrolments."""
    office = Office(rig.folder / "gateway")

    def enrol(token: str, key: str) -> None:
        address = f"127.0.0.1:{rig.fleet}"
        enrolment.enrol(
            *(address, rig.certificates / "ca.crt", token, key.encode()),
            clock=time.monotonic,
            sleep=time.sleep,
        )

    try:
        token, mine = office.token(client="site-7"), office.key("mine")
        enrol(token, mine)
        enrol(token, mine)  # its answer was lost: no mistake
        for wrong, key in (("onefed-" + "a" * 43, mine), (token, office.key("another"))):
            with pytest.raises(enrolment.EnrolmentError, match="403"):
                enrol(wrong, key)
        assert [each.client for each in office.roster.members()] == ["site-7"]
    finally:
        office.close()
    assert rig.behind.seen == [], "the SuperLink hears nothing of it"
    assert token not in rig.log.read_text()


# --- every spelling of a path that is not for nodes ----------------------------------------------

HIDDEN = (
    "/v1/control/start-run",
    "//v1/control/start-run",
    "/v1//control/start-run",
    "/v1/./control/start-run",
    "/v1/fleet/../control/start-run",
    "/v1/fleet/..%2fcontrol/start-run",
    "/v1/fleet%2f..%2fcontrol/start-run",
    "/v1/fleet/%2e%2e/control/start-run",
    "/v1/fleet/%2E%2E%2Fcontrol%2Fstart-run",
    "/v1/fleet/.%2e/control/start-run",
    "/v1/fleet/%252e%252e/control/start-run",
    "/v1/%63ontrol/start-run",
    "/V1/Control/start-run",
    "/v1/CONTROL/start-run",
    "/v1/control;/start-run",
    "/v1/fleet;/../control/start-run",
    "/v1/fleet/pull-messages/../../control/start-run",
    "/v1/fleet/pull-messages;x",
    "/v1/fleet/pull-messages%00",
    "/v1/fleet/pull-messages/",
    "/v1/fleet/pull-messages?x=/v1/control/start-run",
    "/v1/fleet/",
    "/v1/fleet",
    "/v1/fleet\\..\\control\\start-run",
    "http://127.0.0.1/v1/control/start-run",
    "https://x/v1/fleet/../control/start-run",
    "https://x//v1/control/start-run",
    "/v1/runtime/acquire-task",
    "/v1/fleet/../runtime/acquire-task",
    "/v1/runtime%2facquire-task",
    "/v1/fleet#/../control/start-run",
    "/docs",
    "/openapi.json",
    "/",
    "*",
)
"""Paths on the Fleet address. Some are ill-formed, and no server but ours decides what they are."""


@pytest.mark.parametrize("path", HIDDEN)
def test_no_other_path_reaches_the_superlink(rig: Rig, path: str) -> None:
    assert rig.status(request(path)) in (400, 404, 429)
    assert rig.behind.seen == []


@pytest.mark.parametrize("path", ["/v1/control/\0", "/v1/fleet/\0", "/v1/fleet/pull-messages\0"])
def test_a_nul_reaches_nobody(rig: Rig, path: str) -> None:
    assert rig.status(request(path)) in (0, 400)
    assert rig.behind.seen == []


@pytest.mark.parametrize("path", ["/v1/fleet/pull-messages", "/v1/runtime/acquire-task", "/health"])
def test_the_control_address_serves_nothing_else(rig: Rig, path: str) -> None:
    assert rig.status(request(path), rig.control) in (404, 429)
    assert rig.behind.seen == []


# --- requests that are none ----------------------------------------------------------------------

FLEET = "/v1/fleet/pull-messages"
SECOND = request("/v1/control/start-run")

MALFORMED = {
    "length and chunks": request(FLEET, "Transfer-Encoding: chunked", body=b"0\r\n\r\n" + SECOND),
    "two lengths": request(FLEET, "Content-Length: 0", body=SECOND),
    "a length that is none": request(FLEET).replace(b"Length: 0", b"Length: +0"),
    "negative length": request(FLEET).replace(b"Length: 0", b"Length: -1"),
    "unknown coding": request(FLEET, "Transfer-Encoding: chunked, x").replace(
        b"Content-Length: 0\r\n", b""
    ),
    "coding in another spelling": request(FLEET, "Transfer-Encoding: xchunked").replace(
        b"Content-Length: 0\r\n", b""
    ),
    "folded header": request(FLEET, "X: a", " b"),
    "space before the colon": request(FLEET, "X : a"),
    "header of 1 MB": request(FLEET, "X: " + "a" * 2**20),
    "a thousand headers": request(FLEET, *(f"X-{i}: {'a' * 100}" for i in range(1000))),
    "no Host": b"POST /v1/fleet/pull-messages HTTP/1.1\r\nContent-Length: 0\r\n\r\n",
    "two Hosts": request(FLEET, "Host: y"),
    "HTTP/0.9": b"GET /health\r\n",
    "HTTP/2.0 in words": b"POST /v1/fleet/pull-messages HTTP/2.0\r\nHost: x\r\n\r\n",
    "TRACE": request(FLEET, method="TRACE"),
    "CONNECT": request("127.0.0.1:9091", method="CONNECT"),
    "GET": request(FLEET, method="GET"),
    "PUT": request(FLEET, method="PUT"),
    "Upgrade": request(FLEET, "Upgrade: websocket", "Connection: Upgrade"),
    "HTTP/2 upgrade": request(FLEET, "Upgrade: h2c", "Connection: Upgrade, HTTP2-Settings"),
    "POST of health": request("/health"),
    "bad chunk": request(FLEET, "Transfer-Encoding: chunked", body=b"zz\r\n").replace(
        b"Content-Length: 4\r\n", b""
    ),
}


@pytest.mark.parametrize("sent", MALFORMED.values(), ids=list(MALFORMED))
def test_a_malformed_request_is_refused_and_nothing_follows_it(rig: Rig, sent: bytes) -> None:
    assert rig.status(sent) in (0, 400, 404, 405, 408, 413, 414, 431, 494, 501, 505)
    assert rig.behind.seen == []


def test_bare_line_feeds_make_one_request_with_one_path(rig: Rig) -> None:
    """nginx takes them for line ends; what goes on is written anew."""
    rig.status(request(FLEET).replace(b"\r\n", b"\n"))
    assert rig.behind.seen in ([], ["POST /v1/fleet/pull-messages 0"])


def test_a_second_request_on_a_connection_is_judged_for_itself(rig: Rig) -> None:
    with rig.connect() as link:
        link.sendall(request(FLEET, body=b"abc") + SECOND + request("/health", method="GET"))
        received = b""
        while received.count(b"HTTP/1.1 ") < 3:
            piece = link.recv(65536)
            assert piece, received
            received += piece
    first, second, third = re.findall(rb"HTTP/1.1 ([0-9]{3})", received)
    assert (first, third) == (b"200", b"200")
    assert second in (b"404", b"429")
    assert rig.behind.seen == ["POST /v1/fleet/pull-messages 3", "GET /health 0"]


# --- bodies --------------------------------------------------------------------------------------


def test_a_body_beyond_the_limit_is_refused_before_it_is_sent(rig: Rig) -> None:
    head = request(FLEET).replace(b"Content-Length: 0", b"Content-Length: 805306368")
    assert rig.status(head) == 413
    assert rig.status(head.replace(b"/v1/fleet/pull-messages", b"/health")) == 413
    assert rig.behind.seen == []


def test_a_body_in_chunks_ends_at_the_limit(rig: Rig) -> None:
    head = request(FLEET, "Transfer-Encoding: chunked").replace(b"Content-Length: 0\r\n", b"")
    piece = b"100000\r\n" + bytes(2**20) + b"\r\n"
    assert rig.status(head + 9 * piece) == 413
    assert rig.behind.seen == []


def test_only_a_part_of_a_message_may_be_large(rig: Rig) -> None:
    """The SuperLink parses before it asks for a key, and a small body can be many objects."""
    body = bytes(gateway.FLEET_BODY_BYTES_MAX + 1)
    assert rig.status(request("/v1/fleet/push-messages", body=body)) == 413
    assert rig.status(request("/v1/fleet/push-messages", body=body[:-1])) == 200
    for odd in ("//v1/fleet/push-object", "/v1/fleet/push-object?", "/v1/fleet/push-object/"):
        assert rig.status(request(odd)) in (404, 429)
    assert len(rig.behind.seen) == 1


def test_control_takes_a_bundle_and_no_more(rig: Rig) -> None:
    path = "/v1/control/start-run"
    assert rig.status(request(path, body=bytes(15 * 2**20)), rig.control) == 200
    head = request(path).replace(b"Content-Length: 0", b"Content-Length: 17825792")
    assert rig.status(head, rig.control) == 413


def test_a_body_that_never_ends_is_not_seen_behind(rig: Rig) -> None:
    with rig.connect() as link:
        link.sendall(request(FLEET).replace(b"Content-Length: 0", b"Content-Length: 100"))
        link.sendall(b"x")
        rig.status(request("/health", method="GET"))
    assert rig.behind.seen == ["GET /health 0"]


# --- the channel ---------------------------------------------------------------------------------


def test_only_tls_1_2_and_newer_with_aead(rig: Rig) -> None:
    old = ssl.create_default_context(cafile=rig.certificates / "ca.crt")
    old.set_ciphers("ECDHE-RSA-AES128-SHA:ECDHE-RSA-AES256-SHA384:AES128-GCM-SHA256")
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError), socket.create_connection(("127.0.0.1", rig.fleet)) as plain:
        old.wrap_socket(plain, server_hostname="127.0.0.1")
    new = ssl.create_default_context(cafile=rig.certificates / "ca.crt")
    new.maximum_version = ssl.TLSVersion.TLSv1_2
    plain = socket.create_connection(("127.0.0.1", rig.fleet))
    with new.wrap_socket(plain, server_hostname="127.0.0.1") as link:
        assert link.version() == "TLSv1.2"


def test_plain_http_is_refused(rig: Rig) -> None:
    with socket.create_connection(("127.0.0.1", rig.fleet), ANSWER_LIMIT_S) as link:
        link.sendall(request(FLEET))
        assert link.recv(100).startswith(b"HTTP/1.1 400")
    assert rig.behind.seen == []


def test_what_has_another_certificate_is_not_taken_for_the_superlink(
    rig: Rig, tmp_path: Path
) -> None:
    """A program that took the SuperLink's port gets no request, and so no node's headers."""
    stranger = Rig(tmp_path, rig.nginx)
    foreign = tmp_path / "certs" / "foreign.crt"
    foreign.write_bytes((rig.certificates / "ca.crt").read_bytes())
    try:
        stranger.start(ca="foreign.crt")
        assert stranger.status(request(FLEET)) == 502
        assert stranger.behind.seen == []
    finally:
        stranger.stop()


# --- connections that never ask ------------------------------------------------------------------

HELD = 40
"""Of each kind; ``campaigns.gateway_load`` holds a thousand and measures."""


def test_what_never_asks_is_closed_and_keeps_nobody_out(rig: Rig) -> None:
    hello = ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        ssl.create_default_context().wrap_bio(
            ssl.MemoryBIO(), hello, server_hostname="127.0.0.1"
        ).do_handshake()
    first = hello.read()
    with contextlib.ExitStack() as closing:
        held: list[socket.socket] = []
        for sent in (b"", first, first[:9]):
            for _ in range(HELD):
                link = socket.create_connection(("127.0.0.1", rig.fleet), ANSWER_LIMIT_S)
                held.append(closing.enter_context(link))
                link.sendall(sent)
        for sent in (b"POST", request(FLEET).replace(b"Length: 0", b"Length: 9")):
            for _ in range(HELD):
                held.append(closing.enter_context(rig.connect()))
                held[-1].sendall(sent)
        for _ in range(HELD):
            assert rig.status(request(FLEET, body=b"abc")) == 200
        for link in held:
            with contextlib.suppress(ConnectionError, ssl.SSLError):
                while link.recv(65536):
                    pass  # the end comes before the limit of the socket, or this raises
    assert set(rig.behind.seen) == {"POST /v1/fleet/pull-messages 3"}


# --- the log -------------------------------------------------------------------------------------


def test_refusals_are_logged_and_no_header_is(rig: Rig) -> None:
    secret = "c2lnbmF0dXJlLW9mLWEtbm9kZQ"
    rig.status(request("/v1/control/start-run", f"flwr-signature: {secret}"))
    rig.status(request(FLEET, f"flwr-signature: {secret}"))
    while "/v1/control/start-run" not in (written := rig.log.read_text()):
        pass
    assert secret not in written + (rig.folder / "error.log").read_text()
