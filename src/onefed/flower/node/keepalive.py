"""Probes of a node: firewalls forget a connection that idles, and a dead peer says nothing."""

from __future__ import annotations

import socket
from dataclasses import dataclass

PROBES = 4
"""Unanswered in a row before a connection is given up."""

SocketOption = tuple[int, int, int]
"""Level, name, value: what ``setsockopt`` takes."""


@dataclass(frozen=True)
class Keepalive:
    """When an idle connection is probed, and when it is given up."""

    time_s: int
    """Idle for so long (FL_GRPC_KEEPALIVE_TIME)."""
    timeout_s: int
    """After that without an answer (FL_GRPC_KEEPALIVE_TIMEOUT)."""

    def socket_options(self) -> list[SocketOption]:
        """For TCP, as far as the system knows them; Linux knows them all."""
        wanted = {
            "TCP_KEEPIDLE": self.time_s,
            "TCP_KEEPINTVL": max(1, self.timeout_s // PROBES),
            "TCP_KEEPCNT": min(PROBES, self.timeout_s),
            # Bytes that nobody acknowledges are no better than probes.
            "TCP_USER_TIMEOUT": 1000 * self.timeout_s,
        }
        known = {name: getattr(socket, name, None) for name in wanted}
        return [
            (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
            *(
                (socket.IPPROTO_TCP, number, wanted[name])
                for name, number in known.items()
                if number is not None
            ),
        ]
