"""Kills are drawn from a seed, carried out one at a time, and told."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onefed.appliance.paths import Paths
from onefed.flower import task_record
from onefed.local import chaos, victims
from onefed.local.state import SUPERLINK, StateDir
from onefed.telemetry import events
from onefed.telemetry import log as event_log

LIMIT_S = 30.0


@given(
    seed=st.integers(), kills=st.integers(1, 30), more=st.integers(1, 30), nodes=st.integers(1, 9)
)
def test_kills_are_spread_over_the_rounds_and_the_serverapp_is_among_them(
    seed: int, kills: int, more: int, nodes: int
) -> None:
    rounds = kills + more
    drawn = chaos.draw(seed, kills=kills, rounds=rounds, nodes=nodes)
    assert drawn == chaos.draw(seed, kills=kills, rounds=rounds, nodes=nodes)
    assert len(drawn) == kills
    numbers = [kill.round for kill in drawn]
    assert len(set(numbers)) == kills, "each has a round of its own"
    assert numbers == sorted(numbers)
    assert numbers[0] == 1
    assert numbers[-1] < rounds, "a round follows the last one"
    assert {kill.victim for kill in drawn} <= set(victims.names(nodes))
    assert victims.SERVER_APP in {kill.victim for kill in drawn}
    assert all(0 <= kill.delay_s <= chaos.DELAY_S_MAX for kill in drawn)


class Federation:
    """A ServerApp that does nothing, and events made by hand."""

    def __init__(self, directory: StateDir) -> None:
        self.directory = directory
        self.log = event_log.EventLog(directory.events, "test", lambda: datetime.now(UTC))
        self.process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        record = Paths(directory.root(SUPERLINK)).task_record
        record.parent.mkdir(parents=True)
        task_record.write(record, task_record.TaskRecord.of(1, self.process.pid))

    def told(self, kind: type[events.Event]) -> list[Any]:
        return [
            record.event
            for record in event_log.read(self.directory.events)
            if isinstance(record.event, kind)
        ]

    def wait_for(self, kind: type[events.Event]) -> Any:
        limit = time.monotonic() + LIMIT_S
        while not (found := self.told(kind)):
            assert time.monotonic() < limit
            time.sleep(0.01)
        return found[-1]


@pytest.fixture
def federation(make: Callable[..., StateDir]) -> Iterator[Federation]:
    found = Federation(make())
    yield found
    found.process.kill()
    found.process.communicate()


def test_a_kill_is_told_and_so_is_the_round_after_it(federation: Federation) -> None:
    killer = chaos.Killer(federation.directory, [chaos.Kill("serverapp", 2, 0.0)])
    with killer.at_work():
        federation.log.emit(events.RoundStart(1, 2, "FedAvg"))
        federation.log.emit(events.RoundEnd(1, 2, 0.5, 0.5, 1.0))
        assert federation.process.poll() is None, "it is not round 2 yet"
        federation.log.emit(events.RoundStart(2, 2, "FedAvg"))
        assert federation.wait_for(events.ProcessKilled) == events.ProcessKilled(
            "serverapp", 2, 1, 1
        )
        assert federation.process.wait(LIMIT_S) == -9
        time_passes()
        federation.log.emit(events.RoundEnd(2, 2, 0.5, 0.5, 1.0))
        recovered = federation.wait_for(events.ProcessRecovered)
    assert (recovered.victim, recovered.round, recovered.number) == ("serverapp", 2, 1)
    assert recovered.seconds >= 0


def test_nobody_is_killed_once_a_stop_is_wanted(federation: Federation) -> None:
    Paths(federation.directory.root(SUPERLINK)).stop_request.touch()
    killer = chaos.Killer(federation.directory, [chaos.Kill("serverapp", 1, 0.0)])
    with killer.at_work():
        federation.log.emit(events.RoundStart(1, 2, "FedAvg"))
    assert federation.process.poll() is None
    assert federation.told(events.ProcessKilled) == []


def time_passes() -> None:
    """Until the clock of the events, which counts milliseconds, has moved on."""
    began = datetime.now(UTC)
    while (datetime.now(UTC) - began).total_seconds() < 0.002:
        pass
