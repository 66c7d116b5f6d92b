"""The document that says what a federation was asked to be."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable

import pytest

from onefed.errors import StorageError
from onefed.local.spec import Spec
from onefed.local.state import StateDir

SPEC = Spec(
    name="demo",
    nodes=2,
    app="image-classification",
    managed=True,
    rounds=5,
    strategy="FedAvg",
    seed=0,
    context={"FL_NUM_ROUNDS": "5"},
)

Make = Callable[..., StateDir]


def test_a_spec_is_read_as_it_was_written(make: Make) -> None:
    spec = dataclasses.replace(SPEC, data="/data/\udcff", context={"FL_X": "ä\n'"})
    made = make()
    made.write_spec(spec)
    assert made.read_spec() == spec


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"{}",
        b"\xff\xfe",
        b"[" * 100_000,
        json.dumps({**dataclasses.asdict(SPEC), "nodes": "2"}).encode(),
        json.dumps({**dataclasses.asdict(SPEC), "context": {"FL_X": 1}}).encode(),
        json.dumps({**dataclasses.asdict(SPEC), "surprise": 1}).encode(),
        json.dumps({"name": "demo"}).encode(),
    ],
)
def test_a_damaged_spec_is_a_storage_error_that_names_the_file(make: Make, content: bytes) -> None:
    made = make()
    made.spec_file.write_bytes(content)
    with pytest.raises(StorageError) as refused:
        made.read_spec()
    assert str(made.spec_file) in refused.value.message
    assert refused.value.hint


def test_a_spec_of_a_newer_onefed_says_so(make: Make) -> None:
    made = make()
    newer = {**dataclasses.asdict(SPEC), "format": 2, "surprise": True}
    made.spec_file.write_text(json.dumps(newer))
    with pytest.raises(StorageError, match="newer onefed"):
        made.read_spec()
