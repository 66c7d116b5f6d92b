"""A coordinator boots, step by step, against a real OneGate and programs that answer as Flower's.

The power may fail after any step, and the next boot completes what was begun.
"""

from __future__ import annotations

import base64
import json
import socket
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from onefed.appliance import machine, superlink
from onefed.appliance.steps import BootError, Status
from onefed.context import ContextError
from onefed.errors import ExitCode
from onefed.tls import authority, material, names, pem

IDS = tuple(step.id for step in superlink.STEPS)

PUBLISHED = (
    *("FL_ROLE", "FL_VERSION", "FL_ENDPOINT", "FL_ISOLATION", "FL_TLS", "FL_CA_CERT"),
    *("FL_READY", "READY"),
)
"""In this order."""


def statuses(reports: dict[str, Any]) -> set[Status]:
    return {report.status for report in reports.values()}


def instructions(computer) -> dict[str, Any]:
    """What the run supervisor is told."""
    loaded: dict[str, Any] = json.loads(computer.paths.supervisor.read_bytes())
    return loaded


def operator_files(*sans: str) -> dict[str, str]:
    """The variables of an operator who brings certificates for these names."""
    now = datetime.now(UTC)
    ca = authority.create_ca(now)
    server = authority.create_server_certificate(ca, sans, now)
    return {
        "FL_SSL_CA_CERTFILE": pem.encode(pem.dump_certificates([ca.certificate])),
        "FL_SSL_CERTFILE": pem.encode(pem.dump_certificates([server.certificate])),
        "FL_SSL_KEYFILE": pem.encode(pem.dump_private_key(server.key)),
    }


# --- a whole boot --------------------------------------------------------------------------------


def test_a_boot_starts_everything_and_publishes_ready_last(coordinator, cloud) -> None:
    reports = coordinator.boot()
    assert tuple(reports) == IDS
    assert statuses(reports) <= {Status.DONE, Status.UNCHANGED, Status.SKIPPED}
    assert coordinator.names_started == ["superlink", "superexec", "supervisor"]
    assert tuple(name for name, _ in cloud.published(coordinator.vm)) == PUBLISHED
    attributes = cloud.attributes(coordinator.vm)
    assert attributes["FL_ENDPOINT"] == coordinator.variables["FL_FLEET_API_ADDRESS"]
    assert attributes["FL_TLS"] == "YES"
    assert attributes["READY"] == attributes["FL_READY"] == "YES"
    published = base64.b64decode(attributes["FL_CA_CERT"])
    assert published == (coordinator.paths.certificates / "ca.crt").read_bytes()


@pytest.mark.usefixtures("nginx")
def test_a_boot_with_a_gateway_serves_the_fleet_address_through_it(coordinator, cloud) -> None:
    """The SuperLink has another port, its own programs dial it there, and nodes the gateway."""
    coordinator.variables |= {
        "FL_GATEWAY": "always",
        "FL_SUPERLINK_PORT": str(machine.free_port()),
        "FL_CONTROL_API_ADDRESS": f"127.0.0.1:{machine.free_port()}",
    }
    reports = coordinator.boot()
    assert coordinator.names_started == ["superlink", "superexec", "supervisor", "gateway"]
    assert reports["SL-07b"].status is Status.DONE
    endpoint = cloud.attributes(coordinator.vm)["FL_ENDPOINT"]
    assert endpoint == coordinator.variables["FL_FLEET_API_ADDRESS"]
    behind = f"127.0.0.1:{coordinator.variables['FL_SUPERLINK_PORT']}"
    assert instructions(coordinator)["superlink"] == behind
    ca_certificate = coordinator.paths.certificates / "ca.crt"
    assert machine.healthy(endpoint, ca_certificate)
    assert machine.healthy(behind, ca_certificate)
    assert coordinator.boot()["SL-07b"].status is Status.UNCHANGED


