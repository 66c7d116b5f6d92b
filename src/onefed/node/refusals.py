"""People are told what was refused, and not of each time where it comes again and again."""

from __future__ import annotations

from collections.abc import Callable

from onefed.telemetry import events

TELL_EVERY_S = 1.0
"""Of one member; what comes meanwhile is counted. A thousand a second would fill the disk."""


class Refusals:
    """See the module."""

    def __init__(self, emit: Callable[[events.Event], None], clock: Callable[[], float]) -> None:
        self._emit = emit
        self._clock = clock
        self._told: dict[str, tuple[float, int]] = {}
        """Of each whom: when people were told last, and how many have come since."""

    def tell(self, who: str, what: str) -> None:
        """``who`` is a member, or a word for all others: there are as many as the roster had."""
        told_s, count = self._told.get(who, (float("-inf"), 0))
        if self._clock() - told_s < TELL_EVERY_S:
            self._told[who] = (told_s, count + 1)
            return
        self._told[who] = (self._clock(), 0)
        more = f" (and {count} times since the last such line)" if count else ""
        self._emit(events.PeerNotice("refused", f"{what}{more}"))
