"""What the nodes of a federation were given to train, beside what was announced.

A final digest alone proves little: training everything again from the start would give it, too.
"""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from onefed.appliance.paths import Paths
from onefed.flower.node import calls
from onefed.local import state
from onefed.local.state import StateDir
from onefed.telemetry import events, log


@dataclass(frozen=True)
class Call:
    """A node was given a round to train."""

    node: str
    round: int
    run: str
    """Flower's id: another one for every submission."""
    at: datetime


def read(directory: StateDir) -> list[Call]:
    """Of all nodes, the oldest first."""
    found = []
    for name in state.supernodes(directory.read_spec().nodes):
        for file in sorted(Paths(directory.root(name)).node_key.rglob(calls.FILE)):
            found += _of_file(name, file)
    return sorted(found, key=lambda call: call.at)


def retrained(directory: StateDir) -> list[Call]:
    """Calls for a round that had been announced before; there must be none."""
    announced: dict[int, datetime] = {}
    for record in log.read(directory.events):
        if isinstance(record.event, events.RoundEnd):
            announced.setdefault(record.event.round, record.timestamp)
    return [
        call
        for call in read(directory)
        if call.round in announced and call.at > announced[call.round]
    ]


def submissions(directory: StateDir) -> dict[int, int]:
    """Submissions in which a round was trained, by round: each beyond the first is work lost."""
    runs: defaultdict[int, set[str]] = defaultdict(set)
    for call in read(directory):
        runs[call.round].add(call.run)
    return {number: len(found) for number, found in sorted(runs.items())}


def _of_file(node: str, file: Path) -> list[Call]:
    lines = map(json.loads, file.read_text(encoding="ascii").splitlines())
    return [
        Call(node, int(line["round"]), line["run"], datetime.fromisoformat(line["at"]))
        for line in lines
        if line["type"] == "train"
    ]
