"""Whether somebody lives: seen from elsewhere, over a kill, and asked without a trace."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from onefed.checkpoint import life_lock
from onefed.errors import InUseError

LIVES = """
import sys, time
from pathlib import Path
from onefed.checkpoint import life_lock
with life_lock.hold(Path(sys.argv[1])):
    print("lives", flush=True)
    time.sleep(1000)
"""


@pytest.fixture
def other(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that lives."""
    with subprocess.Popen(
        [sys.executable, "-c", LIVES, str(tmp_path / life_lock.NAME)],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "lives\n"
        yield process
        process.kill()


def test_a_process_that_is_killed_lives_no_more(tmp_path: Path, other) -> None:
    place = tmp_path / life_lock.NAME
    assert life_lock.is_held(place)
    other.kill()
    other.wait()
    assert not life_lock.is_held(place)


def test_nobody_lives_twice(tmp_path: Path, other) -> None:
    with pytest.raises(InUseError), life_lock.hold(tmp_path / life_lock.NAME):
        pass


def test_who_asks_is_in_nobodys_way(tmp_path: Path) -> None:
    place = tmp_path / life_lock.NAME
    assert not life_lock.is_held(place)
    assert not place.exists()
    with life_lock.hold(place):
        assert life_lock.is_held(place), "from the same process, too"
        assert life_lock.is_held(place), "asking has not taken it"
    assert not life_lock.is_held(place)
    assert place.stat().st_mode & 0o777 == 0o600


def test_a_link_in_its_place_is_not_followed(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    place = tmp_path / life_lock.NAME
    place.symlink_to(elsewhere)
    with pytest.raises(OSError), life_lock.hold(place):  # noqa: PT011 - the kernel's own words
        pass
    assert not elsewhere.exists()
