"""When a node asks for its next message: pure, with clock and randomness handed in.

A stock SuperLink spends 7 to 10 ms of CPU on an empty answer and collapses at about 100 requests a
second (docs/flower.md), so what counts is what all nodes ask together:

* a node that got a message lately is likely to be owed another one: it asks soon, then less and
  less often, up to three times a second for a small fleet;
* an idle node asks once a second, and less often in a fleet where that would be more than
  ``IDLE_REQUESTS_PER_S_MAX`` with everybody's heartbeats;
* no two nodes keep in step: every pause is stretched at random.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

REQUESTS_PER_S_MAX = 30.0
"""Of all nodes together that are owed a message and wait for long."""

IDLE_REQUESTS_PER_S_MAX = 22.0
"""Of all idle nodes together, heartbeats included: less than a fifth of a core on the SuperLink."""

POLLS_PER_S_MIN = 10.0
"""Left for asking when the heartbeats of a very large fleet need the budget."""

HEARTBEAT_S = 20.0
"""From one heartbeat of a node to the next."""

FIRST_S = 0.02
"""After a reply, in a small fleet; a large one waits until its fleet has replied."""

USUAL_GAPS = 3
USUAL_SHARE = 0.7
"""The first look after a reply comes after this share of the shortest of the last gaps that
followed a reply of that kind: earlier ones would be in vain, and cost the others of the round."""
USUAL_MAX_S = 0.5
"""A gap may be much shorter than the last ones: then so much is lost at most."""
GROWTH = 1.5
EAGER_MAX_S = 0.3
"""Longest pause of a node that is owed a message, in a small fleet."""

KINDS_MAX = 8
"""Of messages, whose gaps are remembered."""

EAGER_FOR_S = 15.0
"""A message is owed for so long after the last one, or for ``EAGER_GAPS`` usual gaps."""
EAGER_GAPS = 3.0
EAGER_FOR_MAX_S = 120.0

IDLE_MIN_S = 1.0
IDLE_MAX_S = 30.0
"""Firewalls forget connections that idle for a minute."""

STRETCH = 0.25
"""Share by which a pause is stretched at most."""

LOST_FIRST_S = 0.2
LOST_MAX_S = 1.0
"""Pauses while the SuperLink does not answer; a restarted one has its nodes back in seconds."""


def idle_pause_s(fleet_size: int) -> float:
    """Shortest pause of an idle node, so that the whole fleet keeps the budget."""
    polls_per_s = max(POLLS_PER_S_MIN, IDLE_REQUESTS_PER_S_MAX - fleet_size / HEARTBEAT_S)
    return min(max(IDLE_MIN_S, fleet_size / polls_per_s), IDLE_MAX_S)


class Polling:
    """One node's pauses. It is told what a look brought, and says when to look again."""

    def __init__(self, fleet_size: int, *, now_s: float, random: Callable[[], float]) -> None:
        """
        Args:
            fleet_size: nodes of this federation, at least 1.
            now_s: monotonic; a node that starts is owed a message.
            random: uniform in [0, 1).
        """
        assert fleet_size >= 1, fleet_size
        self._random = random
        self._first_s = max(FIRST_S, fleet_size / 100)
        self._eager_max_s = max(EAGER_MAX_S, fleet_size / REQUESTS_PER_S_MAX)
        self._idle_s = idle_pause_s(fleet_size)
        self._lost_max_s = max(LOST_MAX_S, fleet_size / REQUESTS_PER_S_MAX)
        self._next_s = self._eager_max_s
        self._leap_s = 0.0
        """What the first pause has beyond it."""
        self._lost_s = LOST_FIRST_S
        self._last_s = now_s
        """When the last message was done with."""
        self._eager_for_s = EAGER_FOR_S
        self._kind: str | None = None
        """Of the last message."""
        self._gaps: dict[str, deque[float]] = {}
        """By the kind of a message: seconds from its reply to the next message."""

    def messaged(self, kind: str, *, came_s: float, now_s: float) -> None:
        """A message of this kind (train, evaluate) came at ``came_s`` and is done with now."""
        gap_s = max(0.0, came_s - self._last_s)
        if self._kind is not None:
            self._gaps[self._kind].append(gap_s)
        self._kind = kind
        if len(self._gaps) == KINDS_MAX:
            self._gaps.clear()
        usual = self._gaps.setdefault(kind, deque(maxlen=USUAL_GAPS))
        usual_s = min(USUAL_SHARE * min(usual, default=0.0), USUAL_MAX_S)
        self._eager_for_s = min(max(EAGER_FOR_S, EAGER_GAPS * gap_s), EAGER_FOR_MAX_S)
        self._last_s = now_s
        self._leap_s = max(0.0, usual_s - self._first_s)
        self._next_s = self._first_s
        self._lost_s = LOST_FIRST_S

    def empty(self, now_s: float) -> float:
        """Nothing was there; returns the pause until the next look."""
        self._lost_s = LOST_FIRST_S
        if now_s - self._last_s > self._eager_for_s:
            return self._stretched(self._idle_s)
        pause_s, leap_s = self._next_s, self._leap_s
        self._next_s, self._leap_s = min(pause_s * GROWTH, self._eager_max_s), 0.0
        return leap_s + self._stretched(pause_s)

    def lost(self) -> float:
        """The SuperLink did not answer; returns the pause until the next try."""
        pause_s = self._lost_s
        self._lost_s = min(pause_s * 2, self._lost_max_s)
        return self._stretched(pause_s)

    def _stretched(self, pause_s: float) -> float:
        return pause_s * (1 + STRETCH * self._random())
