"""A group without a coordinator, shown as lines and as JSON."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from onefed.cli.peer_screen import JsonLines, PlainLines, Terminal, screen_for
from onefed.cli.screen import LogFormat
from onefed.local.peer_group import GroupRun
from onefed.local.peer_spec import PeerGroup, PeerSpec
from onefed.telemetry import events, lines
from onefed.telemetry.lines import Record
from onefed.telemetry.log import EventLog

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)

SPEC = PeerSpec(
    name="peers",
    addresses={"node-0": "127.0.0.1:1", "node-1": "127.0.0.1:2"},
    rounds=5,
    epochs=None,
    seed=0,
    strategy="FedAvg",
    app="image-classification",
    run_config={},
)

SUMMARY = {
    "status": "stopped",
    "name": "peers",
    "rounds_done": 2,
    "rounds_total": 5,
    "accuracy": 0.75,
    "loss": None,
    "model_sha256": "ab" * 32,
    "checkpoint": None,
    "restarts": 0,
    "failures": 0,
    "seconds": 12.5,
    "nodes": {"node-0": {"state": "stopped"}, "node-1": {"state": "killed"}},
    "directory": "/srv/peers",
    "error": None,
    "exit_code": 130,
    "topology": "peer",
}


@pytest.fixture
def place(tmp_path: Path) -> PeerGroup:
    place = PeerGroup(tmp_path / "peers")
    place.write(SPEC, b"")
    return place


def run_of(place: PeerGroup) -> GroupRun:
    return GroupRun(
        place, SPEC, environ={}, clock=lambda: 0.0, say=lambda _: None, show=lambda _: None
    )


def said(by: str, event: events.Event) -> Record:
    read = lines.parse(lines.event_line(event, timestamp=NOW, role=by, source="x.py:1"))
    assert read is not None
    return read


RECORDS = [
    said("node-0", events.PeerRound(1, "ab" * 32, "node-0,node-1", 1, 0.5)),
    said("node-1", events.PeerRound(1, "ab" * 32, "node-0,node-1", 1, 0.5)),
    said("node-0", events.EvaluationResult(1, 0.5, 0.75, 9)),
    said("node-1", events.EvaluationResult(1, 0.5, 0.75, 9)),
    said("node-0", events.PeerNotice("proposal", "Plan (1, 2)")),
    said("node-1", events.PeerNotice("no_quorum", "1 of 2 voters\x1b answer")),
]


def test_lines_say_each_round_once_and_who_is_in_trouble(
    place: PeerGroup, capsys: pytest.CaptureFixture[str]
) -> None:
    screen = PlainLines(SPEC.rounds)
    screen.show(run_of(place), RECORDS)
    screen.finish(SUMMARY)

    out = capsys.readouterr().out
    assert out.count("round 1 of 5 is agreed on") == 1
    assert out.count("accuracy 0.750") == 1
    assert "no quorum: 1 of 2 voters\\x1b answer (node-1)" in out
    assert "Plan" not in out
    assert "nodes         2, node-0 stopped, node-1 killed" in out
    assert "next          onefed peer resume --name peers" in out


def test_json_is_every_event_and_the_summary_last(
    place: PeerGroup, capsys: pytest.CaptureFixture[str]
) -> None:
    screen = screen_for(LogFormat.JSON, place, SPEC)
    assert isinstance(screen, JsonLines)
    screen.say("node-0 restarted")
    screen.show(run_of(place), RECORDS)
    screen.finish(SUMMARY)

    documents = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(documents) == 1 + len(RECORDS) + 1
    assert documents[-1] == {"event": "summary", "data": SUMMARY}


def test_a_terminal_shows_what_the_members_say_of_themselves(
    place: PeerGroup, capsys: pytest.CaptureFixture[str]
) -> None:
    told = {"role": "leader", "leader": "node-0", "term": 1, "voters": ["node-0", "node-1"]}
    told |= {"round_number": 0, "model_sha256": None}
    (place.node("node-0")).mkdir()
    (place.node("node-0") / "state.json").write_text(
        json.dumps({**told, "state": "finished", "pid": 1}), encoding="utf-8"
    )
    run = run_of(place)
    run.killed.add("node-1")
    screen = Terminal(place, SPEC, clock=lambda: 0.0)
    with screen.open():
        screen.show(run, [])

    out = capsys.readouterr().out
    assert "node-0  finished  leader" in out
    assert "node-1  killed" in out
    assert "node-0 leads term 1, 1 of 2 voters there" in out


def test_rounds_of_an_earlier_start_are_known_and_not_told_again(place: PeerGroup) -> None:
    place.node("node-0").mkdir()
    log = EventLog(place.events("node-0"), role="node-0", clock=lambda: NOW)
    log.emit(events.PeerRound(1, "ab" * 32, "node-0,node-1", 1, 0.5))
    log.emit(events.PeerNotice("no_quorum", "1 of 2"))
    log.close()

    run = run_of(place)

    assert run.view.rounds_done == 1
    assert list(run.view.notices) == []
