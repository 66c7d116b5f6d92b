"""The picture of a federation, for terminals of every width."""

from __future__ import annotations

import io
import unicodedata
from datetime import UTC, datetime, timedelta
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from onefed.cli import live
from onefed.telemetry.status import FederationView, KillView, NodeState, NodeView, RoundView, Status

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)

HOSTILE = st.text(st.characters(exclude_categories=()), max_size=80)
"""With control characters, line breaks, mark-up and halves of characters."""

NUMBERS = st.none() | st.floats(allow_nan=False, allow_infinity=False)

NODES = st.builds(
    NodeView,
    vm=st.none() | HOSTILE,
    node_id=st.none() | HOSTILE,
    partition=st.none() | st.integers(0, 63),
    state=st.sampled_from(get_args(NodeState)),
    boot_step=st.none() | HOSTILE,
    ready=st.booleans(),
    last_reply_round=st.none() | st.integers(0, 10**6),
    last_train_seconds=st.none() | st.floats(0, 1e6),
    reason=st.none() | HOSTILE,
)

ROUNDS = st.builds(
    RoundView,
    round=st.integers(1, 10**6),
    selected=st.none() | st.integers(0, 64),
    responded=st.none() | st.integers(0, 64),
    loss=NUMBERS,
    accuracy=NUMBERS,
    seconds=st.none() | st.floats(0, 1e6),
)

VIEWS = st.builds(
    FederationView,
    name=st.none() | HOSTILE,
    app=st.none() | HOSTILE,
    strategy=st.none() | HOSTILE,
    directory=st.none() | HOSTILE,
    status=st.sampled_from(get_args(Status)),
    details=st.none() | HOSTILE,
    rounds_total=st.none() | st.integers(0, 10**6),
    rounds=st.lists(ROUNDS, max_size=20).map(tuple),
    nodes=st.dictionaries(HOSTILE, NODES, max_size=20),
    failures=st.integers(0, 10**6),
    restarts=st.integers(0, 10**6),
    checkpoint=st.none() | HOSTILE,
    notices=st.lists(HOSTILE, max_size=5).map(tuple),
    started_at=st.none() | st.floats(0, 1e8).map(lambda ago: NOW - timedelta(seconds=ago)),
)


def drawn(view: FederationView, width: int) -> str:
    """The picture as text, as it would be seen."""
    console = Console(file=io.StringIO(), width=width, record=True, highlight=False)
    console.print(live.draw(view, NOW))
    return console.export_text()


def packed(text: str) -> str:
    """Without frames, spaces and line breaks, which a narrow picture has anywhere."""
    return "".join(each for each in text if not each.isspace() and each not in "│╭╮╰╯─")


def view_of(**changed: Any) -> FederationView:
    nodes = {
        "superlink": NodeView(vm="superlink", state="ready", ready=True),
        "supernode/0": NodeView(
            vm="supernode/0",
            state="training",
            ready=True,
            partition=0,
            last_reply_round=2,
            last_train_seconds=1.25,
        ),
        "supernode/1": NodeView(
            vm="supernode/1", state="failed", reason="its training data is gone\nlook there"
        ),
    }
    rounds = (
        RoundView(round=1, selected=2, responded=2, loss=2.0, accuracy=0.5, seconds=4.0),
        RoundView(round=2, selected=2, responded=2, loss=1.0, accuracy=0.75, seconds=4.0),
        RoundView(round=3, selected=2),
    )
    facts: dict[str, Any] = {
        "name": "demo",
        "app": "image-classification",
        "strategy": "FedAvg",
        "directory": "/srv/demo",
        "status": "training",
        "rounds_total": 5,
        "rounds": rounds,
        "nodes": nodes,
        "checkpoint": "/srv/demo/checkpoint.npz",
        "restarts": 1,
        "started_at": NOW - timedelta(seconds=75),
    }
    return FederationView(**{**facts, **changed})


