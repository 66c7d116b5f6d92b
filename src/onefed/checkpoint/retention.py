"""Which rounds of a series stay, and how the others leave without harm."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Retention:
    """Keep the newest rounds, and some of the older ones for good; all when nothing is asked."""

    keep_last: int = 0
    """Newest rounds that stay; 0: none for being new."""
    keep_every: int = 0
    """Rounds whose number this divides stay; 0: none for their number."""

    def __post_init__(self) -> None:
        assert self.keep_last >= 0, self.keep_last
        assert self.keep_every >= 0, self.keep_every

    def kept(self, rounds: Iterable[int]) -> frozenset[int]:
        """Those of ``rounds`` that stay; the newest is always among them."""
        newest_first = sorted(set(rounds), reverse=True)
        if not self.keep_last and not self.keep_every:
            return frozenset(newest_first)
        last = newest_first[: max(self.keep_last, 1)]
        every = [
            number for number in newest_first if self.keep_every and not number % self.keep_every
        ]
        return frozenset([*last, *every])


KEEP_ALL = Retention()
