"""Random numbers in forked processes: as fresh as in a process that was just started.

A forked child inherits the generators of its parent, so every message would draw the same numbers
where a fresh process draws new ones. But an app that seeds a generator when it is imported wants
exactly that state in every message, forked or fresh.
Both generators are Mersenne twisters: seeding replaces the key, drawing a few numbers does not.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np

_KEY_WORDS = 624
"""Of a Mersenne twister; the rest of its state is a position in the key."""


@dataclass(frozen=True)
class Keys:
    """What tells whether a generator was seeded meanwhile."""

    python: tuple[int, ...]
    numpy: bytes

    @classmethod
    def now(cls) -> Keys:
        """Of the global generators of this process."""
        key = np.random.get_state(legacy=True)[1]  # type: ignore[index]
        return cls(random.getstate()[1][:_KEY_WORDS], np.asarray(key).tobytes())


def refresh(before: Keys | None = None) -> None:
    """Seed the global generators from the operating system.

    Args:
        before: leaves alone those that somebody has seeded since then.
    """
    now = Keys.now()
    if before is None or before.python == now.python:
        random.seed()
    if before is None or before.numpy == now.numpy:
        np.random.seed()
