"""Rows of the table: how a node finds and keeps its coordinator, and how each knows the other."""

from __future__ import annotations

from onefed.context import syntax
from onefed.context.requirements import (
    ADDRESS,
    BOOLEAN,
    BOTH,
    CERTIFICATE,
    NON_NEGATIVE,
    PAIRS,
    POSITIVE,
    PRIVATE_KEY,
    SUPERLINK,
    SUPERNODE,
)
from onefed.context.syntax import Rule
from onefed.context.variable import Level, Variable

_PEM_EXAMPLE = "LS0tLS1CRUdJTi..."

CONNECTION = (
    Variable(
        name="FL_SUPERLINK_ADDRESS",
        appliances=SUPERNODE,
        level=Level.MULTI_SITE,
        default="",
        rule=ADDRESS,
        example="203.0.113.50:9092",
        help="The coordinator's Fleet API; empty asks OneGate.",
        maps_to="`--superlink`",
    ),
    Variable(
        name="FL_NODE_CONFIG",
        appliances=SUPERNODE,
        level=Level.ROLE,
        default="",
        rule=PAIRS,
        example="partition-id=0 num-partitions=2",
        help="What the app reads about this node; "
        "empty takes the partition from the position in the service.",
        maps_to="`--node-config`",
    ),
    Variable(
        name="FL_MAX_RETRIES",
        appliances=SUPERNODE,
        level=Level.INSTANCE,
        default="0",
        rule=NON_NEGATIVE,
        example="10",
        help="Failed connection attempts before the node gives up; 0 never does.",
        maps_to="`--max-retries`",
        changed="Flower reads 0 as one try; here it means that the flag is left out.",
    ),
    Variable(
        name="FL_MAX_WAIT_TIME",
        appliances=SUPERNODE,
        level=Level.INSTANCE,
        default="0",
        rule=NON_NEGATIVE,
        example="3600",
        help="Seconds without connection before the node gives up; 0 never does.",
        maps_to="`--max-wait-time`",
        changed="Flower reads 0 as no wait; here it means that the flag is left out.",
    ),
    Variable(
        name="FL_APP_START",
        appliances=SUPERNODE,
        level=Level.INSTANCE,
        default="auto",
        rule=syntax.one_of(("auto", "fork", "fresh")),
        example="fresh",
        help="How a message gets its process: forked from one that has imported the app where that "
        "is safe (`auto`), always forked, or importing the app anew (`fresh`).",
        maps_to="`--app-start`",
        ours=True,
    ),
)

TLS = (
    Variable(
        name="FL_TLS_ENABLED",
        appliances=BOTH,
        level=Level.SERVICE,
        default="YES",
        rule=BOOLEAN,
        example="NO",
        help="Encrypt between nodes and coordinator, and know each node by its key.",
        maps_to="`--ssl-*`, `--root-certificates` or `--insecure`",
        changed="Without TLS whoever reads a node's headers can act as that node.",
    ),
    Variable(
        name="FL_SSL_CA_CERTFILE",
        appliances=BOTH,
        level=Level.MULTI_SITE,
        default="",
        rule=CERTIFICATE,
        example=_PEM_EXAMPLE,
        help="The operator's CA certificate; empty lets the coordinator make one.",
        maps_to="`ca.crt`",
    ),
    Variable(
        name="FL_SSL_CERTFILE",
        appliances=SUPERLINK,
        level=Level.INSTANCE,
        default="",
        rule=CERTIFICATE,
        example=_PEM_EXAMPLE,
        help="The operator's server certificate, signed by that CA.",
        maps_to="`server.pem`",
    ),
    Variable(
        name="FL_SSL_KEYFILE",
        appliances=SUPERLINK,
        level=Level.INSTANCE,
        default="",
        rule=PRIVATE_KEY,
        example=_PEM_EXAMPLE,
        help="Private key of the server certificate, without passphrase.",
        maps_to="`server.key`",
        secret=True,
    ),
    Variable(
        name="FL_CERT_KEY_TYPE",
        appliances=SUPERLINK,
        level=Level.INSTANCE,
        default="ec-p256",
        rule=syntax.one_of(("ec-p256", "rsa-4096")),
        example="rsa-4096",
        help="Kind of the keys that the coordinator makes; those that are there stay.",
        maps_to="keys of the generated authority and certificate",
        ours=True,
    ),
    Variable(
        name="FL_CERT_EXTRA_SAN",
        appliances=SUPERLINK,
        level=Level.MULTI_SITE,
        default="",
        rule=Rule(
            "must be comma-separated IP:ADDRESS or DNS:NAME entries",
            syntax.parse_subject_names,
        ),
        example="IP:203.0.113.50,DNS:fl.example.com",
        help="Further names and addresses under which nodes dial the coordinator.",
        maps_to="subject alternative names of the generated certificate",
    ),
)

KEEPALIVE = (
    Variable(
        name="FL_GRPC_KEEPALIVE_TIME",
        appliances=BOTH,
        level=Level.MULTI_SITE,
        default="60",
        rule=POSITIVE,
        example="30",
        help="Seconds that a connection may idle before it is probed.",
        maps_to="TCP keepalive of nodes and gateway",
    ),
    Variable(
        name="FL_GRPC_KEEPALIVE_TIMEOUT",
        appliances=BOTH,
        level=Level.MULTI_SITE,
        default="20",
        rule=POSITIVE,
        example="10",
        help="Seconds without answer after which a connection is given up.",
        maps_to="TCP keepalive of nodes and gateway",
    ),
)

EDGE = (
    Variable(
        name="FL_EDGE_BACKOFF",
        appliances=SUPERNODE,
        level=Level.EDGE,
        default="exponential",
        rule=syntax.one_of(("exponential", "fixed")),
        example="fixed",
        help="How the waits grow while an edge node looks for its coordinator.",
        maps_to="discovery",
    ),
    Variable(
        name="FL_EDGE_MAX_BACKOFF",
        appliances=SUPERNODE,
        level=Level.EDGE,
        default="300",
        rule=POSITIVE,
        example="60",
        help="Seconds that such a wait lasts at most.",
        maps_to="discovery",
    ),
)
