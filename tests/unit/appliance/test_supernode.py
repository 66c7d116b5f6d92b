"""A node boots, step by step: it finds its coordinator, trusts one authority, and shows its key.

The power may fail after any step, and the next boot completes what was begun.
"""

from __future__ import annotations

import base64
import contextlib
import os
import shutil
import socket
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from onefed.appliance import identity, supernode, training_data
from onefed.appliance.steps import BootError, Status
from onefed.errors import ExitCode
from onefed.opennebula import onegate
from onefed.telemetry import events
from onefed.tls import material, node_keys

IDS = tuple(step.id for step in supernode.STEPS)
ENDPOINT = "10.0.0.5:9092"

PUBLISHED = (
    *("FL_PARTITION", "FL_NODE_KEY", "FL_NODE_REGISTERED"),
    *("FL_ROLE", "FL_VERSION", "FL_NODE_ID", "FL_GPU_AVAILABLE", "FL_CLIENT_STATUS"),
    *("FL_NODE_READY", "READY"),
)
"""In this order: whoever reads the key finds the partition. The coordinator adds the third."""


def authority(folder: Path) -> str:
    """The CA certificate of a new authority, as a coordinator publishes it."""
    material.ensure(folder / "certs", addresses=["10.0.0.5"], now=datetime.now(UTC))
    return material.ca_for_publication(folder / "certs")


def statuses(reports: dict[str, Any]) -> set[Status]:
    return {report.status for report in reports.values()}


@pytest.fixture
def ca(tmp_path: Path) -> str:
    return authority(tmp_path / "coordinator")


@pytest.fixture
def link(cloud, ca: str):
    """A SuperLink that is ready."""
    return cloud.add(
        "superlink",
        FL_READY="YES",
        FL_ENDPOINT=ENDPOINT,
        FL_TLS="YES",
        FL_CA_CERT=ca,
        FL_VERSION="1.41.0",
    )


# --- a whole boot --------------------------------------------------------------------------------


@pytest.mark.usefixtures("link", "supervisor")
def test_a_boot_starts_everything_and_publishes_ready_last(node, cloud) -> None:
    reports = node.boot()
    assert tuple(reports) == IDS
    assert statuses(reports) <= {Status.DONE, Status.UNCHANGED, Status.SKIPPED}
    assert node.names_started == ["supernode"]
    assert tuple(name for name, _ in cloud.published(node.vm)) == PUBLISHED
    attributes = cloud.attributes(node.vm)
    assert attributes["FL_NODE_ID"] == node.vm.vm_id
    assert attributes["READY"] == attributes["FL_NODE_READY"] == "YES"
    assert node.warnings == []


@pytest.mark.usefixtures("link", "supervisor")
def test_the_supernode_is_told_what_was_found_out(node, ca: str) -> None:
    node.boot()
    argv = " ".join(node.started[0].argv)
    assert f"--superlink {ENDPOINT}" in argv
    assert f"--root-certificates {node.paths.certificates / 'ca.crt'}" in argv
    assert f"--identity {node.paths.node_key}" in argv
    assert "--node-config partition-id=0 num-partitions=1" in argv
    assert (node.paths.certificates / "ca.crt").read_bytes() == base64.b64decode(ca)


@pytest.mark.usefixtures("link", "supervisor")
def test_nothing_says_ready_before_the_node_is_healthy(node, cloud, flower, time) -> None:
    """An attribute whose name ends in READY opens the gate of the deployment."""
    flower.healthy = False
    seen: list[set[str]] = []

    def look() -> None:
        seen.append({name for name, _ in cloud.published(node.vm)})
        flower.healthy = len(seen) >= 6

    time.after_every_sleep(look)
    node.boot()
    assert set().union(*seen) == {"FL_NODE_KEY", "FL_PARTITION", "FL_NODE_REGISTERED"}
    assert cloud.attributes(node.vm)["READY"] == "YES"


