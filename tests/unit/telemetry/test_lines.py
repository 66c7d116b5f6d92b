"""One line per event, whatever is in it."""

from __future__ import annotations

import io
import json
import logging
import sys
from dataclasses import fields
from datetime import UTC, datetime
from typing import Any, cast, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onefed.telemetry import events as ev
from onefed.telemetry import lines, sentences

NOW = datetime(2026, 2, 9, 14, 30, 0, 123_999, tzinfo=UTC)
NASTY = 'a\r\nb\x00"\\\x1b[31m\x9b\x7f\u2028\u202e\ud800\x85é😀{"event":1}'


def line_of(event: ev.Event) -> str:
    return lines.event_line(event, timestamp=NOW, role="superlink", source="loop.py:7")


def test_the_line_is_that_of_the_reference() -> None:
    line = line_of(ev.RoundEnd(3, 3, 0.2237654321, 0.931, 4.0999))
    assert line == (
        '{"timestamp":"2026-02-09T14:30:00.123Z","level":"INFO","logger":"flwr",'
        '"role":"superlink","message":"round 3: accuracy 0.931, loss 0.224, 3 clients, 4.1 s",'
        '"source":"loop.py:7","event":"round_end","data":{"round":3,"num_clients_responded":3,'
        '"aggregated_loss":0.223765,"aggregated_accuracy":0.931,"round_duration_seconds":4.1}}'
    )


def test_every_event_is_read_back(examples: tuple[ev.Event, ...]) -> None:
    for event in examples:
        record = lines.parse(line_of(event))
        assert record is not None
        assert record.event == event
        assert record.timestamp == NOW.replace(microsecond=123_000)
        assert (record.level, record.logger) == (event.severity, event.LOGGER)
        assert (record.role, record.source) == ("superlink", "loop.py:7")


TEXT = st.text(st.characters(exclude_categories=())) | st.just(NASTY)  # halves of pairs included
VALUES: dict[Any, st.SearchStrategy[Any]] = {
    "str": TEXT,
    "str | None": st.none() | TEXT,
    "int": st.integers(-(2**63), 2**63),
    "int | None": st.none() | st.integers(-(2**63), 2**63),
    "Metric": st.none() | st.floats(),
    "Seconds": st.none() | st.floats(),
    "MachineState": st.sampled_from(get_args(ev.MachineState)),
    "Level": st.sampled_from(["DEBUG", "INFO", "WARNING", "ERROR"]),
}


@st.composite
def any_event(draw: st.DrawFn) -> ev.Event:
    kind = draw(st.sampled_from(list(ev.EVENTS.values())))
    values = {}
    for field in fields(kind):
        choices = cast("str", field.type)
        if choices.startswith("Literal["):
            strategy = st.sampled_from([word.strip("'\"") for word in choices[8:-1].split(", ")])
        else:
            strategy = VALUES[choices]
        values[field.name] = draw(strategy)
    return kind(**values)


@settings(deadline=None)  # a busy machine is no failure
@given(any_event())
def test_any_event_is_one_line_of_printable_ascii_and_round_trips(event: ev.Event) -> None:
    line = line_of(event)
    assert len(line.splitlines()) == 1
    assert line.isascii()
    assert line.isprintable()
    record = lines.parse(line)
    assert record is not None
    assert record.event is not None
    assert not isinstance(record.event, ev.Unknown)
    assert ev.to_data(record.event) == ev.to_data(event)
    assert line_of(record.event) == line_of(record.event)


@settings(deadline=None)  # a busy machine is no failure
@given(any_event())
def test_any_event_is_one_safe_line_of_text(event: ev.Event) -> None:
    text = sentences.sentence(event)
    assert len(text.splitlines()) <= 1
    assert not any(character in text for character in "\r\n\x00\x1b\x7f\x85\x9b\u2028\u202e")
    text.encode("utf-8")


@pytest.mark.parametrize("unit", ["x", "\x00", "😀", "\x1b"])
def test_a_long_text_is_cut_and_marked(unit: str) -> None:
    line = line_of(ev.AppLog(unit * 300_000))
    assert len(line) < lines.LINE_BYTES_MAX
    record = lines.parse(line)
    assert record is not None
    assert isinstance(record.event, ev.AppLog)
    assert record.event.line.startswith(unit * 64)
    assert record.event.line.endswith("... [cut, 300000 characters]")


def test_many_long_texts_fit_as_well() -> None:
    long = "😀" * 100_000
    event = ev.FederationStart(long, 1, 1, long, long, 1, long)
    assert len(line_of(event)) < lines.LINE_BYTES_MAX


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{}",
        b"[]",
        b"7",
        b'"x"',
        b"INFO : Starting Flower",
        b"\xff\xfe",
        b"[" * 60_000,
        b'{"timestamp":"2026-02-09T14:30:00.123Z","level":"INFO"',
        b'{"timestamp":"soon","level":"INFO","logger":"a","role":"b","message":"c","source":"d"}',
        b'{"timestamp":"2026-02-09T14:30:00","level":"INFO","logger":"a","role":"b",'
        b'"message":"c","source":"d"}',
        b'{"timestamp":"0001-01-01T00:00:00+14:00","level":"INFO","logger":"a","role":"b",'
        b'"message":"c","source":"d"}',
        b'{"timestamp":"2026-02-09T14:30:00Z","level":["INFO"],"logger":"a","role":"b",'
        b'"message":"c","source":"d"}',
        b'{"timestamp":"2026-02-09T14:30:00Z","level":"INFO","logger":"a","role":7,'
        b'"message":"c","source":"d"}',
        b" " * lines.LINE_BYTES_MAX + line_of(ev.AppLog("x")).encode(),
    ],
)
def test_lines_that_are_not_ours_are_nothing(line: bytes) -> None:
    assert lines.parse(line) is None


