"""What a monitoring system is told, as its own parsers read it."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime

import pytest
from prometheus_client import parser
from prometheus_client.samples import Sample

from onefed.telemetry import events as ev
from onefed.telemetry import exposition
from onefed.telemetry.lines import Record
from onefed.telemetry.metrics import Metrics

NOW = datetime(2026, 2, 9, tzinfo=UTC)

NAMES = {
    "fl_round_current": "gauge",
    "fl_round_total": "gauge",
    "fl_round_duration_seconds": "histogram",
    "fl_aggregated_loss": "gauge",
    "fl_aggregated_accuracy": "gauge",
    "fl_clients_connected": "gauge",
    "fl_clients_selected": "gauge",
    "fl_clients_responded": "gauge",
    "fl_clients_failed": "counter",
    "fl_checkpoint_saved": "counter",
    "fl_training_status": "gauge",
}
"""Section 4 of the reference design; the library's parser takes ``_total`` off counters."""

WITH_STRATEGY = {
    *("fl_round_current", "fl_round_total", "fl_round_duration_seconds"),
    *("fl_aggregated_loss", "fl_aggregated_accuracy"),
}

TWO_ROUNDS: Sequence[ev.Event] = (
    ev.ClientJoin("1", "10.0.0.1"),
    ev.ClientJoin("2", "10.0.0.2"),
    ev.ClientJoin("3", "10.0.0.3"),
    ev.ClientLeave("3", "disconnected"),
    ev.RunSubmitted("run", "7", 1),
    ev.TrainingStart("FedAdam", 2, 2),
    ev.RoundStart(1, 2, "FedAdam"),
    ev.ClientFailure(1, "2", "timeout"),
    ev.RoundEnd(1, 1, 0.5, None, 0.75),
    ev.EvaluationResult(1, 0.4, 0.25, 100),
    ev.RoundStart(2, 2, "FedAdam"),
    ev.ClientReply(2, "train", "1", "0", 10, 1.0),
)


def fold(*events: ev.Event) -> Metrics:
    metrics = Metrics(strategy="FedAvg", round_total=3)
    metrics.fold(record(event) for event in events)
    return metrics


def record(event: ev.Event) -> Record:
    return Record(
        timestamp=NOW, level="INFO", logger="flwr", role="superlink", message="", source="x:1",
        event=event,
    )  # fmt: skip


def samples(metrics: Metrics, **expiries: datetime) -> dict[str, float]:
    """By name with its labels, as in the text."""
    text = exposition.text(metrics, expiries).decode()
    return {
        name_of(sample): sample.value
        for family in parser.text_string_to_metric_families(text)
        for sample in family.samples
    }


def name_of(sample: Sample) -> str:
    labels = ",".join(f"{name}={value}" for name, value in sample.labels.items())
    return f"{sample.name}{{{labels}}}" if labels else sample.name


def test_the_names_types_and_labels_are_those_of_the_reference() -> None:
    text = exposition.text(fold(*TWO_ROUNDS), {}).decode()
    families = list(parser.text_string_to_metric_families(text))
    assert {family.name: family.type for family in families} == NAMES
    for family in families:
        labels = {name for sample in family.samples for name in sample.labels} - {"le"}
        assert labels == ({"strategy"} if family.name in WITH_STRATEGY else set()), family.name
    assert "\nfl_clients_failed_total 1.0\n" in text
    assert "\nfl_checkpoint_saved_total 0.0\n" in text


def test_before_any_training_everything_is_there_and_the_rounds_are_known() -> None:
    held = samples(fold())
    assert held.pop("fl_round_total{strategy=FedAvg}") == 3
    assert set(held.values()) == {0}
    assert held["fl_training_status"] == 0


def test_a_round_in_flight() -> None:
    held = samples(fold(*TWO_ROUNDS))
    assert held["fl_training_status"] == 1
    assert held["fl_round_current{strategy=FedAdam}"] == 2
    assert held["fl_round_total{strategy=FedAdam}"] == 2
    assert (held["fl_clients_connected"], held["fl_clients_selected"]) == (2, 2)
    assert held["fl_clients_responded"] == 1
    assert held["fl_aggregated_loss{strategy=FedAdam}"] == 0.4
    assert held["fl_aggregated_accuracy{strategy=FedAdam}"] == 0.25


