"""What connections that never ask cost an honest node: a coordinator with its gateway, under load.

``python -m campaigns.gateway_load`` holds a thousand connections of each kind, asks as an honest
node meanwhile, waits until the gateway has closed them all, and prints the table. Exit 1 where one
is still open after ``CLOSED_LIMIT_S``, or the honest node's p99 is a second or more.
"""

from __future__ import annotations

import argparse
import contextlib
import selectors
import socket
import ssl
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
from flwr.proto.fleet_pb2 import ActivateNodeRequest, PullMessagesRequest
from flwr.proto.node_pb2 import Node

from campaigns import refused
from onefed.flower import adapter

CONNECTIONS = 1_000
CLOSED_LIMIT_S = 15.0
P99_LIMIT_S = 1.0
GIVE_UP_S = 60.0
DRIPS = 500
"""Below the connections that one address may have by default."""

DRIP_S = 1.0
PAUSE_S = 0.02
"""Between two honest requests."""

HEAD = b"POST /v1/fleet/pull-messages HTTP/1.1\r\nHost: x\r\n"


@dataclass(frozen=True)
class Measured:
    """One kind of connection."""

    kind: str
    count: int
    closed: int
    closed_after_s: float
    """Until the last of those that were closed."""
    asked: int
    p50_s: float
    p99_s: float
    failed: int
    """Honest requests without an answer."""


class Honest:
    """A registered node that asks for messages, again and again."""

    def __init__(self, coordinator: refused.Coordinator) -> None:
        self._key = refused.Key()
        control = adapter.Control(coordinator.behind, coordinator.ca_certificate)
        node_id = control.register_node(self._key.public, "client:0")
        control.close()
        self._client = coordinator.client()
        self._url = f"https://{coordinator.fleet}/v1/fleet/"
        self._post(
            "activate-node",
            ActivateNodeRequest(
                public_key=self._key.public, heartbeat_interval=30.0
            ).SerializeToString(),
        )
        self._pull = PullMessagesRequest(node=Node(node_id=node_id)).SerializeToString()
        self.seconds: list[float] = []
        self.failed = 0

    def ask(self) -> None:
        """One request, over a connection of its own as after a restart, timed."""
        started = time.monotonic()
        try:
            self._post("pull-messages", self._pull)
        except httpx.HTTPError:
            self.failed += 1
        self.seconds.append(time.monotonic() - started)

    def _post(self, name: str, body: bytes) -> None:
        self._client.post(
            self._url + name,
            content=body,
            headers={
                "content-type": "application/protobuf",
                "connection": "close",
                **self._key.headers(),
            },
        ).raise_for_status()


def half_open(coordinator: refused.Coordinator, count: int) -> Iterator[socket.socket]:
    """Connections on which nothing is ever sent."""
    for _ in range(count):
        yield _connect(coordinator)


def half_handshake(coordinator: refused.Coordinator, count: int) -> Iterator[socket.socket]:
    """The first message of a TLS handshake, and no second."""
    trust = ssl.create_default_context(cafile=coordinator.ca_certificate)
    for _ in range(count):
        link, out = _connect(coordinator), ssl.MemoryBIO()
        with contextlib.suppress(ssl.SSLWantReadError):
            trust.wrap_bio(ssl.MemoryBIO(), out, server_hostname="127.0.0.1").do_handshake()
        link.sendall(out.read())
        yield link


def half_header(coordinator: refused.Coordinator, count: int) -> Iterator[socket.socket]:
    """A header without its end."""
    for link in _secured(coordinator, count):
        link.sendall(HEAD)
        yield link


def silent_body(coordinator: refused.Coordinator, count: int) -> Iterator[socket.socket]:
    """A header, and a body that does not come."""
    for link in _secured(coordinator, count):
        link.sendall(HEAD + b"Content-Length: 1000\r\n\r\n")
        yield link


