"""Every variable of the table, seen where it takes effect: in the program that reads it.

Flower's own parsers read the command lines, the ServerApp reads the run_config, and so on.
"""

from __future__ import annotations

import argparse
import base64
import importlib
import os
import re
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client import parser

from onefed import context
from onefed.appliance import gateway, programs, superlink
from onefed.appliance.gateway import ENROLMENT_PATH
from onefed.appliance.paths import Paths
from onefed.context import VARIABLES, Level, Role
from onefed.flower import server_app, strategy

flower_superlink = importlib.import_module("flwr.superlink.cli.flower_superlink")
our_node = importlib.import_module("onefed.flower.node.__main__")
flower_supernode = importlib.import_module("flwr.supernode.cli.flower_supernode")

PATHS = Paths(Path("/srv/fed"))
RUN = {"run": "r", "checkpoint-enabled": False}


def link(**given: str) -> context.SuperLinkSettings:
    return context.superlink_settings(context.resolve(Role.SUPERLINK, explicit=given))


def node(**given: str) -> context.SuperNodeSettings:
    return context.supernode_settings(context.resolve(Role.SUPERNODE, explicit=given))


def superlink_flags(**given: str) -> argparse.Namespace:
    """What flower-superlink makes of the command line that it is started with."""
    program = programs.superlink(link(**given), PATHS, {})[0]
    return flower_superlink._parse_args_run_superlink().parse_args(program.argv[1:])


def supernode_flags(**given: str) -> argparse.Namespace:
    """What our node, or flower-supernode, makes of the command line that it is started with."""
    chosen = node(**given)
    found = programs.supernode(
        chosen,
        PATHS,
        {},
        endpoint=str(chosen.superlink_address or "10.0.0.1:9092"),
        tls=chosen.tls_enabled is not False,
        private_key=None,
        node_config=context.render_pairs(chosen.node_config or {}),
        runtime_port=9094,
    )
    argv = {program.name: program for program in found}["supernode"].argv
    if argv[1:4] == ("-P", "-m", "onefed.flower.node"):
        return our_node._options(argv[4:])
    return flower_supernode._parse_args_run_supernode().parse_args(argv[1:])


def nginx(pattern: str, **given: str) -> list[str]:
    """What a pattern finds in the configuration that nginx is started with."""
    wanted = superlink.gateway_of(link(FL_TLS_ENABLED="NO", **given), PATHS)
    return re.findall(pattern, gateway.configuration(wanted))


def plan(**given: str) -> Any:
    """What the ServerApp makes of the run_config."""
    config = {**RUN, **context.run_config(link(**given))}
    return server_app.make_plan(config, app_sha256="0" * 64)


def rule(**given: str) -> Any:
    """The rule that the ServerApp makes of the run_config."""
    return strategy.rule(context.run_config(link(**given)))


def run_config(**given: str) -> Mapping[str, Any]:
    return context.run_config(link(**given))


def exporter(**given: str) -> Any:
    config = {**RUN, **run_config(FL_CHECKPOINT_ENABLED="YES", **given)}
    return server_app._exporter({"checkpoint-path": "/x", **config}, plan())


def scraped(**given: str) -> int | None:
    """The port on which the real exporter answers; None: there is none."""
    chosen = link(**given)
    if not chosen.metrics_enabled:
        return None
    # Loopback is a whole network: an address of this process's own, so that 9101 is free.
    address = ".".join(str(byte) for byte in (127, *os.getpid().to_bytes(4, "big")[1:]))
    base = {"ONEFED_EVENTS": os.devnull}
    program = programs.metrics(chosen, PATHS, base, address=address)
    with subprocess.Popen(program.argv, env={}, stderr=subprocess.PIPE, text=True) as exporter:
        assert exporter.stderr is not None
        where = exporter.stderr.readline().split()[-1]
        answer = httpx.get(where, trust_env=False)
        exporter.terminate()
    held = [each.name for each in parser.text_string_to_metric_families(answer.text)]
    assert "fl_training_status" in held
    return httpx.URL(where).port


