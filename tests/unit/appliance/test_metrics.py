"""A coordinator's metrics: asked for by a context, answered by the real exporter, never in the way
of training."""

from __future__ import annotations

import ipaddress
import re
import socket
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from prometheus_client import parser

from onefed.appliance import firewall, health, machine, metrics_use, programs, units
from onefed.appliance.commands import Done
from onefed.appliance.description import Runtime
from onefed.appliance.paths import Paths
from onefed.appliance.platform import Systemd
from onefed.appliance.process import Program
from onefed.appliance.steps import Status
from onefed.context import Role
from onefed.telemetry import events
from onefed.telemetry.log import EventLog
from onefed.tls import material

NETWORK = ipaddress.IPv4Network("10.0.0.0/24")


@pytest.fixture
def asked(coordinator):
    """A coordinator that is to serve metrics on a free port."""
    coordinator.variables["FL_METRICS_ENABLED"] = "yes"
    coordinator.variables["FL_METRICS_PORT"] = str(machine.free_port())
    return coordinator


def scrape(computer) -> dict[str, float]:
    """The samples without labels, and those with one by its value."""
    port = computer.variables["FL_METRICS_PORT"]
    said = httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False)
    assert said.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    return {
        " ".join([sample.name, *sample.labels.values()]): sample.value
        for family in parser.text_string_to_metric_families(said.text)
        for sample in family.samples
    }


def test_a_boot_serves_them_before_anything_trains_and_follows_what_trains(asked) -> None:
    asked.variables["FL_NUM_ROUNDS"] = "7"
    reports = asked.boot()
    assert reports["SL-10a"].status is Status.DONE
    assert asked.names_started == ["superlink", "superexec", "supervisor", "metrics"]
    before = scrape(asked)
    assert (before["fl_training_status"], before["fl_round_total FedAvg"]) == (0, 7)
    log = EventLog(asked.paths.root / "events.jsonl", "superlink", lambda: datetime.now(UTC))
    log.emit(events.TrainingStart("FedAdam", 7, 2))
    log.emit(events.RoundStart(1, 2, "FedAdam"))
    log.close()
    during = scrape(asked)
    assert (during["fl_training_status"], during["fl_round_current FedAdam"]) == (1, 1)
    assert asked.warnings == []


def test_they_say_when_the_certificates_end(asked) -> None:
    asked.boot()
    ends = material.ends(asked.paths.certificates)
    held = scrape(asked)
    name = "onefed_certificate_expiry_timestamp_seconds"
    assert held[f"{name} ca"] == ends[material.CA_CERTIFICATE].timestamp()
    assert held[f"{name} server"] == ends[material.SERVER_CERTIFICATE].timestamp()


def test_nobody_who_did_not_ask_has_them(coordinator) -> None:
    reports = coordinator.boot()
    assert reports["SL-10a"].status is Status.SKIPPED
    assert programs.METRICS not in coordinator.names_started


def test_a_taken_port_is_a_warning_and_training_goes_on(asked) -> None:
    with socket.create_server(("127.0.0.1", int(asked.variables["FL_METRICS_PORT"]))):
        reports = asked.boot()
    assert reports["SL-10a"].status is Status.SKIPPED
    assert reports["SL-13"].status is Status.DONE, "the machine is READY"
    [warning] = asked.warnings
    assert "FL_METRICS_PORT" in warning
    assert programs.METRICS not in asked.names_started


def test_an_exporter_that_lost_its_port_to_another_is_a_warning(asked) -> None:
    """Its unit starts before the boot does; then the boot finds that it runs."""
    asked.running.add(programs.METRICS)
    with socket.create_server(("127.0.0.1", int(asked.variables["FL_METRICS_PORT"]))) as other:
        other.close()
        reports = asked.boot()
    assert reports["SL-10a"].status is Status.SKIPPED
    assert "GET /metrics" in asked.warnings[0]