@pytest.mark.usefixtures("link", "supervisor")
def test_an_unhealthy_node_fails_the_boot_and_is_never_ready(node, cloud, flower) -> None:
    flower.healthy = False
    with pytest.raises(BootError, match=r"SN-12 .* GET /health .* \(waited 60 s\)") as caught:
        node.boot()
    assert caught.value.exit_code is ExitCode.BOOT
    assert not [name for name, _ in cloud.published(node.vm) if name.endswith("READY")]


@pytest.mark.usefixtures("link", "supervisor")
def test_a_node_that_answers_now_and_then_is_not_running(node, flower, time) -> None:
    """Such as a program that is started again and again: each time it answers for a moment."""
    looks = 0

    def look() -> None:
        nonlocal looks
        looks += 1
        flower.healthy = looks % 3 != 0

    time.after_every_sleep(look)
    with pytest.raises(BootError, match=r"SN-12 .* 3 answers in a row"):
        node.boot()


# --- again ---------------------------------------------------------------------------------------


@pytest.mark.usefixtures("link", "supervisor")
def test_a_second_boot_changes_nothing(node, cloud) -> None:
    node.boot()
    files, published = node.files(), list(cloud.published(node.vm))
    reports = node.boot()
    assert statuses(reports) == {Status.UNCHANGED, Status.SKIPPED}
    assert node.files() == files
    assert cloud.published(node.vm) == published
    assert len(node.started) == 1


@pytest.mark.usefixtures("link", "supervisor")
def test_a_boot_after_a_power_cut_starts_the_programs_and_changes_no_file(node, cloud) -> None:
    node.boot()
    files, published = node.files(), list(cloud.published(node.vm))
    node.power_off()
    reports = node.boot()
    assert [step for step, report in reports.items() if report.status is Status.DONE] == ["SN-11"]
    assert node.files() == files
    assert cloud.published(node.vm) == published
    assert node.started[1:] == node.started[:1]


@pytest.mark.usefixtures("link", "supervisor")
@pytest.mark.parametrize("cut_after", IDS)
def test_a_boot_that_was_cut_off_is_completed_by_the_next(node, cloud, cut_after: str) -> None:
    reports = node.boot(cut_after=cut_after)
    assert tuple(reports) == IDS[: IDS.index(cut_after) + 1]
    key = node.files().get("opt/flower/keys/node.key")
    node.power_off()
    reports = node.boot()
    assert tuple(reports) == IDS
    assert Status.FAILED not in statuses(reports)
    assert {program.name for program in node.started} == node.running
    assert tuple(name for name, _ in cloud.published(node.vm)) == PUBLISHED
    if key is not None:
        assert node.files()["opt/flower/keys/node.key"] == key


@pytest.mark.usefixtures("link", "supervisor")
def test_a_port_that_was_taken_meanwhile_is_replaced(node) -> None:
    node.boot()
    port = node.edge().facts["runtime_port"]
    node.power_off()
    with socket.create_server(("127.0.0.1", int(port))):
        node.boot()
    assert node.edge().facts["runtime_port"] != port
    assert node.started[1].argv != node.started[0].argv


@pytest.mark.usefixtures("link", "supervisor")
def test_only_a_program_that_is_missing_is_started(node) -> None:
    node.boot()
    assert node.boot()["SN-11"].status is Status.UNCHANGED
    node.running.remove("supernode")
    assert node.boot()["SN-11"].status is Status.DONE
    assert len(node.started) == 2


# --- context and disk ----------------------------------------------------------------------------


@pytest.mark.usefixtures("link")
def test_all_errors_of_the_context_come_at_once_and_nothing_is_started(node, cloud) -> None:
    node.variables |= {
        "FL_SUPERLINK_ADDRESS": "`id`",
        "FL_NODE_CONFIG": "partition-id=$(id)",
        "FL_MAX_RETRIES": "-1",
    }
    with pytest.raises(BootError) as caught:
        node.boot()
    assert caught.value.exit_code is ExitCode.CONFIG
    for name in ("FL_SUPERLINK_ADDRESS", "FL_NODE_CONFIG", "FL_MAX_RETRIES"):
        assert f"Invalid {name}" in str(caught.value)
    assert node.started == []
    assert cloud.published(node.vm) == []
    assert not node.paths.node_key.exists()


