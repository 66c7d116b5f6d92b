"""What the log of an app with its own ServerApp tells of its run.

``flower-1.41.0-fedavg.log`` is what a ServerApp of flwr 1.41.0 printed: the example
``sklearn-logreg`` with two nodes and two rounds, its app folder shortened.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onefed.flower import exchange, report
from onefed.telemetry import events

TRANSCRIPT = Path(__file__).with_name("flower-1.41.0-fedavg.log")


class Reading:
    """A reporter whose clock is moved by hand."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._reporter = report.Reporter(lambda: self.now_s)

    def read(self, *lines: str) -> list[events.Event]:
        """Every event but the lines themselves."""
        found = [event for line in lines for event in self._reporter.read(line)]
        return [event for event in found if not isinstance(event, events.AppLog)]

    def app_lines(self, line: str) -> list[str]:
        found = self._reporter.read(line)
        return [event.line for event in found if isinstance(event, events.AppLog)]


@pytest.fixture
def reading() -> Reading:
    return Reading()


def test_the_log_of_flowers_own_strategy_is_the_story_of_the_run(reading: Reading) -> None:
    told = []
    for line in TRANSCRIPT.read_text(encoding="utf-8").splitlines():
        reading.now_s += 1.0
        told += reading.read(line)

    assert told == [
        events.TrainingStart("FedAvg", num_rounds=2, min_clients=0),
        events.RoundStart(1, num_clients_selected=2, strategy="FedAvg"),
        events.RoundEnd(1, 2, 0.39038198087285214, 0.9027777777777778, 10.0),
        events.RoundStart(2, num_clients_selected=2, strategy="FedAvg"),
        events.RoundEnd(2, 2, 0.28815721829432406, 0.9583333333333334, 10.0),
        events.TrainingEnd(2, 0.28815721829432406, 0.9583333333333334, 85.34),
    ]


def test_every_line_is_passed_on_without_colours_and_level(reading: Reading) -> None:
    lines = TRANSCRIPT.read_text(encoding="utf-8").splitlines()

    passed_on = [text for line in lines for text in reading.app_lines(line)]

    assert passed_on[0] == "Start `flwr-serverapp` process"
    assert "[ROUND 1/2]" in passed_on
    assert all(text.isprintable() or "\t" in text for text in passed_on)


def test_a_failed_client_is_named_with_its_reason(reading: Reading) -> None:
    told = reading.read(
        "INFO :      [ROUND 3/5]",
        "INFO :      aggregate_train: Received 1 results and 2 failures",
        "INFO :      \t> Received error in reply from node 9223372036854775809: out of memory",
        "INFO :      \t> Received error in reply from node 1: gone",
        "INFO :      aggregate_evaluate: Received 0 results and 1 failures",
        "INFO :      \t> Received error in reply from node 1: " + "x" * 3000,
    )

    assert [(event.round, event.node_id) for event in told] == [
        (3, "9223372036854775809"),
        (3, "1"),
        (3, "1"),
    ]
    assert [event.reason for event in told][:2] == ["out of memory", "gone"]
    assert all(len(event.reason or "") <= exchange.REASON_LENGTH_MAX for event in told)


def test_a_round_that_measured_nothing_ends_without_a_score(reading: Reading) -> None:
    told = reading.read("[ROUND 1/2]", "[ROUND 2/2]", "Strategy execution finished in 1.50s")

    assert told == [
        events.RoundEnd(1, 0, None, None, 0.0),
        events.RoundEnd(2, 0, None, None, 0.0),
        events.TrainingEnd(2, None, None, 1.5),
    ]


def test_an_app_may_run_one_strategy_after_another(reading: Reading) -> None:
    once = ["Starting FedAvg strategy:", "Number of rounds: 1", "[ROUND 1/1]"]
    end = "Strategy execution finished in 2.00s"

    told = reading.read(*once, end, *once, end)

    assert [event.EVENT for event in told] == ["training_start", "round_end", "training_end"] * 2