def test_text_is_plain_and_says_what_matters(examples: tuple[ev.Event, ...]) -> None:
    assert [sentences.sentence(event, rounds_total=5) for event in examples] == [
        "training starts: 5 rounds, FedAvg",
        "round 3 of 5 starts with 3 clients",
        "round 3 of 5: accuracy 0.931, loss 0.224, 3 clients, 4.1 s",
        "training ends after 5 rounds: accuracy 0.950, loss 0.200, 20.5 s",
        "node 18446744073709551615 connected from 10.0.0.7:41234",
        "node 7 left: shutdown",
        "checkpoint of round 5: /var/lib/onefed/checkpoint_round_5.npz (1.5 KiB)",
        "evaluation after round 3 of 5: loss 0.250, 1 example",
        "node 7 failed in round 3: timeout",
        "round 3 of 5 waits since 600.0 s: 1 of 2 clients connected",
        "GPU: NVIDIA L4, 23034 MB, driver 550.54",
        "no usable GPU: training on CPU",
        "federation demo: 3 nodes, 5 rounds of FedAvg, app image-classification, seed 7",
        "federation finished after round 5 of 5: accuracy 0.950, loss 0.200, 1 restart, "
        "0 client failures, 31.2 s",
        "node-1: step 7b TLS trust done, 0.0 s",
        "node-1 (supernode) is failed: health check",
        "node-1: supernode ended (signal 9), start 2 in 1.0 s",
        "kill 2 of 5: serverapp killed in round 3 of 5",
        "kill 2: round 3 of 5 is done 4.2 s after serverapp was killed",
        "node-1 is registered as node 7, partition 0",
        "run demo-1 submitted, attempt 1",
        "run demo-1 goes on with round 3 of 5",
        "run is running",
        "round 3 of 5: client 0 answered train with 1200 examples, 3.9 s",
        "round 3 of 5 is repeated: deadline (1 of 2 replies)",
        "round 3 of 5 is safe (5.0 MiB)",
        "round 3 of 5 is agreed on: updates of node-0,node-1, model abababababab, 0.4 s",
        "no quorum: 1 of 3 voters are heard",
        "INFO: hello",
        "the disk is almost full",
    ]


def test_the_text_line_shows_the_level_when_it_matters() -> None:
    record = lines.parse(line_of(ev.ClientFailure(3, "a\x1bb", "timeout")))
    assert record is not None
    local = record.timestamp.astimezone().strftime("%H:%M:%S")
    assert lines.text_line(record) == f"{local} WARNING node a\\x1bb failed in round 3: timeout"


# --- the formatter of logging --------------------------------------------------------------------


@pytest.fixture
def logger() -> logging.Logger:
    """One that nobody else knows, so that pytest does not put its own handlers on it."""
    return logging.Logger("flwr.test_lines")  # noqa: LOG001


def logged(logger: logging.Logger, *handlers: logging.Handler) -> io.StringIO:
    stream = io.StringIO()
    for handler in handlers:
        logger.addHandler(handler)
    lines.use_json(logger, "supernode", stream)
    return stream


def test_a_logged_message_becomes_one_json_line(logger: logging.Logger) -> None:
    stream = logged(logger)
    logger.warning("%s is %d\nok", NASTY, 7)
    (line,) = stream.getvalue().splitlines()
    content = json.loads(line)
    assert content["message"] == f"{NASTY} is 7\nok"
    assert content["level"] == "WARNING"
    assert content["logger"] == "flwr"
    assert content["role"] == "supernode"
    assert content["source"].startswith("test_lines.py:")
    assert "event" not in content
    record = lines.parse(line)
    assert record is not None
    assert record.event is None


def test_an_exception_is_one_string(logger: logging.Logger) -> None:
    stream = logged(logger)
    try:
        raise RuntimeError(NASTY)
    except RuntimeError:
        logger.exception("it broke")
    (line,) = stream.getvalue().splitlines()
    assert json.loads(line)["exc"].startswith("Traceback")


def test_an_event_travels_in_a_log_record(logger: logging.Logger) -> None:
    stream = logged(logger)
    event = ev.ClientLeave("7", "shutdown")
    logger.warning("bye", extra={"event": event})
    record = lines.parse(stream.getvalue())
    assert record is not None
    assert record.event == event


def test_arguments_that_do_not_fit_are_shown_and_not_raised(logger: logging.Logger) -> None:
    stream = logged(logger)
    logger.error("%d", "seven")
    assert json.loads(stream.getvalue())["message"] == "%d ('seven',)"


def test_the_console_handler_is_replaced_and_its_level_kept(logger: logging.Logger) -> None:
    class Console(logging.StreamHandler[Any]):
        """Like Flower's: it ignores its formatter."""

        def format(self, record: logging.LogRecord) -> str:
            raise AssertionError

    console = Console(sys.stderr)
    console.setLevel(logging.INFO)
    stream = logged(logger, console)
    logger.setLevel(logging.DEBUG)
    logger.debug("hidden")
    logger.info("shown")
    assert [json.loads(line)["message"] for line in stream.getvalue().splitlines()] == ["shown"]
