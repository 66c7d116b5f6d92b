"""The vocabulary and its way to data and back."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from onefed.telemetry import events as ev

REFERENCE = {
    "training_start": "strategy num_rounds min_clients",
    "round_start": "round num_clients_selected strategy",
    "round_end": "round num_clients_responded aggregated_loss aggregated_accuracy "
    "round_duration_seconds",
    "training_end": "total_rounds final_loss final_accuracy total_duration_seconds",
    "client_join": "node_id client_address",
    "client_leave": "node_id reason",
    "checkpoint_saved": "round path size_bytes",
    "evaluation_result": "round loss accuracy num_examples",
    "client_failure": "round node_id error_type",
    "training_stalled": "round waiting_since_seconds connected_clients required_clients",
    "gpu_detected": "gpu_name gpu_memory_mb driver_version",
    "gpu_unavailable": "fallback_device",
}
WARNINGS = {"client_failure", "training_stalled", "gpu_unavailable"}


def test_the_reference_events_have_their_fields_levels_and_logger(
    examples: tuple[ev.Event, ...],
) -> None:
    found = {event.EVENT: event for event in examples}
    for name, fields in REFERENCE.items():
        first = list(ev.to_data(found[name]))[: len(fields.split())]
        assert first == fields.split(), "ours come after those of the reference"
        assert found[name].severity == ("WARNING" if name in WARNINGS else "INFO")
        assert found[name].LOGGER == "flwr"
    assert {event.LOGGER for name, event in found.items() if name not in REFERENCE} == {"onefed"}


def test_every_class_is_in_the_registry_and_among_the_examples(
    examples: tuple[ev.Event, ...],
) -> None:
    assert [type(event) for event in examples] == list(ev.EVENTS.values())


def test_every_event_comes_back_from_its_data(examples: tuple[ev.Event, ...]) -> None:
    for event in examples:
        assert ev.from_record({"event": event.EVENT, "data": ev.to_data(event)}) == event


def test_the_level_follows_the_outcome() -> None:
    assert ev.BootStep("a", "supernode", "4", "Validate", "failed").severity == "ERROR"
    assert ev.BootStep("a", "supernode", "4", "Validate", "skipped").severity == "INFO"
    assert ev.VmState("a", "supernode", "failed").severity == "ERROR"
    assert ev.Notice("DEBUG", "x").severity == "DEBUG"


def test_metrics_have_six_decimals_and_durations_two() -> None:
    data = ev.to_data(ev.RoundEnd(1, 2, 0.123456789, 1 / 3, 12.345678))
    assert data["aggregated_loss"] == 0.123457
    assert data["aggregated_accuracy"] == 0.333333
    assert data["round_duration_seconds"] == 12.35


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None, "x"])
def test_what_is_not_a_finite_number_is_null(value: Any) -> None:
    data = ev.to_data(ev.RoundEnd(1, 2, value, value, value))
    assert list(data.values())[2:] == [None, None, None]


def test_numbers_of_numpy_become_plain_numbers() -> None:
    event = ev.RoundEnd(np.int64(1), 2, np.float32(0.5), np.float64(0.25), 1)  # type: ignore[arg-type]
    data = ev.to_data(event)
    assert data == {
        "round": 1,
        "num_clients_responded": 2,
        "aggregated_loss": 0.5,
        "aggregated_accuracy": 0.25,
        "round_duration_seconds": 1.0,
    }
    assert [type(value) for value in data.values()] == [int, int, float, float, float]


def test_a_newer_program_may_add_fields_and_events() -> None:
    record = {"event": "client_leave", "data": {"node_id": "7", "reason": "x", "mood": "good"}}
    assert ev.from_record(record) == ev.ClientLeave("7", "x")
    record = {"event": "client_dance", "data": {"node_id": "7"}}
    assert ev.from_record(record) == ev.Unknown("client_dance", {"node_id": "7"})


@pytest.mark.parametrize(
    "data",
    [
        None,
        [],
        {},
        {"node_id": 7, "reason": "x"},
        {"node_id": None, "reason": "x"},
        {"node_id": "7"},
    ],
)
def test_fields_that_break_the_promise_make_the_event_unknown(data: Any) -> None:
    record = {"event": "client_leave", "data": data}
    assert isinstance(ev.from_record(record), ev.Unknown)


def test_a_truth_value_is_no_number_and_a_word_must_be_one_of_the_list() -> None:
    good = ev.to_data(ev.ClientReply(1, "train", "7", "0", 10, 1.0))
    for bad in ({"round": True}, {"phase": "sleep"}, {"seconds": "1"}, {"seconds": True}):
        record = {"event": "client_reply", "data": good | bad}
        assert isinstance(ev.from_record(record), ev.Unknown)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=4,
)


# A busy machine is no failure.
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(sorted(ev.EVENTS)), st.dictionaries(st.text(), JSON), st.data())
def test_no_record_is_too_strange_to_be_read(
    name: str, data: dict[str, Any], draw: st.DataObject
) -> None:
    fields = ev.to_data(ev.RoundEnd(1, 1, 1, 1, 1)) | {"node_id": "", "reason": "", "vm": ""}
    known = draw.draw(st.fixed_dictionaries({}, optional=dict.fromkeys(fields, JSON)))
    event = ev.from_record({"event": name, "data": data | known})
    if not isinstance(event, ev.Unknown):
        assert ev.from_record({"event": name, "data": ev.to_data(event)}) is not None
