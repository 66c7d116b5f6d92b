"""The line of the fault tolerance contract: when it is said, and how often."""

from __future__ import annotations

from onefed.node.shortage import Shortage
from onefed.telemetry import events


def test_a_shortage_that_lasts_is_told_and_told_again() -> None:
    now_s, told = [0.0], []
    shortage = Shortage("node-1", told.append, lambda: now_s[0], grace_s=1.0)
    neighbours = {"node-0": True, "node-2": True}

    def look(at_s: float, **heard: bool) -> int:
        now_s[0] = at_s
        shortage.look(
            neighbours | {name.replace("_", "-"): is_ for name, is_ in heard.items()}, 10.0
        )
        return len(told)

    assert look(0.0) == 0
    assert look(1.0, node_0=False) == 0
    assert look(1.5) == 0  # it passed by itself
    assert look(2.0, node_0=False) == 0
    assert look(3.0, node_0=False) == 1
    assert told == [
        events.Notice(
            "WARNING",
            "⚠️ Node shortage detected at node-1: 1 neighbors, expected 2. Waiting 10 seconds...",
        )
    ]
    assert look(12.9, node_0=False) == 1
    assert look(13.0, node_0=False, node_2=False) == 2
    assert look(13.5) == 2