@pytest.mark.usefixtures("link", "supervisor", "open_umask")
def test_what_is_private_is_private(node) -> None:
    node.boot()
    paths = node.paths
    modes = {
        path: stat.S_IMODE(path.stat().st_mode)
        for path in (
            *(paths.config, paths.certificates, paths.node_key, paths.flower_home),
            *(paths.superexec_secret, paths.facts, paths.node_key / "node.key"),
        )
    }
    assert modes == {
        paths.config: 0o750,
        paths.certificates: 0o700,
        paths.node_key: 0o700,
        paths.flower_home: 0o700,
        paths.superexec_secret: 0o600,
        paths.facts: 0o600,
        paths.node_key / "node.key": 0o600,
    }
    assert [path for path in paths.root.rglob("*") if path.lstat().st_mode & 0o022] == []


@pytest.mark.usefixtures("link", "supervisor")
def test_no_secret_reaches_onegate_or_a_program(node, cloud) -> None:
    node.boot()
    secrets = {
        node.paths.superexec_secret.read_text(),
        (node.paths.node_key / "node.key").read_text(),
        node.vm.token,
    }
    shown = [
        *cloud.attributes(node.vm).values(),
        node.paths.status.read_text(),
        *(word for program in node.started for word in program.argv),
        *(value for program in node.started for value in program.environment.values()),
    ]
    for secret in secrets:
        packed = base64.b64encode(secret.encode()).decode()
        assert not [text for text in shown if secret in text or packed in text]


def test_a_data_folder_that_leads_nowhere_is_refused(node, tmp_path: Path) -> None:
    node.paths.data.parent.mkdir(parents=True)
    node.paths.data.symlink_to(tmp_path / "gone")
    with pytest.raises(BootError, match=r"SN-05 .*cannot be read: .*flower/data") as caught:
        node.boot()
    assert caught.value.exit_code is ExitCode.DATA
    assert caught.value.hint
    assert node.started == []


def test_files_that_cannot_be_read_are_named_together_and_counted(node, tmp_path: Path) -> None:
    folder = node.paths.data / "class-0"
    folder.mkdir(parents=True)
    (folder / "good.npz").touch()
    for number in range(7):
        (folder / f"{number}.npz").symlink_to(tmp_path / "gone")
    with pytest.raises(BootError, match=r"and 2 more\.") as caught:
        node.boot()
    assert caught.value.exit_code is ExitCode.DATA
    assert str(caught.value).count(".npz") == training_data.UNREADABLE_SHOWN_MAX
    assert "good.npz" not in str(caught.value)


@pytest.fixture
def nobody() -> Iterator[None]:
    """Permissions count: root reads every file, so access is asked for in another's name."""
    if os.getuid() != 0:
        yield
        return
    os.setresuid(65534, 0, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)


@pytest.mark.usefixtures("nobody")
def test_a_file_without_permission_is_named(node) -> None:
    node.paths.data.mkdir(parents=True)
    (node.paths.data / "locked.npz").touch(0o000)
    with pytest.raises(BootError, match=r"locked\.npz"):
        node.boot()


@pytest.mark.usefixtures("link", "supervisor")
def test_data_behind_a_link_is_fine(node, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "train.npz").touch()
    node.paths.data.parent.mkdir(parents=True)
    node.paths.data.symlink_to(tmp_path / "mine")
    assert Status.FAILED not in statuses(node.boot())


# --- discovery and partition ---------------------------------------------------------------------


@pytest.mark.usefixtures("supervisor")
def test_a_coordinator_that_is_late_is_waited_for(node, cloud, ca: str, time) -> None:
    link = cloud.add("superlink", FL_ENDPOINT=ENDPOINT, FL_TLS="YES", FL_CA_CERT=ca)

    def become_ready() -> None:
        if time.now_s >= 30:
            cloud.model.update_attributes(link.vm_id, {"FL_READY": "YES"})

    time.after_every_sleep(become_ready)
    assert ENDPOINT in node.boot()["SN-07"].detail
    assert [text for text in node.warnings if text.startswith("Discovery, try 3: ")]


