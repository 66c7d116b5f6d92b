"""The sidecar document: what was encoded comes back, and nothing else is believed."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onefed.checkpoint import archive, snapshot
from onefed.checkpoint.files import DamagedError
from onefed.errors import StorageError

PATH = Path("round_000001.json")

RECORDS = st.builds(
    snapshot.RoundRecord,
    round_number=st.integers(0, 10**6),
    loss=st.none() | st.floats(),
    accuracy=st.none() | st.floats(0, 1),
    contributors=st.sampled_from([(), ("0",), ("0", "1")]) | st.tuples(st.text(max_size=4)),
    failures=st.integers(0, 100),
    seconds=st.floats(0, 1e6),
    model_sha256=st.text(max_size=4),
)


def sidecar_of(snap: snapshot.Snapshot) -> snapshot.Sidecar:
    return snapshot.Sidecar(
        snapshot=dataclasses.replace(snap, arrays={}, rule_state={}),
        archive="round_000001-0123456789abcdef.npz",
        arrays=archive.manifest(snap.arrays),
        rule_state=archive.manifest(snap.rule_state),
    )


def resigned(document: dict[str, Any]) -> dict[str, Any]:
    """A forged document with the right digest of itself."""
    return {**document, "sha256": snapshot.self_digest(document["snapshot"])}


def through_json(document: object) -> Any:
    return json.loads(json.dumps(document, allow_nan=False))


@settings(max_examples=60, deadline=None)
@given(st.lists(RECORDS, max_size=3))
def test_every_history_comes_back(records: list[snapshot.RoundRecord]) -> None:
    from_conftest = {"run": "r", "round_number": 1, "rounds_total": 2, "seed": -5}
    snap = snapshot.Snapshot(
        **from_conftest,
        rule="FedAvg",
        rule_state={},
        arrays={},
        history=tuple(records),
        app_sha256="a",
        config_sha256="c",
        versions={"numpy": "2"},
    )
    back = snapshot.decode(PATH, through_json(snapshot.encode(sidecar_of(snap))))
    assert repr(back) == repr(sidecar_of(snap))  # repr: NaN is equal to itself there


def test_unchanged_federation_costs_few_bytes_a_round(snapshot_of: Any) -> None:
    """A long run of many clients must not outgrow the bound of its sidecar."""
    record = dataclasses.replace(snapshot_of(1).history[0], contributors=tuple("abcdef" * 1000))
    document = snapshot.encode(sidecar_of(snapshot_of(1, history=(record,) * 1000)))
    assert len(json.dumps(document)) < 1000 * 250 + 50_000


def test_diverged_loss_survives(snapshot_of: Any) -> None:
    record = dataclasses.replace(snapshot_of(1).history[0], loss=math.nan, seconds=3)
    document = through_json(snapshot.encode(sidecar_of(snapshot_of(1, history=(record,)))))
    loss = snapshot.decode(PATH, document).snapshot.history[0].loss
    assert loss is not None
    assert math.isnan(loss)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"run": 1}, "'run' is missing or not of type str"),
        ({"round_number": -1}, "'round_number' is negative"),
        ({"round_number": True}, "'round_number' is missing or not of type int"),
        ({"round_number": 1.0}, "'round_number' is missing or not of type int"),
        ({"history": {}}, "'history' is missing or not of type list"),
        ({"history": [None]}, "'contributors' is missing"),
        ({"versions": {"a": 1}}, "'a' is missing"),
        ({"arrays": [{}]}, "'shape' is missing"),
        ({"arrays": [{"key": "w", "dtype": "object", "shape": [], "sha256": ""}]}, "unsupported"),
        ({"arrays": [{"key": "w", "dtype": "bool", "shape": [-1], "sha256": ""}]}, "impossible"),
        (
            {"arrays": [{"key": "w", "dtype": "bool", "shape": [1] * 65, "sha256": ""}]},
            "impossible",
        ),
        ({"arrays": [{"key": "w", "dtype": "bool", "shape": [], "sha256": ""}] * 2}, "twice"),
    ],
    ids=range(12),
)
def test_forged_fields_are_refused(snapshot_of: Any, changed: dict[str, Any], said: str) -> None:
    document = through_json(snapshot.encode(sidecar_of(snapshot_of(1))))
    document["snapshot"].update(changed)
    with pytest.raises(DamagedError, match=said):
        snapshot.decode(PATH, resigned(document))


def test_a_changed_field_does_not_pass_the_digest(snapshot_of: Any) -> None:
    document = through_json(snapshot.encode(sidecar_of(snapshot_of(1))))
    document["snapshot"]["seed"] += 1
    with pytest.raises(DamagedError, match="digest"):
        snapshot.decode(PATH, document)


@pytest.mark.parametrize("document", [None, [], "x", {}, {"format": "other", "version": 1}])
def test_other_documents_are_refused(document: object) -> None:
    with pytest.raises(DamagedError):
        snapshot.decode(PATH, document)


def test_nesting_has_a_bound(snapshot_of: Any) -> None:
    document = snapshot.encode(sidecar_of(snapshot_of(1)))
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(DamagedError, match="nested too deeply"):
        snapshot.decode(PATH, {**document, "snapshot": {"run": deep}})


def test_document_of_a_newer_program_is_no_damage(snapshot_of: Any) -> None:
    document = {**snapshot.encode(sidecar_of(snapshot_of(1))), "version": 3}
    with pytest.raises(StorageError, match="format version 3") as caught:
        snapshot.decode(PATH, document)
    assert not isinstance(caught.value, DamagedError)
