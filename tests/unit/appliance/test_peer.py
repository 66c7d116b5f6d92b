"""A peer's boot: it says who it is before anybody is pinned; a reboot goes on, a new disk joins."""

from __future__ import annotations

import shutil
import stat
from collections.abc import Sequence
from typing import Any

import pytest

from onefed.appliance import health, peer, peer_state, peers
from onefed.appliance.steps import BootError, Status
from onefed.context import Role
from onefed.errors import ExitCode
from onefed.local import peer_machine

PINNED = next(i for i, step in enumerate(peer.STEPS) if step.id == "PE-09")


def told(computer: Any) -> peer_machine.Instructions:
    """What the node reads that the boot has written."""
    return peer_machine.read(computer.paths.peer)


def boot_all(computers: Sequence[Any]) -> None:
    """The youngest first, to where a roster is needed; then all of them."""
    for each in reversed(computers):
        each.boot(peer.STEPS[:PINNED])
    for each in computers:
        each.boot()


def test_three_machines_found_one_group(cloud, new_peer) -> None:
    machines = [new_peer() for _ in range(3)]
    boot_all(machines)
    founders = told(machines[0]).founders
    assert [each.name for each in founders] == [
        f"peer-{computer.vm.vm_id}-{number}" for number, computer in enumerate(machines)
    ]
    for number, computer in enumerate(machines):
        mine = told(computer)
        assert (mine.founders, mine.group) == (founders, told(machines[0]).group)
        assert mine.name == founders[number].name
        assert mine.address == mine.listen == f"127.0.0.1:{computer.variables['FL_PEER_PORT']}"
        assert mine.partition == (number, 3)
        assert computer.names_started == ["peer"]


def test_the_contact_is_told_before_the_roster_and_ready_last(cloud, new_peer) -> None:
    computer = new_peer(FL_PEER_FOUNDERS="1")
    computer.boot()
    names = [name for name, _ in cloud.published(computer.vm)]
    assert names == [
        "FL_PARTITION",
        *(peers.CONTACT_NAME, peers.CONTACT_ADDRESS, peers.CONTACT_CERTIFICATE),
        *(peers.ROSTER, "FL_ROLE", "FL_VERSION", "FL_READY", "READY"),
    ]


def test_a_second_boot_changes_nothing(new_peer) -> None:
    computer = new_peer(FL_PEER_FOUNDERS="1")
    computer.boot()
    before = computer.files()
    again = computer.boot()
    assert Status.DONE not in {report.status for report in again.values()}
    assert computer.files() == before


def test_a_reboot_keeps_key_name_and_roster_whoever_has_come_since(cloud, new_peer) -> None:
    machines = [new_peer(FL_PEER_FOUNDERS="2") for _ in range(2)]
    boot_all(machines)
    before = told(machines[1])
    new_peer(FL_PEER_FOUNDERS="2").boot()
    machines[1].power_off()
    machines[1].boot()
    assert told(machines[1]) == before


def test_a_reboot_needs_no_answer_of_onegate_about_the_group(cloud, new_peer) -> None:
    """The roster is pinned: whatever OneGate says later changes nothing."""
    computer = new_peer(FL_PEER_FOUNDERS="1")
    computer.boot()
    group = told(computer).group
    cloud.model.erase_attribute(computer.vm.vm_id, peers.ROSTER)
    cloud.add("peer", **{peers.ROSTER: "nonsense"})
    computer.power_off()
    assert computer.boot()["PE-09"].status is Status.UNCHANGED
    assert told(computer).group == group


def test_a_later_machine_joins(new_peer) -> None:
    machines = [new_peer(FL_PEER_FOUNDERS="2") for _ in range(2)]
    boot_all(machines)
    late = new_peer(FL_PEER_FOUNDERS="2")
    assert "joins" in late.boot()["PE-09"].detail
    assert told(late).group == told(machines[0]).group
    assert told(late).name not in {each.name for each in told(late).founders}
    assert told(late).partition == (2, 3)


def test_a_machine_with_a_new_disk_comes_as_somebody_else(cloud, new_peer) -> None:
    """It has forgotten its votes, so it may not vote under its old name."""
    machines = [new_peer(FL_PEER_FOUNDERS="2") for _ in range(2)]
    boot_all(machines)
    before = told(machines[1])
    machines[1].power_off()
    shutil.rmtree(machines[1].paths.root)
    machines[1].paths.root.mkdir()
    assert "joins" in machines[1].boot()["PE-09"].detail
    after = told(machines[1])
    assert (after.name, after.group) == (f"r1-{before.name}", before.group)
    assert after.partition == before.partition


@pytest.mark.parametrize("hostile", ["../../etc/x-0", "peer-9999-0", "r1-" * 30 + "peer-0-0", "x"])
def test_a_name_that_somebody_else_published_is_not_taken(cloud, new_peer, hostile: str) -> None:
    """It would be a folder's name. The machine cannot tell what it lost, so it is somebody new."""
    computer = new_peer(FL_PEER_FOUNDERS="1")
    planted = {peers.CONTACT_NAME: hostile, peers.CONTACT_CERTIFICATE: "AAAA"}
    cloud.model.update_attributes(computer.vm.vm_id, planted)
    computer.boot()
    assert told(computer).name == f"r1-peer-{computer.vm.vm_id}-0"


def test_secrets_are_the_owners_from_the_first_byte(new_peer, open_umask) -> None:
    computer = new_peer(FL_PEER_FOUNDERS="1")
    computer.boot()
    identity = computer.paths.peer_node(told(computer).name) / "identity"
    for path in (identity / "member.key", computer.paths.peer, computer.paths.gate_token):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    assert stat.S_IMODE(computer.paths.peers.stat().st_mode) == 0o700
    private = (identity / "member.key").read_text().splitlines()[1]
    assert private not in str(computer.started)


