"""A network of namespaces on one machine: a bridge, and an address for each node.

Links are cut and lose packets by nftables inside of a node's own namespace, so nothing of the
machine's own network is touched. All of it wants root, ``ip`` and ``nft``; ``enter`` starts the
program again in namespaces of its own, which take everything with them when it ends.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

INSIDE = "ONEFED_PEER_FAULTS_INSIDE"
"""Set where the program runs in namespaces of its own."""

NAMES = Path("/run/netns")
BRIDGE = "bridge"
SUBNET = "10.77.0"
NEEDS = ("ip", "nft", "unshare", "mount")


def missing() -> str | None:
    """What keeps this machine from having namespaces; None: nothing."""
    if os.geteuid() != 0:
        return "not root"
    absent = [name for name in NEEDS if shutil.which(name) is None]
    return f"without {', '.join(absent)}" if absent else None


def enter(*program: str) -> None:
    """Become ``program``, ourselves, in namespaces of its own, if that is possible and not done.

    Args:
        program: what Python runs.
    """
    if os.environ.get(INSIDE):
        _run("ip", "link", "set", "lo", "up")
        return
    if missing():
        return
    os.environ[INSIDE] = "1"
    command = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    os.execvp(command[0], [*command, sys.executable, *program])  # noqa: S606 - no shell is wanted


class Network:
    """Namespaces ``node-0``, ``node-1`` and so on; they are gone with the program's own."""

    def __init__(self, names: Sequence[str]) -> None:
        self._addresses = {name: f"{SUBNET}.{index + 1}" for index, name in enumerate(names)}
        NAMES.mkdir(exist_ok=True)
        if not any(NAMES.iterdir()):
            _run("mount", "-t", "tmpfs", "tmpfs", str(NAMES))
        _run("ip", "link", "add", BRIDGE, "type", "bridge")
        _run("ip", "link", "set", BRIDGE, "up")
        for name, address in self._addresses.items():
            _run("ip", "netns", "add", name)
            _run("ip", "link", "add", f"to-{name}", "type", "veth", "peer", "eth0", "netns", name)
            _run("ip", "link", "set", f"to-{name}", "master", BRIDGE, "up")
            self._inside(name, "ip", "link", "set", "lo", "up")
            self._inside(name, "ip", "address", "add", f"{address}/24", "dev", "eth0")
            self._inside(name, "ip", "link", "set", "eth0", "up")
            self._inside(name, "nft", "add table ip faults")
            chain = "{ type filter hook input priority 0; policy accept; }"
            self._inside(name, "nft", f"add chain ip faults in {chain}")

    def prefix(self, name: str) -> list[str]:
        """Before a command that is to run as a node."""
        return ["ip", "netns", "exec", name]

    def address(self, name: str) -> str:
        return self._addresses[name]

    def split(self, *groups: Iterable[str]) -> None:
        """Nothing gets from one group to another."""
        for group in map(set, groups):
            for name in group:
                self.deafen(name, [other for other in self._addresses if other not in group])

    def deafen(self, name: str, to: Iterable[str]) -> None:
        """What others send to a node is lost; what it sends arrives."""
        for other in to:
            self._rule(name, f"ip saddr {self._addresses[other]} drop")

    def lose(self, percent: int) -> None:
        """Lose some of all packets, everywhere."""
        for name in self._addresses:
            self._rule(name, f"iifname eth0 numgen random mod 100 < {percent} drop")

    def heal(self) -> None:
        """All is well again."""
        for name in self._addresses:
            self._inside(name, "nft", "flush chain ip faults in")

    def close(self) -> None:
        """Remove it."""
        for name in self._addresses:
            _run("ip", "netns", "del", name)
        _run("ip", "link", "del", BRIDGE)

    def _rule(self, name: str, rule: str) -> None:
        self._inside(name, "nft", f"add rule ip faults in {rule}")

    def _inside(self, name: str, *command: str) -> None:
        _run(*self.prefix(name), *command)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)
