"""A machine that is stopped tells OneGate; one that is only started again does not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from onefed.appliance import leave
from onefed.appliance.commands import Done
from onefed.appliance.paths import Paths


def systemctl(jobs: str) -> Callable[..., Done]:
    def run(argv: Sequence[str], *, timeout_s: float = 0) -> Done:
        assert argv[:2] == ("systemctl", "list-jobs")
        return Done(0, jobs)

    return run


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    found = Paths(tmp_path)
    found.token.parent.mkdir(parents=True)
    return found


def told(cloud: Any, paths: Paths, role: str, when: str, jobs: str) -> list[tuple[str, str]]:
    """What a machine of that role publishes."""
    vm = cloud.add(role)
    paths.context.write_text(f"ONEGATE_ENDPOINT='{cloud.endpoint}'\nVMID='{vm.vm_id}'\n")
    paths.token.write_text(vm.token)
    assert leave.main([role, when], paths=paths, run=systemctl(jobs)) == 0
    return list(cloud.published(vm))


STOPPED = (
    "411 flower-{role}-leave-begin.service stop running\n"
    "412 flower-{role}-leave-end.service stop running\n413 poweroff.target start waiting\n"
)


@pytest.mark.parametrize(
    ("role", "when", "expected"),
    [
        ("supernode", "begin", [("FL_NODE_READY", "NO")]),
        ("supernode", "end", [("FL_CLIENT_STATUS", "3")]),
        ("superlink", "begin", [("FL_READY", "NO")]),
        ("superlink", "end", []),
        ("peer", "begin", [("FL_READY", "NO")]),
    ],
)
def test_a_unit_that_is_stopped_has_left(cloud, paths, role, when, expected) -> None:
    assert told(cloud, paths, role, when, STOPPED.format(role=role)) == expected


@pytest.mark.parametrize(
    "jobs",
    [
        "",
        "No jobs running.\n",
        "7 flower-supernode-leave-begin.service restart running\n"
        "8 flower-supernode-leave-end.service restart running\n",
        "7 flower-supernode.service start waiting\n"
        "8 flower-superlink-leave-begin.service stop running\n",
    ],
    ids=["crashed", "crashed-in-words", "restarted", "another-stops"],
)
def test_a_unit_that_is_only_started_again_has_not(cloud, paths, jobs) -> None:
    for when in ("begin", "end"):
        assert told(cloud, paths, "supernode", when, jobs) == []


def test_a_machine_without_onegate_stops_all_the_same(paths, capsys) -> None:
    jobs = STOPPED.format(role="supernode")
    assert leave.main(["supernode", "end"], paths=paths, run=systemctl(jobs)) == 0
    paths.context.mkdir(parents=True)
    assert leave.main(["supernode", "end"], paths=paths, run=systemctl(jobs)) == 0
    assert "cannot be read" in capsys.readouterr().err


def test_words_that_mean_nothing(capsys) -> None:
    assert leave.main(["supernode"]) == 2
    assert "usage" in capsys.readouterr().err