Probe = Callable[..., Any]

SEEN: dict[str, tuple[Probe, dict[str, Any]]] = {
    "FLOWER_VERSION": (lambda **g: link(**g).flower_version, {"": "1.41.0"}),
    "FL_NUM_ROUNDS": (lambda **g: plan(**g).rounds_total, {"": 3, "10": 10}),
    "FL_STRATEGY": (lambda **g: type(rule(**g)).__name__, {"": "FedAvg", "FedMedian": "FedMedian"}),
    "FL_MIN_FIT_CLIENTS": (lambda **g: plan(**g).min_fit_clients, {"": 2, "3": 3}),
    "FL_MIN_EVALUATE_CLIENTS": (lambda **g: plan(**g).min_evaluate_clients, {"": 2, "3": 3}),
    "FL_MIN_AVAILABLE_CLIENTS": (lambda **g: plan(**g).min_available_clients, {"": 2, "4": 4}),
    "FL_FLEET_API_ADDRESS": (
        lambda **g: nginx(r"listen (\S+:9[0-9]+)[ ;]", **g)[0],
        {"": "0.0.0.0:9092", "10.0.0.1:9192": "10.0.0.1:9192"},
    ),
    "FL_CONTROL_API_ADDRESS": (
        lambda **g: nginx(r"listen (127\.0\.0\.1:9[0-9]+)[ ;]", **g)[-1],
        {"": "127.0.0.1:9093", "127.0.0.1:9193": "127.0.0.1:9193"},
    ),
    "FL_SUPERLINK_PORT": (lambda **g: superlink_flags(**g).port, {"": 9091, "9191": 9191}),
    "FL_GATEWAY": (
        lambda **g: (
            "gateway"
            in [
                each.name
                for each in programs.superlink(
                    link(FL_FLEET_API_ADDRESS="127.0.0.1:9092", **g), PATHS, {}
                )
            ]
        ),
        {"": False, "always": True},
    ),
    "FL_GATEWAY_CONNECTIONS": (
        lambda **g: nginx(r"limit_conn \w+ (\d+);", **g)[0],
        {"": "512", "7": "7"},
    ),
    "FL_GATEWAY_RATE": (
        lambda **g: nginx(r"rate=(\d+)r/s", **g)[0],
        {"": "200", "9": "9"},
    ),
    "FL_GRPC_KEEPALIVE_TIME": (
        lambda **g: (
            supernode_flags(**g).keepalive_time,
            nginx(r"so_keepalive=(\d+)s:", **g)[0],
        ),
        {"": (60, "60"), "30": (30, "30")},
    ),
    "FL_GRPC_KEEPALIVE_TIMEOUT": (
        lambda **g: (
            supernode_flags(**g).keepalive_timeout,
            nginx(r"so_keepalive=\d+s:(\d+s:\d+)", **g)[0],
        ),
        {"": (20, "5s:4"), "3": (3, "1s:3")},
    ),
    "FL_ISOLATION": (
        lambda **g: (
            superlink_flags(**g).isolation,
            getattr(supernode_flags(**g), "isolation", "our node"),
        ),
        {"": ("process", "our node"), "subprocess": ("subprocess",) * 2},
    ),
    "FL_DATABASE": (
        lambda **g: superlink_flags(**g).database,
        {"": "/srv/fed/opt/flower/state/state.db", "state/x.db": "/srv/fed/opt/flower/state/x.db"},
    ),
    "FL_LOG_LEVEL": (
        lambda **g: programs.superlink(link(**g), PATHS, {})[0].environment["FLWR_LOG_LEVEL"],
        {"": "INFO", "DEBUG": "DEBUG"},
    ),
    "FL_SEED": (lambda **g: plan(**g).seed, {"": 0, "42": 42}),
    "FL_ROUND_TIMEOUT": (lambda **g: plan(**g).round_timeout_s, {"": 600.0, "120": 120.0}),
    "FL_ROUND_TIMEOUT_MIN": (
        lambda **g: plan(**g).round_timeout_min_s,
        {"": 60.0, "20": 20.0},
    ),
    "FL_RUN_CONFIG": (lambda **g: run_config(**g).get("epochs"), {"": None, "epochs=2": 2}),
    "FL_SUPERLINK_ADDRESS": (
        lambda **g: supernode_flags(**g).superlink,
        {"": "10.0.0.1:9092", "10.0.0.9:9192": "10.0.0.9:9192"},
    ),
    "FL_NODE_CONFIG": (
        lambda **g: supernode_flags(**g).node_config,
        {"": "", "partition-id=1 num-partitions=2": "partition-id=1 num-partitions=2"},
    ),
    "FL_MAX_RETRIES": (lambda **g: supernode_flags(**g).max_retries, {"": None, "0": None, "7": 7}),
    "FL_MAX_WAIT_TIME": (
        lambda **g: supernode_flags(**g).max_wait_time,
        {"": None, "0": None, "60": 60.0},
    ),
    "FL_APP_START": (lambda **g: supernode_flags(**g).app_start, {"": "auto", "fork": "fork"}),
    "FL_TLS_ENABLED": (
        lambda **g: (superlink_flags(**g).insecure, supernode_flags(**g).insecure),
        {"": (False, False), "YES": (False, False), "NO": (True, True)},
    ),
    "FL_PROXIMAL_MU": (
        lambda **g: rule(FL_STRATEGY="FedProx", **g).proximal_mu,
        {"": 1.0, "0.25": 0.25},
    ),
    "FL_SERVER_LR": (lambda **g: rule(FL_STRATEGY="FedAdam", **g).eta, {"": 0.1, "0.01": 0.01}),
    "FL_CLIENT_LR": (
        lambda **g: run_config(FL_STRATEGY="FedAdam", **g).get("client-lr"),
        {"": None, "0.01": 0.01},
    ),
    "FL_FEDADAM_TAU": (lambda **g: rule(FL_STRATEGY="FedAdam", **g).tau, {"": 1e-9, "1e-3": 1e-3}),
    "FL_NUM_MALICIOUS": (
        lambda **g: rule(FL_STRATEGY="Krum", FL_MIN_AVAILABLE_CLIENTS="5", **g).num_malicious,
        {"": 0, "1": 1},
    ),
    "FL_TRIM_BETA": (
        lambda **g: rule(FL_STRATEGY="FedTrimmedAvg", **g).beta,
        {"": 0.2, "0.1": 0.1},
    ),
    "FL_CHECKPOINT_ENABLED": (
        lambda **g: run_config(**g).get("checkpoint-enabled"),
        {"": None, "YES": True},
    ),
    "FL_CHECKPOINT_INTERVAL": (lambda **g: exporter(**g).interval, {"": 5, "1": 1}),
    "FL_CHECKPOINT_KEEP_LAST": (lambda **g: exporter(**g).retention.keep_last, {"": 0, "3": 3}),
    "FL_CHECKPOINT_KEEP_EVERY": (
        lambda **g: exporter(FL_CHECKPOINT_KEEP_LAST="1", **g).retention.keep_every,
        {"": 0, "50": 50},
    ),
    "FL_METRICS_ENABLED": (scraped, {"": None, "NO": None, "YES": 9101}),
    "FL_METRICS_PORT": (
        lambda **g: scraped(FL_METRICS_ENABLED="YES", **g),
        {"": 9101, "9102": 9102},
    ),
}
"""What the consumer sees of each value; the empty one is the default."""

