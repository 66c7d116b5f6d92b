"""What the node of a peer's machine has written down about itself, and asking it to leave.

The node writes ``state.json`` every second, and looks for requests five times a second; both are
files of its group's folder, as for ``onefed peer``. That it lives is told by a lock: it may be in a
container, and who asks in a unit that sees no processes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from onefed.appliance import ownership
from onefed.appliance.paths import Paths
from onefed.checkpoint import files, life_lock
from onefed.errors import StorageError

SILENT_S = 15.0
"""A node that has written nothing for so long hangs, or is gone."""

LEAVE_POLL_S = 0.2
LEAVE_LIMIT_S = 60.0
"""A leave is committed with a round; without one in this time the others evict it later."""


@dataclass(frozen=True)
class NodeView:
    """A node, as it described itself last."""

    is_alive: bool
    state: str
    """As ``node.world.NodeState`` has it."""
    leader: str
    """Empty: none is heard."""
    round_number: int
    rounds_total: int
    voters: tuple[str, ...]

    @property
    def takes_part(self) -> bool:
        """It trains with a leader, or has trained to the end and serves the others."""
        led = self.state == "training" and self.leader != ""
        return self.is_alive and (led or self.state == "finished")

    def __str__(self) -> str:
        if not self.is_alive:
            return "its node does not run"
        rounds = f"round {self.round_number} of {self.rounds_total}"
        led = f"led by {self.leader}" if self.leader else "no leader is heard"
        return f"{self.state}, {rounds}, {led}, {len(self.voters)} voters"


NOTHING = NodeView(is_alive=False, state="", leader="", round_number=0, rounds_total=0, voters=())


def look(paths: Paths, name: str, now: datetime) -> NodeView:
    """What the node of that name says; ``NOTHING`` where it has never run."""
    file = paths.peer_node(name) / "state.json"
    lives = life_lock.is_held(file.with_name(life_lock.NAME))  # first: then it is of this life
    try:
        told = files.read_json(file)
        assert isinstance(told, dict)
        silent_s = now.timestamp() - file.stat().st_mtime
        return NodeView(
            is_alive=lives and silent_s < SILENT_S,
            state=str(told["state"]),
            leader=str(told["leader"] or ""),
            round_number=int(told["round_number"]),
            rounds_total=int(told["rounds_total"]),
            voters=tuple(map(str, told["voters"])),
        )
    except (StorageError, OSError, AssertionError, KeyError, TypeError, ValueError):
        return NOTHING


def leave(
    paths: Paths,
    name: str,
    *,
    now: Callable[[], datetime],
    clock: Callable[[], float],
    sleep: Callable[[float], None],
    warn: Callable[[str], None],
) -> bool:
    """Have the node leave its group, and wait until that is committed; True when it was.

    A node that does not run, has no vote, or whose run is over has nothing to announce.
    """
    found = look(paths, name, now())
    if not found.is_alive or found.state == "finished" or name not in found.voters:
        return False
    if found.voters == (name,):
        warn(f"{name} is the only voter: its group stops with it, and goes on when it is back.")
        return False
    request = paths.peer_node(name) / "requests" / f"leave {name}"
    files.make_folder(request.parent, mode=0o700)
    files.write_bytes(request, b"")
    ownership.give(paths)
    ends_at_s = clock() + LEAVE_LIMIT_S
    while clock() < ends_at_s:
        found = look(paths, name, now())
        if name not in found.voters:
            return True
        if not found.is_alive or found.state == "finished":
            break
        sleep(LEAVE_POLL_S)
    warn(f"{name} stops without having left: {found}. The others take it off their roster.")
    return False
