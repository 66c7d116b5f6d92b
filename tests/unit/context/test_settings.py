"""Typed settings and the run_config that is made from them."""

from __future__ import annotations

import base64
import dataclasses
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onefed.context import (
    Address,
    Assignments,
    ContextError,
    PeerContact,
    PeerSettings,
    Role,
    SuperLinkSettings,
    SuperNodeSettings,
    parse_assignments,
    peer_run_config,
    peer_settings,
    render_pairs,
    resolve,
    run_config,
    superlink_settings,
    supernode_settings,
    syntax,
)
from onefed.context.strategies import STRATEGIES
from onefed.context.table import RUN_CONFIG_NAMES

if TYPE_CHECKING:
    from conftest import Material


def superlink(**given: str) -> SuperLinkSettings:
    return superlink_settings(resolve(Role.SUPERLINK, explicit=given))


def supernode(**given: str) -> SuperNodeSettings:
    return supernode_settings(resolve(Role.SUPERNODE, explicit=given))


def test_superlink_defaults() -> None:
    assert superlink() == SuperLinkSettings(
        flower_version="1.41.0",
        num_rounds=3,
        strategy="FedAvg",
        strategy_parameters={},
        min_fit_clients=2,
        min_evaluate_clients=2,
        min_available_clients=2,
        seed=0,
        round_timeout_s=600,
        round_timeout_min_s=60,
        extra_run_config={},
        use_case="image-classification",
        fleet_host="0.0.0.0",
        fleet_port=9092,
        control_port=9093,
        gateway=True,
        gateway_connections=512,
        firewall=True,
        keepalive_time_s=60,
        keepalive_timeout_s=20,
        gateway_rate=200,
        superlink_port=9091,
        isolation="process",
        database="state/state.db",
        tls_enabled=True,
        ssl_ca_pem=None,
        ssl_certificate_pem=None,
        ssl_key_pem=None,
        node_keys=(),
        cert_extra_san=(),
        cert_key_type="ec-p256",
        checkpoint_enabled=False,
        checkpoint_interval_rounds=5,
        checkpoint_keep_last=0,
        checkpoint_keep_every=0,
        checkpoint_resume=True,
        checkpoint_path="/app/checkpoints",
        metrics_enabled=False,
        metrics_port=9101,
        log_level="INFO",
        log_format="text",
    )


@pytest.mark.parametrize(
    ("address", "wish", "gateway", "port"),
    [
        ("0.0.0.0:9192", "auto", True, 9091),
        ("10.0.0.5:9192", "auto", True, 9091),
        ("127.0.0.1:9192", "auto", False, 9192),
        ("localhost:9192", "auto", False, 9192),
        ("127.0.0.1:9192", "always", True, 9091),
    ],
)
def test_a_gateway_stands_where_others_can_come(
    address: str, wish: str, gateway: bool, port: int
) -> None:
    settings = superlink(FL_FLEET_API_ADDRESS=address, FL_GATEWAY=wish)
    assert (settings.gateway, settings.superlink_port) == (gateway, port)


def test_supernode_defaults_leave_open_what_nobody_said() -> None:
    assert supernode() == SuperNodeSettings(
        flower_version="1.41.0",
        superlink_address=None,
        node_config=None,
        max_retries=None,
        max_wait_time_s=None,
        app_start="auto",
        isolation="process",
        use_case="image-classification",
        tls_enabled=None,
        ssl_ca_pem=None,
        firewall=True,
        keepalive_time_s=60,
        keepalive_timeout_s=20,
        enrolment_token=None,
        gpu_enabled=False,
        cuda_visible_devices="all",
        gpu_memory_fraction=0.8,
        dcgm_enabled=False,
        edge_backoff="exponential",
        edge_max_backoff_s=300,
        log_level="INFO",
        log_format="text",
    )


def test_supernode_values_are_typed(material: Material) -> None:
    settings = supernode(
        FL_SUPERLINK_ADDRESS="fl.example.com:9192",
        FL_NODE_CONFIG="partition-id=0 lr=1e-3 quick=true model=org/name_3b",
        FL_MAX_RETRIES="5",
        FL_MAX_WAIT_TIME="60",
        FL_TLS_ENABLED="no",
        FL_SSL_CA_CERTFILE=material.certificate,
    )
    assert settings.superlink_address == Address("fl.example.com", 9192)
    assert str(settings.superlink_address) == "fl.example.com:9192"
    assert settings.node_config == {
        "partition-id": 0,
        "lr": 0.001,
        "quick": True,
        "model": "org/name_3b",
    }
    assert (settings.max_retries, settings.max_wait_time_s) == (5, 60)
    assert settings.tls_enabled is False
    assert settings.ssl_ca_pem == base64.b64decode(material.certificate)


