"""Schedules of the peer protocol, without end: every promise is checked in every one of them.

Each seed is one schedule (docs/simulator.md). Shards may run apart, by ``--first``.
"""

from __future__ import annotations

from campaigns import results
from onefed.sim import report


def run(seed: int) -> results.Outcome:
    """One schedule."""
    violation = report.one(seed).violation
    return results.Outcome(1, () if violation is None else (violation,))


if __name__ == "__main__":
    results.main("schedules", __doc__ or "", run, option="schedules", count=100_000, shard=250)
