"""A peer group on this machine, as files: what was asked for, and where each node lies.

group.json        what was asked for
app.fab           the app, packed
members/NAME      the operator's list: whoever stands there is let in by the others
nodes/NAME/       all of one node: identity, journal, models, private state, events, log,
                      and the last model as a file
summary.json      how the last start ended
"""

from __future__ import annotations

import dataclasses
import json
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from onefed.checkpoint import files, life_lock
from onefed.errors import NotFoundError, OnefedError
from onefed.local.state import check_name

FOLDER = "peers"
"""Below ``ONEFED_HOME``."""
LOOPBACK = "127.0.0.1"
FORMAT = 1


@dataclass(frozen=True)
class PeerSpec:
    """What was asked for."""

    name: str
    addresses: Mapping[str, str]
    """Of the first roster, by node: ``host:port``. Partition ids are in their order."""
    rounds: int
    epochs: int | None
    seed: int
    strategy: str
    app: str
    """Use case, or the folder of the user's app."""
    run_config: Mapping[str, bool | int | float | str]
    """What was set of the app's configuration."""
    protocol: Literal["grpc", "memory"] = "grpc"
    """Whether the nodes are processes that connect, or live in one process."""
    holds: tuple[int, ...] = ()
    """Rounds that no node begins to train before it is told so."""
    evict_after_rounds: int = 0
    """Without a sign of life a node loses its vote then; 0: never."""
    topology: str = "full"
    """Which nodes have a connection to each other (``peer.topology``)."""
    keepalive_time_s: float = 60.0
    """A connection that idles for so long is probed (FL_GRPC_KEEPALIVE_TIME)."""
    keepalive_timeout_s: float = 20.0
    """... and given up without an answer (FL_GRPC_KEEPALIVE_TIMEOUT)."""
    remote_checkpoint_interval: int = 5
    """Rounds between two checkpoints of a node that others keep; 0: none."""
    kept_rounds: int | None = None
    """Of a node's own checkpoints, the newest so many rounds; None: all."""
    format: int = FORMAT


@dataclass(frozen=True)
class PeerGroup:
    """The folder of a group."""

    folder: Path

    @property
    def app(self) -> Path:
        return self.folder / "app.fab"

    @property
    def summary(self) -> Path:
        return self.folder / "summary.json"

    @property
    def members(self) -> Path:
        return self.folder / "members"

    def node(self, name: str) -> Path:
        """All of one node."""
        return self.folder / "nodes" / name

    def requests(self, name: str) -> Path:
        """What people ask of a node: a file each, whose name says it.

        ``leave NODE`` and ``evict NODE NODE``.
        """
        return self.node(name) / "requests"

    def life_lock(self, name: str) -> Path:
        """Held by a node while what it has written down about itself is true."""
        return self.node(name) / life_lock.NAME

    def states(self) -> dict[str, dict[str, Any]]:
        """What each node has written down about itself last, by its name.

        ``lives`` says whether the process is still there that wrote it.
        """
        found = {}
        for name in files.names_in(self.folder / "nodes"):
            path = self.node(name) / "state.json"
            if path.exists():
                # First: who lives has written down what it is in this life.
                lives = life_lock.is_held(self.life_lock(name))
                document = files.read_json(path)
                if isinstance(document, dict):
                    found[name] = {**document, "lives": lives}
        return found

    def model(self, name: str) -> Path:
        """The last model, once a node has it."""
        return self.node(name) / "model.npz"

    def events(self, name: str) -> Path:
        """What happened at one node, one JSON object a line."""
        return self.node(name) / "events.jsonl"

    def log(self, name: str) -> Path:
        """What one node's process printed."""
        return self.node(name) / "node.log"

    def write(self, spec: PeerSpec, fab: bytes) -> None:
        """Make the group."""
        for folder in (self.folder, self.members, self.folder / "nodes"):
            files.make_folder(folder, mode=0o700)
        files.write_bytes(self.app, fab)
        files.write_json(self.folder / "group.json", dataclasses.asdict(spec))

    def read(self) -> PeerSpec:
        """What was asked for.

        Raises:
            NotFoundError: there is no such group.
        """
        path = self.folder / "group.json"
        if not path.exists():
            raise NotFoundError(
                f"There is no peer group in {self.folder}.",
                hint="onefed peer up makes one; --name names it.",
            )
        document: dict[str, Any] = json.loads(json.dumps(files.read_json(path)))
        if document.get("format") != FORMAT:
            raise OnefedError(f"{path} was written by another version of onefed.")
        document["holds"] = tuple(document["holds"])
        return PeerSpec(**document)


def group(home: Path, name: str) -> PeerGroup:
    """The folder of a group, by its name."""
    return PeerGroup(home / FOLDER / check_name(name))


def free_addresses(count: int) -> list[str]:
    """So many free ports on loopback, all different."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind((LOOPBACK, 0))
        return [f"{LOOPBACK}:{each.getsockname()[1]}" for each in sockets]
    finally:
        for each in sockets:
            each.close()
