"""The shell around us: few lines, and shellcheck has nothing to say about them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from onefed.appliance.lifecycle import Script, script
from onefed.context import VARIABLES, Level, Role

LINES_OF_OURS_MAX = 40
"""Without the parameters, which are data."""


@pytest.fixture(params=[(kind, role) for kind in Script for role in Role], ids=str)
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    kind, role = request.param
    path = tmp_path / kind.value
    path.write_text(script(kind, role, "docker", "1.2.3"))
    return path


def test_shellcheck_finds_nothing(file: Path, shellcheck: str) -> None:
    done = subprocess.run([shellcheck, file], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_it_is_a_few_lines(file: Path) -> None:
    lines = [line for line in file.read_text().splitlines() if not line.startswith("    'ONEAPP_")]
    assert len(lines) <= LINES_OF_OURS_MAX


@pytest.mark.parametrize("role", Role)
def test_the_framework_manages_every_variable_that_a_form_may_ask_for(
    tmp_path: Path, role: Role
) -> None:
    """In groups of four, as a shell reads them."""
    path = tmp_path / "appliance.sh"
    path.write_text(script(Script.LIFECYCLE, role, "docker", "1.2.3"))
    show = f'. {path}; printf "%s\\n" "${{ONE_SERVICE_PARAMS[@]}}"'
    done = subprocess.run(["bash", "-c", show], capture_output=True, text=True, check=True)
    words = done.stdout.splitlines()
    asked = {row.name for row in VARIABLES.values() if role in row.appliances} - {
        row.name for row in VARIABLES.values() if row.level is Level.PLATFORM
    }
    assert {name.removeprefix("ONEAPP_") for name in words[::4]} == asked
    assert set(words[1::4]) == {"configure"}
    assert all(text.count("|") == 4 for text in words[3::4])


@pytest.mark.parametrize("stage", ["install", "configure", "bootstrap", "cleanup", "help"])
def test_the_life_cycle_has_every_stage_and_cleanup_does_nothing(
    tmp_path: Path, stage: str
) -> None:
    path = tmp_path / "appliance.sh"
    path.write_text(script(Script.LIFECYCLE, Role.SUPERLINK, "docker", "1.2.3"))
    onefed = 'onefed() { echo "onefed $*"; }'
    call = f"{onefed}; . {path}; service_{stage}"
    done = subprocess.run(["bash", "-c", call], capture_output=True, text=True, check=True)
    expected = {
        "install": "onefed version\n",
        "configure": "onefed appliance configure --role superlink --runtime docker\n",
        "bootstrap": "onefed appliance bootstrap --role superlink --runtime docker\n",
        "cleanup": "",
        "help": "onefed appliance --help\n",
    }
    assert done.stdout == expected[stage]


@pytest.mark.parametrize("where", ["report", "no/such/folder/report"])
def test_a_boot_that_is_through_leaves_the_report_that_the_framework_asked_for(
    tmp_path: Path, where: str
) -> None:
    """Root's alone; and a machine is READY without it."""
    path = tmp_path / "appliance.sh"
    path.write_text(script(Script.LIFECYCLE, Role.SUPERLINK, "docker", "1.2.3"))
    report = tmp_path / where
    onefed = 'onefed() { echo "onefed $*"; }'
    call = f"{onefed}; ONE_SERVICE_REPORT={report}; . {path}; service_bootstrap"
    subprocess.run(["bash", "-c", call], capture_output=True, check=True)
    if where == "report":
        assert report.read_text() == "onefed appliance status --role superlink\n"
        assert report.stat().st_mode & 0o777 == 0o600
    failed = f"onefed() {{ false; }}; ONE_SERVICE_REPORT={report}x; . {path}; service_bootstrap"
    assert subprocess.run(["bash", "-c", failed], capture_output=True, check=False).returncode == 1
    assert not report.with_name(f"{report.name}x").exists()


def test_the_framework_is_told_no_default_that_a_machine_may_lack() -> None:
    """Rule X18: ML_FRAMEWORK is what somebody asked for, or nothing."""
    text = script(Script.LIFECYCLE, Role.SUPERNODE, "docker", "1.2.3")
    [line] = [each for each in text.splitlines() if "ONEAPP_ML_FRAMEWORK" in each]
    assert line.endswith("|pytorch,tensorflow,sklearn|'")
