"""What machines leave in the kernel when their power is cut: their control groups.

All machines of a boot share the groups below ``payload``, by the names of their units. A group that
stays keeps what systemd has attached to it: a unit of the next machine that has the same name and
may use the network would be under the ``IPAddressDeny`` of the one before.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

HIERARCHIES = tuple(Path("/sys/fs/cgroup", name) for name in ("", "unified", "systemd"))


def forget() -> None:
    """Remove those of machines that are off. Only while none is on."""
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    own = {line.split(":", 2)[2].lstrip("/") for line in lines}
    for top in (root / path / "payload" for root in HIERARCHIES for path in own):
        for folder in sorted(top.rglob("*/"), reverse=True):
            with contextlib.suppress(OSError):
                folder.rmdir()
        with contextlib.suppress(OSError):
            top.rmdir()
