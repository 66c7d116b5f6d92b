"""Peers find each other through a real OneGate, and whatever the order found one group."""

from __future__ import annotations

import base64
import itertools
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from onefed.appliance import peers
from onefed.context import PeerContact
from onefed.local.onegate import OneGateServer
from onefed.local.service import ServiceModel
from onefed.opennebula import onegate
from onefed.tls import member_identity


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], PeerContact]:
    """The contact of the peer with this number; made once."""
    made: dict[int, PeerContact] = {}

    def contact(number: int) -> PeerContact:
        if number not in made:
            folder: Path = tmp_path_factory.mktemp("identity")
            name = f"peer-{number}-{number}"
            identity = member_identity.ensure(folder, name, datetime.now(UTC))
            made[number] = peers.contact(name, f"10.0.0.{number}:9095", identity.certificate)
        return made[number]

    return contact


def published(contact: PeerContact) -> dict[str, str]:
    return peers.attributes(contact)


def test_what_was_published_is_read_again(cloud, known) -> None:
    vm = cloud.add("peer")
    with cloud.gate(vm) as gate:
        for name, value in published(known(1)).items():
            gate.publish(name, value)
        gate.publish(peers.ROSTER, peers.encode((known(1), known(2))))
        [found] = peers.siblings(gate)
    assert (found.vm_id, found.contact) == (vm.vm_id, known(1))
    assert found.roster == (known(1), known(2))


@pytest.mark.parametrize(
    "wrong",
    [
        {peers.CONTACT_NAME: "peer-2-2"},
        {peers.CONTACT_NAME: "../x-1"},
        {peers.CONTACT_ADDRESS: "10.0.0.1"},
        {peers.CONTACT_ADDRESS: ""},
        {peers.CONTACT_CERTIFICATE: ""},
        {peers.CONTACT_CERTIFICATE: base64.b64encode(b"no certificate").decode()},
        {peers.CONTACT_CERTIFICATE: "$(id)"},
    ],
    ids=lambda wrong: "=".join(*wrong.items()),
)
def test_half_a_contact_and_nonsense_are_none(cloud, known, wrong: dict[str, str]) -> None:
    """A name beside another one's certificate is half of two contacts."""
    vm = cloud.add("peer", **{**published(known(1)), **wrong})
    with cloud.gate(vm) as gate:
        assert [each.contact for each in peers.siblings(gate)] == [None]


def test_only_peers_of_the_own_service_are_seen(cloud, known) -> None:
    vm = cloud.add("peer", **published(known(1)))
    cloud.add("supernode", **published(known(2)))
    other = ServiceModel("7", "another")
    other.add_role("peer", 1)
    other.add_vm("peer", "peer_0", "10.0.0.3", {}, published(known(3)))
    with cloud.gate(vm) as gate:
        assert [each.contact for each in peers.siblings(gate)] == [known(1)]


def test_the_oldest_says_who_founds_and_the_others_wait_for_it(cloud, known) -> None:
    vms = [cloud.add("peer") for _ in range(3)]
    gates = [cloud.gate(vm) for vm in vms]
    cloud.model.update_attributes(vms[2].vm_id, published(known(3)))
    cloud.model.update_attributes(vms[1].vm_id, published(known(2)))
    waiting = f"machine {vms[0].vm_id}, the oldest peer, has published no contact"
    assert str(peers.look(gates[2], vms[2].vm_id, 2)).startswith(waiting)
    cloud.model.update_attributes(vms[0].vm_id, published(known(1)))
    assert "has not yet said" in peers.look(gates[1], vms[1].vm_id, 2)
    roster = peers.look(gates[0], vms[0].vm_id, 2)
    assert roster == (known(1), known(2))
    assert [peers.look(gate, vm.vm_id, 2) for gate, vm in zip(gates, vms, strict=True)] == [
        roster
    ] * 3


def test_a_machine_that_never_comes_up_is_not_waited_for(cloud, known) -> None:
    vms = [cloud.add("peer") for _ in range(4)]
    for number in (0, 2, 3):
        cloud.model.update_attributes(vms[number].vm_id, published(known(number)))
    with cloud.gate(vms[0]) as gate:
        assert peers.look(gate, vms[0].vm_id, 3) == (known(0), known(2), known(3))
        assert peers.look(gate, vms[0].vm_id, 4) == (known(0), known(2), known(3)), "pinned"


def test_what_is_missing_is_named(cloud, known) -> None:
    vm = cloud.add("peer", **published(known(1)))
    with cloud.gate(vm) as gate:
        assert peers.look(gate, vm.vm_id, 2) == (
            "1 of 2 founders are known, the service has 1 peers"
        )
        other = cloud.add("peer")
        assert peers.look(gate, vm.vm_id, 2) == (
            f"1 of 2 founders are known, no usable contact of machine {other.vm_id}"
        )


