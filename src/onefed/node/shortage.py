"""People are told when a node hears fewer of its neighbours than there should be."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from onefed.peer.messages import NodeId
from onefed.telemetry import events


class Shortage:
    """Looks now and then; what passes by itself within ``grace_s`` is told nobody."""

    def __init__(
        self,
        name: NodeId,
        emit: Callable[[events.Event], None],
        clock: Callable[[], float],
        *,
        grace_s: float,
    ) -> None:
        self._name = name
        self._emit = emit
        self._clock = clock
        self._grace_s = grace_s
        self._tell_at_s: float | None = None
        """None: nobody is missing."""

    def look(self, neighbours: Mapping[NodeId, bool], wait_s: float) -> None:
        """Tell what is missing, and again after ``wait_s`` if it still is.

        Args:
            neighbours: those that there should be, and whether each is heard.
        """
        heard, now_s = sum(neighbours.values()), self._clock()
        if heard == len(neighbours):
            self._tell_at_s = None
        elif self._tell_at_s is None:
            self._tell_at_s = now_s + self._grace_s
        elif now_s >= self._tell_at_s:
            self._tell_at_s = now_s + wait_s
            self._emit(
                events.Notice(
                    "WARNING",
                    f"⚠️ Node shortage detected at {self._name}: {heard} neighbors, "
                    f"expected {len(neighbours)}. Waiting {wait_s:g} seconds...",
                )
            )