@pytest.mark.parametrize(
    ("text", "loss"),
    [("0.25", 0.25), ("1e-05", 1e-05), ("2.5e+20", 2.5e20), ("3", 3.0), ("-0.5", -0.5)],
)
def test_numbers_are_read_however_python_prints_them(
    reading: Reading, text: str, loss: float
) -> None:
    line = f"\t└──> Aggregated MetricRecord: {{'num-examples': 5, 'eval_loss': {text}}}"

    [end] = reading.read("[ROUND 1/2]", line, "[ROUND 2/2]")

    assert isinstance(end, events.RoundEnd)
    assert end.aggregated_loss == loss


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "[0.1, 0.2]", "'0.5'", "None", "1.2.3"])
def test_what_is_no_finite_number_breaks_nothing(reading: Reading, text: str) -> None:
    line = f"Aggregated MetricRecord: {{'eval_loss': {text}, 'eval_acc': 0.5}}"

    [end] = reading.read("[ROUND 1/2]", line, "[ROUND 2/2]")

    assert isinstance(end, events.RoundEnd)
    assert end.aggregated_accuracy == 0.5


HOSTILE_LINES = [
    "",
    " \t ",
    "x" * 10_000_000,
    "[ROUND 99999999999999999999999999999999/1]",
    f"[ROUND {'9' * 5000}/1]",
    f"Number of rounds: {'9' * 4000}",
    "[ROUND -1/2]",
    "[ROUND \N{ARABIC-INDIC DIGIT ONE}/2]",
    "aggregate_train: Received 0 results and 99999999999 failures",
    f"Strategy execution finished in {'9' * 4000}.0s",
    "Strategy execution finished in 1.2.3s",
    f"MetricRecord: {{'loss': {'9' * 4000}}}",
    "MetricRecord: {" + "'loss': 1e5, " * 1000,
    "MetricRecord: {'loss': 1e99999}",
    "MetricRecord: {" + "'" * 4000 + "}",
    "\x1b[2J\x1b]0;title\x07\x1b[999;999H\x9b31m\x00",
    "\ud800",
]


@pytest.mark.parametrize("line", HOSTILE_LINES, ids=range(len(HOSTILE_LINES)))
def test_hostile_lines_are_bounded_in_number_length_and_effect(line: str) -> None:
    reporter = report.Reporter(lambda: 0.0)
    reporter.read("[ROUND 1/2]")

    found = reporter.read(line)

    assert len(found) <= 3
    for event in found:
        events.to_data(event)
        if isinstance(event, events.AppLog):
            assert len(event.line) <= report.LINE_LENGTH_MAX
            assert "\x1b" not in event.line
            assert "\x00" not in event.line


WORDS = st.sampled_from(
    [
        *("Starting FedAvg strategy:", "Number of rounds: ", "[ROUND ", "/2]", "MetricRecord: {"),
        *("'loss': ", "}", "1", "e", "-", ".", "nan", "\x1b[", "Received ", "aggregate_train: "),
        *("configure_train: Sampled ", " nodes", "Strategy execution finished in ", "s", "\t> "),
    ]
)


@settings(deadline=None)  # a busy machine is no failure
@given(st.lists(st.lists(WORDS | st.text(max_size=5), max_size=8).map("".join), max_size=12))
def test_no_log_raises_and_rounds_end_at_most_once_each(lines: list[str]) -> None:
    reading = Reading()
    ended = [event for event in reading.read(*lines) if isinstance(event, events.RoundEnd)]

    assert len(ended) <= sum("[ROUND" in line for line in lines)
    for event in ended:
        events.to_data(event)


def test_a_wait_for_nodes_is_a_stall_that_is_told_now_and_then() -> None:
    """Flower prints the line every second for as long as it waits."""
    seconds = iter(range(1000))
    reporter = report.Reporter(lambda: float(next(seconds)))
    line = "INFO :      Waiting for nodes to connect: 1 connected (minimum required: 2)."
    told = [event for _ in range(30) for event in reporter.read(line)]
    assert 1 <= len(told) <= 3
    first = told[0]
    assert isinstance(first, events.TrainingStalled)
    assert (first.connected_clients, first.required_clients) == (1, 2)
    assert reporter.read("INFO :      [ROUND 1/2]") == [events.AppLog("[ROUND 1/2]")]