def test_superlink_values_are_typed(material: Material) -> None:
    settings = superlink(
        FL_FLEET_API_ADDRESS="127.0.0.1:19092",
        FL_CERT_EXTRA_SAN="IP:2001:DB8::1 , DNS:FL.Example.com,DNS:*.example.com",
        FL_CHECKPOINT_PATH="/app//exports/",
    )
    assert (settings.fleet_host, settings.fleet_port) == ("127.0.0.1", 19092)
    assert settings.cert_extra_san == ("IP:2001:db8::1", "DNS:fl.example.com", "DNS:*.example.com")
    assert settings.checkpoint_path == "/app/exports"
    operators = superlink(
        FL_SSL_CA_CERTFILE=material.certificate,
        FL_SSL_CERTFILE=material.certificate,
        FL_SSL_KEYFILE=material.key,
    )
    assert operators.ssl_key_pem == base64.b64decode(material.key)
    assert "PRIVATE KEY" not in repr(operators)


def test_settings_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        superlink().seed = 1  # type: ignore[misc]


def test_run_config_of_the_defaults() -> None:
    assert run_config(superlink()) == {
        "strategy": "FedAvg",
        "num-server-rounds": 3,
        "min-fit-clients": 2,
        "min-evaluate-clients": 2,
        "min-available-clients": 2,
        "seed": 0,
        "round-timeout-s": 600,
        "round-timeout-min-s": 60,
    }


def test_run_config_with_checkpoints_and_settings_of_the_app() -> None:
    config = run_config(
        superlink(
            FL_SEED="9223372036854775807",
            FL_CHECKPOINT_ENABLED="YES",
            FL_CHECKPOINT_INTERVAL="2",
            FL_CHECKPOINT_RESUME="NO",
            FL_RUN_CONFIG="local-epochs=2 name='x' rate=0.5",
        )
    )
    assert config["seed"] == 2**63 - 1
    assert config["checkpoint-enabled"] is True
    assert config["checkpoint-interval"] == 2
    assert (config["local-epochs"], config["name"], config["rate"]) == (2, "x", 0.5)
    assert "checkpoint-path" not in config


def test_run_config_makes_every_key_that_the_table_reserves() -> None:
    made: set[str] = set()
    for strategy in STRATEGIES:
        given = {"FL_STRATEGY": strategy, "FL_CLIENT_LR": "0.5", "FL_CHECKPOINT_ENABLED": "YES"}
        made |= run_config(superlink(**given)).keys()
    assert made == RUN_CONFIG_NAMES.keys() - {"checkpoint-path"}


@pytest.mark.parametrize(
    ("strategy", "parameters"),
    [
        ("FedAvg", {}),
        ("FedProx", {"proximal-mu": 1.0}),
        ("FedAdam", {"server-lr": 0.1, "tau": 1e-9}),
        ("FedYogi", {}),
        ("Krum", {"num-malicious": 0}),
        ("Bulyan", {"num-malicious": 0}),
        ("FedTrimmedAvg", {"trim-beta": 0.2}),
    ],
)
def test_run_config_has_the_parameters_of_the_strategy(
    strategy: str, parameters: dict[str, float]
) -> None:
    config = run_config(superlink(FL_STRATEGY=strategy))
    assert config.items() >= parameters.items()
    assert len(config) == len(run_config(superlink())) + len(parameters)


def test_a_rule_with_defaults_of_its_own_is_told_what_was_set() -> None:
    config = run_config(superlink(FL_STRATEGY="FedYogi", FL_SERVER_LR="0.5", FL_CLIENT_LR="1e-2"))
    assert (config["server-lr"], config["client-lr"]) == (0.5, 0.01)
    assert "tau" not in config


