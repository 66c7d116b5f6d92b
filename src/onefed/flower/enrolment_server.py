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
AT_ONCE_MAX = 8
"""Requests that are answered at a time; the rest is told to come back."""


class Server(socketserver.ThreadingUnixStreamServer):
    """Answers enrolments; a thread for each."""

    daemon_threads = True

    def __init__(self, socket_file: Path, requests: Path) -> None:
        """
        Args:
            socket_file: anybody on this machine may connect to it, as anybody elsewhere may
                connect to the gateway: the token decides.
        """
        socket_file.unlink(missing_ok=True)
        super().__init__(str(socket_file), _Handler)
        socket_file.chmod(0o666)
        self.requests = requests
        self.free = threading.BoundedSemaphore(AT_ONCE_MAX)


def start(socket_file: Path, requests: Path) -> Server:
    """Answer from now on, in threads that end with the program."""
    server = Server(socket_file, requests)
    threading.Thread(target=server.serve_forever, name="enrolment", daemon=True).start()
    return server


class _Handler(http.server.BaseHTTPRequestHandler):
    timeout = READ_TIMEOUT_S
    server: Server

    def do_POST(self) -> None:
        """Enrol a node."""
        if not self.server.free.acquire(blocking=False):
            self._answer(HTTPStatus.SERVICE_UNAVAILABLE, {"error": "Come back in a moment."})
            return
        try:
            status, said = self._enrol()
        finally:
            self.server.free.release()
        self._answer(status, said)

    def _enrol(self) -> tuple[HTTPStatus, dict[str, Any]]:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > BODY_BYTES_MAX:
            return HTTPStatus.BAD_REQUEST, {"error": "An enrolment has a length, of 8 KiB at most."}
        try:
            document = json.loads(self.rfile.read(int(length)))
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
