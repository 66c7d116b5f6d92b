"""A machine with systemd and Docker, which here are a table of answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from onefed.appliance import commands, container, description, platform, units
from onefed.appliance.commands import Done
from onefed.appliance.description import Runtime
from onefed.appliance.paths import Paths
from onefed.appliance.platform import EngineError, ImageError, Systemd, UnitError
from onefed.appliance.steps import Status
from onefed.context import Role

BAKED, WANTED = "1.40.0", "1.41.0"
IMAGE = units.DCGM_IMAGE
DOCKER = container.DOCKER


class Machine:
    """Answers commands, and remembers them."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.answers: dict[str, Done] = {}
        """By the beginning of a command line; the others succeed and say nothing."""

    def __call__(self, argv: Sequence[str], *, timeout_s: float = 0) -> Done:
        line = " ".join(argv)
        self.asked.append(line)
        for beginning, answer in self.answers.items():
            if line.startswith(beginning):
                return answer
        return Done(0, "")


@pytest.fixture
def machine() -> Machine:
    return Machine()


@pytest.fixture
def systemd(machine: Machine, tmp_path: Path) -> Callable[..., Systemd]:
    def make(role: Role = Role.SUPERNODE, runtime: Runtime = Runtime.DOCKER) -> Systemd:
        return Systemd(
            role=role,
            runtime=runtime,
            paths=Paths(tmp_path),
            framework="sklearn",
            checkpoint_path=None,
            gpus=lambda: None,
            running_version=lambda: WANTED,
            run=machine,
        )

    return make


def test_units_are_written_once_and_read_by_systemd(programs_of, systemd, machine: Machine) -> None:
    first = systemd().units(programs_of(Role.SUPERNODE))
    assert first.status is Status.DONE
    assert machine.asked == ["systemctl daemon-reload"]
    assert systemd().units(programs_of(Role.SUPERNODE)).status is Status.UNCHANGED
    assert machine.asked == ["systemctl daemon-reload"]


def test_docker_that_does_not_answer_in_a_minute_fails_the_boot(systemd, machine, time) -> None:
    machine.answers["/usr/bin/docker info"] = Done(1, "Cannot connect to the Docker daemon\n")
    with pytest.raises(EngineError, match="60 s: Cannot connect") as failed:
        systemd().engine(time, time.sleep)
    assert "systemctl status docker" in str(failed.value.hint)
    assert 60 <= time.now_s <= 62


def test_docker_that_comes_up_late_is_waited_for(systemd, machine, time) -> None:
    machine.answers["/usr/bin/docker info"] = Done(1, "not yet")
    time.after_every_sleep(lambda: machine.answers.clear() if time.now_s >= 5 else None)
    assert systemd().engine(time, time.sleep).status is Status.UNCHANGED
    assert time.now_s == 5


def test_the_process_runtime_needs_no_docker(systemd, machine, time) -> None:
    assert systemd(runtime=Runtime.PROCESS).engine(time, time.sleep).status is Status.SKIPPED
    assert machine.asked == []


def has_only(machine: Machine, *versions: str) -> None:
    for version in (BAKED, WANTED):
        image = f"flower-supernode-sklearn:{version}"
        found = Done(0 if version in versions else 1, "")
        machine.answers[f"/usr/bin/docker image inspect {image}"] = found


def bake(folder: Path) -> None:
    place = Paths(folder).prebaked
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(f"{BAKED}\n")


def test_the_version_that_is_there_is_not_pulled(systemd, machine, tmp_path) -> None:
    bake(tmp_path)
    has_only(machine, WANTED)
    assert systemd().version(WANTED, pytest.fail) == WANTED
    assert not any(" pull " in line for line in machine.asked)


def test_a_peer_looks_for_the_image_of_a_node(systemd, machine, tmp_path) -> None:
    bake(tmp_path)
    has_only(machine)
    assert systemd(role=Role.PEER).version(WANTED, pytest.fail) == WANTED
    assert machine.asked[-1] == f"/usr/bin/docker pull flower-supernode-sklearn:{WANTED}"


def test_another_version_is_pulled(systemd, machine, tmp_path) -> None:
    bake(tmp_path)
    has_only(machine, BAKED)
    assert systemd().version(WANTED, pytest.fail) == WANTED
    assert machine.asked[-1] == f"/usr/bin/docker pull flower-supernode-sklearn:{WANTED}"


def test_when_it_cannot_be_pulled_the_baked_one_runs_with_a_warning(
    systemd, machine, tmp_path
) -> None:
    bake(tmp_path)
    has_only(machine, BAKED)
    machine.answers["/usr/bin/docker pull"] = Done(1, "no route to host")
    warnings: list[str] = []
    assert systemd().version(WANTED, warnings.append) == BAKED
    assert "no route to host" in warnings[0]
    assert f"Flower {BAKED} runs instead" in warnings[0]


def test_a_framework_without_image_fails_the_boot_and_no_other_is_tried(
    systemd, machine, tmp_path
) -> None:
    has_only(machine)
    machine.answers["/usr/bin/docker pull"] = Done(1, "no route to host")
    with pytest.raises(ImageError, match=r"flower-supernode-sklearn:1\.41\.0 is neither here"):
        systemd().version(WANTED, pytest.fail)
    assert not any("pytorch" in line for line in machine.asked)


