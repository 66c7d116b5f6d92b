"""A small chart of a few numbers, one character each."""

from __future__ import annotations

import math
from collections.abc import Sequence

LEVELS = "▁▂▃▄▅▆▇█"
GAP = " "
"""For a number that is not known."""


def sparkline(values: Sequence[float | None], width: int) -> str:
    """The last ``width`` values, from the lowest of them to the highest.

    A flat line is drawn in the middle: nothing rose and nothing fell.
    """
    shown = [
        value if value is not None and math.isfinite(value) else None for value in values[-width:]
    ]
    known = [value for value in shown if value is not None]
    if not known:
        return GAP * len(shown)
    low, high = min(known), max(known)
    return "".join(GAP if value is None else _level(value, low, high) for value in shown)


def _level(value: float, low: float, high: float) -> str:
    if high == low:
        return LEVELS[len(LEVELS) // 2]
    # Scaled before the difference is taken, so that the largest floats do not overflow.
    share = (value / 2 - low / 2) / (high / 2 - low / 2)
    return LEVELS[min(len(LEVELS) - 1, int(share * len(LEVELS)))]
