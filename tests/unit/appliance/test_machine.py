"""The edge of a machine: secrets, folders, ports, publication, and waiting for programs."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from onefed.appliance import machine
from onefed.appliance.machine import StartError, UnhealthyError
from onefed.appliance.process import Program
from onefed.appliance.steps import Status
from onefed.errors import ExitCode, InUseError, StorageError
from onefed.opennebula import onegate
from onefed.tls import material


@contextlib.contextmanager
def listener(port: int = 0) -> Iterator[int]:
    """Somebody who uses a port of loopback."""
    with socket.create_server(("127.0.0.1", port)) as server:
        yield server.getsockname()[1]


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# --- secrets and folders -------------------------------------------------------------------------


@pytest.mark.usefixtures("open_umask")
def test_a_secret_is_private_before_its_first_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[int, int]] = []
    real_open = os.open

    def spy(path: Any, flags: int, mode: int = 0o777, **more: Any) -> int:
        descriptor = real_open(path, flags, mode, **more)
        if flags & os.O_CREAT:
            found = os.fstat(descriptor)
            made.append((stat.S_IMODE(found.st_mode), found.st_size))
            assert flags & os.O_EXCL
            assert flags & os.O_NOFOLLOW
        return descriptor

    monkeypatch.setattr(os, "open", spy)
    assert machine.write_secret_once(tmp_path / "secret", b"one")
    assert made == [(0o600, 0)]
    assert mode(tmp_path / "secret") == 0o600


def test_a_secret_is_made_once(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    assert machine.write_secret_once(path, b"one")
    before = path.stat()
    assert not machine.write_secret_once(path, b"two")
    assert path.read_bytes() == b"one"
    assert path.stat() == before


@pytest.mark.parametrize("dangling", [False, True])
def test_a_link_in_place_of_a_secret_is_refused(tmp_path: Path, dangling: bool) -> None:
    """Whoever planted it would know the secret, or be given it."""
    victim = tmp_path / "victim"
    if not dangling:
        victim.write_bytes(b"known to the attacker")
        victim.chmod(0o600)
    (tmp_path / "secret").symlink_to(victim)
    with pytest.raises(StorageError, match="symbolic link"):
        machine.write_secret_once(tmp_path / "secret", b"one")
    assert victim.exists() is not dangling


def test_a_pipe_in_place_of_a_secret_does_not_hold_the_boot(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "secret")
    with pytest.raises(StorageError, match="not a regular file"):
        machine.write_secret_once(tmp_path / "secret", b"one")


def test_a_secret_that_others_could_read_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_bytes(b"known")
    path.chmod(0o644)
    assert machine.write_secret_once(path, b"one")
    assert (path.read_bytes(), mode(path)) == (b"one", 0o600)


def test_an_empty_secret_of_a_boot_that_was_cut_off_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.touch(0o600)
    assert machine.write_secret_once(path, b"one")
    assert path.read_bytes() == b"one"


def test_a_secret_that_somebody_else_gave_is_kept_as_it_is_now(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    assert machine.write_secret(path, b"one")
    assert not machine.write_secret(path, b"one")
    assert machine.write_secret(path, b"on"), "a longer one begins with it"
    assert (path.read_bytes(), mode(path)) == (b"on", 0o600)
    path.chmod(0o640)
    assert machine.write_secret(path, b"on"), "others could read it"
    assert mode(path) == 0o600


@pytest.mark.parametrize("umask", [0, 0o077])
def test_a_folder_has_its_mode_and_nobody_may_write_above_it(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        assert machine.make_folder(tmp_path / "opt" / "flower" / "state", 0o750)
    finally:
        os.umask(before)
    assert mode(tmp_path / "opt" / "flower" / "state") == 0o750
    for parent in (tmp_path / "opt", tmp_path / "opt" / "flower"):
        assert not mode(parent) & 0o022


def test_a_folder_that_is_there_is_kept_or_tightened(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    folder.mkdir()
    folder.chmod(0o755)
    (folder / "kept").touch()
    assert machine.make_folder(folder, 0o700)
    assert not machine.make_folder(folder, 0o700)
    assert mode(folder) == 0o700
    assert (folder / "kept").exists()


def test_a_file_in_place_of_a_folder_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "state").touch()
    with pytest.raises(StorageError, match=r"state cannot be created: File exists\."):
        machine.make_folder(tmp_path / "state", 0o700)


# --- facts ---------------------------------------------------------------------------------------


def test_facts_outlive_the_stage_that_found_them_and_are_private(node) -> None:
    machine.make_folder(node.paths.config, 0o750)
    assert machine.save_facts(node.edge(), endpoint="10.0.0.5:9092")
    assert node.edge().facts == {"address": "127.0.0.1", "endpoint": "10.0.0.5:9092"}
    assert mode(node.paths.facts) == 0o600
    before = node.paths.facts.stat()
    assert not machine.save_facts(node.edge(), endpoint="10.0.0.5:9092")
    assert node.paths.facts.stat() == before


@pytest.mark.parametrize("content", [b"", b"[1]", b"{", b"\xff", b'{"endpoint": 4}'])
def test_facts_that_make_no_sense_are_found_out_again(node, content: bytes) -> None:
    machine.make_folder(node.paths.config, 0o750)
    node.paths.facts.write_bytes(content)
    assert machine.read_facts(node.paths) == {}
    assert machine.save_facts(node.edge(), endpoint="10.0.0.5:9092")
    assert json.loads(node.paths.facts.read_bytes())["endpoint"] == "10.0.0.5:9092"


# --- ports ---------------------------------------------------------------------------------------


def test_a_port_in_use_names_the_setting_that_chooses_another() -> None:
    with listener() as port, pytest.raises(InUseError, match=f"Port {port} on") as caught:
        machine.require_free_port("127.0.0.1", port, "FL_FLEET_API_ADDRESS")
    assert "FL_FLEET_API_ADDRESS" in str(caught.value.hint)
    assert caught.value.exit_code is ExitCode.IN_USE


def test_a_port_is_free_again_as_soon_as_its_owner_is_gone() -> None:
    """Although its last connections are still closing."""
    with listener() as port, socket.create_connection(("127.0.0.1", port)):
        pass
    machine.require_free_port("127.0.0.1", port, "X")


def test_the_preferred_port_is_taken_if_it_is_free() -> None:
    port = machine.free_port()
    assert machine.free_port(port) == port
    with listener(port):
        other = machine.free_port(port)
        assert other not in (0, port)
    assert machine.free_port(70_000) not in (0, 70_000)


# --- context -------------------------------------------------------------------------------------


def test_warnings_of_the_context_are_told_and_the_rest_is_counted(coordinator) -> None:
    coordinator.variables |= {
        "FL_NUM_ROUND": "4",  # misspelt
        "FL_MAX_RETRIES": "3",  # the other role's
        "FL_STRATEGY": "FedAvg",
    }
    outcome = machine.report_context(coordinator.edge(), coordinator.resolution())
    [warning] = coordinator.warnings
    assert "FL_NUM_ROUNDS" in warning
    assert outcome.detail == "2 variables set, 1 ignored"


def test_errors_of_the_context_are_left_to_the_step_that_stops_for_them(coordinator) -> None:
    coordinator.variables["FL_NUM_ROUNDS"] = "none"
    machine.report_context(coordinator.edge(), coordinator.resolution())
    assert coordinator.warnings == []


# --- publication ---------------------------------------------------------------------------------


def test_attributes_are_published_in_their_order(coordinator, cloud) -> None:
    outcome = machine.publish(coordinator.edge(), {"FL_B": "1", "FL_A": "2", "FL_READY": "YES"})
    assert cloud.published(coordinator.vm) == [("FL_B", "1"), ("FL_A", "2"), ("FL_READY", "YES")]
    assert outcome.status is Status.DONE
    assert outcome.detail == "published FL_B, FL_A, FL_READY"


def test_a_machine_that_was_mended_takes_back_why_it_failed(coordinator, cloud) -> None:
    vm = coordinator.vm
    cloud.model.update_attributes(vm.vm_id, {"FL_ERROR": "peers_not_found", "FL_READY": "NO"})
    machine.publish(coordinator.edge(), {"FL_A": "1"})
    assert cloud.attributes(vm)["FL_ERROR"] == "peers_not_found", "it is not through yet"
    machine.publish(coordinator.edge(), {"FL_READY": "YES"})
    held = cloud.attributes(vm)
    assert "FL_ERROR" not in held
    assert held["FL_READY"] == "YES"


def test_what_onegate_holds_is_not_published_again(coordinator, cloud) -> None:
    machine.publish(coordinator.edge(), {"FL_A": "1", "FL_READY": "YES"})
    outcome = machine.publish(coordinator.edge(), {"FL_A": "2", "FL_READY": "YES"})
    assert outcome.detail == "published FL_A"
    assert machine.publish(coordinator.edge(), {"FL_A": "2"}).status is Status.UNCHANGED
    assert cloud.published(coordinator.vm) == [("FL_A", "1"), ("FL_READY", "YES"), ("FL_A", "2")]


def test_what_follows_an_attribute_that_was_refused_is_not_published(coordinator, cloud) -> None:
    """A reader that sees FL_READY=YES sees the rest."""
    outcome = machine.publish(
        coordinator.edge(), {"FL_A": "1", "FL_ENDPOINT": "not, safe", "FL_READY": "YES"}
    )
    assert outcome.status is Status.SKIPPED
    assert "FL_ENDPOINT" in outcome.detail
    assert cloud.published(coordinator.vm) == [("FL_A", "1")]
    [warning] = coordinator.warnings
    assert "FL_ENDPOINT" in warning


@pytest.mark.parametrize("trouble", ["wrong token", "nobody there"])
def test_a_boot_goes_on_when_nothing_can_be_published(coordinator, cloud, trouble: str) -> None:
    vm = coordinator.vm
    with (
        onegate.OneGate("http://127.0.0.1:1", vm.token, vm.vm_id, sleep=lambda _: None)
        if trouble == "nobody there"
        else cloud.gate(vm, token="wrong") as gate
    ):
        coordinator.gate = gate
        outcome = machine.publish(coordinator.edge(), {"FL_READY": "YES"})
    assert outcome.status is Status.SKIPPED
    [warning] = coordinator.warnings
    assert vm.token not in warning


def test_a_machine_outside_of_a_service_publishes_nothing(coordinator) -> None:
    coordinator.gate = None
    outcome = machine.publish(coordinator.edge(), {"FL_READY": "YES"})
    assert outcome.status is Status.SKIPPED
    assert "no OneGate" in outcome.detail


# --- programs ------------------------------------------------------------------------------------


def test_only_what_does_not_run_is_started(coordinator) -> None:
    wanted = [
        Program(name, ("true",), {}, coordinator.paths.root, coordinator.paths.logs, 1.0)
        for name in ("one", "two", "three")
    ]
    coordinator.running.add("two")
    assert machine.start(coordinator.edge(), wanted) == ["one", "three"]
    assert coordinator.names_started == ["one", "three"]
    assert machine.start(coordinator.edge(), wanted) == []


def test_a_program_that_is_not_installed_is_named(coordinator) -> None:
    def start(program: Program) -> None:
        raise FileNotFoundError(2, "No such file or directory", program.argv[0])

    edge = coordinator.edge()
    edge.start = start
    log = coordinator.paths.logs / "link.log"
    program = Program("link", ("/no/flower-superlink",), {}, coordinator.paths.root, log, 1.0)
    with pytest.raises(
        StartError, match=r"link cannot be started: .*: /no/flower-superlink"
    ) as caught:
        machine.start(edge, [program])
    assert caught.value.exit_code is ExitCode.BOOT
    assert caught.value.hint


def wait(computer, condition: Any = lambda: False) -> float:
    return machine.wait_until(
        computer.edge(),
        condition,
        program="superlink",
        poll_s=0.5,
        limit_s=120.0,
        waiting_for="an answer",
    )


def write_log(computer, content: bytes) -> None:
    computer.paths.logs.mkdir(parents=True)
    (computer.paths.logs / "superlink.log").write_bytes(content)


def test_waiting_ends_when_the_condition_holds(coordinator, time) -> None:
    assert wait(coordinator, lambda: time.now_s >= 3.0) == 3.0
    assert wait(coordinator, lambda: True) == 0.0
    assert time.slept == [0.5] * 6


def test_waiting_ends_at_its_limit_with_the_last_lines_of_the_log(coordinator, time) -> None:
    write_log(coordinator, b"".join(b"line %d\n" % number for number in range(100)))
    with pytest.raises(
        UnhealthyError, match=r"an answer did not happen \(waited 120 s\)"
    ) as caught:
        wait(coordinator)
    error = caught.value
    assert error.exit_code is ExitCode.BOOT
    assert error.message.splitlines()[1:] == [f"  line {number}" for number in range(92, 100)]
    assert str(coordinator.paths.logs / "superlink.log") in str(error.hint)
    assert time.now_s == 120.5


def test_waiting_ends_at_once_when_the_program_was_given_up(coordinator, time) -> None:
    coordinator.given_up.add("superlink")
    with pytest.raises(UnhealthyError, match="it keeps dying") as caught:
        wait(coordinator)
    assert time.slept == []
    assert "It wrote nothing" in caught.value.message


def test_a_log_is_shown_without_what_a_terminal_would_obey(coordinator) -> None:
    write_log(coordinator, b"\x1b[92mINFO\x1b[0m :\tgreen\n\x1b]0;title\x07\xff\n" + b"x" * 9999)
    with pytest.raises(UnhealthyError) as caught:
        wait(coordinator)
    lines = caught.value.message.splitlines()[1:]
    assert lines[0] == "  INFO :  green"
    assert all(line.isprintable() for line in lines)
    assert max(map(len, lines)) <= machine.LOG_LINE_CHARS_MAX + 2


def test_of_a_log_of_any_length_only_the_end_is_read(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as log:
        log.truncate(2**40)  # a hole, of which nothing is on disk
        log.seek(0, os.SEEK_END)
        log.write(b"\nthe end\n")
    assert machine.last_lines(tmp_path / "log", 1) == ["the end"]
    assert machine.last_lines(tmp_path / "none", 1) == []


# --- health --------------------------------------------------------------------------------------


def test_health_is_an_answer_of_flower_itself(flower, tmp_path: Path) -> None:
    address = f"127.0.0.1:{machine.free_port()}"
    assert not machine.healthy(address, None)
    host, port = address.split(":")
    argv = ("flower-supernode", "--host", host, "--port", port)
    flower.start(Program("supernode", argv, {}, tmp_path, tmp_path / "log", 1.0))
    assert machine.healthy(address, None)
    flower.healthy = False
    assert not machine.healthy(address, None)


def test_health_over_tls_needs_the_certificate_of_the_authority(coordinator, tmp_path) -> None:
    """A foreign server on the port is not our SuperLink."""
    coordinator.boot()
    address = coordinator.variables["FL_FLEET_API_ADDRESS"]
    own = coordinator.paths.certificates / "ca.crt"
    assert machine.healthy(address, own)
    assert not machine.healthy(address, None)
    foreign = tmp_path / "foreign" / "certs"
    material.ensure(foreign, addresses=[], now=coordinator.edge().now())
    assert not machine.healthy(address, foreign / "ca.crt")