def test_a_roster_that_cannot_be_read_founds_no_second_group(cloud, known) -> None:
    vm = cloud.add("peer", **published(known(1)), **{peers.ROSTER: "bm8gcm9zdGVy"})
    with cloud.gate(vm) as gate:
        assert "cannot be read" in peers.look(gate, vm.vm_id, 1)


def test_two_groups_in_one_service_are_an_error(cloud, known) -> None:
    vm = cloud.add("peer", **{peers.ROSTER: peers.encode((known(1),))})
    cloud.add("peer", **{peers.ROSTER: peers.encode((known(2),))})
    with cloud.gate(vm) as gate, pytest.raises(peers.PeersNotFoundError, match="two different"):
        peers.look(gate, vm.vm_id, 1)


def test_the_roster_outlives_the_machine_that_published_it(cloud, known) -> None:
    """Each member publishes it, too; and a newcomer that is the oldest by then founds nothing."""
    vms = [cloud.add("peer", **published(known(number))) for number in (1, 2)]
    with cloud.gate(vms[0]) as gate:
        roster = peers.look(gate, vms[0].vm_id, 2)
    cloud.model.update_attributes(vms[1].vm_id, {peers.ROSTER: peers.encode(roster)})
    cloud.model.remove_vm(vms[0].vm_id)
    late = cloud.add("peer", **published(known(3)))
    with cloud.gate(late) as gate:
        assert peers.look(gate, late.vm_id, 2) == roster


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    machines=st.integers(1, 5),
    data=st.data(),
)
def test_any_order_of_boots_gives_one_group(known, machines: int, data: st.DataObject) -> None:
    """Each machine publishes its three attributes one by one, then looks until it has a roster."""
    founders = data.draw(st.integers(1, machines), label="founders")
    model = ServiceModel("6", "peers")
    model.add_role("peer", machines)
    with OneGateServer(model) as endpoint:
        vms = [model.add_vm("peer", f"peer_{i}", "10.0.0.1", {}, {}) for i in range(machines)]
        gates = [onegate.OneGate(endpoint, vm.token, vm.vm_id) for vm in vms]
        to_publish = [list(published(known(i)).items()) for i in range(machines)]
        rosters: dict[int, peers.Roster] = {}
        rounds = itertools.chain(
            data.draw(st.lists(st.integers(0, machines - 1), max_size=20), label="order"),
            itertools.chain.from_iterable(itertools.repeat(range(machines), 6)),
        )
        for number in rounds:
            if to_publish[number]:
                gates[number].publish(*to_publish[number].pop(0))
            elif number not in rosters:
                found = peers.look(gates[number], vms[number].vm_id, founders)
                if not isinstance(found, str):
                    rosters[number] = found
                    gates[number].publish(peers.ROSTER, peers.encode(found))
        for gate in gates:
            gate.close()
    assert len(rosters) == machines, "everybody knows"
    assert len(set(rosters.values())) == 1, "the same"
    assert len(rosters[0]) == founders


def test_waits_grow_are_apart_and_end(time) -> None:
    plain = list(peers.waits(lambda: 0.0))
    assert plain[:5] == [1.0, 2.0, 4.0, 8.0, 10.0]
    assert peers.WAIT_LIMIT_S <= sum(plain) <= peers.WAIT_LIMIT_S + peers.WAIT_MAX_S
    shortest = list(peers.waits(lambda: 0.999))
    assert 0.5 < shortest[0] < plain[0]
    assert sum(shortest) <= peers.WAIT_LIMIT_S + peers.WAIT_MAX_S


def test_a_wrong_token_is_not_tried_again(cloud, time) -> None:
    vm = cloud.add("peer")
    with cloud.gate(vm, token="nobody") as gate, pytest.raises(onegate.NotAuthorizedError):
        peers.until(
            lambda: peers.look(gate, vm.vm_id, 1),
            waits=peers.waits(lambda: 0.0),
            sleep=time.sleep,
            on_try=lambda *_: None,
        )
    assert time.slept == []


def test_another_founding_is_another_group(known) -> None:
    assert peers.group_of((known(1), known(2))) == peers.group_of((known(2), known(1)))
    assert peers.group_of((known(1), known(2))) != peers.group_of((known(1), known(3)))


@pytest.mark.parametrize(
    ("name", "next_one"), [("peer-7-0", "r1-peer-7-0"), ("r1-peer-7-0", "r2-peer-7-0")]
)
def test_who_lost_its_disk_is_somebody_else(name: str, next_one: str) -> None:
    assert peers.successor(name) == next_one
    assert peers.partition_of(next_one) == 0
