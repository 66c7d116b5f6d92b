"""A service of peers: machines that found a group by themselves, and what becomes of it.

The tests of this file look at two groups, and go on from where the one before left them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import pytest
from campaigns.boots import search
from campaigns.boots.federation import READY_LIMIT_S, Federation, told
from campaigns.boots.machine import Machine, wait_for
from tests.boots.test_docker import containers_that_may_do_little
from tests.boots.test_process import open_ports

from onefed.appliance import machine, peer_state, peers, stages, steps
from onefed.appliance.description import Runtime
from onefed.context import Role
from onefed.node.checkpoints.file import Kind
from onefed.node.checkpoints.folder import Folder

pytestmark = [pytest.mark.vm, pytest.mark.timeout(300)]

VARIABLES = {
    "FL_PEER_FOUNDERS": "3",
    "FL_NUM_ROUNDS": "1000000",  # it does not come to an end by itself
    "FL_RUN_CONFIG": "local-epochs=1",
}


@pytest.fixture(scope="module")
def group(deploy) -> Iterator[Federation]:
    """Three machines, the fewest of which one may fail."""
    made = deploy("peers", Runtime.PROCESS)
    made.model.set_cardinality(Role.PEER, 3)
    made.start(Role.PEER, [VARIABLES] * 3)
    yield made
    made.close()


def test_machines_of_a_service_train_and_agree(group: Federation) -> None:
    rosters = {group.attributes(each)[peers.ROSTER] for each in group.machines}
    assert len(rosters) == 1
    trains_with(group.machines, map(name_of, group.machines))
    agree(group.machines)


def test_a_peers_machine_has_one_port_and_healthy_units(group: Federation) -> None:
    for each in group.machines:
        assert open_ports(each) == {9095}
        assert each.output("systemctl", "--failed", "--no-legend", "--plain") == ""
        units = each.output("sh", "-c", "ls /etc/systemd/system/flower-*").split()
        verified = each.run("systemd-analyze", "verify", *units)
        assert (verified.returncode, verified.stderr) == (0, "")
        assert "failed" not in each.output("onefed", "appliance", "health", "--role", "peer")


def test_a_peer_without_power_comes_back_as_it_was(group: Federation) -> None:
    peer = group.machines[2]
    before = group.attributes(peer)
    peer.cut_power()
    group.power_on_again(peer)
    assert group.attributes(peer) == before
    reports = steps.read_account(peer.paths.status).reports
    changed = {report.id for report in reports if report.status is steps.Status.DONE}
    assert changed <= {"PE-11", "PE-12"}, "the rest is on its disk"
    trains_with(group.machines, map(name_of, group.machines))
    agree(group.machines)


def test_a_machine_with_a_new_disk_gets_back_what_others_kept_of_it(group: Federation) -> None:
    """It has forgotten its votes, and so takes part under another name, on the same data."""
    *others, peer = group.machines
    before = name_of(peer)
    wait_for(lambda: list(kept_of(others, before)), READY_LIMIT_S, f"something of {before}")
    peer.cut_power()
    peer.replace_disk()
    group.power_on_again(peer)
    assert name_of(peer) == f"r1-{before}"
    trains_with(group.machines, map(name_of, group.machines))
    restored = digests(kept_of([peer], before))
    assert restored, "its private state"
    assert restored <= digests(kept_of(others, before)), "bit by bit"
    assert "not_restored" not in notices(peer)
    agree(group.machines)


def test_a_fourth_machine_joins_the_group_that_trains(group: Federation) -> None:
    group.model.set_cardinality(Role.PEER, 4)
    group.start(Role.PEER, [VARIABLES])
    *_, fourth = group.machines
    assert "joins" in outcome(fourth, "PE-09")
    trains_with(group.machines, map(name_of, group.machines))
    agree(group.machines)


def test_a_machine_that_its_service_takes_away_leaves_the_group(group: Federation) -> None:
    """By an entry that a majority committed, before it is off; not by being missed."""
    first, *others = group.machines
    name = name_of(first)
    group.model.set_cardinality(Role.PEER, 3)
    first.power_off()
    group.model.remove_vm(first.record.vm_id)
    assert notices(first)["off_roster"] == ["left"], told(first)
    group.machines.remove(first)
    for each in others:
        assert name not in view(each).voters
    trains_with(others, map(name_of, others))
    agree(others)


@pytest.fixture(scope="module")
def sites(group: Federation, deploy) -> Iterator[list[Federation]]:
    """Three sites without a OneGate in common, a machine each; at one of them it has Docker.

    None has booted with the list: what is in it each machine says at its first boot.
    """
    group.cut_power()
    runtimes = (Runtime.PROCESS, Runtime.DOCKER, Runtime.PROCESS)
    made = [deploy(f"site-{n}", runtime) for n, runtime in enumerate(runtimes)]
    for site in made:
        site.create(Role.PEER, {**VARIABLES, "FL_PEER_FOUNDERS": "2", "FL_PEER_NAME": site.name})
        site.machines[0].power_on()
    yield made
    for site in made:
        site.close()


def test_sites_found_a_group_by_the_list_of_what_their_machines_say(
    sites: list[Federation],
) -> None:
    listed = ",".join(map(entry_of, sites))
    for site in sites[:2]:
        boot_with(site, listed)
    first, second = (site.machines[0] for site in sites[:2])
    for site in sites[:2]:
        wait_until_mended(site)
    trains_with([first, second], ["site-0", "site-1"])
    agree([first, second])
    third = sites[2].machines[0]
    boot_with(sites[2], listed)
    wait_until_mended(sites[2])
    trains_with([first, second, third], ["site-0", "site-1", "site-2"])
    agree([first, second, third])


def test_a_peer_in_a_container_may_do_little_and_tells_no_secret(sites: list[Federation]) -> None:
    machines = [site.machines[0] for site in sites]
    in_docker = machines[1]
    assert containers_that_may_do_little(in_docker) == ["flower-peer"]
    assert "failed" not in in_docker.output("onefed", "appliance", "health", "--role", "peer")
    home = "ONEFED_HOME=/opt/flower/state"
    shown = in_docker.output("env", home, "onefed", "peer", "status", "--name", "machine")
    assert re.search(r"^ *site-1 +training ", shown, re.MULTILINE), shown
    needles = search.own_secrets(machines)
    assert len(needles) == 2 * len(machines)
    assert search.everywhere(machines, needles) == []


def test_a_peer_in_a_container_that_is_drained_leaves_its_group(sites: list[Federation]) -> None:
    first, leaving, third = (site.machines[0] for site in sites)
    said = leaving.run("onefed", "appliance", "drain", "--role", "peer")
    assert (said.returncode, said.stdout, said.stderr) == (0, "drained and stopped\n", "")
    assert notices(leaving)["off_roster"] == ["left"], told(leaving)
    trains_with([first, third], ["site-0", "site-2"])
    agree([first, leaving, third])


def entry_of(site: Federation) -> str:
    """What the only machine of a site says that all sites are to list of it."""
    each = site.machines[0]
    failed = wait_for(
        lambda: site.attributes(each).get("FL_ERROR"), READY_LIMIT_S, f"{each.name} without a list"
    )
    assert failed == "peers_not_found"
    return steps.read_account(each.paths.status).hint.rpartition(" ")[2]


def wait_until_mended(site: Federation) -> None:
    """Its machine is ready, and says no longer why its first boot failed."""
    each = site.machines[0]

    def look() -> bool:
        return site.attributes(each).get("READY") == "YES"

    try:
        wait_for(look, READY_LIMIT_S, f"{each.name} READY")
    except AssertionError as error:
        raise AssertionError(f"{error}\n{told(each)}") from None
    assert "FL_ERROR" not in site.attributes(each)


def boot_with(site: Federation, listed: str) -> None:
    """Boot its machine again, with the list in its context."""
    each = site.machines[0]
    each.cut_power()
    each.tell({**each.record.context, "FL_PEERS": listed})
    each.power_on()


def name_of(each: Machine) -> str:
    """Of its peer."""
    return machine.read_facts(each.paths)["peer_name"]


def view(each: Machine) -> peer_state.NodeView:
    """What its node says of itself."""
    return peer_state.look(each.paths, name_of(each), datetime.now(UTC))


def outcome(each: Machine, step: str) -> str:
    """What a step of its last boot came to."""
    reports = steps.read_account(each.paths.status).reports
    return next(report.detail for report in reports if report.id == step)


def happened(each: Machine, event: str) -> Iterator[Mapping[str, Any]]:
    """Data of each such event on this disk."""
    log = stages.events(each.paths)
    for line in log.read_text().splitlines() if log.exists() else ():
        record = json.loads(line)
        if record["event"] == event:
            yield record["data"]


def rounds(each: Machine) -> Mapping[int, Mapping[str, Any]]:
    """What a machine has told of each round."""
    return {data["round"]: data for data in happened(each, "peer_round")}


def notices(each: Machine) -> Mapping[str, list[str]]:
    """What its node noticed, by kind."""
    found: dict[str, list[str]] = {}
    for data in happened(each, "peer_notice"):
        found.setdefault(data["kind"], []).append(data["detail"])
    return found


def kept_of(machines: Iterable[Machine], name: str) -> Iterator[tuple[Folder, str, int]]:
    """Where these machines have a peer's private state, and of which rounds."""
    for each in machines:
        place = each.paths.peer_node(name_of(each)) / "checkpoints"
        for experiment in place.glob("*"):
            folder = Folder(place, experiment.name, name_of(each))
            for number in folder.rounds(name, Kind.REMOTE):
                yield folder, name, number


def digests(kept: Iterable[tuple[Folder, str, int]]) -> set[tuple[int, str]]:
    """By rounds; of a peer that is gone, since what a living one has others keep is replaced."""
    return {
        (number, folder.read(name, number, Kind.REMOTE).digest) for folder, name, number in kept
    }


def trains_with(machines: Iterable[Machine], names: Iterable[str]) -> None:
    """Wait until each of these machines has installed one more model of all of these peers."""
    wanted = ",".join(sorted(names))
    begun = {each.name: max(rounds(each), default=0) for each in machines}
    for each in machines:

        def look(each: Machine = each) -> bool:
            return any(
                data["contributors"] == wanted
                for number, data in rounds(each).items()
                if number > begun[each.name]
            )

        try:
            wait_for(look, READY_LIMIT_S, f"a round of {wanted} at {each.name}")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{told(each)}") from None


def agree(machines: Iterable[Machine]) -> None:
    """No two machines have ever installed two models of one round."""
    models = {
        (number, data["model_sha256"]) for each in machines for number, data in rounds(each).items()
    }
    assert len(models) == len({number for number, _ in models})
