"""What farewell units run as they are stopped (``units``): OneGate hears that the machine leaves.

``python -P -m onefed.appliance.leave ROLE begin|end <one_env``: before the program that carries
the machine is told to stop, and after it has ended. The platform's file comes by standard input,
since it is root's and this is not. One that is only started again, after a crash or by
``systemctl restart``, leaves nothing. Best effort: the machine stops all the same.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import BinaryIO

from onefed import context
from onefed.appliance import commands, drain, surroundings, units
from onefed.errors import ExitCode

GATE_TIMEOUT_S = 5.0
"""For each attribute; a cloud that is gone holds up no power-off."""


def main(arguments: Sequence[str], given: BinaryIO, *, run: commands.Run = commands.run) -> int:
    """Tell OneGate, if the unit is being stopped for good."""
    if len(arguments) != 2 or arguments[1] not in ("begin", "end"):
        sys.stderr.write("usage: python -m onefed.appliance.leave ROLE begin|end\n")
        return ExitCode.USAGE
    role = context.Role(arguments[0])
    if not _is_stopping(units.farewell_name(arguments[1], role), run):
        return ExitCode.OK
    content = given.read(context.FILE_BYTES_MAX + 1)
    gate = surroundings.given(content).gate(_warn, timeout_s=GATE_TIMEOUT_S)
    (drain.begin if arguments[1] == "begin" else drain.end)(gate, role)
    if gate is not None:
        gate.close()
    return ExitCode.OK


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
