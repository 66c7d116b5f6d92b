"""Logs of programs: text for people, JSON for collectors, events among them."""

from __future__ import annotations

import io
import logging
from datetime import UTC, datetime
from pathlib import Path

import pytest

from onefed.telemetry import events, lines, log, voice


@pytest.fixture
def logger() -> logging.Logger:
    return logging.Logger("onefed")  # noqa: LOG001 - of this test alone


def test_text_and_json_say_the_same(
    logger: logging.Logger, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(voice, "OTHERS", ())
    voice.configure(logger, "superlink", {})
    logger.warning("%s is away.", "A SuperLink")
    assert capsys.readouterr().err.endswith("WARNING A SuperLink is away.\n")

    logger.handlers.clear()
    voice.configure(logger, "superlink", {voice.VARIABLE: "json", "FLWR_LOG_LEVEL": "warning"})
    logger.info("too quiet")
    logger.warning("%s is away.", "A SuperLink")
    [line] = capsys.readouterr().out.splitlines()
    record = lines.parse(line)
    assert record is not None
    assert (record.level, record.role) == ("WARNING", "superlink")
    assert record.message == "A SuperLink is away."


def test_events_of_a_role_are_handed_to_its_collector_once(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"

    def emit(role: str, text: str) -> None:
        log.EventLog(path, role, lambda: datetime.now(UTC)).emit(events.Notice("INFO", text))

    emit("superlink", "before")
    heard = io.StringIO()
    relay = voice.Relay(path, "superlink", heard)
    emit("superlink", "now")
    emit("supernode", "of another machine")
    for _ in range(2):
        relay.look()
    [line] = heard.getvalue().splitlines()
    assert line == path.read_text().splitlines()[1]
