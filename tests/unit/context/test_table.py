"""Each variable alone: its default, a good value, bad values."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

import pytest

from onefed import __version__
from onefed.context import Role, Severity, resolve
from onefed.context.syntax import Kind
from onefed.context.table import CHANGED_DEFAULTS, RUN_CONFIG_NAMES, VARIABLES
from onefed.context.variable import FIRST_RELEASE, Level, Variable

if TYPE_CHECKING:
    from conftest import Material

ADDRESSES = ("9092", "host", "host:", ":9092", "host:0", "host:65536", "-h:1", "a b:1", "[::1]:1")
BOOLEANS = ("true", "false", "1", "0", "Y", "YES NO", "YES\nNO")
INTEGERS = ("-1", "+1", "1.0", "1e3", "0x1", "1_000", "\u0661", "9" * 5000, "$(touch x)", "`id`")
POSITIVE = ("0", *INTEGERS)
FLOATS = ("-1", "nan", "inf", "1e999", "1,5", "0x1p3", "one", "1_0.0")
PAIRS = (
    "a",
    "a=",
    "=1",
    "a=1 b",
    "a=1 a=2",
    "-a=1",
    "a=1;b=2",
    "a=$HOME",
    "a=`id`",
    "a=x|y",
    "a=%h",
    "a=\\n",
    'a="x',
    "a=b'c'd",
    "a=1\nExecStartPre=/bin/sh",
    "a=9223372036854775808",
    "a=1e999",
    "a=" + "x" * 5000,
    " ".join(f"k{i}=1" for i in range(65)),
)

BAD_VALUES: dict[str, tuple[str, ...]] = {
    "FLOWER_VERSION": ("latest", "v1.41.0", "1.41", "1.25.0", "1.42.0"),
    "FL_NUM_ROUNDS": POSITIVE,
    "FL_STRATEGY": ("fedavg", "FedSGD", "FedAvg,Krum"),
    "FL_MIN_FIT_CLIENTS": POSITIVE,
    "FL_MIN_EVALUATE_CLIENTS": POSITIVE,
    "FL_MIN_AVAILABLE_CLIENTS": POSITIVE,
    "FL_FLEET_API_ADDRESS": ADDRESSES,
    "FL_CONTROL_API_ADDRESS": ADDRESSES,
    "FL_ISOLATION": ("Process", "thread"),
    "FL_DATABASE": ("/state.db", "../state.db", "a/../b", "a b", "-x", "state/", "a;b", "\u00e4"),
    "FL_LOG_LEVEL": ("info", "TRACE"),
    "FL_SEED": (*INTEGERS, "9223372036854775808"),
    "FL_ROUND_TIMEOUT": POSITIVE,
    "FL_ROUND_TIMEOUT_MIN": POSITIVE,
    "FL_RUN_CONFIG": PAIRS,
    "FL_SUPERLINK_ADDRESS": ADDRESSES,
    "FL_NODE_CONFIG": PAIRS,
    "FL_MAX_RETRIES": INTEGERS,
    "FL_MAX_WAIT_TIME": INTEGERS,
    "FL_APP_START": ("warm", "Fork"),
    "FL_TLS_ENABLED": BOOLEANS,
    "FL_GATEWAY": ("YES", "never"),
    "FL_GATEWAY_CONNECTIONS": POSITIVE,
    "FL_GATEWAY_RATE": POSITIVE,
    "FL_FIREWALL": BOOLEANS,
    "FL_SUPERLINK_PORT": ("80", *POSITIVE),
    "FL_NODE_KEYS": ("no base64!", "QUJD", base64.b64encode(b"ssh-ed25519 AAAA").decode()),
    "FL_ENROLMENT_TOKEN": ("onefed-short", "x" * 50, "onefed-" + "$" * 43),
    "FL_SSL_CA_CERTFILE": ("no base64!", "QUJD"),
    "FL_SSL_CERTFILE": ("no base64!", "QUJD"),
    "FL_SSL_KEYFILE": ("no base64!", "QUJD"),
    "FL_CERT_KEY_TYPE": ("EC-P256", "ed25519", "rsa-1024"),
    "FL_CERT_EXTRA_SAN": (
        "10.0.0.1",
        "IP:10.0.0",
        "IP:fe80::1%eth0",
        "DNS:a_b",
        "DNS:-a",
        "DNS:10.0.0.1",
        "DNS:a.*.b",
        "IP:10.0.0.1,",
        ",".join(["DNS:a"] * 65),
    ),
    "ML_FRAMEWORK": ("jax", "PyTorch"),
    "FL_USE_CASE": ("Image-Classification", "anomaly-detection", "llm-fine-tuning"),
    "FL_PROXIMAL_MU": FLOATS,
    "FL_SERVER_LR": ("0", *FLOATS),
    "FL_CLIENT_LR": ("0", *FLOATS),
    "FL_FEDADAM_TAU": ("0", *FLOATS),
    "FL_NUM_MALICIOUS": INTEGERS,
    "FL_TRIM_BETA": ("0", "0.5", *FLOATS),
    "FL_CHECKPOINT_ENABLED": BOOLEANS,
    "FL_CHECKPOINT_KEEP_LAST": INTEGERS,
    "FL_CHECKPOINT_KEEP_EVERY": INTEGERS,
    "FL_CHECKPOINT_INTERVAL": POSITIVE,
    "FL_CHECKPOINT_PATH": (
        "c",
        "/",
        "/app",
        "/app/state",
        "/c:/host:rw",
        "/a/../b",
        "/a,b",
        "/a b",
    ),
    "FL_CHECKPOINT_RESUME": BOOLEANS,
    "FL_GPU_ENABLED": BOOLEANS,
    "FL_CUDA_VISIBLE_DEVICES": ("ALL", "0,", "0;1", "none"),
    "FL_GPU_MEMORY_FRACTION": ("0", "1.1", *FLOATS),
    "FL_GRPC_KEEPALIVE_TIME": POSITIVE,
    "FL_GRPC_KEEPALIVE_TIMEOUT": POSITIVE,
    "FL_LOG_FORMAT": ("JSON", "logfmt"),
    "FL_METRICS_ENABLED": BOOLEANS,
    "FL_METRICS_PORT": ("80", "65536", "9091", "9092", "9093"),
    "FL_DCGM_ENABLED": BOOLEANS,
    "FL_EDGE_BACKOFF": ("linear",),
    "FL_EDGE_MAX_BACKOFF": POSITIVE,
    "FL_PEER_FOUNDERS": ("51", *POSITIVE),
    "FL_PEERS": (
        "site-0",
        "site-0=h:1",
        "site-0=h#MIIB",
        "site=h:1#MIIB",
        "Site-0=h:1#MIIB",
        "site-0=h:1#no base64",
        "site-0=h:1#" + "MIIB" * 400,
        "site-0=h:1#MIIB,",
        "site-0=h:1#MIIB,site-0=h:2#MIIC",
        "site-0=h:1#MIIB,site-1=h:1#MIIC",
        "site-0=h:1#MIIB,site-1=h:2#MIIB",
    ),
    "FL_PEER_NAME": ("site", "-0", "a b-0", "../x-0", "site-", "x" * 60 + "-0", "site-1234567"),
    "FL_PEER_PORT": ("80", *POSITIVE),
    "FL_PEER_EVICT_AFTER": INTEGERS,
    "FL_PEER_TOPOLOGY": ("mesh", "Ring"),
    "TOKEN": BOOLEANS,
    "NETWORK": BOOLEANS,
    "REPORT_READY": BOOLEANS,
    "READY_SCRIPT_PATH": ("check.sh", "/opt/$(id)", "/a b"),
    "SSH_PUBLIC_KEY": ("ssh-rsa \x1b[31m",),
}

ROWS = list(VARIABLES.values())


def release(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))


def role_of(row: Variable) -> Role:
    return max(row.appliances)


def test_the_table_has_the_48_names_of_the_design_and_ours() -> None:
    ours = {row.name for row in ROWS if row.ours}
    assert ours == {
        "FL_SEED",
        "FL_RUN_CONFIG",
        "FL_ROUND_TIMEOUT",
        "FL_GATEWAY",
        "FL_GATEWAY_CONNECTIONS",
        "FL_GATEWAY_RATE",
        "FL_FIREWALL",
        "FL_SUPERLINK_PORT",
        "FL_APP_START",
        "FL_CERT_KEY_TYPE",
        "FL_NODE_KEYS",
        "FL_ENROLMENT_TOKEN",
        "FL_ROUND_TIMEOUT_MIN",
        "FL_CHECKPOINT_KEEP_LAST",
        "FL_CHECKPOINT_KEEP_EVERY",
        "FL_PEER_FOUNDERS",
        "FL_PEERS",
        "FL_PEER_NAME",
        "FL_PEER_PORT",
        "FL_PEER_EVICT_AFTER",
        "FL_PEER_TOPOLOGY",
    }
    assert len(VARIABLES) - len(ours) == 48


def test_every_row_has_bad_values() -> None:
    assert BAD_VALUES.keys() == VARIABLES.keys()


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_default_is_valid(row: Variable) -> None:
    row.parse(row.default)
    values = resolve(role_of(row)).values
    assert values[row.name].text == row.default
    assert not values[row.name].is_set


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_example_is_accepted(row: Variable, material: Material) -> None:
    example = row.example
    if row.kind is Kind.TEXT64:
        example = material.key if row.secret else material.certificate
    if row.name == "FL_NODE_KEYS":
        example = base64.b64encode(b"ecdsa-sha2-nistp384 " + b"A" * 180).decode()
    resolution = resolve(role_of(row), explicit={row.name: f" {example} "})
    assert not [error for error in resolution.errors if error.rule]
    assert resolution.values[row.name].text == example
    assert resolution.values[row.name].is_set


@pytest.mark.parametrize(
    ("row", "bad"),
    [(VARIABLES[name], bad) for name, values in BAD_VALUES.items() for bad in values],
    ids=lambda part: part.name if isinstance(part, Variable) else ascii(part[:20]),
)
def test_bad_value_is_an_error_with_name_rule_and_example(row: Variable, bad: str) -> None:
    errors = resolve(role_of(row), explicit={row.name: bad}).errors
    [error] = [error for error in errors if error.rule]
    assert error.severity is Severity.ERROR
    assert (error.name, error.rule, error.example) == (row.name, row.rule.text, row.example)
    assert row.name in error.message
    assert row.rule.text in error.message
    assert str(error).isprintable()
    assert len(str(error)) < 500


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_row_is_complete(row: Variable) -> None:
    assert row.appliances
    assert row.rule.text.startswith("must ")
    assert row.help.endswith(".")
    assert row.maps_to or row.run_config_key
    assert (row.kind is Kind.LIST) == bool(row.options)
    assert not row.options or row.default in row.options
    assert len(row.name) < 64
    assert release(FIRST_RELEASE) <= release(row.since) <= release(__version__)


def test_changed_defaults_are_those_of_the_design_document() -> None:
    assert set(CHANGED_DEFAULTS) == {
        "FLOWER_VERSION",
        "FL_TLS_ENABLED",
        "FL_ISOLATION",
        "FL_CONTROL_API_ADDRESS",
        "FL_USE_CASE",
        "FL_MAX_RETRIES",
        "FL_MAX_WAIT_TIME",
        "FL_CLIENT_LR",
    }


def test_a_run_config_key_has_one_owner() -> None:
    keys = [row.run_config_key for row in ROWS if row.run_config_key]
    assert len(keys) == len(set(keys))
    assert RUN_CONFIG_NAMES["num-server-rounds"] == "FL_NUM_ROUNDS"
    assert RUN_CONFIG_NAMES["proximal-mu"] == "FL_PROXIMAL_MU"


def test_planned_use_case_is_refused_as_not_built_yet() -> None:
    [error] = resolve(Role.SUPERNODE, explicit={"FL_USE_CASE": "llm-fine-tuning"}).errors
    assert "llm-fine-tuning is not built yet" in error.message


def test_unknown_strategy_lists_the_known_ones() -> None:
    [error] = resolve(Role.SUPERLINK, explicit={"FL_STRATEGY": "FedSGD"}).errors
    assert "must be one of: FedAvg" in error.message


def test_right_word_in_the_wrong_case_is_told_so() -> None:
    [error] = resolve(Role.SUPERLINK, explicit={"FL_LOG_LEVEL": "info"}).errors
    assert "upper and lower case matter" in error.message


def test_untested_flower_version_names_the_tested_ones() -> None:
    [error] = resolve(Role.SUPERLINK, explicit={"FLOWER_VERSION": "1.25.0"}).errors
    assert error.message.endswith("It must be X.Y.Z, one of the tested versions: 1.41.0.")


def test_private_key_in_place_of_a_certificate_is_refused(material: Material) -> None:
    for name in ("FL_SSL_CA_CERTFILE", "FL_SSL_CERTFILE"):
        with pytest.raises(ValueError, match="holds a private key"):
            VARIABLES[name].parse(material.key)


def test_node_keys_are_lines_with_comments_left_out() -> None:
    keys = ["ecdsa-sha2-nistp384 " + "A" * 180, "ecdsa-sha2-nistp256 " + "B" * 100 + " site-2"]
    text = "\n".join(["# our sites", *keys, ""])
    found = VARIABLES["FL_NODE_KEYS"].parse(base64.b64encode(text.encode()).decode())
    assert found == tuple(keys)


def test_a_private_node_key_is_refused_by_name() -> None:
    pasted = base64.b64encode(b"-----BEGIN OPENSSH PRIVATE KEY-----").decode()
    with pytest.raises(ValueError, match="never leaves its node"):
        VARIABLES["FL_NODE_KEYS"].parse(pasted)


def test_key_with_passphrase_is_refused(material: Material) -> None:
    with pytest.raises(ValueError, match="without passphrase"):
        VARIABLES["FL_SSL_KEYFILE"].parse(material.encrypted_key)


def test_certificate_in_place_of_a_key_is_refused(material: Material) -> None:
    with pytest.raises(ValueError, match="PRIVATE KEY"):
        VARIABLES["FL_SSL_KEYFILE"].parse(material.certificate)


@pytest.mark.parametrize("cut", [30, -40, -80])
def test_cut_certificate_is_refused(material: Material, cut: int) -> None:
    pem = base64.b64decode(material.certificate)
    text = base64.b64encode(pem + pem[:cut]).decode()
    with pytest.raises(ValueError, match="cut or garbled"):
        VARIABLES["FL_SSL_CA_CERTFILE"].parse(text)


def test_chain_of_certificates_with_text_around_is_accepted(material: Material) -> None:
    pem = b"Bag Attributes\r\n" + base64.b64decode(material.certificate) * 2
    text = base64.b64encode(pem).decode()
    assert VARIABLES["FL_SSL_CERTFILE"].parse(text) == pem


def test_curve_parameters_before_a_key_are_accepted(material: Material) -> None:
    """``openssl ecparam -genkey`` writes them; their content is no ASN.1 sequence."""
    curve = b"-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"
    pem = curve + base64.b64decode(material.key)
    assert VARIABLES["FL_SSL_KEYFILE"].parse(base64.b64encode(pem).decode()) == pem


def test_ssh_keys_may_have_several_lines() -> None:
    keys = "ssh-ed25519 AAAA a@b\r\nssh-rsa BBBB\tc@d"
    assert VARIABLES["SSH_PUBLIC_KEY"].parse(keys) == keys


def test_platform_variables_are_asked_of_nobody() -> None:
    platform = [row.name for row in ROWS if row.level is Level.PLATFORM]
    assert platform == ["TOKEN", "NETWORK", "REPORT_READY", "READY_SCRIPT_PATH", "SSH_PUBLIC_KEY"]
