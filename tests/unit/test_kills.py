"""What the campaign of kills does without a federation: its table, its draws, its verdicts."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))  # campaigns lie beside src

from campaigns import faults, kill_table, kills, train_calls

from onefed import failpoints
from onefed.appliance.paths import Paths
from onefed.flower.node import calls
from onefed.local.spec import Spec
from onefed.local.state import StateDir
from onefed.telemetry import events, log

NOW = datetime(2026, 1, 1, tzinfo=UTC)

GOOD: dict[str, Any] = {
    "hit": True,
    "outcome": "finished",
    "equal": True,
    "trained_after_announced": 0,
    "rounds_lost": 1,
    "commit": "abc",
}


def test_the_table_has_every_process_in_every_phase_and_every_strategy() -> None:
    cells = kills.matrix()
    assert len({cell.name for cell in cells}) == len(cells)
    assert {cell.strategy for cell in cells} == set(kills.STRATEGIES)
    assert {cell.when for cell in cells} <= failpoints.POINTS.keys()
    single = {
        (cell.fault.who[0], cell.when)
        for cell in cells
        if len(cell.fault.who) == 1 and cell.fault.kind == "kill" and cell.strategy == "FedAvg"
    }
    every = ("serverapp", "superexec", "superlink", "supervisor", "supernode/1", faults.EVERYTHING)
    assert {(who, when) for who in every for when in kills.PHASES} <= single
    assert (faults.WORKER, "working") in single
    assert {cell.fault.kind for cell in cells} == {"kill", "pause", "outage"}


def test_a_seed_draws_the_same_every_time_and_seeds_draw_everything() -> None:
    drawn = [kills.draw(seed) for seed in range(200)]
    assert drawn == [kills.draw(seed) for seed in range(200)]
    found = [fault for _, of_seed in drawn for fault in of_seed.values()]
    assert {strategy for strategy, _ in drawn} == set(kills.STRATEGIES)
    assert {len(fault.who) for fault in found} == {1, 2}
    assert {fault.kind for fault in found} == {"kill", "pause"}
    assert any(fault.who == (faults.EVERYTHING,) for fault in found)
    points = {point.partition(".")[0] for _, of_seed in drawn for point in of_seed}
    assert points == set(kills.PHASES)


def test_a_cell_is_good_when_it_was_hit_ended_and_shows_nowhere() -> None:
    assert kills.is_good(GOOD)
    for wrong in (
        {"hit": False},
        {"outcome": "failed: it was"},
        {"equal": False},
        {"trained_after_announced": 1},
    ):
        assert not kills.is_good({**GOOD, **wrong})


def test_the_page_counts_and_shows_what_is_bad() -> None:
    lines = [
        {"reference": "FedAvg", "digests": [], "commit": "abc"},
        {"cell": "FedAvg, saving, kill: serverapp", "gap_s": 4.0, **GOOD, "equal": False},
        {"cell": "FedAvg, saving, kill: serverapp", "gap_s": 4.0, **GOOD},
        {"cell": "Krum, training, pause 4 s: superlink", "gap_s": 9.0, **GOOD, "outcome": "stuck"},
        {"soak": 3, "strategy": "Krum", "faults": ["saving.1: kill: supervisor"], **GOOD},
    ]
    page = kill_table.page(lines, kills.is_good, cells_total=90)
    assert "Of the table's 90 cells 2 were run, and 1 are good." in page
    assert "One process killed: gaps of 4.0 s in the median, 4.0 s at most, 1 of 1" in page
    assert "all at once: gaps of 9.0 s in the median, 9.0 s at most, 0 of 1 within 5 s." in page
    assert "| FedAvg | saving | kill: serverapp | finished | yes | yes | 1 | 4.0 | good |" in page
    assert "| stuck | yes | yes | 1 | 9.0 | **bad** |" in page
    assert "1 of 1 are good." in page


def test_train_calls_tell_what_was_trained_again(tmp_path: Path) -> None:
    directory = StateDir(tmp_path)
    directory.write_spec(Spec("x", 1, "app", True, 3, "FedAvg", 0, {}))
    clock = iter(NOW + timedelta(seconds=second) for second in (10, 20))
    told = log.EventLog(directory.events, "test", lambda: next(clock))
    told.emit(events.RoundEnd(1, 1, None, None, 1.0))
    told.emit(events.RoundEnd(2, 1, None, None, 1.0))
    told.close()
    folder = Paths(directory.root("supernode/0")).node_key
    folder.mkdir(parents=True)
    lines = [
        {"at": str(NOW + timedelta(seconds=second)), "run": run, "round": number, "type": kind}
        for second, run, number, kind in (
            (5, "a", "1", "train"),
            (15, "a", "2", "train"),
            (17, "b", "2", "train"),
            (18, "b", "1", "evaluate"),
            (19, "b", "1", "train"),
        )
    ]
    (folder / calls.FILE).write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [(call.round, call.run) for call in train_calls.retrained(directory)] == [(1, "b")]
    assert train_calls.submissions(directory) == {1: 2, 2: 2}