@settings(deadline=None)
@given(VIEWS, st.integers(20, 200))
def test_any_federation_can_be_drawn_at_any_width_and_moves_no_cursor(
    view: FederationView, width: int
) -> None:
    text = drawn(view, width)
    assert packed(text)
    assert {each for each in text if unicodedata.category(each) == "Cc"} <= {"\n"}
    assert f"round {view.rounds_done} of" in text or not view.rounds_total or width < 60
    assert view.status in text


@pytest.mark.parametrize("width", range(20, 201, 6))
def test_what_matters_is_seen_at_every_width(width: int) -> None:
    text = packed(drawn(view_of(), width))
    for fact in (
        *("demo", "training", "round3", "round2of5"),
        *("superlink", "supernode/0", "supernode/1", "failed"),
        *("itstrainingdataisgone", "0.5000→0.7500", "2.0000→1.0000"),
        *("elapsed1:15", "about0:12left", "restarts1"),
        *("/srv/demo", "/srv/demo/checkpoint.npz"),
    ):
        assert fact in text


@pytest.mark.parametrize("width", [80, 120, 200])
def test_a_terminal_of_the_usual_width_shows_everything_unbroken(width: int) -> None:
    """A long reason must not take the columns of the other machines."""
    text = drawn(view_of(), width)
    for fact in (
        "demo · image-classification · FedAvg",
        "round 2 of 5, training round 3",
        "accuracy  ▁█  0.5000 → 0.7500",
        "supernode/0  training  0          round 2, 1.2 s",
        "supernode/1: its training data is gone",
        "    2    0.7500  1.0000        2      4.0",
    ):
        assert fact in text
    assert "look there" not in text
    assert "…" not in text


def test_many_machines_are_counted_by_their_state() -> None:
    nodes = {
        f"supernode/{index}": NodeView(
            vm=f"supernode/{index}", state="failed" if index == 19 else "idle"
        )
        for index in range(20)
    }
    text = drawn(view_of(nodes=nodes), 100)
    assert "supernode/11" in text
    assert "supernode/12" not in text
    assert "and 8 more: 1 failed, 7 idle" in text


def test_a_boot_is_shown_by_its_steps() -> None:
    booting = NodeView(vm="superlink", state="booting", boot_step="SL-07a TLS setup")
    text = drawn(view_of(status="booting", rounds=(), nodes={"superlink": booting}), 100)
    assert "SL-07a TLS setup" in text
    assert "round 0 of 5" in text


def test_before_anything_is_known_there_is_a_picture() -> None:
    text = drawn(FederationView(), 80)
    assert "no machine yet" in text
    assert "no round yet" in text
    assert "waiting" in text


def test_what_came_from_elsewhere_is_no_mark_up() -> None:
    text = drawn(view_of(details="[red]x[/red] [/]", name="[b]"), 100)
    assert "[red]x[/red] [/]" in text
    assert "[b]" in text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (0.6, "0:01"), (75, "1:15"), (3600, "1:00:00"), (359_999, "99:59:59")],
)
def test_durations_are_written_as_clocks_do(seconds: float, text: str) -> None:
    assert live.duration(seconds) == text


def test_machines_stand_in_the_order_of_their_numbers() -> None:
    """They boot in any order; a picture whose lines jump cannot be read."""
    names = ["supernode/10", "supernode/2", "superlink", "supernode/0"]
    nodes = {
        name: NodeView(vm=name, role=name.partition("/")[0], state="idle", ready=True)
        for name in names
    }
    text = drawn(FederationView(name="demo", nodes=nodes), 100)
    places = [text.index(name) for name in ("superlink", "supernode/0", "supernode/2")]
    assert [*places, text.index("supernode/10")] == sorted([*places, text.index("supernode/10")])


def test_kills_are_a_panel_of_their_own() -> None:
    kills = (KillView("serverapp", 1, 1, 5, 1, 4.25), KillView("superlink", 3, 2, 5))
    out = io.StringIO()
    Console(file=out, width=80).print(live.draw(FederationView(kills=kills), NOW))
    shown = out.getvalue()
    assert "chaos · 2 of 5 kills" in shown
    first, second = (line for line in shown.splitlines() if "in round" in line)
    assert "serverapp" in first
    assert "round 1 done 4.2 s later" in first
    assert "superlink" in second
    assert "✗" in second
