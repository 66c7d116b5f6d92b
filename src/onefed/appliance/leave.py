"""What farewell units run as they are stopped (``units``): OneGate hears that the machine leaves.

``python -P -m onefed.appliance.leave ROLE begin|end <one_env``: before the program that carries
the machine is told to stop, and after it has ended. The platform's file comes by standard input,
since it is root's and this is not. One that is only started again, after a crash or by
``systemctl restart``, leaves nothing. Best effort: the machine stops all the same.

A peer that its service takes away leaves its group, too. A power-off does not say whether the
machine comes back, but OneGate does: its role wants fewer machines than it has, and OneFlow takes
the oldest. One that reboots, or whose whole service ends, leaves no group.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from onefed import context
from onefed.appliance import commands, drain, peer_state, surroundings, units
from onefed.appliance.paths import Paths
from onefed.checkpoint import files
from onefed.errors import ExitCode, StorageError
from onefed.opennebula import onegate

GATE_TIMEOUT_S = 5.0
"""For each attribute; a cloud that is gone holds up no power-off."""


def main(
    arguments: Sequence[str],
    given: BinaryIO,
    *,
    run: commands.Run = commands.run,
    root: Path = Path("/"),
) -> int:
    """Tell OneGate, if the unit is being stopped for good; and the group of a peer."""
    if len(arguments) != 2 or arguments[1] not in ("begin", "end"):
        sys.stderr.write("usage: python -m onefed.appliance.leave ROLE begin|end\n")
        return ExitCode.USAGE
    role = context.Role(arguments[0])
    if not _is_stopping(units.farewell_name(arguments[1], role), run):
        return ExitCode.OK
    content = given.read(context.FILE_BYTES_MAX + 1)
    around = surroundings.given(content)
    gate = around.gate(_warn, timeout_s=GATE_TIMEOUT_S)
    (drain.begin if arguments[1] == "begin" else drain.end)(gate, role)
    if gate is not None:
        if role is context.Role.PEER and is_taken_away(gate, around.variable("VMID")):
            _leave_group(Paths(root))
        gate.close()
    return ExitCode.OK


def is_taken_away(gate: onegate.OneGate, vm_id: str) -> bool:
    """Whether the service is being made smaller by this machine."""
    try:
        roles = gate.service().roles
    except onegate.OneGateError as error:
        _warn(f"OneGate does not say whether the service takes this machine away: {error}")
        return False
    for role in roles:
        surplus = max(0, len(role.nodes) - role.cardinality)
        if role.cardinality and vm_id in [node.vm_id for node in role.nodes[:surplus]]:
            return True
    return False


def _leave_group(paths: Paths) -> None:
    """As ``onefed appliance drain`` does; the machine's facts are root's, what its node is told
    is not."""
    try:
        told = files.read_json(paths.peer)
    except StorageError as error:
        _warn(str(error))
        return
    name = str(told.get("name", "")) if isinstance(told, dict) else ""
    if peer_state.leave(
        paths,
        name,
        now=lambda: datetime.now(UTC),
        clock=time.monotonic,
        sleep=time.sleep,
        warn=_warn,
    ):
        _warn(f"{name} has left its group: the service takes this machine away.")


def _is_stopping(unit: str, run: commands.Run) -> bool:
    """Whether what systemd does with a unit is a stop: ``123 UNIT stop running``."""
    listed = run(("systemctl", "list-jobs", "--plain", "--no-legend", unit))
    if not listed.ok:
        _warn(f"systemd does not say whether this is a stop: {listed.last_line}")
    return any(line.split()[1:3] == [unit, "stop"] for line in listed.output.splitlines())


def _warn(message: str) -> None:
    sys.stderr.write(f"{message}\n")


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:], sys.stdin.buffer))
