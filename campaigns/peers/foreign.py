"""``python -m campaigns.peers.foreign``: a peer with a foreign certificate, for so many seconds.

It has a member's name and address, and a key of its own. It connects to the other members and sends
them nonsense, and listens where that member did. It prints, as JSON, how many connections it made,
how many frames it could write, how often it was cut off, and how many requests it was sent.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc

from campaigns.peers import hostile
from onefed.tls import member_identity


class Listening(grpc.GenericRpcHandler):
    """Counts what is asked of it, and refuses it."""

    def __init__(self) -> None:
        self.heard = 0

    def service(self, handler_call_details: Any) -> None:
        self.heard += 1


async def run(options: argparse.Namespace) -> dict[str, int]:
    """Be that peer."""
    with tempfile.TemporaryDirectory() as folder:
        own = member_identity.ensure(Path(folder) / "identity", options.name, datetime.now(UTC))
    victims = hostile.contacts(options.members, without=options.name)
    listening, server = Listening(), grpc.aio.server()
    server.add_generic_rpc_handlers((listening,))
    pairs = [(own.private_key, own.certificate)]
    server.add_secure_port(options.address, grpc.ssl_server_credentials(pairs))
    await server.start()
    until_s = time.monotonic() + options.seconds
    try:
        count = await hostile.harass_all(victims, own, "garbage", [b"[]"], until_s)
    finally:
        await server.stop(None)
    return {**count, "heard": listening.heard}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="campaigns.peers.foreign", description=__doc__)
    parser.add_argument("--members", type=Path, required=True, help="folder of the group's members")
    parser.add_argument("--name", required=True, help="of the member in whose place it is")
    parser.add_argument("--address", required=True, help="of that member")
    parser.add_argument("--seconds", type=float, required=True)
    sys.stdout.write(json.dumps(asyncio.run(run(parser.parse_args(arguments)))) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
