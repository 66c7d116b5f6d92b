"""A service of OpenNebula with nothing set, from power-on to the end of training, and after it.

The tests of this file look at one federation, and go on from where the one before left it.
"""

from __future__ import annotations

import json
import re
import socket
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from campaigns.boots import network
from campaigns.boots.federation import Federation
from campaigns.boots.machine import Machine, wait_for

from onefed.appliance import machine, steps
from onefed.appliance.description import Runtime
from onefed.tls import authority, material, names, pem

CURL_REFUSED, CURL_TIMEOUT = 7, 28

NODE = "flower-supernode.service"
RENEWAL = "flower-superlink-renewal.service"

pytestmark = [pytest.mark.vm, pytest.mark.timeout(420)]


@pytest.fixture(scope="module")
def plain(deploy) -> Iterator[Federation]:
    """Contexts that hold what OpenNebula itself puts there, and no more."""
    federation = deploy("plain", Runtime.PROCESS)
    federation.deploy({})
    yield federation
    federation.close()


def test_a_service_with_nothing_set_trains_by_itself(plain: Federation) -> None:
    last = plain.wait_until_trained()
    assert (last.rule, last.round_number) == ("FedAvg", 3)
    assert [record.contributors for record in last.history] == [("0", "1")] * 3


def test_what_the_machines_published(plain: Federation) -> None:
    coordinator = plain.attributes(plain.coordinator)
    assert coordinator["FL_ENDPOINT"] == f"{plain.coordinator.record.ip}:9092"
    assert (coordinator["FL_ROLE"], coordinator["FL_TLS"]) == ("superlink", "YES")
    assert (coordinator["FL_READY"], coordinator["READY"]) == ("YES", "YES")
    partitions = set()
    for node in plain.nodes:
        plain.wait_until_idle(node)
        held = plain.attributes(node)
        assert (held["FL_NODE_READY"], held["READY"]) == ("YES", "YES")
        assert held["FL_NODE_ID"] == node.record.vm_id
        assert (held["FL_TRAINING_ACTIVE"], held["FL_ROUND_NUMBER"]) == ("NO", "3")
        partitions.add(held["FL_PARTITION"])
    assert partitions == {"0", "1"}


def test_the_coordinator_answers_over_tls_only_and_on_one_port(
    plain: Federation, tmp_path: Path
) -> None:
    address = plain.attributes(plain.coordinator)["FL_ENDPOINT"]
    anchor = plain.coordinator.paths.certificates / material.CA_CERTIFICATE
    assert machine.healthy(address, anchor)
    assert not machine.healthy(address, None)
    other = tmp_path / "other.crt"
    other.write_bytes(pem.dump_certificates([authority.create_ca(datetime.now(UTC)).certificate]))
    with pytest.raises(ssl.SSLCertVerificationError):
        ssl.get_server_certificate((plain.coordinator.record.ip, 9092), ca_certs=str(other))
    assert open_ports(plain.coordinator) == {9092}
    assert [open_ports(node) for node in plain.nodes] == [set(), set()]


def test_nothing_else_is_let_in_and_no_mail_goes_out(plain: Federation) -> None:
    coordinator, address = plain.coordinator, plain.coordinator.record.ip
    served = "systemd-run --unit=probe python3 -m http.server 8000"
    coordinator.output(*served.split())
    inside = ("curl", "--silent", "--fail", "--max-time", "2", "--output", "/dev/null")
    wait_for(
        lambda: coordinator.run(*inside, "http://127.0.0.1:8000").returncode == 0, 20, "a server"
    )
    for_others = f"http://{address}:8000"
    node = plain.nodes[0]
    assert node.run(*inside, for_others).returncode == CURL_TIMEOUT
    coordinator.output("nft", "delete", "table", "inet", "onefed")
    node.output(*inside, for_others)
    coordinator.output("systemctl", "reload-or-restart", "flower-firewall.service")
    assert node.run(*inside, for_others).returncode == CURL_TIMEOUT
    with socket.create_connection((address, 9092), timeout=10):
        pass
    with socket.create_server((network.ADDRESS, 25)):
        sends = (*inside, f"telnet://{network.ADDRESS}:25")
        assert coordinator.run(*sends).returncode == CURL_REFUSED
    coordinator.output("systemctl", "stop", "probe.service")


def test_systemd_has_nothing_to_complain_of(plain: Federation) -> None:
    for each in plain.machines:
        failed = each.output("systemctl", "--failed", "--no-legend", "--plain")
        assert failed == "", each.output(
            "journalctl", "--boot", "--no-pager", "--priority", "warning"
        )
        units = each.output("sh", "-c", "ls /etc/systemd/system/flower-*").split()
        verified = each.run("systemd-analyze", "verify", *units)
        assert (verified.returncode, verified.stderr) == (0, "")


