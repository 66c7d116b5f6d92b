"""Plain lines and JSON lines of a federation that lives."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from onefed.cli.screen import JsonLines, LogFormat, PlainLines, Screen, screen_for
from onefed.telemetry import events, lines
from onefed.telemetry.lines import Record
from onefed.telemetry.status import fold

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)

SUMMARY: dict[str, Any] = {
    "status": "stopped",
    "name": "demo",
    "rounds_done": 2,
    "rounds_total": 5,
    "accuracy": 0.75,
    "loss": None,
    "model_sha256": "ab" * 32,
    "checkpoint": None,
    "restarts": 0,
    "failures": 1,
    "seconds": 12.5,
    "nodes": 2,
    "directory": "/srv/" + "very-" * 60 + "long/demo",
    "error": "The federation was stopped.\nContinue it.",
    "exit_code": 130,
}

HOSTILE = st.text(st.characters(exclude_categories=()), max_size=60)

EVENTS = st.one_of(
    st.builds(events.Notice, st.sampled_from(["INFO", "WARNING"]), HOSTILE),
    st.builds(events.AppLog, HOSTILE),
    st.builds(events.VmState, HOSTILE, HOSTILE, st.just("failed"), HOSTILE),
    st.builds(events.RoundStart, st.integers(0, 99), st.integers(0, 9), HOSTILE),
    st.builds(
        events.RoundEnd,
        st.integers(0, 99),
        st.integers(0, 9),
        st.none() | st.floats(),
        st.none() | st.floats(),
        st.none() | st.floats(),
    ),
)


def record_of(event: events.Event) -> Record:
    read = lines.parse(lines.event_line(event, timestamp=NOW, role="cloud", source="x.py:1"))
    assert read is not None
    return read


def show(screen: Screen, shown: Sequence[events.Event]) -> None:
    records = [record_of(event) for event in shown]
    with screen.open():
        screen.show(fold(records), records)


def test_a_pipe_gets_lines_and_json_is_asked_for() -> None:
    assert isinstance(screen_for(LogFormat.TEXT), PlainLines)
    assert isinstance(screen_for(LogFormat.JSON), JsonLines)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(EVENTS, max_size=5))
def test_one_event_is_one_line_for_people(
    capsys: pytest.CaptureFixture[str], shown: list[events.Event]
) -> None:
    capsys.readouterr()
    show(PlainLines(), shown)
    printed = capsys.readouterr().out
    assert printed.count("\n") == len(shown)
    assert {each for each in printed if unicodedata.category(each) == "Cc"} <= {"\n"}


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(EVENTS, max_size=5), HOSTILE)
def test_json_lines_are_json_and_nothing_else(
    capsys: pytest.CaptureFixture[str], shown: list[events.Event], said: str
) -> None:
    capsys.readouterr()
    screen = JsonLines()
    screen.say(said)
    show(screen, shown)
    screen.finish(SUMMARY)
    first, *middle, last = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert (first["event"], first["role"]) == ("notice", "cli")
    assert [line["event"] for line in middle] == [event.EVENT for event in shown]
    assert last == {"event": "summary", "data": SUMMARY}


def test_people_are_spared_what_the_line_of_the_round_says(
    capsys: pytest.CaptureFixture[str],
) -> None:
    show(
        PlainLines(),
        [
            events.ClientReply(1, "train", "7", "0", 100, 1.0),
            events.RecoverySaved(1, "ab" * 32, 1000),
            events.BootStep("superlink", "superlink", "SL-01", "OS boot", "skipped", "not here"),
            events.BootStep("superlink", "superlink", "SL-10", "Start", "failed", "no memory"),
            events.RoundEnd(1, 2, 0.5, 0.75, 2.0),
        ],
    )
    failed, ended = capsys.readouterr().out.splitlines()
    assert "SL-10" in failed
    assert "no memory" in failed
    assert "round 1" in ended
    assert "0.750" in ended


def test_people_are_told_the_outcome_and_the_next_step(capsys: pytest.CaptureFixture[str]) -> None:
    PlainLines().finish(SUMMARY)
    printed = capsys.readouterr().out
    for fact in ("demo: stopped", "2 of 5", "0.7500", "ab" * 32, "onefed resume demo"):
        assert fact in printed
    assert SUMMARY["directory"] in printed
    assert "None" not in printed


def test_people_are_told_of_kills_and_of_the_comparison(
    capsys: pytest.CaptureFixture[str],
) -> None:
    kills = [
        {"victim": "serverapp", "round": 1, "recovered_s": 4.25},
        {"victim": "superlink", "round": 3, "recovered_s": None},
    ]
    found = {"seed": 7, "kills": kills, "undisturbed_sha256": "cd" * 32, "rounds_equal": 4}
    PlainLines().finish({**SUMMARY, "chaos": {**found, "equal": False}})
    printed = capsys.readouterr().out
    for fact in (
        "serverapp in round 1: the next round was done 4.2 s later",
        "superlink in round 3: no round after it",
        "DIFFERENT (2 kills, seed 7)",
        "cd" * 32,
    ):
        assert fact in printed
    PlainLines().finish({**SUMMARY, "chaos": {**found, "equal": True}})
    assert "the same bits in every round (2 kills, seed 7)" in capsys.readouterr().out


def test_an_error_moves_no_cursor(capsys: pytest.CaptureFixture[str]) -> None:
    PlainLines().finish({**SUMMARY, "error": "\x1b[2J\rgone\n[red]second"})
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert "\r" not in printed
    assert "[red]second" in printed