@pytest.mark.usefixtures("nginx")
def test_an_operators_certificate_needs_a_name_for_the_gateway(coordinator) -> None:
    coordinator.variables |= {"FL_GATEWAY": "always", **operator_files("IP:127.0.0.1")}
    with pytest.raises(BootError) as caught:
        coordinator.boot()
    assert "DNS:localhost" in str(caught.value)


def test_nothing_is_published_before_the_superlink_is_healthy(
    coordinator, cloud, flower, time
) -> None:
    """An attribute whose name ends in READY opens the gate of the deployment."""
    flower.healthy = False
    seen: list[list[tuple[str, str]]] = []

    def look() -> None:
        seen.append(cloud.published(coordinator.vm))
        flower.healthy = len(seen) == 5

    time.after_every_sleep(look)
    reports = coordinator.boot()
    assert seen == [[]] * 5
    assert reports["SL-11"].detail == "healthy after 1.0 s"
    assert cloud.attributes(coordinator.vm)["READY"] == "YES"


def test_an_unhealthy_superlink_fails_the_boot_and_is_never_ready(
    coordinator, cloud, flower, time
) -> None:
    flower.healthy = False
    with pytest.raises(BootError, match=r"SL-11 .* GET /health .* \(waited 120 s\)") as caught:
        coordinator.boot()
    assert caught.value.exit_code is ExitCode.BOOT
    assert time.now_s > 120
    assert cloud.published(coordinator.vm) == []


def test_a_superlink_that_keeps_dying_fails_the_boot_with_its_last_words(
    coordinator, flower, time
) -> None:
    flower.healthy = False
    coordinator.paths.logs.mkdir(parents=True)
    (coordinator.paths.logs / "superlink.log").write_text("ImportError: no luck\n")
    time.after_every_sleep(lambda: coordinator.given_up.add("superlink"))
    with pytest.raises(BootError, match="ImportError: no luck"):
        coordinator.boot()
    assert len(time.slept) == 1


# --- again ---------------------------------------------------------------------------------------


def test_a_second_boot_changes_nothing(coordinator, cloud) -> None:
    coordinator.boot()
    files, published = coordinator.files(), list(cloud.published(coordinator.vm))
    reports = coordinator.boot()
    assert statuses(reports) == {Status.UNCHANGED, Status.SKIPPED}
    assert coordinator.files() == files
    assert cloud.published(coordinator.vm) == published
    assert len(coordinator.started) == 3


def test_a_boot_after_a_power_cut_starts_the_programs_and_changes_no_file(
    coordinator, cloud
) -> None:
    coordinator.boot()
    files, published = coordinator.files(), list(cloud.published(coordinator.vm))
    coordinator.power_off()
    reports = coordinator.boot()
    assert [step for step, report in reports.items() if report.status is Status.DONE] == ["SL-10"]
    assert coordinator.files() == files
    assert cloud.published(coordinator.vm) == published
    assert coordinator.started[3:] == coordinator.started[:3]


@pytest.mark.parametrize("cut_after", IDS)
def test_a_boot_that_was_cut_off_is_completed_by_the_next(
    coordinator, cloud, cut_after: str
) -> None:
    reports = coordinator.boot(cut_after=cut_after)
    assert tuple(reports) == IDS[: IDS.index(cut_after) + 1]
    before = coordinator.files()
    coordinator.power_off()
    reports = coordinator.boot()
    assert tuple(reports) == IDS
    assert Status.FAILED not in statuses(reports)
    assert coordinator.files().items() >= before.items()
    assert {program.name for program in coordinator.started} == coordinator.running
    assert tuple(name for name, _ in cloud.published(coordinator.vm)) == PUBLISHED


def test_only_the_program_that_is_missing_is_started(coordinator) -> None:
    coordinator.boot()
    coordinator.running.remove("supervisor")
    assert coordinator.boot()["SL-10"].status is Status.DONE
    assert coordinator.names_started[3:] == ["supervisor"]