SEEN_ELSEWHERE = {
    "FL_CHECKPOINT_RESUME": "test_earlier_run.py: the run that a new machine goes on with",
    "ML_FRAMEWORK": "test_frameworks.py: the module; test_container.py: the image of a node",
    "FL_CHECKPOINT_PATH": "test_superlink.py: the path that the ServerApp exports to",
    "FL_SSL_CA_CERTFILE": "test_superlink.py and test_supernode.py: files and a TLS handshake",
    "FL_SSL_CERTFILE": "test_superlink.py: the certificate that the server shows",
    "FL_SSL_KEYFILE": "test_superlink.py: the key that the server has",
    "FL_FIREWALL": "test_stages.py: the rules that nft is given; tests/boots: ports of a machine",
    "FL_NODE_KEYS": "test_supervisor.py: the keys that are registered",
    "FL_ENROLMENT_TOKEN": "below: what is shown; test_enrolment_server.py: what becomes of it",
    "FL_CERT_KEY_TYPE": "test_superlink.py: the kind of the keys that are made",
    "FL_GPU_ENABLED": "test_gpu.py: the command line of the container, FL_GPU_AVAILABLE",
    "FL_CUDA_VISIBLE_DEVICES": "test_gpu.py: the environment of the programs",
    "FL_GPU_MEMORY_FRACTION": "test_gpu.py: the environment of the programs; for apps of others",
    "FL_DCGM_ENABLED": "test_gpu.py: the unit that is started",
    "FL_EDGE_BACKOFF": "test_supernode.py: the waits of discovery",
    "FL_EDGE_MAX_BACKOFF": "test_supernode.py: the waits of discovery",
    "FL_CERT_EXTRA_SAN": "test_superlink.py: names in the certificate",
    "FL_LOG_FORMAT": "test_stages.py: the lines of the boot; test_program.py: those of a node",
    "FL_USE_CASE": "test_superlink.py: the app that is submitted",
    "FL_PEER_FOUNDERS": "test_peer.py: how many are on the first roster",
    "FL_PEERS": "test_peer.py: who is on the roster, and who is let in",
    "FL_PEER_NAME": "test_peer.py: the name in the certificate",
    "FL_PEER_PORT": "test_peer.py: where the node is told to listen",
    "FL_PEER_EVICT_AFTER": "test_peer.py: what the node is told",
    "FL_PEER_TOPOLOGY": "test_peer.py: what the node is told",
    "TOKEN": "the guest agent; rule X2 in test_rules.py",
    "NETWORK": "the guest agent",
    "REPORT_READY": "the guest agent",
    "READY_SCRIPT_PATH": "the guest agent",
    "SSH_PUBLIC_KEY": "the guest agent",
}
"""Variables with a test of their own, or whose consumer is not ours."""


