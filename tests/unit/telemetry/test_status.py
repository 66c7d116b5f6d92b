"""What a person sees while a small run goes through all its troubles."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onefed.telemetry import events as ev
from onefed.telemetry import lines, status
from onefed.telemetry.status import FederationView

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

SHA256 = "ab" * 32


class Story:
    """A view that is told one event after the other, a second apart."""

    def __init__(self, clock: Callable[[], datetime]) -> None:
        self.clock = clock
        self.view = FederationView()

    def tell(self, *told: ev.Event) -> FederationView:
        for event in told:
            line = lines.event_line(event, timestamp=self.clock(), role="local", source="x:1")
            record = lines.parse(line)
            assert record is not None
            self.view = status.apply(self.view, record)
        return self.view

    def states(self) -> dict[str, str]:
        return {name: node.state for name, node in self.view.nodes.items()}

    def round(self, number: int, seconds: float) -> FederationView:
        """A round without trouble, with both nodes."""
        return self.tell(
            ev.RoundStart(number, 2, "FedAvg"),
            *(ev.ClientReply(number, "train", node, node, 100, seconds) for node in ("71", "72")),
            ev.RoundEnd(number, 2, 1 / number, 1 - 0.5 / number, seconds),
        )


@pytest.fixture
def story(clock: Callable[[], datetime]) -> Story:
    return Story(clock)


@pytest.fixture
def booted(story: Story) -> Story:
    story.tell(ev.FederationStart("demo", 2, 5, "FedAvg", "image-classification", 7, "/srv/demo"))
    for vm in ("hub", "node-1", "node-2"):
        role = "superlink" if vm == "hub" else "supernode"
        story.tell(
            ev.VmState(vm, role, "booting"),
            ev.BootStep(vm, role, "4", "Validate", "done"),
            ev.BootStep(vm, role, "7", "Discovery", "done"),
            ev.VmState(vm, role, "ready"),
        )
    story.tell(
        ev.ClientJoin("71", "127.0.0.1:1"),  # heard of before the machine's name is known
        ev.NodeRegistered("node-1", "71", 0),
        ev.NodeRegistered("node-2", "72", 1),
        ev.ClientJoin("72", "127.0.0.1:2"),
        ev.RunSubmitted("demo-1", "42", 1),
        ev.RunStatus("running", None),
        ev.TrainingStart("FedAvg", 5, 2),
    )
    return story


def test_booting(story: Story) -> None:
    view = story.tell(
        ev.FederationStart("demo", 2, 5, "FedAvg", "image-classification", 7, "/srv/demo"),
        ev.VmState("hub", "superlink", "booting"),
        ev.BootStep("hub", "superlink", "7a", "TLS setup", "done"),
        ev.VmState("node-1", "supernode", "booting"),
        ev.BootStep("node-1", "supernode", "7", "Discovery", "failed", "no coordinator"),
    )
    assert (view.name, view.status, view.rounds_total) == ("demo", "booting", 5)
    assert (view.rounds_done, view.round_current, view.eta_seconds()) == (0, None, None)
    hub, node = view.nodes["hub"], view.nodes["node-1"]
    assert (hub.state, hub.boot_step, hub.ready, hub.role) == (
        "booting",
        "7a TLS setup",
        False,
        "superlink",
    )
    assert (node.state, node.boot_step, node.reason) == ("failed", "7 Discovery", "no coordinator")


def test_machines_and_nodes_are_the_same_thing(booted: Story) -> None:
    assert booted.states() == {"hub": "ready", "node-1": "idle", "node-2": "idle"}
    node = booted.view.nodes["node-1"]
    assert (node.node_id, node.partition) == ("71", 0)
    assert (node.ready, node.registered, node.online) == (True, True, True)
    assert (booted.view.status, booted.view.run_status, booted.view.attempt) == (
        "training",
        "running",
        1,
    )


def test_a_round(booted: Story) -> None:
    view = booted.tell(ev.RoundStart(1, 2, "FedAvg"))
    assert view.round_current == 1
    assert booted.states() == {"hub": "ready", "node-1": "training", "node-2": "training"}
    view = booted.tell(ev.ClientReply(1, "train", "71", "0", 100, 2.5))
    assert booted.states()["node-1"] == "idle"
    assert booted.states()["node-2"] == "training"
    assert view.nodes["node-1"].last_reply_round == 1
    assert view.nodes["node-1"].last_train_seconds == 2.5
    view = booted.tell(ev.RoundEnd(1, 1, None, None, 4.0), ev.EvaluationResult(1, 0.5, 0.8, 10))
    assert booted.states()["node-2"] == "idle"
    assert (view.rounds_done, view.round_current) == (1, None)
    assert view.rounds == (
        status.RoundView(
            round=1, selected=2, responded=1, loss=0.5, accuracy=0.8, seconds=4.0, repeats=0
        ),
    )
    assert view.eta_seconds() == 16.0


def test_some_of_the_nodes_are_selected(booted: Story) -> None:
    booted.tell(ev.RoundStart(1, 1, "FedAvg"))
    assert booted.states() == {"hub": "ready", "node-1": "idle", "node-2": "idle"}


def test_the_estimate_is_the_median_of_the_last_rounds(booted: Story) -> None:
    booted.round(1, 60.0)
    booted.round(2, 4.0)
    view = booted.round(3, 6.0)
    assert view.eta_seconds() == 12.0
    assert [each.accuracy for each in view.rounds] == [0.5, 0.75, 0.833333]
    assert view.loss == 0.333333


def test_trouble(booted: Story) -> None:
    view = booted.tell(
        ev.RoundStart(1, 2, "FedAvg"),
        ev.ClientFailure(1, "72", "timeout"),
        ev.TrainingStalled(1, 600.0, 1, 2),
    )
    assert (view.status, view.details) == (
        "stalled",
        "round 1 waits since 600.0 s: 1 of 2 clients connected",
    )
    assert view.round_current == 1
    assert (view.nodes["node-2"].state, view.nodes["node-2"].reason) == ("failed", "timeout")
    view = booted.tell(
        ev.ServiceRestart("node-2", "supernode", -9, 1, 0.5),
        ev.ClientLeave("72", "killed"),
        ev.RoundRepeated(1, "deadline", 1, 2),
        ev.ClientJoin("72", "127.0.0.1:3"),
    )
    assert (view.failures, view.restarts, view.nodes["node-2"].restarts) == (1, 1, 1)
    view = booted.round(1, 3.0)
    assert (view.status, view.details) == ("training", None)
    assert [(each.round, each.repeats, each.done) for each in view.rounds] == [(1, 1, True)]
    assert booted.states() == {"hub": "ready", "node-1": "idle", "node-2": "idle"}


def test_kills_are_listed_with_when_training_had_gone_on(booted: Story) -> None:
    view = booted.tell(ev.ProcessKilled("serverapp", 1, 1, 2))
    assert [(kill.victim, kill.seconds) for kill in view.kills] == [("serverapp", None)]
    view = booted.tell(
        ev.ProcessRecovered("serverapp", 1, 1, 4.25), ev.ProcessKilled("superlink", 2, 2, 2)
    )
    assert [(kill.recovered_round, kill.seconds) for kill in view.kills] == [
        (1, 4.25),
        (None, None),
    ]
    assert view.failures == 0, "a kill on purpose is no failure"


def test_a_coordinator_that_comes_back_keeps_the_history(booted: Story) -> None:
    booted.round(1, 2.0)
    booted.tell(ev.RoundStart(2, 2, "FedAvg"))
    view = booted.tell(
        ev.ServiceRestart("hub", "serverapp", -9, 1, 0.0),
        ev.RunSubmitted("demo-1", "43", 2),
        ev.RunResumed("demo-1", 2),
    )
    assert view.details == "run demo-1 goes on with round 2"
    view = booted.tell(ev.TrainingStart("FedAvg", 5, 2))
    view = booted.round(2, 2.0)
    assert [each.round for each in view.rounds if each.done] == [1, 2]
    assert (view.attempt, view.restarts) == (2, 2)


def test_the_end(booted: Story, clock: Callable[[], datetime]) -> None:
    for number in range(1, 6):
        view = booted.round(number, 2.0)
    begin = view.started_at
    assert begin is not None
    view = booted.tell(
        ev.CheckpointSaved(5, "/srv/demo/c5.npz", 10),
        ev.RecoverySaved(5, SHA256, 10),
        ev.TrainingEnd(5, 0.2, 0.9, 10.0),
        ev.FederationEnd("finished", 5, 5, 0.2, 0.9, SHA256, None, 2, 1, 30.0),
    )
    assert (view.status, view.rounds_done, view.eta_seconds()) == ("finished", 5, None)
    assert (view.checkpoint, view.model_sha256) == ("/srv/demo/c5.npz", SHA256)
    assert (view.restarts, view.failures) == (2, 1)
    ended = view.ended_at
    assert ended is not None
    for _ in range(5):
        clock()
    assert view.elapsed_seconds(clock()) == (ended - begin).total_seconds()


def test_a_federation_that_is_started_again_goes_on_in_the_same_view(booted: Story) -> None:
    booted.round(1, 2.0)
    view = booted.tell(
        ev.FederationEnd("stopped", 1, 5, 1.0, 0.5, SHA256, None, 0, 0, 9.0),
        ev.FederationStart("demo", 2, 5, "FedAvg", "image-classification", 7, "/srv/demo"),
    )
    assert (view.status, view.rounds_done, view.ended_at) == ("booting", 1, None)
    assert view.elapsed_seconds(view.updated_at or view.started_at) == 0  # type: ignore[arg-type]


def test_notices_are_shown_safely_and_the_oldest_dropped(story: Story) -> None:
    view = story.tell(*(ev.Notice("WARNING", f"n{i}\x1b") for i in range(30)))
    assert len(view.notices) == status.NOTICES_KEPT_MAX
    assert view.notices[-1] == "n29\\x1b"


def test_an_unmanaged_app_says_only_that_it_runs(story: Story) -> None:
    view = story.tell(
        ev.FederationStart("demo", 2, 5, "none", "./app", 7, "/srv/demo"),
        ev.RunStatus("running", None),
        ev.AppLog("hello"),
    )
    assert view.status == "training"


def test_the_number_of_machines_is_bounded(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "NODES_MAX", 3)
    view = story.tell(*(ev.ClientJoin(str(i), "x") for i in range(9)))
    view = story.tell(*(ev.NodeRegistered(f"vm-{i}", str(i), i) for i in range(9)))
    assert len(view.nodes) == 3
    assert len(view.vm_by_node_id) == 3


@settings(deadline=None)  # a busy machine is no failure
@given(st.lists(st.integers(1, 30), max_size=40))
def test_rounds_stay_in_order_and_come_once(numbers: list[int]) -> None:
    view = FederationView()
    for number in numbers:
        view = status._with_round(view, status.RoundView(round=number))
    assert [each.round for each in view.rounds] == sorted(set(numbers))


def test_a_view_is_never_changed_in_place(booted: Story) -> None:
    before = booted.view
    nodes = dict(before.nodes)
    booted.round(1, 2.0)
    assert before.nodes == nodes
    assert before.rounds == ()
    assert replace(before) == before


def test_a_federation_says_what_it_waits_for(story: Story) -> None:
    start = ev.FederationStart("demo", 3, 0, "FedAvg", "none", 7, "/srv/demo")
    view = story.tell(start, ev.RunStatus("waiting", "no app was submitted yet"))
    assert (view.status, view.details) == ("waiting", "run is waiting: no app was submitted yet")
    view = story.tell(ev.TrainingStalled(1, 60.0, 1, 3), ev.RunSubmitted("r", "1", 1))
    assert (view.status, view.details) == ("waiting", "The app starts.")
    view = story.tell(ev.RunStatus("running"))
    assert (view.status, view.details) == ("training", None)
