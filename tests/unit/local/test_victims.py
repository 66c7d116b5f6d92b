"""Processes of a federation are found by what they are."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from onefed.appliance.paths import Paths
from onefed.flower import task_record
from onefed.local import ownership, victims
from onefed.local.state import SUPERLINK, StateDir

MACHINE = """
import subprocess, sys
children = [subprocess.Popen([sys.executable, "-c", "input()", name]) for name in sys.argv[4:]]
print(*(child.pid for child in children), flush=True)
sys.stdin.read()
"""
"""A process of a machine with programs that do nothing: ``MODULE --name NAME PROGRAM...``."""


@pytest.fixture
def machine() -> Iterator[Callable[..., list[int]]]:
    """Starts one; gives its process id, then those of its programs."""
    started = []

    def start(directory: StateDir, name: str, *programs: str) -> list[int]:
        carried = f"{ownership.STATE_VARIABLE}={directory.folder}"
        process = subprocess.Popen(
            [
                *("env", carried, sys.executable, "-c", MACHINE),
                *(victims.GUEST, "--name", name, *programs),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout is not None
        return [process.pid, *map(int, process.stdout.readline().split())]

    yield start
    for process in started:
        process.communicate()


def pid(directory: StateDir, name: str) -> int | None:
    found = victims.find(directory, name)
    return None if found is None else found.pid


def test_every_program_is_found_in_its_machine(make, machine) -> None:
    directory = make()
    coordinator, link, executor, supervisor = machine(
        directory,
        SUPERLINK,
        "/somewhere/bin/flower-superlink",
        "onefed.flower.executor",
        "onefed.flower.supervisor",
    )
    node, program = machine(directory, "supernode/1", "onefed.flower.node")
    assert pid(directory, "superlink") == link
    assert pid(directory, "superexec") == executor
    assert pid(directory, "supervisor") == supervisor
    assert pid(directory, "supernode/1") == program
    assert pid(directory, "machine superlink") == coordinator
    assert pid(directory, "machine supernode/1") == node
    assert pid(directory, "supernode/0") is None
    assert pid(directory, "cloud") is None


def test_the_serverapp_is_the_one_that_was_written_down(make, machine) -> None:
    directory = make()
    record = Paths(directory.root(SUPERLINK)).task_record
    assert pid(directory, "serverapp") is None
    (process,) = machine(directory, "any")
    record.parent.mkdir(parents=True)
    task_record.write(record, task_record.TaskRecord.of(1, process))
    assert pid(directory, "serverapp") == process
    task_record.write(record, task_record.TaskRecord(1, process, 0.0))
    assert pid(directory, "serverapp") is None, "another process has its id now"


def test_a_federation_beside_it_is_left_alone(make, machine, tmp_path: Path) -> None:
    directory, other = make(), make("other")
    machine(other, SUPERLINK, "flower-superlink")
    assert pid(directory, "superlink") is None
