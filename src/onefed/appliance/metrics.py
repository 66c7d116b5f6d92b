"""Serves a coordinator's metrics, whether a run lives or not: what Prometheus asks.

``python -P -m onefed.appliance.metrics --address A --port P --events FILE ...``: it follows the
event log that the coordinator's programs write, reads the two certificates at each look, and has
no secret and nothing to write. Where its port is taken it says so once and tries again: no
training waits for it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import httpx

from onefed.errors import StorageError
from onefed.telemetry import exposition, scrape
from onefed.telemetry.log import Follower
from onefed.telemetry.metrics import Metrics
from onefed.tls import material

RETRY_S = 10.0
"""Between two tries to get a port that is taken."""

POLLS_MAX = 16
"""Of the log at one look, each of ``log.POLL_BYTES_MAX``; the rest comes at the next."""

ANSWER_TIMEOUT_S = 2.0

LABELS = {material.CA_CERTIFICATE: "ca", material.SERVER_CERTIFICATE: "server"}
"""Of a certificate, by the name of its file."""


@dataclass(frozen=True)
class Options:
    """The command line."""

    address: str
    port: int
    events: Path
    certificates: Path
    strategy: str
    """FL_STRATEGY; until a run says which it has."""
    rounds: int
    """FL_NUM_ROUNDS, likewise."""


class Exporter:
    """Renders the page; each time with what was written since the last."""

    def __init__(self, options: Options) -> None:
        self._follower = Follower(options.events)
        self._metrics = Metrics(strategy=options.strategy, round_total=options.rounds)
        self._certificates = options.certificates

    def render(self) -> bytes:
        """The whole page."""
        with contextlib.suppress(StorageError):  # what is known stays, until it can be read
            for _ in range(POLLS_MAX):
                if not (records := self._follower.poll()):
                    break
                self._metrics.fold(records)
        return exposition.text(self._metrics, self._expiries())

    def _expiries(self) -> Mapping[str, datetime]:
        """A file that is not there, or not ours to read, is left out."""
        return {LABELS[name]: end for name, end in material.ends(self._certificates).items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until told to stop."""
    options = _options(arguments)
    page = scrape.Page(Exporter(options).render, exposition.CONTENT_TYPE)
    asyncio.run(_serve(page, options))
    return 0


async def _serve(page: scrape.Page, options: Options) -> None:
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    where, said = f"{options.address}:{options.port}", ""
    while not stopping.is_set():
        try:
            server = await page.listen(options.address, options.port)
        except OSError as error:
            if said != (said := f"{where} cannot be used, so there are no metrics: {error}"):
                _say(said)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stopping.wait(), RETRY_S)
            continue
        _say(f"metrics on http://{where}{scrape.PATH}")
        async with server:
            await stopping.wait()


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def is_served(address: str, port: int) -> bool:
    """Whether our metrics answer there."""
    try:
        with httpx.Client(timeout=ANSWER_TIMEOUT_S, trust_env=False) as client:
            answer = client.get(f"http://{address}:{port}{scrape.PATH}")
    except httpx.HTTPError:
        return False
    return answer.status_code == httpx.codes.OK and b"fl_training_status" in answer.content


def _options(arguments: Sequence[str] | None) -> Options:
    parser = argparse.ArgumentParser(prog="python -m onefed.appliance.metrics")
    parser.add_argument("--address", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--events", type=Path, required=True)
    parser.add_argument("--certificates", type=Path, required=True)
    parser.add_argument("--strategy", required=True)
    parser.add_argument("--rounds", type=int, required=True)
    return Options(**vars(parser.parse_args(arguments)))


if __name__ == "__main__":
    raise SystemExit(main())