def test_every_variable_is_seen_somewhere() -> None:
    assert sorted([*SEEN, *SEEN_ELSEWHERE]) == sorted(VARIABLES)


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, (_, seen) in SEEN.items() for value in seen]
)
def test_the_consumer_sees_what_was_set(name: str, value: str) -> None:
    probe, seen = SEEN[name]
    assert probe(**({name: value} if value else {})) == seen[value]


@pytest.mark.parametrize("token", ["", "onefed-" + "a" * 43])
def test_a_node_shows_the_coordinator_the_token_that_was_set(
    node: Any, token_taker: Any, token: str
) -> None:
    """FL_ENROLMENT_TOKEN, from the context of a whole boot to a server with TLS."""
    node.gate = None
    node.variables |= {
        "FL_SUPERLINK_ADDRESS": token_taker.endpoint,
        "FL_SSL_CA_CERTFILE": base64.b64encode(token_taker.ca_certificate.read_bytes()).decode(),
        "FL_ENROLMENT_TOKEN": token,
    }
    node.boot()
    shown = [asked["token"] for path, asked in token_taker.asked if path == ENROLMENT_PATH]
    assert shown == ([token] if token else [])


def test_only_the_guest_agent_reads_variables_of_the_platform() -> None:
    platform = {row.name for row in VARIABLES.values() if row.level is Level.PLATFORM}
    assert platform <= set(SEEN_ELSEWHERE)
