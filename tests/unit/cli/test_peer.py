"""peer simulate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from onefed.errors import ExitCode

Run = Callable[..., Any]


def test_schedules_are_counted(onefed: Run) -> None:
    shown = onefed("peer", "simulate", "--seed", "7", "--schedules", "10")

    assert (shown.code, shown.err) == (0, "")
    assert "10 schedules from seed 7: 0 failed" in " ".join(shown.out.split())


def test_a_seed_below_zero_is_a_mistake(onefed: Run) -> None:
    assert onefed("peer", "simulate", "--seed", "-1").code == ExitCode.USAGE
