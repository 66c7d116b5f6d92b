"""A web server for one page that a monitoring system asks for, with a bound on everything.

Not the one of the library: that starts a thread for every connection, and waits for each as long as
the other side likes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

PATH = "/metrics"

CONNECTIONS_MAX = 32
"""At one time; more are closed at once."""

HEAD_BYTES_MAX = 8192
"""Of a request, with its headers."""

CONNECTION_LIMIT_S = 5.0
"""For a whole request and its answer, however slowly the bytes come."""


class Page:
    """Answers ``GET /metrics``."""

    def __init__(self, render: Callable[[], bytes], content_type: str) -> None:
        self._render = render
        self._content_type = content_type
        self._open = 0

    async def listen(self, host: str, port: int) -> asyncio.Server:
        """Begin to answer.

        Raises:
            OSError: somebody has that port, or the machine has no such address.
        """
        return await asyncio.start_server(self._connection, host, port, limit=HEAD_BYTES_MAX)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._open >= CONNECTIONS_MAX:
            writer.transport.abort()
            return
        self._open += 1
        try:
            writer.transport.set_write_buffer_limits(0)  # so that drain waits for the last byte
            async with asyncio.timeout(CONNECTION_LIMIT_S):
                head = await reader.readuntil(b"\r\n\r\n")
                writer.write(self._answer(head))
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            writer.transport.abort()  # TimeoutError is an OSError
        except asyncio.CancelledError:
            writer.transport.abort()  # the program ends; nobody waits for this task
        finally:
            self._open -= 1
            writer.close()

    def _answer(self, head: bytes) -> bytes:
        words = head.split(b"\r\n", 1)[0].split(b" ")
        if len(words) != 3 or not words[2].startswith(b"HTTP/1."):
            return _response("400 Bad Request", b"", "text/plain")
        method, target, _ = words
        if target.split(b"?", 1)[0] != PATH.encode():
            return _response("404 Not Found", b"", "text/plain")
        if method not in (b"GET", b"HEAD"):
            return _response("405 Method Not Allowed", b"", "text/plain")
        body = self._render()
        return _response("200 OK", body, self._content_type, with_body=method == b"GET")


def _response(status: str, body: bytes, content_type: str, *, with_body: bool = True) -> bytes:
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n"
        "Connection: close\r\nX-Content-Type-Options: nosniff\r\n\r\n"
    )
    return head.encode() + (body if with_body else b"")