def test_a_coordinator_that_never_comes_fails_the_boot(node, time) -> None:
    with pytest.raises(BootError, match=r"SN-07 .*after 30 tries") as caught:
        node.boot()
    assert caught.value.exit_code is ExitCode.BOOT
    assert time.now_s == 290
    assert node.started == []


@pytest.mark.usefixtures("supervisor")
@pytest.mark.parametrize(
    "edge", [{"FL_EDGE_BACKOFF": "exponential"}, {"FL_EDGE_MAX_BACKOFF": "300"}]
)
def test_an_edge_node_waits_longer_and_longer_and_never_gives_up(
    node, cloud, ca: str, time, edge: dict[str, str]
) -> None:
    link = cloud.add("superlink", FL_ENDPOINT=ENDPOINT, FL_TLS="YES", FL_CA_CERT=ca)

    def become_ready() -> None:
        if time.now_s >= 100_000:
            cloud.model.update_attributes(link.vm_id, {"FL_READY": "YES"})

    time.after_every_sleep(become_ready)
    node.variables |= edge
    assert ENDPOINT in node.boot()["SN-07"].detail
    assert time.slept[:7] == [10, 20, 40, 80, 160, 300, 300]


def test_without_address_and_token_there_is_no_way(node) -> None:
    node.gate = None
    with pytest.raises(BootError, match="neither an address nor a OneGate token") as caught:
        node.boot()
    assert "FL_SUPERLINK_ADDRESS" in str(caught.value.hint)


def test_a_static_address_works_without_onegate(node, ca: str) -> None:
    node.gate = None
    node.variables |= {"FL_SUPERLINK_ADDRESS": "fl.example.com:9092", "FL_SSL_CA_CERTFILE": ca}
    reports = node.boot()
    assert Status.FAILED not in statuses(reports)
    assert "--superlink fl.example.com:9092" in " ".join(node.started[0].argv)
    key = node_keys.ensure(node.paths.node_key)
    assert key.public_key.decode() in reports["SN-07c"].detail
    assert any("partition" in text for text in node.warnings)
    assert "--node-config" not in node.started[0].argv


@pytest.mark.usefixtures("link", "supervisor")
def test_the_operators_node_config_replaces_the_partition(node, cloud) -> None:
    cloud.add("supernode")
    node.variables["FL_NODE_CONFIG"] = "partition-id=7 site=north"
    node.boot()
    argv = node.started[0].argv
    assert argv[argv.index("--node-config") + 1].split() == ["partition-id=7", 'site="north"']
    assert cloud.attributes(node.vm)["FL_PARTITION"] == "7"


@pytest.mark.usefixtures("link", "supervisor")
def test_a_node_config_without_a_partition_publishes_none(node, cloud) -> None:
    node.variables["FL_NODE_CONFIG"] = "site=north"
    node.boot()
    assert "FL_PARTITION" not in cloud.attributes(node.vm)


@pytest.mark.usefixtures("supervisor")
def test_another_version_of_flower_is_pointed_out(node, cloud, link) -> None:
    cloud.model.update_attributes(link.vm_id, {"FL_VERSION": "1.25.0\x1b[31m"})
    node.boot()
    [warning] = node.warnings
    assert "1.25.0" in warning
    assert warning.isprintable()


@pytest.mark.usefixtures("supervisor")
def test_another_isolation_than_the_superlinks_is_pointed_out(node, cloud, link) -> None:
    """X28: it works, and is no mix that anybody promises."""
    cloud.model.update_attributes(link.vm_id, {"FL_ISOLATION": "subprocess\x1b[31m"})
    node.boot()
    [warning] = node.warnings
    assert "FL_ISOLATION='subprocess" in warning
    assert warning.isprintable()


