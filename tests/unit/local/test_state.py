"""State directories: names, places, the lock, and the processes that carry them."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onefed.errors import InUseError, NotFoundError, StorageError
from onefed.local import state
from onefed.local.state import BadNameError, Spec, StateDir
from onefed.telemetry import events
from onefed.telemetry.log import EventLog

HOLDER = """
import sys
from pathlib import Path
from onefed.local import state
with state.hold(state.StateDir(Path(sys.argv[1]))):
    print("held", flush=True)
    sys.stdin.read()
"""
"""Holds the state directory until its standard input is closed."""

BYSTANDER = """
import sys
print("here", flush=True)
sys.stdin.read()
"""

STUBBORN = """
import signal, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("here", flush=True)
while True:
    signal.pause()
"""

Starter = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A state home that does not exist yet."""
    return tmp_path / "home"


@pytest.fixture
def program() -> Iterator[Starter]:
    """Starts a Python program and waits until it has said its first word."""
    started = []

    def start(code: str, *arguments: object, carries: Path | None = None) -> subprocess.Popen[str]:
        carried = [] if carries is None else [f"{state.STATE_VARIABLE}={carries}"]
        process = subprocess.Popen(
            ["env", *carried, sys.executable, "-c", code, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline(), "it ended without a word"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def make(base: Path, name: str = "demo", **changed: object) -> StateDir:
    """A federation as ``onefed up`` leaves it before its start."""
    made = state.claim(base, name, None)
    made.write_spec(dataclasses.replace(spec_of(name), **changed))
    return made


def spec_of(name: str) -> Spec:
    return Spec(
        name=name,
        nodes=2,
        app="image-classification",
        managed=True,
        rounds=5,
        strategy="FedAvg",
        seed=0,
        context={"FL_NUM_ROUNDS": "5"},
    )


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


def test_the_first_free_number_makes_a_name(base: Path) -> None:
    assert state.free_name(base) == "fed-1"
    make(base, "fed-1")
    make(base, "fed-3")
    assert state.free_name(base) == "fed-2"


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


def test_a_claim_makes_an_own_folder_for_its_user_alone(base: Path) -> None:
    made = state.claim(base, "demo", None)
    assert made.folder == base / "demo"
    assert made.folder.stat().st_mode & 0o777 == 0o700
    assert state.owner(made) is None


def test_a_taken_name_is_refused_with_the_ways_on(base: Path) -> None:
    make(base, "demo")
    with pytest.raises(InUseError) as refused:
        state.claim(base, "demo", None)
    assert str(base / "demo") in refused.value.message
    for way in ("onefed resume demo", "--name", "--replace"):
        assert way in (refused.value.hint or "")


def test_a_folder_elsewhere_is_found_by_its_name(base: Path, tmp_path: Path) -> None:
    made = state.claim(base, "demo", tmp_path / "far/away")
    made.write_spec(spec_of("demo"))
    assert state.find(base, "demo").folder == tmp_path / "far/away"
    assert [each.folder for each in state.all_of(base)] == [tmp_path / "far/away"]


def test_a_taken_folder_is_refused_by_the_name_it_has(base: Path, tmp_path: Path) -> None:
    state.claim(base, "first", tmp_path / "far").write_spec(spec_of("first"))
    with pytest.raises(InUseError, match="'first'") as refused:
        state.claim(base, "second", tmp_path / "far")
    assert "onefed resume first" in (refused.value.hint or "")


def test_a_name_that_leads_elsewhere_is_refused(base: Path, tmp_path: Path) -> None:
    state.claim(base, "demo", tmp_path / "one").write_spec(spec_of("demo"))
    with pytest.raises(InUseError, match="'demo' belongs to the federation in") as refused:
        state.claim(base, "demo", tmp_path / "two")
    assert "onefed down demo --purge" in (refused.value.hint or "")
    assert not (tmp_path / "two").exists()


@pytest.mark.parametrize("inside", ["federation.txt", ".hidden", "sub/"])
def test_a_foreign_folder_is_not_touched(base: Path, tmp_path: Path, inside: str) -> None:
    place = tmp_path / "photos"
    place.mkdir()
    (place / inside).mkdir() if inside.endswith("/") else (place / inside).write_text("mine")
    before = sorted(place.rglob("*"))
    with pytest.raises(InUseError, match="is not empty"):
        state.claim(base, "demo", place)
    assert sorted(place.rglob("*")) == before
    assert not base.exists()


def test_an_empty_folder_is_taken(base: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert state.claim(base, "demo", tmp_path / "empty").folder == tmp_path / "empty"


def test_a_file_is_no_place(base: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InUseError, match="is not a folder"):
        state.claim(base, "demo", tmp_path / "file")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_another_user_is_refused(base: Path, tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    os.chown(tmp_path / "theirs", 12345, 12345)
    with pytest.raises(InUseError, match="belongs to another user"):
        state.claim(base, "demo", tmp_path / "theirs")


def test_a_link_as_folder_is_resolved_so_that_its_processes_are_found(
    base: Path, tmp_path: Path
) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    made = state.claim(base, "demo", tmp_path / "link")
    made.write_spec(spec_of("demo"))
    assert made.folder == tmp_path / "real" == state.find(base, "demo").folder


def test_a_name_whose_folder_was_deleted_by_hand_is_free_again(base: Path, tmp_path: Path) -> None:
    old = state.claim(base, "demo", tmp_path / "gone")
    old.lock_file.unlink()
    old.folder.rmdir()
    assert state.claim(base, "demo", None).folder == base / "demo"
    assert not (base / "demo").is_symlink()


def test_of_many_that_claim_one_place_at_once_one_gets_it(base: Path) -> None:
    outcomes: list[str] = []
    barrier = threading.Barrier(8)

    def race() -> None:
        barrier.wait()
        try:
            state.claim(base, "demo", None)
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


def test_nothing_is_found_in_an_empty_home(base: Path) -> None:
    assert state.all_of(base) == []
    with pytest.raises(NotFoundError, match="no federation yet") as refused:
        state.find(base, None)
    assert refused.value.hint == "Start one with: onefed up"
    with pytest.raises(NotFoundError, match="'demo'"):
        state.find(base, "demo")


def test_all_are_found_by_name_and_nothing_else(base: Path) -> None:
    for name in ("b", "a"):
        make(base, name)
    (base / "notes.txt").write_text("")
    (base / "empty").mkdir()
    (base / "dangling").symlink_to(base / "nowhere")
    (base / "loop").symlink_to(base / "loop")
    assert [each.folder.name for each in state.all_of(base)] == ["a", "b"]


def test_without_a_name_the_newest_is_meant(base: Path) -> None:
    for age, name in enumerate(("new", "old")):
        made = make(base, name)
        os.utime(made.spec_file, (1000 - age, 1000 - age))
    assert state.find(base, None).folder.name == "new"


def test_without_a_name_one_that_runs_is_meant_first(base: Path, program: Starter) -> None:
    for age, name in enumerate(("new", "old")):
        made = make(base, name)
        os.utime(made.spec_file, (1000 - age, 1000 - age))
    program(HOLDER, base / "old")
    assert state.find(base, None).folder.name == "old"
    assert [each.folder.name for each in state.running(state.all_of(base))] == ["old"]


# --- the spec -------------------------------------------------------------------------------------


def test_a_spec_is_read_as_it_was_written(base: Path) -> None:
    spec = dataclasses.replace(spec_of("demo"), data="/data/\udcff", context={"FL_X": "ä\n'"})
    made = make(base)
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
        json.dumps({**dataclasses.asdict(spec_of("demo")), "nodes": "2"}).encode(),
        json.dumps({**dataclasses.asdict(spec_of("demo")), "context": {"FL_X": 1}}).encode(),
        json.dumps({**dataclasses.asdict(spec_of("demo")), "surprise": 1}).encode(),
        json.dumps({"name": "demo"}).encode(),
    ],
)
def test_a_damaged_spec_is_a_storage_error_that_names_the_file(base: Path, content: bytes) -> None:
    made = make(base)
    made.spec_file.write_bytes(content)
    with pytest.raises(StorageError) as refused:
        made.read_spec()
    assert str(made.spec_file) in refused.value.message
    assert refused.value.hint


def test_a_spec_of_a_newer_onefed_says_so(base: Path) -> None:
    made = make(base)
    newer = {**dataclasses.asdict(spec_of("demo")), "format": 2, "surprise": True}
    made.spec_file.write_text(json.dumps(newer))
    with pytest.raises(StorageError, match="newer onefed"):
        made.read_spec()


def test_news_are_what_happens_from_now_on(base: Path) -> None:
    """However long the log has grown: what an old start said must not end the next one."""
    made = make(base)
    log = EventLog(made.events, "cloud", lambda: datetime(2026, 1, 1, tzinfo=UTC))
    log.emit(events.Notice("INFO", "old " + "x" * 4000))
    one = made.events.read_bytes()
    made.events.write_bytes(one * (9 * 2**20 // len(one)))
    follower = state.news(made)
    log.emit(events.Notice("INFO", "new"))
    assert [record.event for record in follower.poll()] == [events.Notice("INFO", "new")]
    log.close()


# --- the lock -------------------------------------------------------------------------------------


def test_whoever_holds_it_is_the_owner_for_everybody_else(base: Path, program: Starter) -> None:
    made = make(base)
    assert state.owner(made) is None
    holder = program(HOLDER, made.folder)
    assert state.owner(made) == holder.pid
    with pytest.raises(InUseError, match="is running") as refused, state.hold(made):
        pass
    assert "onefed down" in (refused.value.hint or "")
    assert state.owner(made) == holder.pid
    holder.communicate()
    assert state.owner(made) is None


def test_a_killed_owner_frees_it(base: Path, program: Starter) -> None:
    made = make(base)
    holder = program(HOLDER, made.folder)
    holder.kill()
    holder.wait()
    assert state.owner(made) is None
    with state.hold(made):
        pass


def test_those_who_look_do_not_keep_anybody_from_holding_it(base: Path) -> None:
    made = make(base)
    ended = threading.Event()

    def look() -> None:
        while not ended.is_set():
            state.owner(made)

    lookers = [threading.Thread(target=look) for _ in range(2)]
    for looker in lookers:
        looker.start()
    try:
        for _ in range(50):
            with state.hold(made):
                assert state.owner(made) == os.getpid()
    finally:
        ended.set()
        for looker in lookers:
            looker.join()


def test_a_folder_that_is_gone_cannot_be_held(tmp_path: Path) -> None:
    nowhere = StateDir(tmp_path / "gone")
    assert state.owner(nowhere) is None
    with pytest.raises(StorageError, match=r"gone/cloud\.lock"), state.hold(nowhere):
        pass


def test_a_signal_reaches_the_owner(base: Path, program: Starter) -> None:
    made = make(base)
    holder = program(HOLDER, made.folder, carries=made.folder)
    assert state.signal_owner(made, signal.SIGTERM)
    assert holder.wait() == -signal.SIGTERM
    assert not state.signal_owner(made, signal.SIGTERM)


@pytest.mark.parametrize("written", ["1", "0", "-1", "", "rubbish", "99999999999999999999"])
def test_a_number_in_the_lock_file_is_no_reason_to_signal_anybody(
    base: Path, program: Starter, written: str
) -> None:
    """The lock is held and its number is not, or no more, the holder's."""
    made = make(base)
    holder = program(HOLDER, made.folder, carries=made.folder)
    made.lock_file.write_text(written)
    assert state.owner(made) is not None
    assert not state.signal_owner(made, signal.SIGKILL)
    assert holder.poll() is None


def test_a_reused_number_is_not_signalled(base: Path, program: Starter) -> None:
    """A process that got the number of an old owner carries no state directory of ours."""
    made = make(base)
    program(HOLDER, made.folder, carries=made.folder)
    innocent = program(BYSTANDER)
    made.lock_file.write_text(str(innocent.pid))
    assert not state.signal_owner(made, signal.SIGKILL)
    assert innocent.poll() is None


# --- processes ------------------------------------------------------------------------------------


def test_processes_are_found_by_the_folder_they_carry(base: Path, program: Starter) -> None:
    mine, other = make(base, "fed-1"), make(base, "fed-10")
    found = program(BYSTANDER, carries=mine.folder)
    program(BYSTANDER, carries=other.folder)
    program(BYSTANDER)
    assert [process.pid for process in state.processes(mine)] == [found.pid]


def test_what_is_left_is_ended_and_nothing_else(base: Path, program: Starter) -> None:
    mine, other = make(base, "fed-1"), make(base, "fed-10")
    left = [program(BYSTANDER, carries=mine.folder), program(STUBBORN, carries=mine.folder)]
    innocent = [program(BYSTANDER, carries=other.folder), program(BYSTANDER)]
    assert state.end_processes(mine) == 2
    assert [process.wait() for process in left] == [-signal.SIGTERM, -signal.SIGKILL]
    assert [process.poll() for process in innocent] == [None, None]
    assert state.processes(mine) == []
    assert state.end_processes(mine) == 0


def test_who_calls_is_spared_with_the_shell_it_was_called_from(base: Path) -> None:
    """A user may have the variable set in the shell: it is no part of the federation."""
    made = make(base)
    inner = (
        "import os, pathlib; from onefed.local import state; "
        "print(state.end_processes(state.StateDir(pathlib.Path(os.environ['ONEFED_STATE_DIR']))))"
    )
    outer = (
        "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]], check=True); "
        "print('alive')"
    )
    done = subprocess.run(
        ["env", f"{state.STATE_VARIABLE}={made.folder}", sys.executable, "-c", outer, inner],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["0", "alive"]