def test_durations_are_counted_in_the_buckets_of_the_reference() -> None:
    ended = [ev.RoundEnd(n, 2, None, None, s) for n, s in enumerate((1.0, 4.0, 5.1, 900.0), 1)]
    held = samples(fold(*ended, ev.RoundEnd(5, 2, None, None, None)))
    buckets = {
        re.sub(r".*le=([^,}]*).*", r"\1", name): value
        for name, value in held.items()
        if name.startswith("fl_round_duration_seconds_bucket")
    }
    bounds = ("1.0", "5.0", "10.0", "30.0", "60.0", "120.0", "300.0", "600.0", "+Inf")
    assert buckets == dict(zip(bounds, (1, 2, 3, 3, 3, 3, 3, 3, 4), strict=True))
    assert held["fl_round_duration_seconds_sum{strategy=FedAvg}"] == pytest.approx(910.1)
    assert held["fl_round_duration_seconds_count{strategy=FedAvg}"] == 4


@pytest.mark.parametrize(
    ("then", "status"),
    [
        ((), 1),
        ((ev.TrainingEnd(2, None, None, 1.0),), 2),
        ((ev.TrainingEnd(2, None, None, 1.0), ev.RunStatus("completed")), 2),
        ((ev.RunStatus("failed", "it raised"),), 3),
        ((ev.RunStatus("stopped"),), 0),
        ((ev.RunStatus("failed"), ev.RunSubmitted("next", "8", 1)), 0),
        ((ev.RunSubmitted("run", "8", 2),), 1),
        ((ev.TrainingEnd(2, None, None, 1.0), ev.TrainingStart("FedAdam", 3, 2)), 1),
        ((ev.FederationEnd("failed", 1, 2, None, None, None, None, 0, 0, 1.0),), 3),
    ],
)
def test_idle_running_complete_and_failed(then: Sequence[ev.Event], status: int) -> None:
    assert samples(fold(*TWO_ROUNDS, *then))["fl_training_status"] == status


def test_another_run_begins_at_round_0_and_counters_go_on() -> None:
    held = samples(fold(*TWO_ROUNDS, ev.RunSubmitted("next", "8", 1)))
    assert held["fl_round_current{strategy=FedAdam}"] == 0
    assert held["fl_aggregated_loss{strategy=FedAdam}"] == 0
    assert held["fl_clients_failed_total"] == 1
    assert held["fl_clients_connected"] == 2


def test_no_app_makes_more_series_than_there_are_strategies() -> None:
    """Whatever it calls its own: quotes, line breaks, 10 kB."""
    hostile = ['"', "a\nb 1", "\\", "x" * 10_000, *(f"mine-{n}" for n in range(1000))]
    metrics = fold()
    for name in hostile:
        metrics.fold([record(ev.RoundStart(1, 2, name)), record(ev.RoundEnd(1, 2, 0.1, 0.2, 1.0))])
    text = exposition.text(metrics, {}).decode()
    assert len(text) < 10_000
    assert set(re.findall(r'strategy="([^"]*)"', text)) == {"other"}


def test_when_certificates_end() -> None:
    held = samples(fold(), ca=NOW, server=NOW)
    assert held["onefed_certificate_expiry_timestamp_seconds{certificate=ca}"] == NOW.timestamp()
    name = "onefed_certificate_expiry_timestamp_seconds{certificate=server}"
    assert held[name] == NOW.timestamp()


def test_a_number_that_is_none_keeps_the_last_one() -> None:
    metrics = fold(ev.RoundEnd(1, 2, 0.5, 0.9, 1.0), ev.RoundEnd(2, 2, None, None, 1.0))
    assert (metrics.loss, metrics.accuracy) == (0.5, 0.9)


def test_prometheus_own_checker_takes_them(promtool: str) -> None:
    """It also judges style: ``fl_round_total`` is a gauge with the name of a counter, and that
    name is the reference's."""
    text = exposition.text(fold(*TWO_ROUNDS), {"ca": NOW})
    checked = subprocess.run(
        [promtool, "check", "metrics"], input=text, capture_output=True, timeout=60, check=False
    )
    said = (checked.stdout + checked.stderr).decode().splitlines()
    assert said == ['fl_round_total non-counter metrics should not have "_total" suffix']
