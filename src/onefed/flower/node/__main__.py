"""``python -m onefed.flower.node``: a node, until SIGTERM.

SIGTERM lets the app finish its message for ``--drain-s`` seconds, or answers for it with an error;
then the node leaves and exits with 0.
"""

from __future__ import annotations

import argparse
import logging
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from onefed import failpoints
from onefed.errors import OnefedError
from onefed.flower import adapter_fleet
from onefed.flower.lifesign import LifeSign
from onefed.flower.node import calls, forks
from onefed.flower.node.health import Health
from onefed.flower.node.keepalive import Keepalive
from onefed.flower.node.loop import Limits, Node, Wake
from onefed.flower.node.membership import Heart, Membership
from onefed.flower.node.workers import Start, Workers
from onefed.telemetry import events, voice
from onefed.telemetry.log import EventLog
from onefed.tls import node_keys

_LOG = logging.getLogger("onefed")

FLEET_SIZE_DEFAULT = 30
"""Of a node whose configuration does not say num-partitions."""

PLAIN_KEY = "plain"
"""Folder of the key that is shown where there is no TLS: the other one is never shown in plain."""

PRESENT = "present.json"
"""File beside the key with the node id, while the node is present."""

DRAIN_S_DEFAULT = 8.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a node; returns its exit code."""
    # First of all: the nursery has to come from a process without threads.
    nursery = forks.start_nursery(failpoints.from_environ(os.environ))
    options = _options(arguments)
    voice.configure(_LOG, "supernode", os.environ)
    wake = Wake()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, wake.stop)
    workers = Workers(nursery, Start(options.app_start))
    try:
        return _run(options, workers, wake)
    except OnefedError as error:
        _LOG.error("%s", error)
        return int(error.exit_code)
    finally:
        workers.close()


def _run(options: argparse.Namespace, workers: Workers, wake: Wake) -> int:
    node_config = adapter_fleet.node_config(options.node_config)
    fleet_size = node_config.get("num-partitions", FLEET_SIZE_DEFAULT)
    folder = options.identity if options.root_certificates else options.identity / PLAIN_KEY
    key = node_keys.ensure(folder)
    fleet = adapter_fleet.Fleet(
        options.superlink,
        options.root_certificates,
        node_keys.private_key(key.private_key_path),
        Keepalive(options.keepalive_time, options.keepalive_timeout).socket_options(),
    )
    membership = Membership(
        fleet, options.superlink, folder / PRESENT, registers=options.root_certificates is None
    )
    # Not for anything secret: it keeps the nodes of a fleet out of step.
    uniform = random.Random().random  # noqa: S311
    node = Node(
        fleet,
        membership,
        workers,
        node_config=node_config,
        fleet_size=fleet_size if isinstance(fleet_size, int) and fleet_size > 0 else 1,
        limits=Limits(options.max_retries, options.max_wait_time, options.drain_s),
        wake=wake,
        clock=time.monotonic,
        wall_clock=lambda: datetime.now(UTC).timestamp(),
        random=uniform,
        warn=_warner(),
        note=calls.Calls(folder, lambda: datetime.now(UTC)).note,
        joined=LifeSign(os.environ).give,
    )
    heart = Heart(fleet, membership, uniform)
    health = Health(
        options.host,
        options.port,
        lambda: {
            "status": "ok",
            "connected": node.is_connected,
            "working": node.is_working,
            "messages": node.message_count,
            "round": node.round_name,
        },
    )
    try:
        heart.start()
        node.run()
    finally:
        heart.stop()
        health.stop()
        fleet.close()
    return 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="onefed.flower.node", description=__doc__)
    parser.add_argument("--superlink", required=True, metavar="HOST:PORT")
    trust = parser.add_mutually_exclusive_group(required=True)
    trust.add_argument("--root-certificates", type=Path, metavar="FILE")
    trust.add_argument("--insecure", action="store_true", help="plain HTTP")
    parser.add_argument(
        "--identity", type=Path, required=True, metavar="FOLDER", help="of the node's key"
    )
    parser.add_argument("--node-config", default="", metavar="PAIRS")
    parser.add_argument("--host", default="127.0.0.1", help="of GET /health")
    parser.add_argument("--port", type=int, default=9094, help="of GET /health")
    parser.add_argument("--max-retries", type=int, metavar="N")
    parser.add_argument("--max-wait-time", type=float, metavar="SECONDS")
    parser.add_argument("--keepalive-time", type=int, default=60, metavar="SECONDS")
    parser.add_argument("--keepalive-timeout", type=int, default=20, metavar="SECONDS")
    parser.add_argument("--app-start", choices=list(Start), default=Start.AUTO)
    parser.add_argument("--drain-s", type=float, default=DRAIN_S_DEFAULT, metavar="SECONDS")
    return parser.parse_args(arguments)


def _warner() -> Callable[[str], None]:
    """Tells people: in the log of the node, and as an event of the federation if it has any."""
    path = os.environ.get("ONEFED_EVENTS")
    log = EventLog(Path(path), "supernode", lambda: datetime.now(UTC)) if path else None

    def warn(text: str) -> None:
        _LOG.warning("%s", text)
        if log is not None:
            log.emit(events.Notice("WARNING", text))

    return warn


if __name__ == "__main__":
    sys.exit(main())
