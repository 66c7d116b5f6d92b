"""The picture of a group without a coordinator, for terminals of every width."""

from __future__ import annotations

import io
import unicodedata
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from onefed.cli import peer_live
from onefed.cli.peer_live import Picture, Standing
from onefed.telemetry.group import AgreedRound, GroupView, MemberView
from onefed.telemetry.status import RoundView

HOSTILE = st.text(st.characters(exclude_categories=()), max_size=20)
NUMBERS = st.none() | st.floats(allow_nan=False, allow_infinity=False)

MEMBERS = st.builds(
    MemberView,
    HOSTILE,
    round_number=st.integers(0, 10**6),
    model_sha256=st.none() | HOSTILE,
    contributed=st.integers(0, 10**6),
    failures=st.integers(0, 10**6),
    reason=st.none() | HOSTILE,
)

STANDINGS = st.builds(
    Standing,
    state=st.sampled_from(sorted(peer_live.STATE_STYLES)) | HOSTILE,
    role=HOSTILE,
    leader=st.none() | HOSTILE,
    term=st.integers(0, 2**53),
    voters=st.lists(HOSTILE, max_size=2).map(tuple),
)

ROUNDS = st.builds(
    RoundView,
    round=st.integers(1, 10**6),
    responded=st.integers(0, 64),
    loss=NUMBERS,
    accuracy=NUMBERS,
    seconds=st.none() | st.floats(0, 1e6),
)


@st.composite
def pictures(draw: st.DrawFn) -> Picture:
    view = GroupView(draw(st.dictionaries(HOSTILE, MEMBERS, max_size=4)))
    for each in draw(st.lists(ROUNDS, max_size=6)):
        view.rounds[each.round] = AgreedRound(each, (), "ab" * 32, 1)
    view.notices.extend(draw(st.lists(HOSTILE, max_size=4)))
    return Picture(
        name=draw(HOSTILE),
        about=(draw(HOSTILE), draw(HOSTILE)),
        view=view,
        standings=draw(st.dictionaries(HOSTILE, STANDINGS, max_size=4)),
        rounds_total=draw(st.integers(1, 10**6)),
        status=draw(st.sampled_from(["starting", "training", "finished", "stopped", "failed"])),
        directory=draw(HOSTILE),
        elapsed_seconds=draw(st.floats(0, 1e8)),
        restarts=draw(st.integers(0, 10**6)),
    )


def drawn(picture: Picture, width: int) -> str:
    console = Console(file=io.StringIO(), width=width, record=True, highlight=False)
    console.print(peer_live.draw(picture))
    return console.export_text()


def packed(text: str) -> str:
    return "".join(each for each in text if not each.isspace() and each not in "│╭╮╰╯─")


def picture_of(**changed: Any) -> Picture:
    view = GroupView(
        {
            "node-0": MemberView("node-0", 2, "ab" * 32, contributed=1),
            "node-1": MemberView("node-1", 2, "ab" * 32, contributed=2),
            "node-2": MemberView("node-2", 1, "cd" * 32, contributed=1, reason="no data\nlook"),
        }
    )
    for number, loss, accuracy in ((1, 2.0, 0.5), (2, 1.0, 0.75)):
        known = RoundView(round=number, responded=2, loss=loss, accuracy=accuracy, seconds=4.0)
        view.rounds[number] = AgreedRound(known, ("node-0", "node-1"), "ab" * 32, 3)
    view.notices.append("node-1: leader: node-1 leads term 3")
    voters = ("node-0", "node-1", "node-2")
    facts: dict[str, Any] = {
        "name": "peers",
        "about": ("image-classification", "FedMedian", "ring"),
        "view": view,
        "standings": {
            "node-0": Standing("training", "follower", "node-1", 3, voters),
            "node-1": Standing("training", "leader", "node-1", 3, voters),
            "node-2": Standing("killed"),
        },
        "rounds_total": 5,
        "status": "training",
        "directory": "/srv/peers",
        "elapsed_seconds": 75.0,
        "restarts": 1,
    }
    return Picture(**{**facts, **changed})


@settings(deadline=None, max_examples=25)
@given(pictures(), st.integers(20, 200))
def test_any_group_can_be_drawn_at_any_width_and_moves_no_cursor(
    picture: Picture, width: int
) -> None:
    text = drawn(picture, width)
    assert {each for each in text if unicodedata.category(each) == "Cc"} <= {"\n"}
    assert picture.status in text


@pytest.mark.parametrize("width", range(20, 201, 12))
def test_what_matters_is_seen_at_every_width(width: int) -> None:
    text = packed(drawn(picture_of(), width))
    for fact in (
        *("peers", "training", "round2of5", "node-1leadsterm3", "2of3votersthere"),
        *("node-0", "node-1", "node-2", "killed", "nodata"),
        *("0.5000→0.7500", "2.0000→1.0000", "elapsed1:15", "about0:12left", "restarts1"),
        "/srv/peers",
    ):
        assert fact in text


@pytest.mark.parametrize("width", [80, 120, 200])
def test_a_terminal_of_the_usual_width_shows_everything_unbroken(width: int) -> None:
    text = drawn(picture_of(), width)
    for fact in (
        "peers · image-classification · FedMedian · ring",
        "round 2 of 5, node-1 leads term 3, 2 of 3 voters there",
        "node-1  training  leader    2      round 2    abababababab",
        "node-2  killed              1      round 1    cdcdcdcdcdcd",
        "node-2: no data",
        "    2    0.7500  1.0000        2      4.0",
        "node-1: leader: node-1 leads term 3",
    ):
        assert fact in text
    assert "…" not in text


def test_a_member_of_another_command_and_one_that_has_left_are_shown_as_they_say() -> None:
    picture = picture_of()
    voters = ("node-0", "node-1", "node-3")
    standings = {
        "node-0": Standing("training", "leader", "node-0", 4, voters, 7, "ef" * 32),
        "node-1": Standing("training", "follower", "node-0", 4, voters, 7, "ef" * 32),
        "node-2": Standing("training", "follower", "node-1", 3, ("node-1", "node-2"), 5, "cd" * 32),
        "node-3": Standing("training", "follower", "node-0", 4, voters, 7, "ef" * 32),
    }
    text = " ".join(drawn(replace(picture, standings=standings), 100).split())

    assert "node-3 training follower 7 efefefefefef" in text
    assert "node-2 training no vote 5 round 1" in text
    assert "node-0 leads term 4, 3 of 3 voters there" in text


def test_members_with_different_models_of_one_round_are_told() -> None:
    picture = picture_of()
    assert "different models" not in drawn(picture, 100)
    picture.view.split = 2
    assert "different models of round 2" in drawn(picture, 100)


def test_many_members_are_counted_by_their_state() -> None:
    standings = {f"node-{index}": Standing("training") for index in range(19)}
    standings["node-19"] = Standing("gone")
    text = drawn(picture_of(standings=standings), 100)
    assert "and 8 more: 1 gone, 7 training" in text