def test_a_changed_context_reaches_the_supervisor(coordinator) -> None:
    coordinator.boot()
    coordinator.variables["FL_NUM_ROUNDS"] = "9"
    assert coordinator.boot()["SL-06"].status is Status.DONE
    assert instructions(coordinator)["run_config"]["num-server-rounds"] == 9


# --- refusals ------------------------------------------------------------------------------------


def test_all_errors_of_the_context_come_at_once_and_nothing_is_started(coordinator, cloud) -> None:
    coordinator.variables |= {
        "FL_NUM_ROUNDS": "$(touch x)",
        "FL_STRATEGY": "FedMagic",
        "FL_TLS_ENABLED": "maybe",
    }
    with pytest.raises(BootError) as caught:
        coordinator.boot()
    error = caught.value
    assert error.exit_code is ExitCode.CONFIG
    assert error.step_id == "SL-04"
    assert isinstance(error.__cause__, ContextError)
    assert len(error.__cause__.findings) == 3
    for name in ("FL_NUM_ROUNDS", "FL_STRATEGY", "FL_TLS_ENABLED"):
        assert f"Invalid {name}" in str(error)
    assert coordinator.started == []
    assert cloud.published(coordinator.vm) == []
    assert not coordinator.paths.supervisor.exists()
    assert not (coordinator.paths.root / "x").exists()


@pytest.mark.parametrize(("role", "step"), [("coordinator", "SL-04"), ("node", "SN-04")])
def test_no_machine_boots_where_programs_would_be_held_up_for_tests(request, role, step) -> None:
    computer = request.getfixturevalue(role)
    computer.inherited = {"ONEFED_FAILPOINTS": "points"}
    with pytest.raises(BootError, match="ONEFED_FAILPOINTS is set") as caught:
        computer.boot()
    assert (caught.value.step_id, caught.value.exit_code) == (step, ExitCode.CONFIG)
    assert computer.started == []


def test_a_port_in_use_is_found_before_anything_is_made(coordinator) -> None:
    host, port = coordinator.variables["FL_FLEET_API_ADDRESS"].split(":")
    with socket.create_server((host, int(port))), pytest.raises(BootError) as caught:
        coordinator.boot()
    assert caught.value.exit_code is ExitCode.IN_USE
    assert "FL_FLEET_API_ADDRESS" in str(caught.value)
    assert coordinator.started == []


def test_a_full_disk_is_a_failed_step(coordinator) -> None:
    coordinator.paths.state.parent.mkdir(parents=True, exist_ok=True)
    coordinator.paths.state.touch()
    with pytest.raises(BootError, match=r"SL-07 .*state cannot be created") as caught:
        coordinator.boot()
    assert caught.value.exit_code is ExitCode.STORAGE
    assert coordinator.started == []


# --- disk ----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("open_umask")
def test_what_is_private_is_private(coordinator) -> None:
    coordinator.boot()
    paths = coordinator.paths
    modes = {
        path: stat.S_IMODE(path.stat().st_mode)
        for path in (
            *(paths.config, paths.state, paths.recovery, paths.certificates, paths.flower_home),
            *(paths.superexec_secret, paths.supervisor, paths.certificates / "server.key"),
        )
    }
    assert modes == {
        paths.config: 0o750,
        paths.state: 0o700,
        paths.recovery: 0o700,
        paths.certificates: 0o700,
        paths.flower_home: 0o700,
        paths.superexec_secret: 0o600,
        paths.supervisor: 0o600,
        paths.certificates / "server.key": 0o600,
    }
    writable = [path for path in paths.root.rglob("*") if path.lstat().st_mode & 0o022]
    assert writable == []


def test_the_folder_of_the_database_is_made(coordinator) -> None:
    coordinator.variables["FL_DATABASE"] = "state/federation/1.db"
    coordinator.boot()
    assert (coordinator.paths.state / "federation").is_dir()


def test_checkpoints_have_a_folder_when_they_are_wanted(coordinator) -> None:
    coordinator.boot()
    assert not coordinator.paths.checkpoints.exists()
    coordinator.variables["FL_CHECKPOINT_ENABLED"] = "YES"
    coordinator.boot()
    assert coordinator.paths.checkpoints.is_dir()
    assert instructions(coordinator)["run_config"]["checkpoint-path"] == str(
        coordinator.paths.checkpoints
    )


