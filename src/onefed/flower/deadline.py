"""How long a round that has its quorum still waits for the others.

Replies of the rounds before say how long one takes. Their median m and their median absolute
deviation d, of which half of the clients can move neither, give the deadline

    m + SPREAD * max(d, m / 10)        between a floor and a cap, from the sending of the messages.

Below its quorum a round waits up to the cap, so that this decides who is left out and never
whether a round counts: with a quorum of all clients nobody is ever left out by it.
"""

from __future__ import annotations

import statistics
from collections import deque

SPREAD = 6.0
"""Of normally spread replies, four standard deviations; and never less than 1.6 medians."""

WINDOW = 512
"""Newest reply times that count."""

REPLIES_MIN = 4
"""Fewer times say nothing: the cap counts."""


class Deadline:
    """Of one kind of message: training takes longer than evaluation."""

    def __init__(self, floor_s: float, cap_s: float) -> None:
        """A floor above the cap is the cap: then every round waits as long as it may."""
        assert floor_s > 0, floor_s
        assert cap_s > 0, cap_s
        self.cap_s = cap_s
        self._floor_s = min(floor_s, cap_s)
        self._seconds: deque[float] = deque(maxlen=WINDOW)

    def observe(self, seconds: float) -> None:
        """A usable reply took so long."""
        self._seconds.append(max(0.0, seconds))

    def give_up(self, seconds: float) -> None:
        """A client had not answered after so long.

        It counts as if it had needed twice that: where half of the clients are too slow for the
        deadline, it grows until they are not.
        """
        self.observe(2 * seconds)

    @property
    def limit_s(self) -> float:
        """Seconds after which those that are missing are given up."""
        if len(self._seconds) < REPLIES_MIN:
            return self.cap_s
        median = statistics.median(self._seconds)
        deviation = statistics.median(abs(each - median) for each in self._seconds)
        wanted = median + SPREAD * max(deviation, median / 10)
        return min(self.cap_s, max(self._floor_s, wanted))
