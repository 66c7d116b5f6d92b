"""Rows of the table about who may connect: the gateway, node keys and enrolment."""

from __future__ import annotations

import re

from onefed.context import pem, syntax
from onefed.context.requirements import BOOLEAN, BOTH, SUPERLINK, SUPERNODE
from onefed.context.syntax import Kind, Rule
from onefed.context.variable import Level, Variable

NODE_KEYS_MAX = 1000
"""Lines of ``FL_NODE_KEYS``."""

NODE_KEYS_CHARS_MAX = 512 * 1024
"""In base64; a key of P-384 makes 272 characters."""

_KEY_LINE = re.compile(r"ecdsa-sha2-nistp(256|384|521) [A-Za-z0-9+/]{40,400}={0,2}( .{1,200})?")


def parse_node_keys(value: str) -> tuple[str, ...]:
    """Public keys, a line each, from base64. Whether one is a point of its curve is for ``tls``."""
    try:
        text = pem.decode_base64(value).decode("ascii")
    except UnicodeDecodeError:
        raise ValueError("ASCII only") from None
    if "PRIVATE KEY" in text:
        raise ValueError("it holds a private key, which never leaves its node")
    lines = [line.strip() for line in text.splitlines()]
    keys = tuple(line for line in lines if line and not line.startswith("#"))
    if not 1 <= len(keys) <= NODE_KEYS_MAX:
        raise ValueError(f"1 to {NODE_KEYS_MAX} keys")
    for number, key in enumerate(keys, 1):
        if not _KEY_LINE.fullmatch(key) or not key.isprintable():
            raise ValueError(f"key {number} is no line 'ecdsa-sha2-nistp384 AAAA...'")
    return keys


ROWS = (
    Variable(
        name="FL_GATEWAY",
        appliances=SUPERLINK,
        level=Level.INSTANCE,
        default="auto",
        rule=syntax.one_of(("auto", "always")),
        example="always",
        help="A gateway stands before the SuperLink: where FL_FLEET_API_ADDRESS is not loopback "
        "(`auto`), or there as well.",
        maps_to="nginx",
        ours=True,
    ),
    Variable(
        name="FL_GATEWAY_CONNECTIONS",
        appliances=SUPERLINK,
        level=Level.INSTANCE,
        default="512",
        rule=syntax.integer("must be an integer 1-65535", 1, 65535),
        example="2048",
        help="Requests that one address may have under way; all nodes of a site may share one.",
        maps_to="nginx `limit_conn`",
        ours=True,
    ),
    Variable(
        name="FL_GATEWAY_RATE",
        appliances=SUPERLINK,
        level=Level.INSTANCE,
        default="200",
        rule=syntax.integer("must be an integer 1-100000", 1, 100000),
        example="1000",
        help="Requests per second of one address, on average; faster ones wait.",
        maps_to="nginx `limit_req`",
        ours=True,
    ),
    Variable(
        name="FL_SUPERLINK_PORT",
        appliances=SUPERLINK,
        level=Level.INSTANCE,
        default="9091",
        rule=syntax.integer("must be an integer 1024-65535", 1024, 65535),
        example="9191",
        help="Port of the SuperLink itself on loopback, behind the gateway.",
        maps_to="`--port`",
        ours=True,
    ),
    Variable(
        name="FL_FIREWALL",
        appliances=BOTH,
        level=Level.INSTANCE,
        default="YES",
        rule=BOOLEAN,
        example="NO",
        help="The machine lets in ssh (port 22) and what its role serves, and drops the rest. "
        "Not on a laptop.",
        maps_to="nftables",
        ours=True,
    ),
    Variable(
        name="FL_NODE_KEYS",
        appliances=SUPERLINK,
        level=Level.MULTI_SITE,
        default="",
        rule=Rule(
            "must decode from base64 to OpenSSH public keys (ECDSA), one per line",
            parse_node_keys,
            Kind.TEXT64,
            chars_max=NODE_KEYS_CHARS_MAX,
        ),
        example="ZWNkc2Etc2hhMi1uaXN0cDM4NCBBQUFB...",
        help="Public keys of nodes outside the service that may connect; "
        "`partition-id=N` after a key makes its node that client.",
        maps_to="registered node keys",
        ours=True,
    ),
    Variable(
        name="FL_ENROLMENT_TOKEN",
        appliances=SUPERNODE,
        level=Level.INSTANCE,
        default="",
        rule=syntax.pattern(
            "must be a token as onefed nodes token prints it", r"onefed-[A-Za-z0-9_-]{43}"
        ),
        example="onefed-" + "A" * 43,
        help="Lets a node without OneGate have its key registered, once.",
        maps_to="enrolment through the gateway",
        secret=True,
        ours=True,
    ),
)