def test_no_secret_reaches_onegate_the_supervisor_or_a_program(coordinator, cloud) -> None:
    coordinator.inherited = {"LD_PRELOAD": "/tmp/evil.so", "HOME": "/root"}
    coordinator.boot()
    paths = coordinator.paths
    secrets = {
        paths.superexec_secret.read_text(),
        (paths.certificates / "server.key").read_text(),
        (paths.certificates.parent / "private" / "ca.key").read_text(),
        coordinator.vm.token,
    }
    shown = [
        *cloud.attributes(coordinator.vm).values(),
        paths.supervisor.read_text(),
        paths.status.read_text(),
        *(word for program in coordinator.started for word in program.argv),
        *(value for program in coordinator.started for value in program.environment.values()),
    ]
    for secret in secrets:
        packed = base64.b64encode(secret.encode()).decode()
        assert not [text for text in shown if secret in text or packed in text]
    assert not [each for each in coordinator.started if "LD_PRELOAD" in each.environment]


# --- the supervisor's instructions ---------------------------------------------------------------


def test_the_supervisor_has_a_token_of_its_own(coordinator) -> None:
    """The platform keeps it in a file of root, or only among the variables."""
    coordinator.boot()
    copy = coordinator.paths.gate_token
    assert instructions(coordinator)["token_file"] == str(copy)
    assert (copy.read_text(), copy.stat().st_mode & 0o777) == (coordinator.vm.token, 0o600)


def test_the_supervisor_is_told_what_it_needs(coordinator) -> None:
    coordinator.variables |= {"FL_NUM_ROUNDS": "7", "FL_RUN_CONFIG": "local-epochs=2"}
    coordinator.boot()
    told = instructions(coordinator)
    assert told["superlink"] == coordinator.variables["FL_FLEET_API_ADDRESS"]
    assert told["ca_certificate"] == str(coordinator.paths.certificates / "ca.crt")
    assert told["onegate_endpoint"] == coordinator.gate_endpoint
    assert told["vm_id"] == coordinator.vm.vm_id
    assert told["run_config"]["num-server-rounds"] == 7
    assert told["run_config"]["local-epochs"] == 2
    assert told["keys_set"] == ["local-epochs", "num-server-rounds"]


def test_without_a_token_the_supervisor_is_told_of_no_onegate(coordinator) -> None:
    """OpenNebula gives the endpoint to every machine, and a token only on request."""
    coordinator.gate = None
    reports = coordinator.boot()
    assert instructions(coordinator)["onegate_endpoint"] is None
    assert {reports[step].status for step in ("SL-12", "SL-13")} == {Status.SKIPPED}


# --- TLS -----------------------------------------------------------------------------------------


def test_without_tls_nothing_is_generated_and_everybody_is_told(coordinator, cloud) -> None:
    coordinator.variables["FL_TLS_ENABLED"] = "NO"
    reports = coordinator.boot()
    assert reports["SL-07a"].status is Status.SKIPPED
    assert not coordinator.paths.certificates.exists()
    attributes = cloud.attributes(coordinator.vm)
    assert attributes["FL_TLS"] == "NO"
    assert "FL_CA_CERT" not in attributes
    assert instructions(coordinator)["ca_certificate"] is None


def test_the_operators_certificates_are_used_and_published(coordinator, cloud) -> None:
    given = operator_files("IP:127.0.0.1", "DNS:fl.example.com")
    coordinator.variables |= given
    assert coordinator.boot()["SL-07a"].status is Status.DONE
    assert cloud.attributes(coordinator.vm)["FL_CA_CERT"] == given["FL_SSL_CA_CERTFILE"]
    assert coordinator.boot()["SL-07a"].status is Status.UNCHANGED


