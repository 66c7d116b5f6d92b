"""A service whose contexts set much, with planted secrets: what it trains, and what it lets out.

The tests of this file look at one federation, and go on from where the one before left it.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from campaigns.boots import network, search
from campaigns.boots.federation import Federation, last_saved
from campaigns.boots.machine import wait_for
from prometheus_client import parser

from onefed.appliance.description import Runtime
from onefed.appliance.paths import Paths
from onefed.context import Role
from onefed.tls import authority, material, names, pem

pytestmark = [pytest.mark.vm, pytest.mark.timeout(420)]

MODEL = {
    "FL_STRATEGY": "FedAdam",
    "FL_SERVER_LR": "0.05",
    "FL_FEDADAM_TAU": "1e-3",
    "FL_SEED": "42",
    "FL_RUN_CONFIG": "local-epochs=2 batch-size=64",
}
"""What decides the model; a laptop gets the same."""

AROUND = {
    "FL_NUM_ROUNDS": "2",
    "FL_LOG_LEVEL": "DEBUG",
    "FL_LOG_FORMAT": "json",
    "FL_CHECKPOINT_ENABLED": "YES",
    "FL_CHECKPOINT_INTERVAL": "1",
    "FL_DATABASE": "state/other.db",
    "FL_FLEET_API_ADDRESS": "0.0.0.0:9192",
    "FL_SUPERLINK_PORT": "9191",
    "FL_CONTROL_API_ADDRESS": "127.0.0.1:9193",
    "FL_GATEWAY_CONNECTIONS": "64",
    "FL_GATEWAY_RATE": "300",
    "FL_ROUND_TIMEOUT": "120",
    "FL_METRICS_ENABLED": "YES",
    "FL_METRICS_PORT": "9201",
}

CURL_TIMEOUT = 28

ELSEWHERE = "192.0.2.7"
"""An address outside of the machines' network."""

ADDRESSES_MAX = 40
"""Of all machines of this run: the operator's certificate is there before its machine."""

LAPTOP_LIMIT_S = 240.0


@dataclass
class Told:
    """The federation, what its coordinator was told, and the secrets that it was told."""

    federation: Federation
    variables: dict[str, str]
    planted: dict[str, bytes]
    home: Path
    """State of a laptop that trains the same."""
    laptop: subprocess.Popen[bytes]


@pytest.fixture(scope="module")
def told(deploy, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Told]:
    """Certificates of the operator's, and nodes that get in by a token."""
    federation: Federation = deploy("settings", Runtime.PROCESS)
    pki = operators_pki()
    planted = {
        "the TLS key": base64.b64decode(pki["FL_SSL_KEYFILE"]),
        "a password": b"correct-horse-battery-staple-4711",
        "a WireGuard key": base64.b64encode(bytes(range(100, 132))),
    }
    others = {
        "PASSWORD": planted["a password"].decode(),
        "WG_PRIVATE_KEY": planted["a WireGuard key"].decode(),
    }
    variables = {**MODEL, **AROUND, **pki, **others}
    federation.start(Role.SUPERLINK, [variables])
    contexts = []
    for partition in ("0", "1"):
        token = federation.coordinator.output("onefed", "nodes", "token", "--partition", partition)
        planted[f"token {partition}"] = token.strip().encode()
        contexts.append(
            {
                **others,
                "FL_LOG_LEVEL": "DEBUG",
                "FL_ENROLMENT_TOKEN": token.strip(),
                "FL_NODE_CONFIG": f"partition-id={partition} num-partitions=2",
            }
        )
    federation.start(Role.SUPERNODE, contexts)
    home = tmp_path_factory.mktemp("laptop")
    laptop = start_laptop(home)
    yield Told(federation, variables, planted, home, laptop)
    laptop.terminate()
    laptop.wait()
    federation.close()


def test_settings_are_in_effect(told: Told) -> None:
    last = told.federation.wait_until_trained()
    assert (last.rule, last.seed, last.round_number) == ("FedAdam", 42, 2)
    assert [record.contributors for record in last.history] == [("0", "1")] * 2
    coordinator = told.federation.coordinator
    held = told.federation.attributes(coordinator)
    assert held["FL_ENDPOINT"] == f"{coordinator.record.ip}:9192"
    exports = sorted(path.name for path in coordinator.paths.checkpoints.glob("*round_?.npz"))
    assert exports == ["checkpoint_round_1.npz", "checkpoint_round_2.npz"]
    boot = (coordinator.paths.logs / "flower-configure.log").read_text().splitlines()
    assert all(isinstance(json.loads(line), dict) for line in boot)
    listed = json.loads(coordinator.output("onefed", "nodes", "list", "--json"))
    assert {row["client"] for row in listed} == {"0", "1"}


