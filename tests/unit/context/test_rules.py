"""Each rule that joins variables, where it speaks and where it is silent."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from onefed.context import Finding, Role, Severity, Source, Value, resolve
from onefed.context.rules import CROSS_RULES, check
from onefed.context.table import VARIABLES

if TYPE_CHECKING:
    from conftest import Material

SUPERLINK, SUPERNODE, PEER = Role.SUPERLINK, Role.SUPERNODE, Role.PEER
ERROR, WARNING, INFO = Severity.ERROR, Severity.WARNING, Severity.INFO


def findings(role: Role, **given: str) -> list[tuple[Severity, str]]:
    return [(finding.severity, finding.name) for finding in resolve(role, explicit=given).findings]


def test_rules_read_variables_of_their_appliances() -> None:
    for rule in CROSS_RULES:
        for name in rule.reads:
            assert rule.appliances <= VARIABLES[name].appliances


def test_x2_no_address_and_no_onegate() -> None:
    assert findings(SUPERNODE, TOKEN="NO") == [(ERROR, "FL_SUPERLINK_ADDRESS")]
    assert findings(SUPERNODE, TOKEN="YES") == []
    assert findings(SUPERNODE, TOKEN="NO", FL_SUPERLINK_ADDRESS="h:1", FL_TLS_ENABLED="NO") == []


@pytest.mark.parametrize(
    ("use_case", "framework", "needed"),
    [
        ("image-classification", "pytorch", ""),
        ("image-classification", "sklearn", ""),
        ("none", "tensorflow", ""),
        ("anomaly-detection", "sklearn", ""),
        ("anomaly-detection", "pytorch", "sklearn"),
        ("llm-fine-tuning", "tensorflow", "pytorch"),
    ],
)
def test_x16_framework_of_the_use_case(use_case: str, framework: str, needed: str) -> None:
    errors = [found for found in of_use_case(use_case, framework) if found.severity is ERROR]
    assert len(errors) == bool(needed)
    for error in errors:
        assert (error.name, error.example) == ("ML_FRAMEWORK", needed)
        for fact in (f"FL_USE_CASE={use_case}", f"ML_FRAMEWORK={needed}", f"is {framework}"):
            assert fact in error.message


def test_x17_a_language_model_wants_a_gpu() -> None:
    [warning] = of_use_case("llm-fine-tuning", "pytorch")
    assert (warning.severity, warning.name) == (WARNING, "FL_GPU_ENABLED")
    assert of_use_case("llm-fine-tuning", "pytorch", FL_GPU_ENABLED="YES") == []


def of_use_case(use_case: str, framework: str, **given: str) -> list[Finding]:
    """What the rules say of a use case, of one that the table refuses for now as well."""
    found = resolve(SUPERNODE, explicit={"ML_FRAMEWORK": framework, **given})
    asked = Value(use_case, Source.EXPLICIT, is_set=True)
    return check(SUPERNODE, {**found.values, "FL_USE_CASE": asked}, ())


@pytest.mark.parametrize("name", ["FL_MIN_FIT_CLIENTS", "FL_MIN_EVALUATE_CLIENTS"])
def test_x4_more_clients_needed_than_waited_for(name: str) -> None:
    assert findings(SUPERLINK, **{name: "3"}) == [(WARNING, name)]
    assert findings(SUPERLINK, **{name: "3", "FL_MIN_AVAILABLE_CLIENTS": "3"}) == []


def test_x4_is_silent_about_numbers_that_are_none() -> None:
    given = {"FL_MIN_FIT_CLIENTS": "3", "FL_MIN_AVAILABLE_CLIENTS": "x"}
    assert findings(SUPERLINK, **given) == [(ERROR, "FL_MIN_AVAILABLE_CLIENTS")]


def test_x6_parameters_of_another_strategy() -> None:
    assert findings(SUPERLINK, FL_TRIM_BETA="0.1") == [(INFO, "FL_TRIM_BETA")]
    assert findings(SUPERLINK, FL_TRIM_BETA="0.1", FL_STRATEGY="FedTrimmedAvg") == []
    assert findings(SUPERLINK, FL_SERVER_LR="0.1", FL_STRATEGY="FedYogi") == []
    assert findings(SUPERLINK, FL_SERVER_LR="0.1", FL_STRATEGY="Nothing") == [
        (ERROR, "FL_STRATEGY")
    ]


def test_x7_fedprox_needs_the_app() -> None:
    assert findings(SUPERLINK, FL_STRATEGY="FedProx") == [(INFO, "FL_STRATEGY")]
    assert findings(SUPERLINK, FL_STRATEGY="FedProx", FL_PROXIMAL_MU="0") == [
        (INFO, "FL_STRATEGY"),
        (WARNING, "FL_PROXIMAL_MU"),
    ]


@pytest.mark.parametrize(
    ("strategy", "hostile", "needed"),
    [("Krum", 1, 5), ("Krum", 2, 7), ("MultiKrum", 1, 5), ("Bulyan", 1, 7), ("Bulyan", 2, 11)],
)
def test_x8_too_few_nodes_for_the_hostile_ones(strategy: str, hostile: int, needed: int) -> None:
    given = {"FL_STRATEGY": strategy, "FL_NUM_MALICIOUS": str(hostile)}
    too_few = resolve(SUPERLINK, explicit={**given, "FL_MIN_AVAILABLE_CLIENTS": str(needed - 1)})
    [error] = too_few.errors
    for fact in (strategy, f"FL_NUM_MALICIOUS={hostile}", str(needed), f"is {needed - 1}"):
        assert fact in error.message
    assert error.example == str(needed)
    assert findings(SUPERLINK, **given, FL_MIN_AVAILABLE_CLIENTS=str(needed)) == []


def test_x8_a_robust_rule_that_expects_nobody_hostile() -> None:
    assert findings(SUPERLINK, FL_STRATEGY="Krum") == [(WARNING, "FL_NUM_MALICIOUS")]


def test_x10_checkpoint_settings_without_checkpoints() -> None:
    given = {"FL_CHECKPOINT_INTERVAL": "1", "FL_CHECKPOINT_PATH": "/app/x"}
    assert findings(SUPERLINK, **given) == [(INFO, name) for name in given]
    assert findings(SUPERLINK, FL_CHECKPOINT_ENABLED="YES", **given) == []


@pytest.mark.parametrize(
    "given",
    [
        ("FL_SSL_CA_CERTFILE",),
        ("FL_SSL_CERTFILE",),
        ("FL_SSL_KEYFILE",),
        ("FL_SSL_CA_CERTFILE", "FL_SSL_CERTFILE"),
        ("FL_SSL_CERTFILE", "FL_SSL_KEYFILE"),
    ],
)
def test_x11_some_ssl_files_only(given: tuple[str, ...], material: Material) -> None:
    names = ["FL_SSL_CA_CERTFILE", "FL_SSL_CERTFILE", "FL_SSL_KEYFILE"]
    values = dict(
        zip(names, (material.certificate, material.certificate, material.key), strict=True)
    )
    missing = [(ERROR, name) for name in names if name not in given]
    assert findings(SUPERLINK, **{name: values[name] for name in given}) == missing
    assert findings(SUPERLINK, **values) == []
    assert findings(SUPERNODE, FL_SSL_CA_CERTFILE=material.certificate) == []


def test_x11_speaks_beside_a_file_that_is_not_valid() -> None:
    """Else the missing files would be found out one start later."""
    assert findings(SUPERLINK, FL_SSL_CA_CERTFILE="x") == [
        (ERROR, "FL_SSL_CA_CERTFILE"),
        (ERROR, "FL_SSL_CERTFILE"),
        (ERROR, "FL_SSL_KEYFILE"),
    ]


def test_x12_tls_material_without_tls(material: Material) -> None:
    given = {"FL_SSL_CA_CERTFILE": material.certificate, "FL_TLS_ENABLED": "NO"}
    assert findings(SUPERNODE, **given) == [(INFO, "FL_SSL_CA_CERTFILE")]
    assert findings(SUPERLINK, FL_CERT_EXTRA_SAN="DNS:a", **given) == [
        (INFO, "FL_SSL_CA_CERTFILE"),
        (INFO, "FL_CERT_EXTRA_SAN"),
    ]


def test_x13_extra_names_beside_an_operator_certificate(material: Material) -> None:
    given = {
        "FL_SSL_CA_CERTFILE": material.certificate,
        "FL_SSL_CERTFILE": material.certificate,
        "FL_SSL_KEYFILE": material.key,
    }
    assert findings(SUPERLINK, FL_CERT_EXTRA_SAN="DNS:a", **given) == [
        (WARNING, "FL_CERT_EXTRA_SAN")
    ]
    assert findings(SUPERLINK, FL_CERT_EXTRA_SAN="DNS:a") == []


def test_x14_static_address_without_ca(material: Material) -> None:
    static = {"FL_SUPERLINK_ADDRESS": "coordinator:9092"}
    assert findings(SUPERNODE, **static, FL_TLS_ENABLED="YES") == [(ERROR, "FL_SSL_CA_CERTFILE")]
    assert findings(SUPERNODE, **static) == [(WARNING, "FL_SSL_CA_CERTFILE")]
    assert findings(SUPERNODE, **static, FL_TLS_ENABLED="NO") == []
    ca = {"FL_SSL_CA_CERTFILE": material.certificate}
    assert findings(SUPERNODE, **static, **ca, FL_TLS_ENABLED="YES") == []


@pytest.mark.parametrize("role", Role)
def test_x23_a_probe_is_answered_before_the_next_one(role: Role) -> None:
    time, timeout = "FL_GRPC_KEEPALIVE_TIME", "FL_GRPC_KEEPALIVE_TIMEOUT"
    assert findings(role, **{time: "60", timeout: "60"}) == [(ERROR, timeout)]
    assert findings(role, **{time: "30", timeout: "10"}) == []
    assert findings(role, **{time: "9", timeout: "3"}) == [(WARNING, time)]


def test_x19_gpu_settings_without_gpu() -> None:
    given = {"FL_CUDA_VISIBLE_DEVICES": "0", "FL_GPU_MEMORY_FRACTION": "0.5"}
    assert findings(SUPERNODE, **given) == [(INFO, name) for name in given]
    assert findings(SUPERNODE, **given, FL_GPU_ENABLED="YES") == []


def test_x21_gpu_metrics_without_gpu() -> None:
    assert findings(SUPERNODE, FL_DCGM_ENABLED="YES") == [(WARNING, "FL_DCGM_ENABLED")]
    assert findings(SUPERNODE, FL_DCGM_ENABLED="YES", FL_GPU_ENABLED="YES") == []


def test_x22_a_port_without_metrics() -> None:
    given = {"FL_METRICS_PORT": "9102"}
    assert findings(SUPERLINK, **given) == [(INFO, "FL_METRICS_PORT")]
    assert findings(SUPERLINK, FL_METRICS_ENABLED="YES", **given) == []
    assert (ERROR, "FL_METRICS_PORT") in findings(SUPERLINK, FL_METRICS_PORT="80")


def test_x9_values_of_another_strategy_have_to_be_valid_all_the_same() -> None:
    for name, value in (("FL_TRIM_BETA", "0.9"), ("FL_SERVER_LR", "-1"), ("FL_NUM_MALICIOUS", "x")):
        assert (ERROR, name) in findings(SUPERLINK, FL_STRATEGY="FedAvg", **{name: value})


def test_x26_longest_wait_of_a_fixed_schedule() -> None:
    given = {"FL_EDGE_MAX_BACKOFF": "60"}
    found = findings(SUPERNODE, FL_EDGE_BACKOFF="fixed", **given)
    assert found == [(INFO, "FL_EDGE_MAX_BACKOFF")]
    assert findings(SUPERNODE, **given) == []


def test_o1_run_config_that_belongs_to_a_variable() -> None:
    resolution = resolve(SUPERLINK, explicit={"FL_RUN_CONFIG": "seed=1 local-epochs=2"})
    [error] = resolution.errors
    assert "set FL_SEED instead" in error.message
    assert findings(SUPERLINK, FL_RUN_CONFIG="local-epochs=2 beta-1=0.5") == []


PEERS = "site-0=h:1#MIIB,site-1=h:2#MIIC,site-2=h:3#MIID"


def test_o2_a_peer_of_a_list_knows_which_one_it_is() -> None:
    assert findings(PEER, FL_PEERS=PEERS) == [(ERROR, "FL_PEER_NAME")]
    assert findings(PEER, FL_PEERS=PEERS, FL_PEER_NAME="site-3") == [(ERROR, "FL_PEER_NAME")]
    assert findings(PEER, FL_PEERS=PEERS, FL_PEER_NAME="site-2", TOKEN="NO") == []


def test_o2_a_list_is_long_enough_to_found_the_group() -> None:
    own = {"FL_PEERS": PEERS, "FL_PEER_NAME": "site-0"}
    assert findings(PEER, **own, FL_PEER_FOUNDERS="4") == [(ERROR, "FL_PEER_FOUNDERS")]
    assert findings(PEER, **own, FL_PEER_FOUNDERS="2") == []


def test_o2_without_a_list_there_is_onegate_or_a_name_to_be_listed_under() -> None:
    assert findings(PEER, TOKEN="NO") == [(ERROR, "FL_PEERS")]
    assert findings(PEER, TOKEN="NO", FL_PEER_NAME="site-0") == []


@pytest.mark.parametrize(("strategy", "needed"), [("Krum", 5), ("Bulyan", 7)])
def test_o3_a_group_is_founded_by_as_many_as_its_rule_needs(strategy: str, needed: int) -> None:
    given = {"FL_STRATEGY": strategy, "FL_NUM_MALICIOUS": "1"}
    few = findings(PEER, **given, FL_PEER_FOUNDERS=str(needed - 1))
    assert few == [(ERROR, "FL_PEER_FOUNDERS")]
    assert findings(PEER, **given, FL_PEER_FOUNDERS=str(needed)) == []