values = st.one_of(
    st.booleans(),
    st.integers(-(2**63) + 1, 2**63 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text("abcXYZ019._/-:", max_size=12),
)


@given(st.dictionaries(st.from_regex(r"[a-z][a-z0-9-]{0,8}", fullmatch=True), values, max_size=5))
def test_rendered_pairs_parse_to_the_same(pairs: dict[str, syntax.ConfigValue]) -> None:
    parsed = syntax.parse_pairs(render_pairs(pairs))
    assert parsed == pairs
    assert [type(value) for value in parsed.values()] == [type(value) for value in pairs.values()]


def test_text_that_ends_like_a_file_is_no_file_for_flower() -> None:
    """Flower opens an argument that ends in ``.toml``."""
    settings = supernode(FL_NODE_CONFIG="model=secret.toml")
    assert settings.node_config is not None
    assert render_pairs(settings.node_config) == 'model="secret.toml"'


def test_assignments_are_told_apart() -> None:
    parsed = parse_assignments(
        [
            "FL_SEED=1",
            "oneapp_fl_log_level=DEBUG",
            "local-epochs=2",
            "lr=0.1",
            "note=two words",
            "FL_SEED=2",
        ]
    )
    assert parsed == Assignments(
        context={"FL_SEED": "2", "oneapp_fl_log_level": "DEBUG"},
        app_config={"local-epochs": 2, "lr": 0.1, "note": "two words"},
    )


def test_context_values_are_left_to_resolve() -> None:
    parsed = parse_assignments(["FL_NOMBER=1", "fl_seed=1", "FL_NODE_CONFIG=a=1 b=2", "FL_SEED="])
    assert parsed.context["FL_NODE_CONFIG"] == "a=1 b=2"
    errors = resolve(Role.SUPERLINK, explicit=parsed.context).errors
    assert [error.name for error in errors] == ["FL_NOMBER", "fl_seed"]


@pytest.mark.parametrize(
    ("item", "problem"),
    [
        ("local-epochs", "is not NAME=VALUE"),
        ("=1", "is not NAME=VALUE"),
        ("Local-Epochs=1", "is not NAME=VALUE"),
        ("a b=1", "is not NAME=VALUE"),
        ("x" * 200 + "=1", "is not NAME=VALUE"),
        ("local-epochs=", "has no value"),
        ("note=\x1b[31m", "needs printable text"),
        ("lr=1e999", "cannot be used"),
        ("num-server-rounds=5", "belongs to the context variable FL_NUM_ROUNDS"),
        ("checkpoint-path=/x", "belongs to the context variable FL_CHECKPOINT_PATH"),
    ],
)
def test_malformed_assignment_is_an_error(item: str, problem: str) -> None:
    with pytest.raises(ContextError, match=problem) as caught:
        parse_assignments(["FL_SEED=1", item])
    assert len(caught.value.findings) == 1


def test_malformed_assignments_are_reported_together_without_their_values() -> None:
    secret = "LS0tLS1CRUdJTiBQUklWQVRFIEtFWS0tLS0tCk1JR0hBZ0VBTUJNR0J5cUdTTTQ5"
    with pytest.raises(ContextError) as caught:
        parse_assignments([secret, f"Key={secret}", "seed=1"])
    assert len(caught.value.findings) == 3
    assert secret[40:] not in str(caught.value)


def peer(**given: str) -> PeerSettings:
    return peer_settings(resolve(Role.PEER, explicit=given))


def test_peer_defaults() -> None:
    assert peer() == PeerSettings(
        flower_version="1.41.0",
        num_rounds=3,
        strategy="FedAvg",
        strategy_parameters={},
        seed=0,
        extra_run_config={},
        use_case="image-classification",
        founders=3,
        listed=(),
        name=None,
        port=9095,
        evict_after_rounds=10,
        topology="full",
        keepalive_time_s=60,
        keepalive_timeout_s=20,
        firewall=True,
        checkpoint_enabled=False,
        checkpoint_keep_last=0,
    )


def test_the_list_of_peers_keeps_its_order_and_reads_as_it_is_written() -> None:
    text = "site-1=fl.example.com:9095#MIIB,site-0=10.0.0.1:9195#MIIC"
    listed = peer(FL_PEERS=text, FL_PEER_NAME="site-0", FL_PEER_FOUNDERS="2").listed
    assert listed[0] == PeerContact("site-1", Address("fl.example.com", 9095), "MIIB")
    assert ",".join(map(str, listed)) == text


def test_an_app_is_told_the_same_by_peers_as_by_a_hub() -> None:
    given = {"FL_STRATEGY": "FedProx", "FL_PROXIMAL_MU": "0.5", "FL_SEED": "7"}
    given["FL_RUN_CONFIG"] = "local-epochs=2"
    told, hub = peer_run_config(peer(**given)), run_config(superlink(**given))
    assert told.items() <= hub.items()
    assert set(hub) - set(told) == {
        "min-fit-clients",
        "min-evaluate-clients",
        "min-available-clients",
        "round-timeout-s",
        "round-timeout-min-s",
    }
