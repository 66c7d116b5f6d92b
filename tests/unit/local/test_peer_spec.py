"""A group's folder holds what was asked for, and what its nodes say of themselves."""

from __future__ import annotations

from pathlib import Path

import pytest

from onefed.checkpoint import files, life_lock
from onefed.errors import NotFoundError, OnefedError
from onefed.local import peer_group
from onefed.local.peer_spec import PeerSpec, free_addresses, group

SPEC = PeerSpec(
    name="demo",
    addresses={"node-0": "127.0.0.1:1", "node-1": "127.0.0.1:2"},
    rounds=3,
    epochs=None,
    seed=7,
    strategy="FedAvg",
    app="image-classification",
    run_config={"seed": 7},
    holds=(2, 3),
)


def test_what_was_asked_for_is_read_back(tmp_path: Path) -> None:
    place = group(tmp_path, "demo")
    place.write(SPEC, b"app")

    assert place.read() == SPEC
    assert place.app.read_bytes() == b"app"
    assert list(SPEC.addresses) == list(place.read().addresses)


def test_there_may_be_no_such_group(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        group(tmp_path, "demo").read()


def test_a_name_cannot_lead_elsewhere(tmp_path: Path) -> None:
    with pytest.raises(OnefedError):
        group(tmp_path, "../demo")


def test_nodes_that_have_said_nothing_yet_are_left_out(tmp_path: Path) -> None:
    place = group(tmp_path, "demo")
    place.write(SPEC, b"app")
    for name in SPEC.addresses:
        files.make_folder(place.node(name))
    files.write_json(place.node("node-1") / "state.json", {"state": "training"})

    assert place.states() == {"node-1": {"state": "training", "lives": False}}


def test_a_node_lives_while_it_holds_its_lock_whatever_its_process_is(tmp_path: Path) -> None:
    place = group(tmp_path, "demo")
    place.write(SPEC, b"app")
    files.make_folder(place.node("node-1"))
    files.write_json(place.node("node-1") / "state.json", {"state": "training", "pid": 1})
    with life_lock.hold(place.life_lock("node-1")):
        assert peer_group.is_alive(place.states()["node-1"])
    assert not peer_group.is_alive(place.states()["node-1"])


def test_addresses_are_all_different() -> None:
    assert len(set(free_addresses(20))) == 20