@pytest.mark.usefixtures("supervisor")
@pytest.mark.parametrize("published", ["process", None])
def test_the_same_isolation_or_none_that_is_known_is_not(node, cloud, link, published) -> None:
    if published is not None:
        cloud.model.update_attributes(link.vm_id, {"FL_ISOLATION": published})
    node.boot()
    assert node.warnings == []


# --- trust ---------------------------------------------------------------------------------------


@pytest.mark.usefixtures("supervisor")
def test_another_authority_than_the_first_is_refused_and_the_first_is_kept(
    node, cloud, link, tmp_path: Path
) -> None:
    node.boot()
    node.power_off()
    pinned = (node.paths.certificates / "ca.crt").read_bytes()
    cloud.model.update_attributes(link.vm_id, {"FL_CA_CERT": authority(tmp_path / "other")})
    with pytest.raises(BootError, match=r"SN-07b .*not of the authority pinned") as caught:
        node.boot()
    assert caught.value.exit_code is ExitCode.BOOT
    assert "FL_SSL_CA_CERTFILE" in str(caught.value.hint)
    assert (node.paths.certificates / "ca.crt").read_bytes() == pinned
    assert len(node.started) == 1


def test_another_authority_is_an_alarm(node, cloud, link, supervisor, tmp_path: Path) -> None:
    node.boot()
    node.power_off()
    cloud.model.update_attributes(link.vm_id, {"FL_CA_CERT": authority(tmp_path / "other")})
    with pytest.raises(BootError):
        node.boot()
    [alarm] = [told for told in node.told if isinstance(told, events.Notice)]
    assert (alarm.level, alarm.message.partition(":")[0]) == ("ERROR", "Alarm")


def test_a_superlink_that_moved_is_told_and_its_authority_has_to_be_the_same(
    node, cloud, link, supervisor
) -> None:
    node.boot()
    node.power_off()
    cloud.model.update_attributes(link.vm_id, {"FL_ENDPOINT": "10.0.0.6:9092"})
    node.boot()
    [warning] = node.warnings
    assert ENDPOINT in warning
    assert "10.0.0.6:9092" in warning


def test_of_two_superlinks_the_oldest_is_taken_and_both_are_told(
    node, cloud, link, supervisor
) -> None:
    cloud.add("superlink", FL_READY="YES", FL_ENDPOINT="10.0.0.6:9092", FL_TLS="NO")
    node.boot()
    [warning] = node.warnings
    assert "2 superlinks" in warning
    assert ENDPOINT in warning


@pytest.mark.usefixtures("link", "supervisor")
def test_the_operators_own_word_changes_the_authority(node, tmp_path: Path) -> None:
    node.boot()
    other = authority(tmp_path / "other")
    node.variables["FL_SSL_CA_CERTFILE"] = other
    assert node.boot()["SN-07b"].status is Status.DONE
    assert (node.paths.certificates / "ca.crt").read_bytes() == base64.b64decode(other)


@pytest.mark.parametrize("published_tls", ["YES", "NO", None])
def test_tls_without_an_authority_is_refused_and_never_becomes_plaintext(
    node, cloud, published_tls: str | None
) -> None:
    attributes = {} if published_tls is None else {"FL_TLS": published_tls}
    cloud.add("superlink", FL_READY="YES", FL_ENDPOINT=ENDPOINT, **attributes)
    node.variables["FL_TLS_ENABLED"] = "YES"
    with pytest.raises(BootError, match=r"SN-07b .*no CA certificate") as caught:
        node.boot()
    assert caught.value.exit_code is ExitCode.CONFIG
    assert node.started == []


@pytest.mark.parametrize("text", ["not base64!", "", base64.b64encode(b"PRIVATE KEY").decode()])
def test_an_authority_that_is_none_is_refused(node, cloud, link, text: str) -> None:
    cloud.model.update_attributes(link.vm_id, {"FL_CA_CERT": text})
    with pytest.raises(BootError, match="SN-07b"):
        node.boot()
    assert not (node.paths.certificates / "ca.crt").exists()
    assert node.started == []


