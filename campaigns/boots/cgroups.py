"""Control groups of machines: each has its own, so that no two are in each other's way.

Without, all machines of a boot would share the groups below ``payload``, by the names of their
units: one removes a group that has ended as another starts its own of that name, and what systemd
has attached to a group stays for the next machine, an ``IPAddressDeny`` for example.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

HIERARCHIES = tuple(Path("/sys/fs/cgroup", name) for name in ("unified", "systemd", ""))
"""Of systemd; the last one where there is one hierarchy for everything."""

FOLDER = "onefed-boots"

_ENTER = """\
for group in {groups}; do
    mkdir -p $group && echo $$ >$group/cgroup.procs || echo "no group of its own: $group" >&2
done
exec "$@"
"""


def entering(name: str) -> Sequence[str]:
    """The beginning of a command line whose program runs in the groups of a machine."""
    groups = " ".join(str(top / name) for top in _tops())
    return ("sh", "-c", _ENTER.format(groups=groups), "sh")


def forget() -> None:
    """Remove those of machines that are off."""
    for top in _tops():
        for folder in sorted(top.rglob("*/"), reverse=True):
            with contextlib.suppress(OSError):
                folder.rmdir()


def _tops() -> list[Path]:
    """Where the groups of machines are, in each hierarchy of systemd's."""
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    of = {kind: path for _, kind, path in (line.split(":", 2) for line in lines)}
    found = {
        root: of.get("name=systemd" if root.name == "systemd" else "")
        for root in HIERARCHIES
        if (root / "cgroup.procs").exists()
    }
    return [root / path.lstrip("/") / FOLDER for root, path in found.items() if path is not None]
