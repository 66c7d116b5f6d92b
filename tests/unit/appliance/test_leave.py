"""A machine that is stopped tells OneGate; one that is only started again does not."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from onefed.appliance import leave
from onefed.appliance.commands import Done
from onefed.appliance.paths import Paths
from onefed.checkpoint import files, life_lock


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


ELSEWHERE = 4_194_304 + 1
"""A process id that nobody has: the node may be in a container, and its units see no others."""

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


@pytest.mark.parametrize(
    ("cardinality", "place", "taken"),
    [(2, 0, False), (1, 0, True), (1, 1, False), (0, 0, False), (3, 0, False)],
    ids=["as many", "the oldest", "a newer one", "the whole service", "grows"],
)
def test_a_peer_of_which_its_service_has_too_many_is_taken_away(
    cloud, cardinality: int, place: int, taken: bool
) -> None:
    machines = [cloud.add("peer") for _ in range(2)]
    cloud.model.set_cardinality("peer", cardinality)
    with cloud.gate(machines[place]) as gate:
        assert leave.is_taken_away(gate, machines[place].vm_id) is taken


@pytest.mark.parametrize("jobs", [STOPPED.format(role="peer"), "7 x restart running"])
def test_a_peer_that_is_taken_away_asks_its_node_to_leave(cloud, jobs: str, tmp_path: Path) -> None:
    paths = Paths(tmp_path)
    first, _ = cloud.add("peer"), cloud.add("peer")
    folder = paths.peer_node("peer-1")
    folder.mkdir(parents=True)
    paths.peer.parent.mkdir(parents=True)
    paths.peer.write_text('{"name": "peer-1"}')
    state = {"pid": ELSEWHERE, "state": "training", "leader": "peer-2", "round_number": 3}
    state |= {"rounds_total": 9, "voters": ["peer-1", "peer-2"]}
    (folder / "state.json").write_text(json.dumps(state))
    request = folder / "requests" / "leave peer-1"
    asked = []

    def node() -> None:
        """Does as the node: it looks for requests, and a commit takes it off the roster."""
        while not over.wait(0.01):
            if request.exists():
                asked.append(request.name)
                state["voters"] = ["peer-2"]
                files.write_json(folder / "state.json", state)
                return

    over = threading.Event()
    thread = threading.Thread(target=node)
    thread.start()
    lives = life_lock.hold(folder / life_lock.NAME)
    said = f"TOKENTXT='{first.token}'\nONEGATE_ENDPOINT='{cloud.endpoint}'\nVMID='{first.vm_id}'\n"
    try:
        given = io.BytesIO(said.encode())
        with lives:
            assert leave.main(["peer", "begin"], given, run=systemctl(jobs), root=tmp_path) == 0
    finally:
        over.set()
        thread.join()

    assert asked == (["leave peer-1"] if "poweroff" in jobs else [])


def test_words_that_mean_nothing(capsys) -> None:
    assert leave.main(["supernode"], io.BytesIO()) == 2
    assert "usage" in capsys.readouterr().err
