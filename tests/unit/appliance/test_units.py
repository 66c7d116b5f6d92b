"""Units of systemd, judged by systemd itself where it is installed."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from onefed.appliance import firewall, units
from onefed.appliance.description import Runtime
from onefed.appliance.paths import Paths
from onefed.appliance.process import Program
from onefed.context import Role

ProgramsOf = Callable[..., tuple[Program, ...]]

PATHS = Paths(Path("/"))
UNITS = "etc/systemd/system"

EXPOSURE_MAX = {Runtime.PROCESS: 1.3, Runtime.DOCKER: 1.8}
"""R12: of our programs, and of what drives Docker."""


@pytest.fixture
def made(programs_of: ProgramsOf) -> Callable[..., list[units.Unit]]:
    def make(role: Role, runtime: Runtime, **variables: str) -> list[units.Unit]:
        found = programs_of(role, **variables)
        return units.of(found, role, runtime, PATHS, python="/usr/bin/python3")

    return make


def lines(unit: units.Unit) -> dict[str, list[str]]:
    pairs = [line.partition("=") for line in unit.text.splitlines() if "=" in line]
    found: dict[str, list[str]] = {}
    for key, _, value in pairs:
        found.setdefault(key, []).append(value)
    return found


@pytest.mark.parametrize(("role", "runtime"), list(itertools.product(Role, Runtime)))
def test_every_program_of_a_machine_has_a_unit_that_always_restarts(
    made, programs_of, role: Role, runtime: Runtime
) -> None:
    found = made(role, runtime)
    count = len(programs_of(role))
    assert [unit.name for unit in found[:count]] == [
        units.name(program.name, role) for program in programs_of(role)
    ]
    assert found[0].name == f"flower-{role}.service"
    for unit, program in zip(found, programs_of(role), strict=False):
        said = lines(unit)
        assert said["Restart"] == ["always"]
        assert said["KillSignal"] == ["SIGTERM"]
        assert int(said["TimeoutStopSec"][0]) > program.stop_timeout_s
        assert said["ExecStart"][0].endswith(f" {program.name}")
        assert ("docker.service" in said.get("Requires", [""])[0]) == (runtime is Runtime.DOCKER)
    for unit in found[1:]:
        assert lines(unit)["PartOf"] == [found[0].name]


@pytest.mark.parametrize("runtime", Runtime)
@pytest.mark.parametrize(
    ("role", "moments"), [(Role.SUPERLINK, {"begin"}), (Role.SUPERNODE, {"begin", "end"})]
)
def test_a_machine_that_is_stopped_says_so_around_the_stop(made, role, moments, runtime) -> None:
    found = {unit.name: lines(unit) for unit in made(role, runtime)}
    main = found[f"flower-{role}.service"]
    wanted = {f"flower-{role}-leave-{moment}.service": moment for moment in moments}
    assert {name for name in found if "-leave-" in name} == set(wanted)
    assert set(wanted) < set(main["Wants"][0].split()), "started with the program, so stopped too"
    for name, moment in wanted.items():
        said = found[name]
        assert said["ExecStop"] == [
            f"/usr/bin/python3 -P -m onefed.appliance.leave {role} {moment}"
        ]
        # systemd stops in the reverse of this order.
        order = "After" if moment == "begin" else "Before"
        assert f"flower-{role}.service" in said[order]


@pytest.mark.parametrize("runtime", Runtime)
def test_no_value_of_a_context_is_in_a_unit(made, runtime: Runtime) -> None:
    """So ``%h`` or a line break in a value cannot change one, and a new context rewrites none."""
    plain = made(Role.SUPERLINK, runtime)
    other = made(
        Role.SUPERLINK,
        runtime,
        FL_DATABASE="state/other.db",
        FL_FLEET_API_ADDRESS="10.9.8.7:9999",
        FL_LOG_LEVEL="DEBUG",
    )
    assert other == plain


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of an appliance, as far as systemd-analyze looks at it."""
    folder = tmp_path_factory.mktemp("root")
    onefed = Path(sys.executable).with_name("onefed")
    for program in (
        "usr/bin/python3",
        "usr/bin/docker",
        firewall.NFT.lstrip("/"),
        str(onefed).lstrip("/"),
    ):
        place = folder / program
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text("#!/bin/sh\n")
        place.chmod(0o755)
    place = folder / UNITS
    place.mkdir(parents=True)
    targets = (
        "timers",
        "network-online",
        "multi-user",
        "sysinit",
        "basic",
        "shutdown",
        "network-pre",
    )
    for name in targets:
        (place / f"{name}.target").write_text("[Unit]\nDescription=of the platform\n")
    (place / "docker.service").write_text("[Service]\nExecStart=/usr/bin/docker\n")
    return folder


@pytest.fixture
def analyze(root: Path, systemd_analyze: str) -> Callable[..., Any]:
    def run(*words: str) -> Any:
        argv = [systemd_analyze, "--no-pager", f"--root={root}", *words]
        return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)

    return run


@pytest.mark.parametrize("runtime", Runtime)
def test_systemd_takes_the_units_and_calls_them_safe(
    made, root: Path, analyze, runtime: Runtime
) -> None:
    roles = list(Role)
    every = [unit for role in roles for unit in made(role, runtime)]
    with_metrics = made(Role.SUPERLINK, runtime, FL_METRICS_ENABLED="YES")
    every += [unit for unit in with_metrics if "metrics" in unit.name]
    assert f"flower-{Role.SUPERLINK}-metrics.service" in [unit.name for unit in every]
    every += [*units.renewal(), units.firewall(PATHS)]
    every += [units.dcgm(Role.SUPERNODE)] if runtime is Runtime.DOCKER else []
    for unit in every:
        (root / UNITS / unit.name).write_text(unit.text)
    names = [unit.name for unit in every]
    verified = analyze("verify", *names)
    assert (verified.returncode, verified.stderr) == (0, "")
    for name in (name for name in names if name.endswith(".service")):
        said = analyze("security", "--offline=true", name).stdout
        exposure = re.search(r"Overall exposure level for \S+: ([0-9.]+)", said)
        assert exposure is not None, said
        drives_docker = runtime is Runtime.DOCKER and "docker " in (root / UNITS / name).read_text()
        most = EXPOSURE_MAX[Runtime.DOCKER if drives_docker else Runtime.PROCESS]
        assert float(exposure[1]) <= most, name