def test_the_machines_own_network_and_nobody_else_may_ask_for_metrics(told: Told) -> None:
    federation, coordinator = told.federation, told.federation.coordinator
    federation.wait_until_trained()
    address = coordinator.record.ip

    def look() -> dict[str, float]:
        text = httpx.get(f"http://{address}:9201/metrics", trust_env=False).text
        return {
            sample.name: sample.value
            for family in parser.text_string_to_metric_families(text)
            for sample in family.samples
        }

    # The supervisor says that a run is complete a moment after its last round.
    wait_for(lambda: look()["fl_training_status"] == 2, 30, "a run that is complete")
    held = look()
    assert (held["fl_round_current"], held["fl_round_total"]) == (2, 2)
    assert (held["fl_round_duration_seconds_count"], held["fl_clients_connected"]) == (2, 2)
    assert held["fl_checkpoint_saved_total"] == 2
    expiries = material.ends(coordinator.paths.certificates)
    assert held["onefed_certificate_expiry_timestamp_seconds"] in {
        end.timestamp() for end in expiries.values()
    }
    node = federation.nodes[0]
    node.output("ip", "address", "add", f"{ELSEWHERE}/32", "dev", "lo")
    coordinator.output("ip", "route", "add", ELSEWHERE, "via", node.record.ip)
    asks = ("curl", "--silent", "--fail", "--max-time", "2", "--output", "/dev/null")
    asks = (*asks, f"http://{address}:9201/metrics")
    node.output(*asks)
    assert node.run(*asks, "--interface", ELSEWHERE).returncode == CURL_TIMEOUT
    coordinator.output("nft", "insert", "rule", "inet", "onefed", "input", "tcp dport 9201 accept")
    node.output(*asks, "--interface", ELSEWHERE)
    coordinator.output("systemctl", "reload", "flower-firewall.service")


def test_no_secret_is_where_others_could_read_it(told: Told) -> None:
    needles = {
        **search.spelled(told.planted),
        **search.own_secrets(told.federation.machines),
    }
    page = httpx.get(
        f"http://{told.federation.coordinator.record.ip}:9201/metrics", trust_env=False
    )
    assert search.names_in(page.content, needles) == []
    assert len(needles) >= 12
    assert search.everywhere(told.federation.machines, needles) == []
    published = [vm.user_template for vm in told.federation.model.snapshot().vms.values()]
    assert search.names_in(repr(published).encode(), needles) == []


def test_a_changed_context_is_taken_up_by_the_next_boot(told: Told) -> None:
    federation, coordinator = told.federation, told.federation.coordinator
    before = federation.wait_until_trained().history
    coordinator.power_off()
    coordinator.tell({**coordinator.record.context, "FL_NUM_ROUNDS": "3"})
    federation.power_on_again(coordinator)
    after = federation.wait_until_trained(rounds=3)
    assert (after.rounds_total, after.history[:2]) == (3, before)
    assert after.history[2].contributors == ("0", "1")
    assert "is not the one of round" not in (coordinator.paths.logs / "events.jsonl").read_text()


@pytest.fixture(scope="module")
def again(told: Told, deploy: Callable[..., Federation]) -> Federation:
    """Another federation, on machines of its own: of the one before it has the exports."""
    told.federation.wait_until_trained(rounds=3)
    told.federation.cut_power()
    federation = deploy("settings-again", Runtime.PROCESS)
    variables = {**MODEL, "FL_CHECKPOINT_ENABLED": "YES", "FL_NUM_ROUNDS": "4"}
    coordinator = federation.create(Role.SUPERLINK, variables)
    shutil.copytree(told.federation.coordinator.paths.checkpoints, coordinator.paths.checkpoints)
    coordinator.power_on()
    federation.wait_until_ready(coordinator)
    federation.start(Role.SUPERNODE, [variables] * 2)
    return federation


def test_a_federation_that_is_deployed_again_goes_on_with_the_run(
    told: Told, again: Federation
) -> None:
    before = told.federation.wait_until_trained(rounds=3)
    after = again.wait_until_trained(rounds=4)
    assert (after.run, after.history[:3]) == (before.run, before.history)
    assert after.history[3].contributors == ("0", "1")
    log = (again.coordinator.paths.logs / "events.jsonl").read_text()
    assert log.count('"event":"round_end"') == 1, "no round is trained again"


def test_a_laptop_trains_the_same_bits(told: Told, again: Federation) -> None:
    assert told.laptop.wait(LAPTOP_LIMIT_S) == 0
    there = last_saved(Paths(told.home / "laptop/vms/superlink"))
    here = last_saved(again.coordinator.paths)
    assert there is not None
    assert here is not None
    models = [[record.model_sha256 for record in each.history] for each in (there, here)]
    assert models[0] == models[1]
    assert len(set(models[0])) == 4


def start_laptop(home: Path) -> subprocess.Popen[bytes]:
    """The same training on this computer, beside the machines: they wait most of the time."""
    settings = [word for name, text in MODEL.items() for word in ("--set", f"{name}={text}")]
    return subprocess.Popen(
        [
            *(Path(sys.executable).with_name("onefed"), "up", "--name", "laptop"),
            *("--nodes", "2", "--rounds", "4", "--log-format", "json", *settings),
        ],
        env={**os.environ, "ONEFED_HOME": str(home)},  # noqa: TID251
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )


def operators_pki() -> Mapping[str, str]:
    """FL_SSL_*, as an operator with an authority of their own would set them."""
    now = datetime.now(UTC)
    ca = authority.create_ca(now)
    addresses = [network.address(number) for number in range(ADDRESSES_MAX)]
    server = authority.create_server_certificate(ca, names.required(addresses, []), now)
    return {
        "FL_SSL_CA_CERTFILE": pem.encode(pem.dump_certificates([ca.certificate])),
        "FL_SSL_CERTFILE": pem.encode(pem.dump_certificates([server.certificate])),
        "FL_SSL_KEYFILE": pem.encode(pem.dump_private_key(server.key)),
    }