KINDS: Sequence[tuple[str, Callable[..., Iterator[socket.socket]], int, bool]] = (
    ("none", half_open, 0, False),
    ("connected, nothing sent", half_open, CONNECTIONS, False),
    ("half a TLS handshake", half_handshake, CONNECTIONS, False),
    ("half a header", half_header, CONNECTIONS, False),
    ("a header and no body", silent_body, DRIPS, False),
    ("a body of 1 byte/s", silent_body, DRIPS, True),
)


def measure(
    coordinator: refused.Coordinator,
    kind: str,
    hold: Callable[..., Iterator[socket.socket]],
    count: int,
    *,
    drips: bool,
    limit_s: float,
) -> Measured:
    """Hold these connections, ask honestly meanwhile, until all are closed or ``limit_s``."""
    honest = Honest(coordinator)
    with contextlib.ExitStack() as closing, selectors.DefaultSelector() as selector:
        opened = {}
        for link in hold(coordinator, count):
            closing.callback(link.close)
            link.setblocking(False)
            opened[link] = time.monotonic()
            selector.register(link, selectors.EVENT_READ)
            if len(opened) % 50 == 0:
                honest.ask()
        left, last_s = set(opened), 0.0
        started = dripped = time.monotonic()
        while time.monotonic() - started < limit_s and (left or len(honest.seconds) < 100):
            honest.ask()
            for key, _ in selector.select(PAUSE_S):
                link = key.fileobj
                assert isinstance(link, socket.socket)
                if _is_closed(link):
                    selector.unregister(link)
                    left.discard(link)
                    last_s = max(last_s, time.monotonic() - opened[link])
            if drips and time.monotonic() - dripped >= DRIP_S:
                dripped = time.monotonic()
                for link in left:
                    with contextlib.suppress(OSError):
                        link.send(b"x")
    p99_s = statistics.quantiles(honest.seconds, n=100)[98]
    return Measured(
        kind,
        count,
        count - len(left),
        last_s,
        len(honest.seconds),
        statistics.median(honest.seconds),
        p99_s,
        honest.failed,
    )


def _connect(coordinator: refused.Coordinator) -> socket.socket:
    host, _, port = coordinator.fleet.rpartition(":")
    return socket.create_connection((host, int(port)), GIVE_UP_S)


def _secured(coordinator: refused.Coordinator, count: int) -> Iterator[ssl.SSLSocket]:
    trust = ssl.create_default_context(cafile=coordinator.ca_certificate)
    for _ in range(count):
        yield trust.wrap_socket(_connect(coordinator), server_hostname="127.0.0.1")


def _is_closed(link: socket.socket) -> bool:
    """Whether its end has come; an answer before it is read over."""
    try:
        while link.recv(65536):
            pass
    except (BlockingIOError, ssl.SSLWantReadError):
        return False
    except OSError:
        return True
    return True


def main() -> None:
    """Print the table as Markdown."""
    parser = argparse.ArgumentParser(prog="python -m campaigns.gateway_load")
    parser.add_argument("--divide", type=int, default=1, help="so many times fewer connections")
    divide = parser.parse_args().divide
    rows = []
    for kind, hold, count, drips in KINDS:
        with tempfile.TemporaryDirectory() as folder:
            place = refused.Coordinator(Path(folder))
            with place.running() as coordinator:
                limit_s = 2 * CLOSED_LIMIT_S
                rows.append(
                    measure(coordinator, kind, hold, count // divide, drips=drips, limit_s=limit_s)
                )
        row = rows[-1]
        print(  # noqa: T201
            f"| {row.count} | {row.kind} | {row.closed} | {row.closed_after_s:.1f} s | {row.asked} "
            f"| {row.failed} | {row.p50_s * 1000:.0f} ms | {row.p99_s * 1000:.0f} ms |",
            flush=True,
        )
    bad = [
        row
        for row, (*_, drips) in zip(rows, KINDS, strict=True)
        if row.p99_s >= P99_LIMIT_S
        or row.failed
        or (not drips and (row.closed < row.count or row.closed_after_s > CLOSED_LIMIT_S))
    ]
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
