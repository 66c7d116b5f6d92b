"""Named places in our programs at which a test holds one of them, and kills exactly there.

A test names a folder in ``ONEFED_FAILPOINTS`` and puts an empty file into it, such as ``saving.2``:
the point and a number, which says the how-manieth time; ``saving`` alone is the next time. Who
passes that point next renames the file to ``saving.2.hit``, writes its process id into it, and
waits to be killed; when the file goes away it goes on. Without the variable a point is a call of a
function that does nothing.

Tests only: a machine refuses the variable (step 4 of its boot), and its programs get it where a
local cloud passes on its own.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeAlias

VARIABLE = "ONEFED_FAILPOINTS"

HOLD_S = 60.0
"""Whoever is not killed by then goes on: nothing waits for ever."""

POLL_S = 0.02

Reach: TypeAlias = Callable[[str, int], None]
"""Called at a point with its name and number."""

POINTS: Mapping[str, str] = {
    "sampling": "loop: enough clients are connected; none is chosen for the round yet",
    "sending": "loop: the round has begun; no client was asked yet",
    "training": "loop: every client was asked; no reply was looked for yet",
    "collecting": "loop: one reply is in; the others are not",
    "aggregating": "loop: every reply is in; the rule has not stepped",
    "saving": "loop: there is a new model, in memory only",
    "saved": "loop: the recovery store has the round; nobody was told",
    "announcing": "loop: the operator's checkpoint is written, if due; the round is not announced",
    "announced": "loop: the round was announced",
    "submitting": "supervisor: its state is on disk; the run is not submitted (number: attempt)",
    "submitted": "supervisor: Flower has the run; its id is not on disk (number: attempt)",
    "working": "ClientApp: it has its message and has not begun (number: message of that node)",
}
"""Every point of a federation: the program, and what has and has not happened there. The number is
the round, where nothing else is said. Those of a peer group are in ``node.points``."""


def from_environ(environ: Mapping[str, str]) -> Reach:
    """What a program calls at its points."""
    folder = environ.get(VARIABLE)
    if not folder:
        return nothing
    return lambda point, number: _hold(Path(folder), f"{point}.{number}")


def nothing(_point: str, _number: int) -> None:
    """Pass a point."""


def _hold(folder: Path, name: str) -> None:
    hit = folder / f"{name}.hit"
    for asked in (name, name.partition(".")[0]):
        try:
            (folder / asked).rename(hit)
            break
        except OSError:
            continue  # nobody asked for this one, or another process took it
    else:
        return
    hit.write_text(str(os.getpid()), encoding="ascii")
    limit = time.monotonic() + HOLD_S
    while hit.exists() and time.monotonic() < limit:
        time.sleep(POLL_S)
