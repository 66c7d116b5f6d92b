"""A service of peers: machines that found a group by themselves, and what becomes of a reboot.

The tests of this file look at one group, and go on from where the one before left it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from campaigns.boots.federation import READY_LIMIT_S, Federation, told
from campaigns.boots.machine import Machine, wait_for
from tests.boots.test_process import open_ports

from onefed.appliance import peers, stages, steps
from onefed.appliance.description import Runtime
from onefed.context import Role

pytestmark = [pytest.mark.vm, pytest.mark.timeout(300)]

ROUNDS = 3


@pytest.fixture(scope="module")
def group(deploy) -> Iterator[Federation]:
    """Two machines, the fewest that are a group."""
    made = deploy("peers", Runtime.PROCESS)
    made.start(Role.PEER, [{"FL_PEER_FOUNDERS": "2", "FL_NUM_ROUNDS": str(ROUNDS)}] * 2)
    yield made
    made.close()


def test_two_machines_train_and_agree(group: Federation) -> None:
    rosters = {group.attributes(each)[peers.ROSTER] for each in group.machines}
    assert len(rosters) == 1
    models = {model_of(each) for each in group.machines}
    assert len(models) == 1


def test_a_peers_machine_has_one_port_and_healthy_units(group: Federation) -> None:
    for each in group.machines:
        assert open_ports(each) == {9095}
        assert each.output("systemctl", "--failed", "--no-legend", "--plain") == ""
        units = each.output("sh", "-c", "ls /etc/systemd/system/flower-*").split()
        verified = each.run("systemd-analyze", "verify", *units)
        assert (verified.returncode, verified.stderr) == (0, "")
        assert "failed" not in each.output("onefed", "appliance", "health", "--role", "peer")


def test_a_peer_without_power_comes_back_as_it_was(group: Federation) -> None:
    peer = group.machines[1]
    before = group.attributes(peer)
    model = model_of(peer)
    peer.cut_power()
    group.power_on_again(peer)
    assert group.attributes(peer) == before
    reports = steps.read_account(peer.paths.status).reports
    changed = {report.id for report in reports if report.status is steps.Status.DONE}
    assert changed <= {"PE-11", "PE-12"}, "the rest is on its disk"
    assert model_of(peer) == model


def model_of(machine: Machine) -> str:
    """Digest of the last model, once the machine has told it."""
    log = stages.events(machine.paths)

    def look() -> str:
        for line in reversed(log.read_text().splitlines()):
            record = json.loads(line)
            if record.get("event") == "peer_round" and record["data"]["round"] == ROUNDS:
                return str(record["data"]["model_sha256"])
        return ""

    try:
        return wait_for(look, READY_LIMIT_S, f"round {ROUNDS} of {machine.name}")
    except AssertionError as error:
        raise AssertionError(f"{error}\n{told(machine)}") from None
