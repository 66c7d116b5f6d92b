"""A node's place in the fleet: it joins, stays online, and leaves.

A SuperLink refuses the key of a node that it takes for present, so a node that was killed would be
refused until its online time has run out, about a minute. Its id is kept on disk while it is
present: a node that finds it there was killed, and takes itself off with its own key first.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable
from pathlib import Path

from onefed.checkpoint import files
from onefed.errors import StorageError
from onefed.flower.adapter_fleet import Fleet, FleetError, UnreachableError
from onefed.flower.node.polling import HEARTBEAT_S

_LOG = logging.getLogger(__name__)

HEARTBEAT_RETRY_S = 5.0

ANSWER_S = 5.0
"""A heartbeat that is under way when the node stops is waited for so long."""


class Membership:
    """Joins and leaves. The node id stays the same, because the key does."""

    def __init__(self, fleet: Fleet, superlink: str, present: Path, *, registers: bool) -> None:
        """
        Args:
            superlink: address, of which the node id holds.
            present: file with the node id while the node is present; 0600.
            registers: the SuperLink asks for no registered keys, the node brings its own.
        """
        self._fleet = fleet
        self._superlink = superlink
        self._present = present
        self._registers = registers
        self.node_id = 0
        """0 before the first ``join``."""

    def join(self) -> None:
        """One try.

        Raises:
            FleetError: the SuperLink does not take this node now.
            UnreachableError: it did not answer.
        """
        earlier = self._read()
        if earlier:
            try:
                self._fleet.deactivate(earlier)
            except UnreachableError:
                raise
            except FleetError as error:  # its online time was over, or the database is another
                _LOG.debug("%s", error.message)
        if self._registers:
            self._fleet.register()
        self.node_id = self._fleet.activate()
        files.write_json(
            self._present, {"superlink": self._superlink, "node_id": self.node_id}, mode=0o600
        )

    def leave(self) -> None:
        """Be offline at once: a node that starts again is taken at once, too."""
        if self.node_id:
            with contextlib.suppress(FleetError):
                self._fleet.deactivate(self.node_id)
                files.remove(self._present)

    def _read(self) -> int:
        """The id under which this node is present; 0 where none is known."""
        if not self._present.exists():
            return 0
        try:
            document = files.read_json(self._present)
        except StorageError as error:
            _LOG.warning("%s", error.message)
            return 0
        if not isinstance(document, dict) or document.get("superlink") != self._superlink:
            return 0
        node_id = document.get("node_id")
        return node_id if isinstance(node_id, int) else 0


class Heart:
    """Sends heartbeats in a thread of its own, whatever the node is doing."""

    def __init__(self, fleet: Fleet, membership: Membership, random: Callable[[], float]) -> None:
        """``random`` is uniform in [0, 1): the hearts of a fleet do not beat together."""
        self._fleet = fleet
        self._membership = membership
        self._random = random
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heart", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join(ANSWER_S)

    def _beat(self) -> None:
        pause_s = HEARTBEAT_S
        while not self._stopping.wait(pause_s * (0.9 + 0.2 * self._random())):
            try:
                self._fleet.heartbeat(self._membership.node_id)
                pause_s = HEARTBEAT_S
            except FleetError as error:  # the loop of the node finds out what to do
                _LOG.debug("%s", error.message)
                pause_s = HEARTBEAT_RETRY_S