def test_settings_reach_the_node(new_peer) -> None:
    computer = new_peer(
        FL_PEER_FOUNDERS="1",
        FL_PEER_TOPOLOGY="ring",
        FL_PEER_EVICT_AFTER="9",
        FL_NUM_ROUNDS="7",
        FL_STRATEGY="FedTrimmedAvg",
        FL_TRIM_BETA="0.1",
        FL_SEED="11",
        FL_RUN_CONFIG="local-epochs=2",
        FL_GRPC_KEEPALIVE_TIME="30",
        FL_GRPC_KEEPALIVE_TIMEOUT="9",
        FL_CHECKPOINT_ENABLED="YES",
        FL_CHECKPOINT_KEEP_LAST="4",
    )
    computer.boot()
    mine = told(computer)
    assert (mine.topology, mine.evict_after_rounds) == ("ring", 9)
    assert (mine.rounds, mine.seed) == (7, 11)
    assert (mine.keepalive_time_s, mine.keepalive_timeout_s) == (30, 9)
    assert (mine.checkpoints, mine.kept_rounds) == (computer.paths.checkpoints, 4)
    assert mine.run_config == {
        "local-epochs": 2,
        "strategy": "FedTrimmedAvg",
        "trim-beta": 0.1,
        "num-server-rounds": 7,
        "seed": 11,
    }


def test_a_peer_has_to_have_something_to_train(new_peer) -> None:
    computer = new_peer(FL_PEER_FOUNDERS="1", FL_USE_CASE="none")
    with pytest.raises(BootError, match="nothing to train") as caught:
        computer.boot()
    assert caught.value.exit_code is ExitCode.CONFIG
    computer.paths.app.parent.mkdir(parents=True)
    computer.paths.app.write_bytes(b"an app")
    computer.boot()


def own_line(computer: Any) -> str:
    """What a site's operator gives the others: the boot without a list says it."""
    with pytest.raises(BootError, match="knows no other peers") as caught:
        computer.boot()
    return (caught.value.hint or "").rpartition(" ")[2]


def test_a_list_across_sites(cloud, new_peer) -> None:
    """No OneGate in common: each site tells its contact, and all are given the same list."""
    sites = [new_peer(FL_PEER_NAME=f"site-{number}") for number in range(3)]
    for each in sites:
        each.gate = None
    listed = ",".join(map(own_line, sites))
    for each in sites:
        each.variables |= {"FL_PEERS": listed, "FL_PEER_FOUNDERS": "2"}
        each.boot()
    assert len({told(each).group for each in sites}) == 1
    assert [each.name for each in told(sites[2]).founders] == ["site-0", "site-1"]
    assert [str(each) for each in told(sites[0]).listed] == listed.split(",")
    assert told(sites[0]).onegate_endpoint is None, "nobody but those of the list is let in"


def test_behind_a_router_the_others_dial_what_the_list_says(new_peer) -> None:
    site = new_peer(FL_PEER_NAME="site-0", FL_PEER_FOUNDERS="1")
    own = f"127.0.0.1:{site.variables['FL_PEER_PORT']}"
    site.variables["FL_PEERS"] = own_line(site).replace(own, "203.0.113.7:19095")
    site.boot()
    assert told(site).address == "203.0.113.7:19095"
    assert told(site).listen == own


def test_health_is_what_the_node_says_of_itself(new_peer) -> None:
    computer = new_peer(FL_PEER_FOUNDERS="1")
    computer.boot()
    [check] = health.look(Role.PEER, computer.resolution(), computer.paths, computer.edge().now())
    assert check.ok, check.detail
    name = told(computer).name
    state = computer.paths.peer_node(name) / "state.json"
    state.write_text(state.read_text().replace('"training"', '"no quorum"'))
    [check] = health.look(Role.PEER, computer.resolution(), computer.paths, computer.edge().now())
    assert (check.ok, check.detail[:9]) == (False, "no quorum")


def test_a_node_that_does_not_take_part_fails_the_boot(new_peer, flower) -> None:
    computer = new_peer(FL_PEER_FOUNDERS="1")
    flower.healthy = False
    with pytest.raises(BootError) as caught:
        computer.boot()
    assert caught.value.step_id == "PE-12"
    assert "FL_READY" not in computer.gate.vm().attributes


def test_a_drained_peer_leaves_its_group_and_waits_for_the_others_word(new_peer, time) -> None:
    machines = [new_peer(FL_PEER_FOUNDERS="2") for _ in range(2)]
    boot_all(machines)
    computer, name = machines[0], told(machines[0]).name
    folder = computer.paths.peer_node(name)

    def commit() -> None:
        if (folder / "requests" / f"leave {name}").exists():
            state = (folder / "state.json").read_text()
            (folder / "state.json").write_text(state.replace(f'["{name}", ', "["))

    time.after_every_sleep(commit)
    left = peer_state.leave(
        computer.paths,
        name,
        now=computer.edge().now,
        clock=time,
        sleep=time.sleep,
        warn=computer.warnings.append,
    )
    assert (left, computer.warnings) == (True, [])


def test_a_leave_without_quorum_is_not_waited_for_for_ever(new_peer, time) -> None:
    machines = [new_peer(FL_PEER_FOUNDERS="2") for _ in range(2)]
    boot_all(machines)
    computer = machines[0]
    left = peer_state.leave(
        computer.paths,
        told(computer).name,
        now=computer.edge().now,
        clock=time,
        sleep=time.sleep,
        warn=computer.warnings.append,
    )
    assert not left
    assert "The others take it off" in computer.warnings[-1]
