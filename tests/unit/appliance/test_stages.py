"""Stages as commands: a kill between any two steps, and what a second run changes."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from onefed.appliance import machine, stages
from onefed.appliance.paths import Paths
from onefed.appliance.steps import Stage
from onefed.context import Role

KILLER = """
import os, signal, sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from onefed import context
from onefed.appliance import stages
from onefed.appliance.description import Runtime
from onefed.appliance.steps import Stage

root, role = Path(sys.argv[1]), context.Role(sys.argv[2])
count = len(stages.plan(role, Stage.CONFIGURE))

def configure(kill_after, folder):
    done = []
    def on_report(report):
        done.append(report.status.value)
        if len(done) == kill_after:
            os.kill(os.getpid(), signal.SIGKILL)
    stages.apply(
        stages.Order(role, folder, Runtime.PROCESS),
        Stage.CONFIGURE,
        stages.World(
            environ={}, clock=lambda: 0.0, now=lambda: datetime.now(UTC), sleep=lambda _: None,
            warn=lambda _: None, on_report=on_report,
        ),
    )
    return done

for kill_after in range(1, count + 1):
    folder = root / str(kill_after)
    (folder / "run/one-context").mkdir(parents=True)
    (folder / "run/one-context/one_env").write_bytes((root / "one_env").read_bytes())
    if (child := os.fork()) == 0:
        configure(kill_after, folder)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL, kill_after
    second = configure(None, folder)
    third = configure(None, folder)
    assert len(second) == len(third) == count
    assert "done" not in third, (kill_after, third)
    print(kill_after, second.count("done"))
"""


@pytest.mark.parametrize("role", Role)
def test_configure_killed_after_any_step_is_completed_by_the_next_run(
    tmp_path: Path, role: Role, cloud: Any
) -> None:
    """SIGKILL, in a process of its own; a third run finds nothing to do."""
    variables = {
        Role.SUPERLINK: f"FL_FLEET_API_ADDRESS='127.0.0.1:{machine.free_port()}'\n",
        Role.SUPERNODE: "FL_SUPERLINK_ADDRESS='127.0.0.1:9092'\nFL_TLS_ENABLED='NO'\n",
        Role.PEER: f"FL_PEER_FOUNDERS='1'\nONEGATE_ENDPOINT='{cloud.endpoint}'\n"
        f"VMID='{(vm := cloud.add('peer')).vm_id}'\nTOKENTXT='{vm.token}'\n",
    }
    (tmp_path / "one_env").write_text(variables[role])
    done = subprocess.run(
        [sys.executable, "-c", KILLER, tmp_path, role],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    changed = [int(line.split()[1]) for line in done.stdout.splitlines()]
    assert len(changed) == len(stages.plan(role, Stage.CONFIGURE))
    assert changed[0] > changed[-1] == 0, "what was done before the kill is not done again"


@pytest.mark.parametrize("role", Role)
def test_the_stages_together_are_the_plan(role: Role) -> None:
    configure = stages.plan(role, Stage.CONFIGURE)
    bootstrap = stages.plan(role, Stage.BOOTSTRAP)
    assert configure + bootstrap == stages.plan(role)
    assert {step.stage for step in bootstrap} == {Stage.BOOTSTRAP, Stage.PLATFORM}
    assert Stage.BOOTSTRAP not in {step.stage for step in configure}


def tree(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*")
        if path.is_file() and "var/log" not in str(path)
    }


def onefed(*words: str) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name("onefed")
    return subprocess.run(
        [program, "appliance", *words], capture_output=True, text=True, check=False, timeout=120
    )


def test_plan_and_dry_run_change_nothing(tmp_path: Path) -> None:
    planned = onefed("plan", "--role", "superlink", "--json")
    ids = [step["id"] for step in json.loads(planned.stdout)]
    assert ids == [step.id for step in stages.plan(Role.SUPERLINK)]
    where = ("--role", "superlink", "--root", str(tmp_path))
    for command in ("configure", "bootstrap"):
        assert onefed(command, *where, "--dry-run").returncode == 0
    assert list(tmp_path.iterdir()) == []


def test_five_mistakes_are_reported_at_once_everywhere(tmp_path: Path) -> None:
    """On the terminal, in the stage's log and in the status, and no secret in any of them."""
    paths = Paths(tmp_path)
    paths.context.parent.mkdir(parents=True)
    paths.context.write_text(
        "FL_NUM_ROUNDS='ten'\nFL_STRATEGY='fedavg'\nFL_FLEET_API_ADDRESS='0.0.0.0'\n"
        "FL_TLS_ENABLED='true'\nFL_SSL_KEYFILE='hunter2'\n"
    )
    names = ("FL_NUM_ROUNDS", "FL_STRATEGY", "FL_FLEET_API_ADDRESS", "FL_TLS_ENABLED")
    where = ("--role", "superlink", "--root", str(tmp_path))
    failed = onefed("configure", *where, "--runtime", "process")
    shown = onefed("status", *where)
    log = (paths.logs / "flower-configure.log").read_text()
    assert failed.returncode == 3
    for text in (failed.stderr, log, shown.stdout):
        assert all(f"Invalid {name}" in text for name in (*names, "FL_SSL_KEYFILE"))
        assert "5 configuration errors." in text
        assert "hunter2" not in text
    assert shown.stdout.rstrip().splitlines()[-1].startswith("next: ")
    assert not paths.certificates.exists()


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_warning_is_in_the_log_of_its_stage(tmp_path: Path, form: str) -> None:
    """There an operator looks for why a machine is not what it was asked to be."""
    paths = Paths(tmp_path)
    paths.context.parent.mkdir(parents=True)
    paths.context.write_text(
        f"FL_FLEET_API_ADDRESS='127.0.0.1:{machine.free_port()}'\n"
        f"FL_LOG_FORMAT='{form}'\nFL_RUONDS='5'\n"
    )
    where = ("--role", "superlink", "--root", str(tmp_path), "--runtime", "process")
    assert onefed("configure", *where).returncode == 0
    [line] = [
        each
        for each in (paths.logs / "flower-configure.log").read_text().splitlines()
        if "FL_RUONDS" in each
    ]
    if form == "json":
        assert json.loads(line)["level"] == "WARNING"
        assert "did you mean FL_NUM_ROUNDS?" in json.loads(line)["message"]
    else:
        assert line.startswith("WARNING Unknown variable 'FL_RUONDS'")


