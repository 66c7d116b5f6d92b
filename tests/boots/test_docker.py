"""The same service with the ``docker`` runtime: a real engine in each machine."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator

import httpx
import pytest
from campaigns.boots import benchmark, engine, search, tree
from campaigns.boots.federation import Federation
from campaigns.boots.machine import Machine, wait_for
from tests.boots.test_process import renew_certificate

from onefed.appliance.description import Runtime
from onefed.context import Role

pytestmark = [pytest.mark.vm, pytest.mark.timeout(420)]

WRITTEN = {"5.9 host network", "5.10 memory limit", "5.11 CPU priority", "5.26 health check"}
"""Of the benchmark, what our containers do not meet: the list in docs/threat-model.md."""


@pytest.fixture(scope="module")
def federation(deploy) -> Iterator[Federation]:
    found: Federation = deploy("docker", Runtime.DOCKER)
    variables = {
        "FL_NUM_ROUNDS": "2",
        "FL_CHECKPOINT_ENABLED": "YES",
        "FL_CHECKPOINT_PATH": "/app/exports",
        "FL_METRICS_ENABLED": "YES",
    }
    # The images of two machines are older than FLOWER_VERSION.
    found.start(Role.SUPERLINK, [variables], carry=[engine.OLDER])
    found.start(Role.SUPERNODE, [variables] * 2, carry=[engine.OLDER, engine.VERSION])
    yield found
    found.close()


def test_containers_train_over_tls(federation: Federation) -> None:
    last = federation.wait_until_trained()
    assert last.round_number == 2
    assert [record.contributors for record in last.history] == [("0", "1")] * 2
    coordinator = federation.coordinator
    assert federation.attributes(coordinator)["FL_TLS"] == "YES"
    wait_for(
        lambda: (coordinator.paths.checkpoints / "checkpoint_round_2.npz").exists(), 10, "an export"
    )
    page = httpx.get(f"http://{coordinator.record.ip}:9101/metrics", trust_env=False)
    assert "fl_checkpoint_saved_total 1.0" in page.text


def test_another_version_is_pulled_and_the_baked_one_runs_where_there_is_none(
    federation: Federation,
) -> None:
    """From a real registry, which has the image of a coordinator and of no node."""
    coordinator, older, newer = federation.machines
    version = [federation.attributes(each)["FL_VERSION"] for each in federation.machines]
    assert version == [engine.VERSION, engine.OLDER, engine.VERSION]
    inside = ("docker", "exec", "flower-superlink", "cat", engine.PULLED)
    assert coordinator.output(*inside) == f"{engine.VERSION}\n", "its image is the registry's"
    images = older.output("docker", "images", "--format", "{{.Repository}}:{{.Tag}}")
    assert "flower-supernode-pytorch:1.41.0" not in images
    boot = (older.paths.logs / "flower-bootstrap.log").read_text()
    assert "flower-supernode-pytorch:1.41.0 could not be pulled" in boot
    assert f"Flower {engine.OLDER} runs instead" in boot
    assert "could not be pulled" not in (newer.paths.logs / "flower-bootstrap.log").read_text()


def test_no_secret_is_where_others_could_read_it(federation: Federation) -> None:
    needles = search.own_secrets(federation.machines)
    assert len(needles) >= 6
    assert search.everywhere(federation.machines, needles) == []


def test_every_program_is_a_container_that_may_do_little(federation: Federation) -> None:
    for each in federation.machines:
        assert containers_that_may_do_little(each)


def test_an_app_is_submitted_on_the_coordinators_own_machine(federation: Federation) -> None:
    coordinator = federation.coordinator
    app = coordinator.disk / "srv/app"
    shutil.copytree(tree.ROOT / "examples/sklearn-logreg-managed", app)
    said = coordinator.output("onefed", "submit", "/srv/app", "--rounds", "1", "--follow")
    assert "run is completed" in said
    found = json.loads(coordinator.output("onefed", "runs", "--json"))
    assert (found["status"], found["runs"][0]["status"]) == ("completed", "completed")


def test_containers_show_a_certificate_that_was_renewed(federation: Federation) -> None:
    renew_certificate(federation)


def test_a_machine_that_is_powered_off_says_that_it_left(federation: Federation) -> None:
    """The unit of docker's client has no network; others beside it say farewell."""
    node = federation.nodes[0]
    federation.wait_until_idle(node)
    node.power_off()
    left = federation.attributes(node)
    assert (left["FL_NODE_READY"], left["FL_CLIENT_STATUS"]) == ("NO", "3")


def containers_that_may_do_little(machine: Machine) -> list[str]:
    """Names of all containers of a machine; each is as hardened as the documents say."""
    names = machine.output("docker", "ps", "--format", "{{.Names}}").split()
    for found in json.loads(machine.output("docker", "inspect", *names)):
        host = found["HostConfig"]
        assert found["Config"]["User"] == "49999:49999"
        assert (host["Init"], host["ReadonlyRootfs"], host["Privileged"]) == (True, True, False)
        assert (host["CapDrop"], host["CapAdd"]) == (["ALL"], None)
        assert host["SecurityOpt"] == ["no-new-privileges"]
        assert host["RestartPolicy"]["Name"] in ("", "no"), "systemd owns the life cycle"
        assert benchmark.failed(found) == WRITTEN
        assert host["LogConfig"]["Config"] == {"max-file": "3", "max-size": "10m"}
    return names
