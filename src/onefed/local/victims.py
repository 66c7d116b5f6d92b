"""The processes of a running federation by what they are, to be killed or paused on purpose."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

import psutil

from onefed.appliance.paths import Paths
from onefed.flower import task_record
from onefed.local import ownership
from onefed.local.state import SUPERLINK, StateDir

SERVER_APP = "serverapp"
"""The round loop."""

CLOUD = "cloud"
"""The process that started the machines; with it all of them end."""

GUEST = "onefed.appliance.guest"
"""In the command line of a machine's own process."""

COORDINATOR: Mapping[str, str] = {
    "superlink": "flower-superlink",
    "superexec": "onefed.flower.executor",
    "supervisor": "onefed.flower.supervisor",
}
"""The coordinator's programs, and what is in their command lines."""

NODE = "onefed.flower.node"

WARM = "onefed.local.warm_server"
"""Who may be between a machine and its programs."""


def names(nodes: int) -> tuple[str, ...]:
    """Everything that can be killed alone, and comes back by itself."""
    return (SERVER_APP, *COORDINATOR, *(f"supernode/{index}" for index in range(nodes)))


def find(directory: StateDir, name: str) -> psutil.Process | None:
    """The process of that name; None while it is not there.

    Args:
        name: one of ``names``, ``cloud``, or ``machine NAME`` for the process of a machine.
    """
    if name == SERVER_APP:
        record = task_record.read(Paths(directory.root(SUPERLINK)).task_record)
        with contextlib.suppress(psutil.Error):
            return psutil.Process(record.pid) if record is not None and record.lives() else None
        return None
    if name == CLOUD:
        owner = ownership.owner(directory)
        with contextlib.suppress(psutil.Error):
            return psutil.Process(owner) if owner else None
        return None
    machine = name.removeprefix("machine ")
    guest = _guest(directory, SUPERLINK if machine in COORDINATOR else machine)
    if guest is None or name != machine:
        return guest
    wanted = COORDINATOR.get(name, NODE)
    with contextlib.suppress(psutil.Error):
        children = guest.children()
        warm = [child for child in children if _runs(child, WARM)]
        for process in warm:
            children += process.children()
        return next((child for child in children if _runs(child, wanted)), None)
    return None


def _guest(directory: StateDir, machine: str) -> psutil.Process | None:
    for process in ownership.processes(directory):
        with contextlib.suppress(psutil.Error):
            command = process.cmdline()
            if GUEST in command and command[command.index("--name") + 1] == machine:
                return process
    return None


def _runs(process: psutil.Process, program: str) -> bool:
    with contextlib.suppress(psutil.Error):
        return any(part == program or part.endswith(f"/{program}") for part in process.cmdline())
    return False