def test_a_second_boot_changes_nothing(asked) -> None:
    asked.boot()
    assert asked.boot()["SL-10a"].status is Status.UNCHANGED
    assert asked.names_started.count(programs.METRICS) == 1


def test_the_real_exporter_says_that_its_port_is_taken_and_goes_on(asked) -> None:
    [program] = metrics_use.program(asked.edge(), asked.subject().chosen)
    with socket.create_server(("127.0.0.1", int(asked.variables["FL_METRICS_PORT"]))):
        asked.flower.start(program)
    assert "there are no metrics" in program.log.read_text()


def test_health_says_whether_they_are_served_and_nothing_depends_on_it(asked) -> None:
    def look() -> health.Check:
        now = datetime.now(UTC)
        checks = health.look(Role.SUPERLINK, asked.resolution(), asked.paths, now)
        return next(check for check in checks if check.name == "metrics")

    asked.boot()
    assert look().ok
    asked.flower.stop()
    assert (look().ok, look().decides) == (False, False)


def test_only_the_machines_own_network_may_ask(asked) -> None:
    chosen, edge = asked.subject().chosen, asked.edge()
    assert metrics_use.openings(edge, chosen) == (), "closed where the network is not known"
    edge.network = NETWORK
    port = asked.variables["FL_METRICS_PORT"]
    rules = firewall.rules(metrics_use.openings(edge, chosen))
    assert re.findall("(.*)tcp dport", rules)[0].split() == ["ip", "saddr", str(NETWORK)]
    assert f"tcp dport {port} accept" in rules


# --- under systemd -------------------------------------------------------------------------------


class Recorded:
    """What systemd was told."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, argv, *, timeout_s: float = 0) -> Done:
        self.asked.append(" ".join(argv))
        return Done(0, "")


def of_systemd(root: Path, run: Recorded, runtime: Runtime) -> Systemd:
    return Systemd(
        role=Role.SUPERLINK,
        runtime=runtime,
        paths=Paths(root),
        framework="",
        checkpoint_path=None,
        gpus=lambda: None,
        running_version=lambda: "1.41.0",
        run=run,
    )


@pytest.fixture
def exporter(asked) -> Program:
    [program] = metrics_use.program(asked.edge(), asked.subject().chosen)
    return program


@pytest.mark.parametrize("runtime", Runtime)
def test_it_is_no_container_and_may_write_nothing(exporter, tmp_path: Path, runtime) -> None:
    run = Recorded()
    of_systemd(tmp_path, run, runtime).start(exporter)
    assert not (tmp_path / "opt/flower/config/metrics.env").exists()
    assert "docker" not in (tmp_path / "opt/flower/config/programs/metrics.json").read_text()
    assert "systemctl restart flower-superlink-metrics.service" in run.asked
    of = (*programs_before(exporter), exporter)
    text = units.of(of, Role.SUPERLINK, runtime, Paths(tmp_path), python="/usr/bin/python3")[1].text
    for forbidden in ("ReadWritePaths", "docker"):
        assert forbidden not in text.partition("[Service]")[2]


def programs_before(exporter: Program) -> tuple[Program, ...]:
    """A program that carries the machine."""
    return (
        Program("superlink", ("/bin/true",), {}, exporter.folder, exporter.log, stop_timeout_s=1.0),
    )


def test_a_context_that_asks_no_more_stops_it_and_takes_its_unit_away(
    exporter, tmp_path: Path
) -> None:
    run = Recorded()
    systemd = of_systemd(tmp_path, run, Runtime.PROCESS)
    assert not systemd.retire(programs.METRICS)
    systemd.units([*programs_before(exporter), exporter])
    systemd.start(exporter)
    unit = tmp_path / "etc/systemd/system/flower-superlink-metrics.service"
    assert unit.exists()
    assert systemd.retire(programs.METRICS)
    assert "systemctl disable --now flower-superlink-metrics.service" in run.asked
    assert not unit.exists()
    assert not (tmp_path / "opt/flower/config/programs/metrics.json").exists()
