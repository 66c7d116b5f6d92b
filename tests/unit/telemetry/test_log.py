"""The file that several processes append to and others follow."""

from __future__ import annotations

import os
import resource
import stat
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from onefed.errors import StorageError
from onefed.telemetry import events as ev
from onefed.telemetry import lines
from onefed.telemetry import log as event_log
from onefed.telemetry.log import EventLog, Follower

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "events.jsonl"


@pytest.fixture
def log(path: Path, clock: Callable[[], datetime]) -> EventLog:
    return EventLog(path, "superlink", clock)


def texts(records: list[lines.Record]) -> list[str]:
    return [record.event.line for record in records if isinstance(record.event, ev.AppLog)]


def test_what_is_emitted_is_read(log: EventLog, path: Path, examples: tuple[ev.Event, ...]) -> None:
    for event in examples:
        log.emit(event)
    log.close()
    log.emit(examples[0])
    log.close()
    records = list(event_log.read(path))
    assert [record.event for record in records] == [*examples, examples[0]]
    assert {record.role for record in records} == {"superlink"}
    assert all(record.source.startswith("test_log.py:") for record in records)


def test_the_group_may_read_and_nobody_else(log: EventLog, path: Path) -> None:
    before = os.umask(0)
    try:
        log.emit(ev.AppLog("x"))
    finally:
        os.umask(before)
    log.close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_several_processes_never_mix_their_lines(path: Path) -> None:
    program = """
import sys, pathlib
from datetime import UTC, datetime
from onefed.telemetry import events, log
out = log.EventLog(pathlib.Path(sys.argv[1]), "supernode", lambda: datetime.now(tz=UTC))
for i in range(300):
    out.emit(events.AppLog(f"{sys.argv[2]} {i} " + "x" * (i * 37 % 9000)))
"""
    writers = [
        subprocess.Popen([sys.executable, "-c", program, str(path), str(number)])
        for number in range(4)
    ]
    assert [writer.wait(timeout=30) for writer in writers] == [0, 0, 0, 0]
    assert path.read_bytes().count(b"\n") == 1200
    heads = [line.split()[:2] for line in texts(list(event_log.read(path)))]
    for number in range(4):
        assert [i for who, i in heads if who == str(number)] == [str(i) for i in range(300)]


# --- a disk that does not take it ----------------------------------------------------------------


def test_a_full_disk_is_counted_and_reported_once(
    clock: Callable[[], datetime], capsys: pytest.CaptureFixture[str]
) -> None:
    log = EventLog(Path("/dev/full"), "superlink", clock)
    for _ in range(3):
        log.emit(ev.AppLog("x"))
    log.close()
    assert log.lost_count == 3
    told = capsys.readouterr().err.splitlines()
    assert told == [
        "onefed: cannot write events to /dev/full: No space left on device. "
        "Training goes on; what is lost is only counted."
    ]


def test_a_file_that_cannot_be_opened_does_not_stop_training(
    path: Path, log: EventLog, capsys: pytest.CaptureFixture[str]
) -> None:
    path.mkdir()
    log.emit(ev.AppLog("lost"))
    path.rmdir()
    log.emit(ev.AppLog("kept"))
    log.close()
    assert log.lost_count == 1
    assert texts(list(event_log.read(path))) == ["kept"]
    assert "Is a directory" in capsys.readouterr().err


def test_a_line_cut_by_a_full_disk_does_not_spoil_the_next(
    path: Path, log: EventLog, capsys: pytest.CaptureFixture[str]
) -> None:
    log.emit(ev.AppLog("first"))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 10, before[1]))
    try:
        log.emit(ev.AppLog("cut"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    log.emit(ev.AppLog("last"))
    log.close()
    assert texts(list(event_log.read(path))) == ["first", "last"]
    assert log.lost_count == 1
    assert "10 of " in capsys.readouterr().err


# --- followers -----------------------------------------------------------------------------------


def test_a_follower_gives_each_record_once(log: EventLog, path: Path) -> None:
    follower = Follower(path)
    assert follower.poll() == [], "no file yet"
    log.emit(ev.AppLog("a"))
    log.emit(ev.AppLog("b"))
    assert texts(follower.poll()) == ["a", "b"]
    assert follower.poll() == []
    log.emit(ev.AppLog("c"))
    log.close()
    assert texts(follower.poll()) == ["c"]


def test_an_unfinished_line_waits_for_its_end(log: EventLog, path: Path) -> None:
    log.emit(ev.AppLog("whole"))
    log.emit(ev.AppLog("torn"))
    log.close()
    content = path.read_bytes()
    for cut in (len(content) - 1, len(content) - 20, content.index(b"\n") + 2):
        path.write_bytes(content[:cut])
        follower = Follower(path)
        assert texts(follower.poll()) == ["whole"]
        assert texts(list(event_log.read(path))) == ["whole"]
        with path.open("ab") as file:
            file.write(content[cut:])
        assert texts(follower.poll()) == ["torn"]


def test_foreign_and_endless_lines_are_left_out(log: EventLog, path: Path) -> None:
    log.emit(ev.AppLog("a"))
    follower = Follower(path)
    first = follower.poll()
    with path.open("ab") as file:
        file.write(b"Segmentation fault\n\n\xff\xfe\n{}\n" + b"x" * 100_000)
    second = follower.poll()
    with path.open("ab") as file:
        file.write(b"y" * 3_000_000 + b"\n")
    log.emit(ev.AppLog("b"))
    log.close()
    assert texts(first + second + follower.poll()) == ["a", "b"]
    assert texts(list(event_log.read(path))) == ["a", "b"]


def test_a_truncated_or_replaced_file_is_read_from_its_beginning(log: EventLog, path: Path) -> None:
    follower = Follower(path)
    log.emit(ev.AppLog("a long line before"))
    assert texts(follower.poll()) == ["a long line before"]
    os.truncate(path, 0)
    log.emit(ev.AppLog("b"))
    assert texts(follower.poll()) == ["b"]
    path.rename(path.with_suffix(".1"))
    log.close()
    log.emit(ev.AppLog("another, longer than everything that was there before it"))
    log.close()
    assert len(follower.poll()) == 1


def test_a_look_is_bounded(log: EventLog, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_log, "POLL_BYTES_MAX", 1000)
    for number in range(20):
        log.emit(ev.AppLog(str(number)))
    log.close()
    follower = Follower(path)
    looks = [texts(follower.poll()) for _ in range(10)]
    assert [text for look in looks for text in look] == [str(number) for number in range(20)]
    assert max(len(look) for look in looks) < 8


def test_a_log_that_is_not_there_is_an_error_for_a_reader(path: Path) -> None:
    with pytest.raises(StorageError, match="No such file"):
        list(event_log.read(path))
