"""Make a schedule that fails smaller, as long as it fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from onefed.peer.topology import Topology
from onefed.sim.options import Options

CALMER: tuple[dict[str, Any], ...] = (
    {"dead": 0},
    {"returns": False},
    {"topology": Topology.FULL},
    {"observers": 0},
    {"joiners": 0},
    {"loss": 0.0},
    {"duplication": 0.0},
    {"spike_share": 0.0},
    {"torn": False},
    {"retrain": False},
    {"drift": 0.0},
    {"straggler_s": 0.0},
    {"whole": False},
    {"evict_after_rounds": 0},
    {"latency_max_s": 0.005},
    {"disk_max_s": 0.01},
    {"rounds": 1},
    {"rounds": 2},
    {"rounds": 3},
)
"""Changes that make a schedule simpler."""


def minimise(options: Options, fails: Callable[[Options], bool]) -> Options:
    """The smallest schedule that is found by leaving out one thing after the other."""
    smaller = True
    while smaller:
        smaller = False
        for candidate in _candidates(options):
            if fails(candidate):
                options, smaller = candidate, True
                break
    return options


def _candidates(options: Options) -> Iterator[Options]:
    faults = options.faults
    for place in range(len(faults)):
        yield replace(options, faults=faults[:place] + faults[place + 1 :])
    for change in CALMER:
        (name, value), *_ = change.items()
        now = getattr(options, name)
        if now != value and not (name == "rounds" and now < value):
            yield replace(options, **change)
