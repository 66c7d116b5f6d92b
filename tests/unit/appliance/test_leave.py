"""A machine that is stopped tells OneGate; one that is only started again does not."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from onefed.appliance import leave
from onefed.appliance.commands import Done


def systemctl(jobs: str) -> Callable[..., Done]:
    def run(argv: Sequence[str], *, timeout_s: float = 0) -> Done:
        assert argv[:2] == ("systemctl", "list-jobs")
        return Done(0, jobs)

    return run


def told(cloud: Any, role: str, when: str, jobs: str) -> list[tuple[str, str]]:
    """What a machine of that role publishes."""
    vm = cloud.add(role)
    said = f"export TOKENTXT='{vm.token}'\nONEGATE_ENDPOINT='{cloud.endpoint}'\nVMID='{vm.vm_id}'\n"
    assert leave.main([role, when], io.BytesIO(said.encode()), run=systemctl(jobs)) == 0
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
def test_a_unit_that_is_stopped_has_left(cloud, role, when, expected) -> None:
    assert told(cloud, role, when, STOPPED.format(role=role)) == expected


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
def test_a_unit_that_is_only_started_again_has_not(cloud, jobs) -> None:
    for when in ("begin", "end"):
        assert told(cloud, "supernode", when, jobs) == []


@pytest.mark.parametrize("said", [b"", b"VMID=7\nTOKENTXT=x\n", b"\xff\x00"])
def test_a_machine_without_onegate_stops_all_the_same(said) -> None:
    jobs = STOPPED.format(role="supernode")
    assert leave.main(["supernode", "end"], io.BytesIO(said), run=systemctl(jobs)) == 0


def test_words_that_mean_nothing(capsys) -> None:
    assert leave.main(["supernode"], io.BytesIO()) == 2
    assert "usage" in capsys.readouterr().err
