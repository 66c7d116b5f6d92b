"""The exporter's page over a real socket, asked by friends and by others."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import TypeAlias

import pytest

from onefed.telemetry import scrape

BODY = b"fl_training_status 0.0\n"

Talk: TypeAlias = Callable[[int], Awaitable[None]]


def with_page(talk: Talk) -> None:
    async def run() -> None:
        page = scrape.Page(lambda: BODY, "text/plain")
        async with await page.listen("127.0.0.1", 0) as server:
            await talk(server.sockets[0].getsockname()[1])

    asyncio.run(run())


async def ask(port: int, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    writer.write_eof()
    try:
        return await reader.read()
    except ConnectionError:
        return b""
    finally:
        await end(writer)


async def end(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


@pytest.mark.parametrize(
    ("request_", "answer"),
    [
        (b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", b"HTTP/1.1 200 OK"),
        (b"GET /metrics?a=b HTTP/1.0\r\n\r\n", b"HTTP/1.1 200 OK"),
        (b"HEAD /metrics HTTP/1.1\r\n\r\n", b"HTTP/1.1 200 OK"),
        (b"GET / HTTP/1.1\r\n\r\n", b"HTTP/1.1 404 Not Found"),
        (b"GET /metrics/../x HTTP/1.1\r\n\r\n", b"HTTP/1.1 404 Not Found"),
        (b"POST /metrics HTTP/1.1\r\n\r\n", b"HTTP/1.1 405 Method Not Allowed"),
        (b"\x16\x03\x01\r\n\r\n", b"HTTP/1.1 400 Bad Request"),
        (b"GET /metrics\r\n\r\n", b"HTTP/1.1 400 Bad Request"),
        (b"GET /metrics HTTP/1.1\r\nX: " + b"a" * scrape.HEAD_BYTES_MAX * 2, b""),
        (b"GET /metrics HTTP/1.1\r\n", b""),
    ],
)
def test_what_is_asked_and_answered(request_: bytes, answer: bytes) -> None:
    async def talk(port: int) -> None:
        said = await ask(port, request_)
        assert said.split(b"\r\n")[0] == answer
        assert said.endswith(BODY) == (b" 200 " in answer and request_.startswith(b"GET"))
        assert b"200" in await ask(port, b"GET /metrics HTTP/1.1\r\n\r\n"), "it goes on"

    with_page(talk)


def test_who_says_nothing_holds_a_place_for_a_while_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scrape, "CONNECTION_LIMIT_S", 0.2)

    async def talk(port: int) -> None:
        opened = [
            await asyncio.open_connection("127.0.0.1", port) for _ in range(scrape.CONNECTIONS_MAX)
        ]
        for _, writer in opened:
            writer.write(b"GET /metrics")
        assert await ask(port, b"GET /metrics HTTP/1.1\r\n\r\n") == b"", "there are no more places"
        for reader, writer in opened:
            assert await reader.read() == b""
            await end(writer)
        assert b"200" in await ask(port, b"GET /metrics HTTP/1.1\r\n\r\n")

    with_page(talk)