@pytest.mark.usefixtures("supervisor")
def test_a_coordinator_without_tls_gets_a_warning_and_no_plaintext(node, cloud, link) -> None:
    cloud.model.update_attributes(link.vm_id, {"FL_TLS": "NO"})
    node.boot()
    assert [text for text in node.warnings if "FL_TLS=NO" in text]
    assert "--insecure" not in node.started[0].argv


def test_plaintext_on_both_sides_needs_no_key(node, cloud) -> None:
    cloud.add("superlink", FL_READY="YES", FL_ENDPOINT=ENDPOINT, FL_TLS="NO")
    node.variables["FL_TLS_ENABLED"] = "NO"
    reports = node.boot()
    assert {reports[step].status for step in ("SN-07b", "SN-07c")} == {Status.SKIPPED}
    assert "--insecure" in node.started[0].argv
    assert "--auth-supernode-private-key" not in node.started[0].argv
    assert "FL_NODE_KEY" not in cloud.attributes(node.vm)


# --- identity ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("link")
def test_a_node_waits_until_its_key_is_registered(node, cloud, time) -> None:
    def register() -> None:
        if len(time.slept) == 10:
            key = node_keys.ensure(node.paths.node_key)
            cloud.model.update_attributes(node.vm.vm_id, {"FL_NODE_REGISTERED": key.fingerprint})

    time.after_every_sleep(register)
    reports = node.boot()
    assert reports["SN-07c"].status is Status.DONE
    assert time.slept[:11] == [identity.REGISTRATION_POLL_S] * 10 + [supernode.RUNNING_POLL_S]


@pytest.mark.usefixtures("link")
@pytest.mark.parametrize("registered", [None, "ab" * 32])
def test_a_key_that_is_never_registered_fails_the_boot(node, cloud, time, registered) -> None:
    """Nor is that of an earlier disk good for this one."""
    if registered is not None:
        cloud.model.update_attributes(node.vm.vm_id, {"FL_NODE_REGISTERED": registered})
    with pytest.raises(BootError, match=r"SN-07c .*did not register.* in 120 s") as caught:
        node.boot()
    assert caught.value.exit_code is ExitCode.BOOT
    assert "supervisor" in str(caught.value.hint)
    assert 120 < time.now_s < 121
    assert node.started == []


REQUESTS_PER_S_MAX = 20
"""R8: whatever OneGate says."""


class Counting(httpx.HTTPTransport):
    """Notes the second of each request."""

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__()
        self.by_second: Counter[int] = Counter()
        self._clock = clock

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.by_second[int(self._clock())] += 1
        return super().handle_request(request)


@pytest.mark.parametrize(
    "published",
    [
        {"FL_READY": "NO"},
        {"FL_READY": "YES", "FL_ENDPOINT": "$(reboot)", "FL_TLS": "YES"},
        {"FL_READY": "YES", "FL_ENDPOINT": ENDPOINT, "FL_TLS": "YES", "FL_CA_CERT": "its own"},
    ],
    ids=["never ready", "no endpoint", "never registered"],
)
def test_a_boot_that_gets_nowhere_does_not_flood_onegate(
    node, cloud, time, ca: str, published: dict[str, str]
) -> None:
    sound = {name: ca if text == "its own" else text for name, text in published.items()}
    cloud.add("superlink", **sound)
    counting = Counting(time)
    gate = onegate.OneGate(
        cloud.endpoint, node.vm.token, node.vm.vm_id, transport=counting, sleep=time.sleep
    )
    with contextlib.closing(gate) as node.gate, pytest.raises(BootError):
        node.boot()
    assert time.now_s > 50
    assert max(counting.by_second.values()) <= REQUESTS_PER_S_MAX


@pytest.mark.usefixtures("link", "supervisor")
def test_a_node_whose_disk_was_lost_comes_back_with_another_key(node, cloud) -> None:
    node.boot()
    first = cloud.attributes(node.vm)["FL_NODE_REGISTERED"]
    node.power_off()
    shutil.rmtree(node.paths.root / "opt")
    node.boot()
    assert cloud.attributes(node.vm)["FL_NODE_REGISTERED"] != first