def test_an_operators_certificate_that_our_own_programs_would_refuse_is_refused_first(
    coordinator,
) -> None:
    """Else the boot would wait two minutes for a health check that cannot succeed."""
    coordinator.variables |= operator_files("DNS:fl.example.com")
    with pytest.raises(BootError, match=r"SL-07a .*FL_SSL_CERTFILE .* IP:127\.0\.0\.1") as caught:
        coordinator.boot()
    assert caught.value.exit_code is ExitCode.CONFIG
    assert coordinator.started == []


def test_operators_files_that_do_not_belong_together_are_refused_without_showing_them(
    coordinator,
) -> None:
    mine, other = operator_files("IP:127.0.0.1"), operator_files("IP:127.0.0.1")
    coordinator.variables |= {**mine, "FL_SSL_KEYFILE": other["FL_SSL_KEYFILE"]}
    with pytest.raises(BootError, match="FL_SSL_KEYFILE does not belong") as caught:
        coordinator.boot()
    assert caught.value.exit_code is ExitCode.CONFIG
    assert other["FL_SSL_KEYFILE"] not in coordinator.paths.status.read_text()
    assert coordinator.started == []


def test_extra_names_are_in_the_generated_certificate(coordinator) -> None:
    coordinator.variables["FL_CERT_EXTRA_SAN"] = "IP:203.0.113.50,DNS:fl.example.com"
    coordinator.boot()
    content = (coordinator.paths.certificates / material.SERVER_CERTIFICATE).read_bytes()
    held = names.of(pem.certificates("server.pem", content)[0])
    assert held >= {"IP:127.0.0.1", "IP:203.0.113.50", "DNS:fl.example.com"}


@pytest.mark.parametrize(
    ("kind", "said"), [("ec-p256", b"EC PRIVATE KEY"), ("rsa-4096", b"RSA PRIVATE KEY")]
)
def test_the_kind_of_the_keys_is_a_choice(coordinator, kind: str, said: bytes) -> None:
    coordinator.variables["FL_CERT_KEY_TYPE"] = kind
    coordinator.boot(superlink.STEPS[:8])
    key = pem.private_key(
        "server.key", (coordinator.paths.certificates / material.SERVER_KEY).read_bytes()
    )
    assert said.split()[0].decode() in type(key).__name__.upper()


def test_a_certificate_that_ends_soon_is_renewed_from_the_kept_authority(coordinator) -> None:
    coordinator.boot(superlink.STEPS[:8])
    folder = coordinator.paths.certificates
    before = {name: (folder / name).read_bytes() for name in ("ca.crt", "server.pem")}

    def renew(days: int) -> Status:
        link = coordinator.subject()
        link.edge.now = lambda: datetime.now(UTC) + timedelta(days=days)
        return superlink.renew(link).status

    assert renew(300) is Status.UNCHANGED
    assert renew(340) is Status.DONE
    assert renew(340) is Status.UNCHANGED
    after = {name: (folder / name).read_bytes() for name in before}
    assert after["ca.crt"] == before["ca.crt"], "no node has to trust anything new"
    assert after["server.pem"] != before["server.pem"]
    chain = pem.certificates("server.pem", after["server.pem"])
    anchors = pem.certificates("ca.crt", before["ca.crt"])
    assert authority.chain_problem(chain, anchors) is None
    assert chain[0].not_valid_after_utc > datetime.now(UTC) + timedelta(days=700)


def test_what_is_not_ours_is_not_renewed(coordinator) -> None:
    coordinator.variables["FL_TLS_ENABLED"] = "NO"
    assert superlink.renew(coordinator.subject()).status is Status.SKIPPED


def test_a_link_in_place_of_the_certificates_is_refused(coordinator, tmp_path: Path) -> None:
    coordinator.paths.certificates.parent.mkdir(parents=True)
    coordinator.paths.certificates.symlink_to(tmp_path)
    with pytest.raises(BootError, match="SL-07a") as caught:
        coordinator.boot()
    assert caught.value.exit_code is ExitCode.STORAGE
