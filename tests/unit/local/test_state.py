"""State directories: names, places, and finding them again."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onefed.errors import InUseError, NotFoundError
from onefed.local import ownership, state
from onefed.local.state import BadNameError, StateDir
from onefed.telemetry import events
from onefed.telemetry.log import EventLog

Make = Callable[..., StateDir]
Starter = Callable[..., "subprocess.Popen[str]"]


# --- names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a", "fed-1", "0", "a.b_c-d", "x" * 63])
def test_lower_case_names_are_taken(name: str) -> None:
    assert state.check_name(name) == name


@pytest.mark.parametrize(
    "name",
    ["", "A", "-x", ".", "..", ".x", "a/b", "a b", "a\n", "ä", "x" * 64, "../../etc", "a\x00"],
)
def test_other_names_are_refused_with_what_would_do(name: str) -> None:
    with pytest.raises(BadNameError) as refused:
        state.check_name(name)
    assert repr(name) in refused.value.message
    assert "lower-case" in (refused.value.hint or "")
    assert refused.value.exit_code == 2


@given(st.text())
def test_a_name_that_is_taken_stays_inside_its_folder(name: str) -> None:
    try:
        state.check_name(name)
    except BadNameError:
        return
    assert Path("/base", name).parent == Path("/base")
    assert len(os.fsencode(name)) <= 63


def test_the_first_free_number_makes_a_name(make: Make, home: Path) -> None:
    assert state.free_name(home) == "fed-1"
    make("fed-1")
    make("fed-3")
    assert state.free_name(home) == "fed-2"


# --- the home -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"ONEFED_HOME": "/srv/fl", "XDG_STATE_HOME": "/x", "HOME": "/h"}, "/srv/fl"),
        ({"ONEFED_HOME": "~/fl", "HOME": "/h"}, "/h/fl"),
        ({"ONEFED_HOME": "", "XDG_STATE_HOME": "/x", "HOME": "/h"}, "/x/onefed"),
        ({"XDG_STATE_HOME": "relative", "HOME": "/h"}, "/h/.local/state/onefed"),
        ({"HOME": "/h"}, "/h/.local/state/onefed"),
    ],
)
def test_the_environment_says_where_federations_lie(environ: dict[str, str], expected: str) -> None:
    assert state.home(environ) == Path(expected)


@pytest.mark.parametrize("environ", [{}, {"HOME": ""}])
def test_without_home_the_user_database_is_asked(environ: dict[str, str]) -> None:
    found = state.home(environ)
    assert found.is_absolute()
    assert found.parts[-3:] == (".local", "state", "onefed")


# --- claims ---------------------------------------------------------------------------------------


def test_a_claim_makes_an_own_folder_for_its_user_alone(home: Path) -> None:
    made = state.claim(home, "demo", None)
    assert made.folder == home / "demo"
    assert made.folder.stat().st_mode & 0o777 == 0o700
    assert ownership.owner(made) is None


def test_a_taken_name_is_refused_with_the_ways_on(make: Make, home: Path) -> None:
    make("demo")
    with pytest.raises(InUseError) as refused:
        state.claim(home, "demo", None)
    assert str(home / "demo") in refused.value.message
    for way in ("onefed resume demo", "--name", "--replace"):
        assert way in (refused.value.hint or "")


def test_a_folder_elsewhere_is_found_by_its_name(make: Make, home: Path, tmp_path: Path) -> None:
    make("demo", tmp_path / "far/away")
    assert state.find(home, "demo").folder == tmp_path / "far/away"
    assert [each.folder for each in state.all_of(home)] == [tmp_path / "far/away"]


def test_a_taken_folder_is_refused_by_the_name_it_has(
    make: Make, home: Path, tmp_path: Path
) -> None:
    make("first", tmp_path / "far")
    with pytest.raises(InUseError, match="'first'") as refused:
        state.claim(home, "second", tmp_path / "far")
    assert "onefed resume first" in (refused.value.hint or "")


def test_a_name_that_leads_elsewhere_is_refused(make: Make, home: Path, tmp_path: Path) -> None:
    make("demo", tmp_path / "one")
    with pytest.raises(InUseError, match="'demo' belongs to the federation in") as refused:
        state.claim(home, "demo", tmp_path / "two")
    assert "onefed down demo --purge" in (refused.value.hint or "")
    assert not (tmp_path / "two").exists()


@pytest.mark.parametrize("inside", ["federation.txt", ".hidden", "sub/"])
def test_a_foreign_folder_is_not_touched(home: Path, tmp_path: Path, inside: str) -> None:
    place = tmp_path / "photos"
    place.mkdir()
    (place / inside).mkdir() if inside.endswith("/") else (place / inside).write_text("mine")
    before = sorted(place.rglob("*"))
    with pytest.raises(InUseError, match="is not empty"):
        state.claim(home, "demo", place)
    assert sorted(place.rglob("*")) == before
    assert not home.exists()


def test_an_empty_folder_is_taken(home: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert state.claim(home, "demo", tmp_path / "empty").folder == tmp_path / "empty"


def test_a_file_is_no_place(home: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InUseError, match="is not a folder"):
        state.claim(home, "demo", tmp_path / "file")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_another_user_is_refused(home: Path, tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    os.chown(tmp_path / "theirs", 12345, 12345)
    with pytest.raises(InUseError, match="belongs to another user"):
        state.claim(home, "demo", tmp_path / "theirs")


def test_a_link_as_folder_is_resolved_so_that_its_processes_are_found(
    make: Make, home: Path, tmp_path: Path
) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    made = make("demo", tmp_path / "link")
    assert made.folder == tmp_path / "real" == state.find(home, "demo").folder


def test_a_name_whose_folder_was_deleted_by_hand_is_free_again(home: Path, tmp_path: Path) -> None:
    old = state.claim(home, "demo", tmp_path / "gone")
    old.lock_file.unlink()
    old.folder.rmdir()
    assert state.claim(home, "demo", None).folder == home / "demo"
    assert not (home / "demo").is_symlink()


def test_of_many_that_claim_one_place_at_once_one_gets_it(home: Path) -> None:
    outcomes: list[str] = []
    barrier = threading.Barrier(8)

    def race() -> None:
        barrier.wait()
        try:
            state.claim(home, "demo", None)
        except InUseError:
            outcomes.append("refused")
        else:
            outcomes.append("got it")

    racers = [threading.Thread(target=race) for _ in range(8)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()
    assert sorted(outcomes) == ["got it"] + ["refused"] * 7


# --- finding --------------------------------------------------------------------------------------


def test_nothing_is_found_in_an_empty_home(home: Path) -> None:
    assert state.all_of(home) == []
    with pytest.raises(NotFoundError, match="no federation yet") as refused:
        state.find(home, None)
    assert refused.value.hint == "Start one with: onefed up"
    with pytest.raises(NotFoundError, match="'demo'"):
        state.find(home, "demo")


def test_all_are_found_by_name_and_nothing_else(make: Make, home: Path) -> None:
    for name in ("b", "a"):
        make(name)
    (home / "notes.txt").write_text("")
    (home / "empty").mkdir()
    (home / "dangling").symlink_to(home / "nowhere")
    (home / "loop").symlink_to(home / "loop")
    assert [each.folder.name for each in state.all_of(home)] == ["a", "b"]


def test_without_a_name_the_newest_is_meant(make: Make, home: Path) -> None:
    for age, name in enumerate(("new", "old")):
        made = make(name)
        os.utime(made.spec_file, (1000 - age, 1000 - age))
    assert state.find(home, None).folder.name == "new"


def test_without_a_name_one_that_runs_is_meant_first(make: Make, home: Path, held: Starter) -> None:
    for age, name in enumerate(("new", "old")):
        made = make(name)
        os.utime(made.spec_file, (1000 - age, 1000 - age))
    held(StateDir(home / "old"))
    assert state.find(home, None).folder.name == "old"
    assert [each.folder.name for each in ownership.running(state.all_of(home))] == ["old"]


# --- news -----------------------------------------------------------------------------------------


def test_news_are_what_happens_from_now_on(make: Make) -> None:
    """However long the log has grown: what an old start said must not end the next one."""
    made = make()
    log = EventLog(made.events, "cloud", lambda: datetime(2026, 1, 1, tzinfo=UTC))
    log.emit(events.Notice("INFO", "old " + "x" * 4000))
    one = made.events.read_bytes()
    made.events.write_bytes(one * (9 * 2**20 // len(one)))
    follower = state.news(made.events)
    log.emit(events.Notice("INFO", "new"))
    assert [record.event for record in follower.poll()] == [events.Notice("INFO", "new")]
    log.close()
