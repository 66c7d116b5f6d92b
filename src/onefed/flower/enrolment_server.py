"""Where a node with an enrolment token is answered: HTTP on a socket file, behind the gateway.

The gateway passes on ``POST /v1/onefed/enrol`` with at most 8 KiB, once a second for an address:
an object with ``token`` and ``public_key`` (OpenSSH text). The answer is 200, or 403 with a reason.
The supervisor's one loop decides: this asks it as everybody does (``mailbox``), with the digest of
the token.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import socket
import socketserver
import threading
import time
from http import HTTPStatus
from pathlib import Path
from typing import Any

from onefed.errors import OnefedError
from onefed.flower import mailbox
from onefed.tls import enrolment

BODY_BYTES_MAX = 8 * 2**10
READ_TIMEOUT_S = 10.0
"""For a whole request. The gateway hands one on when it has all of it."""

AT_ONCE_MAX = 8
"""Connections at a time; the rest is told to come back, which a node does."""

_BUSY = b"HTTP/1.0 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"


class Server(socketserver.ThreadingUnixStreamServer):
    """Answers enrolments; a thread for each."""

    daemon_threads = True
    request_queue_size = 64
    """Connections that nobody has taken yet. With a socket file a full queue is an error at once,
    not a wait."""

    def __init__(
        self, socket_file: Path, requests: Path, *, read_timeout_s: float = READ_TIMEOUT_S
    ) -> None:
        """
        Args:
            socket_file: anybody on this machine may connect to it, as anybody elsewhere may
                connect to the gateway: the token decides.
        """
        socket_file.unlink(missing_ok=True)
        super().__init__(str(socket_file), _Handler)
        socket_file.chmod(0o666)
        self.requests = requests
        self.read_timeout_s = read_timeout_s
        self._free = threading.BoundedSemaphore(AT_ONCE_MAX)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread, or say that enough are at work."""
        if self._free.acquire(blocking=False):
            try:
                super().process_request(request, client_address)
            except BaseException:
                self._free.release()  # there was no thread to be had
                raise
            return
        with contextlib.suppress(OSError):
            request.setblocking(False)
            request.sendall(_BUSY)
        self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer one, and let the next one in."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Whoever asked has gone: nobody is left to tell."""


def start(socket_file: Path, requests: Path) -> Server:
    """Answer from now on, in threads that end with the program."""
    server = Server(socket_file, requests)
    threading.Thread(target=server.serve_forever, name="enrolment", daemon=True).start()
    return server


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def setup(self) -> None:
        """Give the request its time, all pieces together."""
        super().setup()
        self._limit = threading.Timer(self.server.read_timeout_s, self._give_up)
        self._limit.daemon = True
        self._limit.start()

    def finish(self) -> None:
        """Be done with the connection."""
        self._limit.cancel()
        super().finish()

    def do_POST(self) -> None:
        """Enrol a node."""
        self._answer(*self._enrol())

    def _give_up(self) -> None:
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def _enrol(self) -> tuple[HTTPStatus, dict[str, Any]]:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > BODY_BYTES_MAX:
            return HTTPStatus.BAD_REQUEST, {"error": "An enrolment has a length, of 8 KiB at most."}
        body = self.rfile.read(int(length))
        self._limit.cancel()
        try:
            document = json.loads(body)
            token, public_key = document["token"], document["public_key"]
            if not isinstance(public_key, str) or not enrolment.is_token(token):
                raise ValueError
        except (ValueError, KeyError, TypeError, RecursionError):
            return HTTPStatus.BAD_REQUEST, {"error": "An enrolment has a token and a public_key."}
        what = {"sha256": enrolment.digest(token), "public_key": public_key}
        try:
            done = mailbox.ask(
                self.server.requests, "enrol", what, clock=time.monotonic, sleep=time.sleep
            )
        except mailbox.UnansweredError:
            return HTTPStatus.SERVICE_UNAVAILABLE, {"error": "The coordinator is busy."}
        except OnefedError as error:
            return HTTPStatus.FORBIDDEN, {"error": error.message}
        return HTTPStatus.OK, dict(done)

    def _answer(self, status: HTTPStatus, document: dict[str, Any]) -> None:
        body = json.dumps(document).encode()
        with contextlib.suppress(OSError):
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        self.close_connection = True

    def address_string(self) -> str:
        """A socket file has no addresses."""
        return "gateway"

    def log_message(self, *_: object) -> None:
        """The gateway logs refusals; a body with a token is in no log."""
