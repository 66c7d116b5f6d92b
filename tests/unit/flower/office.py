"""A coordinator's roster and its desk, and the real server of enrolments before them."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

from onefed.flower import enrolment_server
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