@pytest.mark.parametrize("runtime", Runtime)
def test_a_program_is_described_and_started_as_a_unit(
    programs_of, systemd, machine, tmp_path, runtime: Runtime
) -> None:
    made = systemd(runtime=runtime)
    program = programs_of(Role.SUPERNODE)[0]
    assert not made.current(program)
    made.start(program)
    assert machine.asked == [
        "systemctl enable flower-supernode.service",
        "systemctl restart flower-supernode.service",
    ]
    assert made.current(program)
    document = json.loads((Paths(tmp_path).programs / "supernode.json").read_text())
    assert (document["argv"][0] == "/usr/bin/docker") == (runtime is Runtime.DOCKER)
    assert (Paths(tmp_path).programs / "supernode.json").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("runtime", Runtime)
def test_a_program_is_another_one_when_what_it_reads_is(
    programs_of, systemd, machine, tmp_path, runtime: Runtime
) -> None:
    """systemd may have started it before the boot wrote a new context or certificate."""
    file = tmp_path / "supervisor.json"
    made = systemd(role=Role.SUPERLINK, runtime=runtime)
    program = replace(programs_of(Role.SUPERLINK)[2], inputs=(file,))
    made.start(program)
    assert made.current(program)
    file.write_text("{}")
    assert not made.current(program)
    made.restart([program])
    assert machine.asked[-1] == "systemctl try-restart flower-superlink-supervisor.service"
    assert made.current(program)
    file.write_text("{ }")
    assert not made.current(program)


def test_a_program_that_systemd_starts_again_and_again_is_given_up(systemd, machine) -> None:
    machine.answers["systemctl show --value -p NRestarts"] = Done(0, "4\n")
    assert not systemd().given_up("supernode")
    machine.answers["systemctl show --value -p NRestarts"] = Done(0, "5\n")
    assert systemd().given_up("supernode")


@pytest.mark.parametrize(
    ("code", "said"), [("126", "not permitted"), ("137", "memory"), ("1", "exit code 1"), ("0", "")]
)
def test_exit_codes_are_explained(systemd, machine, code: str, said: str) -> None:
    machine.answers["systemctl show --value -p ExecMainStatus"] = Done(0, code + "\n")
    assert said in systemd().why("supernode")


def test_a_command_of_systemd_that_fails_names_itself(programs_of, systemd, machine) -> None:
    machine.answers["systemctl daemon-reload"] = Done(1, "Access denied\n")
    with pytest.raises(UnitError, match="daemon-reload failed: Access denied"):
        systemd().units(programs_of(Role.SUPERNODE))


def test_programs_stop_in_the_reverse_order(systemd, machine) -> None:
    systemd().stop(["supernode", "superexec"])
    assert [line.split()[-1] for line in machine.asked] == [
        "flower-supernode-superexec.service",
        "flower-supernode.service",
    ]


def test_only_the_real_root_is_systemds(tmp_path: Path) -> None:
    (tmp_path / "run/systemd/system").mkdir(parents=True)
    assert not platform.has_systemd(tmp_path)


def test_a_description_comes_back(programs_of, tmp_path: Path) -> None:
    program = programs_of(Role.SUPERLINK)[0]
    description.write(tmp_path, description.of(program))
    assert description.read(tmp_path, "superlink") == description.of(program)
    assert not description.write(tmp_path, description.of(program))


def test_a_command_that_is_not_there_is_an_answer_too() -> None:
    assert commands.run(["/no/such/program"]).code == commands.NOT_FOUND
    assert commands.run(["sh", "-c", "echo a; echo b >&2; exit 3"]) == Done(3, "a\nb\n")
    assert commands.run(["sh", "-c", "exec sleep 60"], timeout_s=0.05).code == commands.TIMED_OUT


def test_a_sidecar_is_a_unit_that_is_started(systemd, machine, tmp_path) -> None:
    unit = units.dcgm(Role.SUPERNODE)
    assert systemd().sidecar(unit, IMAGE).status is Status.DONE
    assert machine.asked == [
        f"{DOCKER} image inspect {IMAGE}",
        "systemctl daemon-reload",
        "systemctl enable --now dcgm-exporter.service",
    ]
    assert (Paths(tmp_path).units / unit.name).read_text() == unit.text
    assert systemd(runtime=Runtime.PROCESS).sidecar(unit, IMAGE).status is Status.SKIPPED


def test_the_image_of_a_sidecar_is_pulled_where_it_is_not_there(systemd, machine) -> None:
    machine.answers[f"{DOCKER} image inspect"] = Done(1, "No such image")
    assert systemd().sidecar(units.dcgm(Role.SUPERNODE), IMAGE).status is Status.DONE
    assert f"{DOCKER} pull {IMAGE}" in machine.asked
    machine.answers[f"{DOCKER} pull"] = Done(1, "no route to host\n")
    with pytest.raises(ImageError, match="no route to host"):
        systemd().sidecar(units.dcgm(Role.SUPERNODE), IMAGE)


def test_a_sidecar_that_cannot_be_started_is_an_error_for_its_step_to_judge(
    systemd, machine
) -> None:
    machine.answers["systemctl enable"] = Done(1, "Unit docker.service not found.\n")
    with pytest.raises(UnitError, match=r"docker\.service not found"):
        systemd().sidecar(units.dcgm(Role.SUPERNODE), IMAGE)


def test_the_renewal_of_the_certificate_is_a_timer_of_the_coordinator(
    programs_of, systemd, machine
) -> None:
    made = systemd(Role.SUPERLINK, Runtime.PROCESS)
    made.units(programs_of(Role.SUPERLINK))
    assert (made.paths.units / units.RENEWAL_TIMER).exists()
    superlink, *_, gateway = programs_of(Role.SUPERLINK)
    made.start(superlink)
    assert machine.asked[-1] == f"systemctl enable --now {units.RENEWAL_TIMER}"
    made.restart([superlink, gateway])
    assert machine.asked[-1] == "systemctl try-restart flower-superlink.service"
