"""Leaving in order: no longer ready, what runs is finished or given back, then disconnected.

How long a program may take is in its own limit (``Program.stop_timeout_s``).
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

from onefed import context
from onefed.opennebula import onegate

READY: Mapping[context.Role, str] = {
    context.Role.SUPERLINK: "FL_READY",
    context.Role.SUPERNODE: "FL_NODE_READY",
    context.Role.PEER: "FL_READY",
}
"""The attribute that says whether a machine may be used."""

IDLE = "1"
DISCONNECTED = "3"
"""FL_CLIENT_STATUS: 1 idle, 2 training, 3 disconnected; numbers, because OneFlow averages them."""


def begin(gate: onegate.OneGate | None, role: context.Role) -> None:
    """Tell OneGate, best effort, that this machine takes nothing new."""
    _publish(gate, READY[role], "NO")


def end(gate: onegate.OneGate | None, role: context.Role) -> None:
    """Tell OneGate, best effort, that this node's programs have ended."""
    if role is context.Role.SUPERNODE:
        _publish(gate, "FL_CLIENT_STATUS", DISCONNECTED)


def _publish(gate: onegate.OneGate | None, name: str, value: str) -> None:
    if gate is not None:
        with contextlib.suppress(onegate.OneGateError):
            gate.publish(name, value)