def test_health_and_status_inside(plain: Federation) -> None:
    for each in plain.machines:
        role = ("--role", each.role.value)
        assert "failed" not in each.output("onefed", "appliance", "health", *role)
        said = json.loads(each.output("onefed", "appliance", "status", *role, "--json"))
        assert {step["status"] for step in said["steps"]} <= {"done", "unchanged", "skipped"}
        assert said["steps"][-1]["name"] == "Report ready"
        report = each.disk / "etc/one-appliance/config"
        assert "Report ready" in report.read_text()
        assert report.stat().st_mode & 0o777 == 0o600


def test_a_node_that_is_powered_off_says_that_it_left_and_comes_back_as_it_was(
    plain: Federation,
) -> None:
    node = plain.nodes[0]
    before = plain.attributes(node)
    node.output("systemctl", "restart", "flower-supernode.service")
    assert plain.attributes(node) == before, "what is only started again has not left"
    node.power_off()
    left = plain.attributes(node)
    assert (left["FL_NODE_READY"], left["FL_CLIENT_STATUS"]) == ("NO", "3")
    plain.power_on_again(node)
    assert plain.attributes(node) == before
    assert changed(node) <= {"SN-11", "SN-12", "SN-13", "SN-13a"}, "the rest is on its disk"


def test_a_certificate_that_ends_soon_is_renewed_and_no_node_has_to_do_anything(
    plain: Federation,
) -> None:
    renew_certificate(plain)
    coordinator = plain.coordinator
    events = coordinator.paths.logs / "events.jsonl"
    seen = len(events.read_text())
    coordinator.output("systemctl", "restart", "flower-superlink-supervisor.service")
    joined = '"event":"client_join"'
    wait_for(lambda: events.read_text()[seen:].count(joined) == 2, 60, "both nodes")
    restarts = [
        each.output("systemctl", "show", "--value", "-p", "NRestarts", NODE) for each in plain.nodes
    ]
    assert restarts == ["0\n"] * 2


def test_a_coordinator_without_power_boots_again_from_its_disk(plain: Federation) -> None:
    coordinator = plain.coordinator
    anchor = coordinator.paths.certificates / material.CA_CERTIFICATE
    before = (anchor.read_bytes(), plain.wait_until_trained().history)
    coordinator.cut_power()
    plain.power_on_again(coordinator)
    assert (anchor.read_bytes(), plain.wait_until_trained().history) == before
    assert changed(coordinator) <= {"SL-10", "SL-11"}
    assert "policy drop" in coordinator.output("nft", "list", "chain", "inet", "onefed", "input")


def renew_certificate(federation: Federation) -> None:
    """Let the server certificate be one that ends in 20 days, and start the unit that the timer
    starts: a new one of the same authority is shown."""
    coordinator, ip = federation.coordinator, federation.coordinator.record.ip
    folder = coordinator.paths.certificates
    ca_file, file = folder / material.CA_CERTIFICATE, folder / material.SERVER_CERTIFICATE
    ca_pem = ca_file.read_bytes()
    key = pem.private_key("ca.key", next(folder.parent.glob("*/ca.key")).read_bytes())
    ca = authority.Issued(pem.certificates("ca.crt", ca_pem)[0], key)
    long_ago = datetime.now(UTC) - authority.LIFETIME + timedelta(days=20)
    old = authority.create_server_certificate(ca, names.required([ip], []), long_ago)
    # In place, so owners and modes stay.
    (folder / material.SERVER_KEY).write_bytes(pem.dump_private_key(old.key))
    file.write_bytes(pem.dump_certificates([old.certificate]))
    asked = ("onefed", "appliance", "health", "--role", "superlink")
    assert "warning certificate server.pem: ends in" in coordinator.output(*asked)
    started = coordinator.run("systemctl", "start", RENEWAL)
    assert started.returncode == 0, coordinator.output("journalctl", "--no-pager", "-u", RENEWAL)
    assert ca_file.read_bytes() == ca_pem
    renewed = file.read_text()

    def is_served() -> bool:
        try:
            return ssl.get_server_certificate((ip, 9092), ca_certs=str(ca_file)) == renewed
        except OSError:  # it is being restarted
            return False

    wait_for(is_served, 30, "the new certificate")
    wait_for(lambda: machine.healthy(f"{ip}:9092", ca_file), 30, "the SuperLink behind it")
    assert "warning" not in coordinator.output(*asked)


def changed(each: Machine) -> set[str]:
    """Ids of the steps that changed something at the last boot."""
    reports = steps.read_account(each.paths.status).reports
    return {report.id for report in reports if report.status is steps.Status.DONE}


def open_ports(each: Machine) -> set[int]:
    """TCP ports that others can reach."""
    listening = each.output("ss", "--tcp", "--listening", "--numeric", "--no-header")
    found = re.findall(r"^LISTEN +\d+ +\d+ +(\S+):(\d+)", listening, re.MULTILINE)
    return {int(port) for address, port in found if not address.startswith(("127.", "[::1]"))}
