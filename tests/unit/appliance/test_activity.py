"""What a node does reaches OneGate as it changes, and no more often than it is looked at."""

from __future__ import annotations

import io
from typing import Any

import pytest

from onefed.appliance import activity
from onefed.appliance.activity import Activity, Reporter
from onefed.flower.node.health import Health
from onefed.opennebula import onegate

IDLE = Activity(is_connected=True, is_working=False, message_count=0, round_name="")
FIRST = Activity(is_connected=True, is_working=True, message_count=1, round_name="1")


class Node:
    """Says what it is told to say."""

    def __init__(self) -> None:
        self.says: Activity | None = IDLE

    def __call__(self) -> Activity | None:
        return self.says


class Scene:
    """A node, its machine in a cloud, and who reports."""

    def __init__(self, cloud: Any, time: Any) -> None:
        self.node = Node()
        self.vm = cloud.add("supernode")
        self.gate: onegate.OneGate = cloud.gate(self.vm)
        self._cloud = cloud
        self._time = time
        self._seen = 0
        self.reporter = Reporter(self._publish, self.node, time)

    def _publish(self, name: str, value: str) -> None:
        self.gate.publish(name, value)

    def look(self, says: Activity | None, after_s: float = activity.LOOK_S) -> dict[str, str]:
        """What is published when it is looked at after so long."""
        self.node.says = says
        self._time.sleep(after_s)
        self.reporter.look()
        before, published = self._seen, self._cloud.published(self.vm)
        self._seen = len(published)
        return dict(published[before:])


@pytest.fixture
def scene(cloud, time) -> Scene:
    return Scene(cloud, time)


def test_only_what_changed_is_published(scene) -> None:
    assert scene.look(IDLE) == {"FL_TRAINING_ACTIVE": "NO", "FL_CLIENT_STATUS": "1"}
    assert scene.look(IDLE) == {}
    assert scene.look(FIRST) == {
        "FL_ROUND_NUMBER": "1",
        "FL_TRAINING_ACTIVE": "YES",
        "FL_CLIENT_STATUS": "2",
    }
    assert scene.look(FIRST) == {}


def test_rounds_that_end_between_two_looks_are_seen(scene) -> None:
    scene.look(IDLE)
    done = Activity(is_connected=True, is_working=False, message_count=7, round_name="4")
    found = scene.look(done)
    assert (found["FL_CLIENT_STATUS"], found["FL_ROUND_NUMBER"]) == ("2", "4")
    assert scene.look(done) == {"FL_TRAINING_ACTIVE": "NO", "FL_CLIENT_STATUS": "1"}


def test_a_node_that_starts_again_is_not_gone_and_one_that_stays_away_is(scene) -> None:
    scene.look(FIRST)
    assert scene.look(None) == {}
    away = Activity(is_connected=False, is_working=False, message_count=0, round_name="")
    assert scene.look(away) == {}
    assert scene.look(away, activity.GONE_S) == {
        "FL_TRAINING_ACTIVE": "NO",
        "FL_CLIENT_STATUS": "3",
    }
    assert scene.look(IDLE) == {"FL_CLIENT_STATUS": "1"}


@pytest.mark.parametrize("name", ["final", "", "-1", "٣", "1" * 10])
def test_a_round_that_is_no_number_is_not_published(scene, name: str) -> None:
    found = scene.look(Activity(True, True, 1, name))
    assert "FL_ROUND_NUMBER" not in found
    assert found["FL_CLIENT_STATUS"] == "2"


def test_what_onegate_did_not_take_is_tried_at_the_next_look(cloud, scene) -> None:
    good, scene.gate = scene.gate, cloud.gate(scene.vm, token="nobody")
    assert scene.look(FIRST) == {}
    scene.gate = good
    assert scene.look(FIRST)["FL_CLIENT_STATUS"] == "2"


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (
            {"status": "ok", "connected": True, "working": True, "messages": 3, "round": "2"},
            Activity(True, True, 3, "2"),
        ),
        ({"status": "ok"}, Activity(True, False, 0, "")),
        ({"connected": "x", "working": 1}, Activity(False, False, 0, "")),
        ({"messages": "many"}, None),
        ({"filler": "x" * activity.ANSWER_BYTES_MAX}, None),
        ([], None),
    ],
)
def test_what_a_node_answers(facts: Any, expected: Activity | None) -> None:
    server = Health("127.0.0.1", 0, lambda: facts)
    try:
        assert activity.ask(server.port) == expected
    finally:
        server.stop()
    assert activity.ask(server.port) is None


def test_without_onegate_or_a_node_there_is_nothing_to_report(tmp_path, capsys) -> None:
    facts = tmp_path / "facts"
    assert activity.main([str(facts)], io.BytesIO(b"VMID=1\n")) == 0
    assert activity.main([], io.BytesIO()) == 2
    assert "usage" in capsys.readouterr().err