def test_a_second_configure_changes_nothing_and_a_new_context_is_picked_up(tmp_path: Path) -> None:
    paths = Paths(tmp_path)
    paths.context.parent.mkdir(parents=True)
    address = f"FL_FLEET_API_ADDRESS='127.0.0.1:{machine.free_port()}'\n"
    paths.context.write_text(address)
    where = ("--role", "superlink", "--root", str(tmp_path), "--runtime", "process")
    assert "steps changed something" in onefed("configure", *where).stdout
    before = tree(tmp_path)
    assert onefed("configure", *where).stdout.endswith("Nothing had to change.\n")
    after = tree(tmp_path)
    status = str(paths.status.relative_to(tmp_path))
    assert {**after, status: ""} == {**before, status: ""}
    paths.context.write_text(f"{address}FL_NUM_ROUNDS='9'\nFL_LOG_FORMAT='json'\n")
    said = onefed("configure", *where).stdout.splitlines()
    steps = {step["id"]: step["status"] for step in map(json.loads, said[:-1])}
    assert steps["SL-06"] == "done"
    assert steps["SL-07a"] == "unchanged"
    assert json.loads(paths.supervisor.read_text())["run_config"]["num-server-rounds"] == 9


def test_modes_do_not_depend_on_the_umask(tmp_path: Path) -> None:
    """A unit of ours has 0077, and so may whoever calls: the programs are another user."""
    address = f"127.0.0.1:{machine.free_port()}"
    found = []
    for umask in ("022", "077"):
        paths = Paths(tmp_path / umask)
        paths.context.parent.mkdir(parents=True)
        paths.context.write_text(f"FL_FLEET_API_ADDRESS='{address}'\nFL_GATEWAY='always'\n")
        argv = f"umask {umask}; exec {Path(sys.executable).with_name('onefed')} appliance configure"
        where = f"--role superlink --root {paths.root} --runtime process"
        subprocess.run(["sh", "-c", f"{argv} {where}"], capture_output=True, check=True)
        found.append(
            {
                str(path.relative_to(paths.root)): oct(path.stat().st_mode)
                for path in paths.config.parent.rglob("*")
            }
        )
    assert found[0] == found[1]
    assert found[0]["opt/flower/config/gateway.conf"] == "0o100640"


def test_the_docker_runtime_needs_systemd(tmp_path: Path) -> None:
    failed = onefed("bootstrap", "--role", "superlink", "--root", str(tmp_path))
    assert failed.returncode == 2
    assert "--runtime process" in failed.stderr


def test_a_boot_that_fails_later_names_the_step_and_what_to_look_at(tmp_path: Path) -> None:
    """Bootstrap of a node without address and without OneGate."""
    where = ("--role", "supernode", "--root", str(tmp_path))
    failed = onefed("bootstrap", *where, "--runtime", "process")
    assert failed.returncode == 8
    assert "SN-07 (Discovery)" in failed.stderr
    assert "FL_SUPERLINK_ADDRESS" in failed.stderr
    shown = json.loads(onefed("status", *where, "--json").stdout)
    assert shown["steps"][-1]["id"] == "SN-07"
    assert shown["steps"][-1]["status"] == "failed"
    assert shown["next"]
    assert shown["kept_by"] is None
    assert onefed("health", *where).returncode == 8
    assert onefed("drain", *where).stdout == "nothing runs here\n"


def test_the_page_about_five_mistakes_is_what_happens(tmp_path: Path) -> None:
    page = (Path(__file__).parents[3] / "docs/boot-errors.md").read_text()
    given, printed, errors = page.split("```\n")[1::2]
    paths = Paths(tmp_path)
    paths.context.parent.mkdir(parents=True)
    paths.context.write_text(given)
    where = ("--role", "superlink", "--root", str(tmp_path))
    failed = onefed("configure", *where, "--runtime", "process")
    assert (failed.returncode, failed.stdout, failed.stderr) == (3, printed, errors)
