"""A bridge for machines, in a network namespace that ends with this process."""

from __future__ import annotations

import socket
import subprocess

BRIDGE = "onefed0"
ADDRESS = "10.77.0.1"
"""Where the platform is: OneGate."""


def is_own() -> bool:
    """Whether this process has left the network of its host: there is loopback and no more."""
    return [name for _, name in socket.if_nameindex()] == ["lo"]


def make_bridge() -> None:
    """It goes with the namespace."""
    for words in (
        "link set lo up",
        f"link add {BRIDGE} type bridge",
        f"address add {ADDRESS}/24 dev {BRIDGE}",
        f"link set {BRIDGE} up",
    ):
        subprocess.run(["ip", *words.split()], check=True, timeout=10)


def address(number: int) -> str:
    """Of a machine; numbers begin with 0."""
    return f"10.77.0.{10 + number}"
