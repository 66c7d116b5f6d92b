"""Who passes a point is held where a test asked for it, and nowhere else."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from onefed import failpoints

LIMIT_S = 30.0


def wait_until_hit(folder: Path, name: str) -> Path:
    """The file that says who is held."""
    hit = folder / f"{name}.hit"
    limit = time.monotonic() + LIMIT_S
    while not hit.exists() or not hit.read_text():
        assert time.monotonic() < limit, f"{name} was not passed"
        time.sleep(0.005)
    return hit


@pytest.mark.parametrize("environ", [{}, {failpoints.VARIABLE: ""}])
def test_without_the_variable_a_point_is_nothing(environ: dict[str, str]) -> None:
    assert failpoints.from_environ(environ) is failpoints.nothing


def test_who_passes_is_held_until_it_is_let_go_and_only_once(tmp_path: Path) -> None:
    reach = failpoints.from_environ({failpoints.VARIABLE: str(tmp_path)})
    reach("saving", 1)  # nobody asked
    (tmp_path / "saving.2").touch()
    passing = threading.Thread(target=reach, args=("saving", 2))
    passing.start()
    hit = wait_until_hit(tmp_path, "saving.2")
    assert passing.is_alive()
    assert int(hit.read_text()) == os.getpid()

    hit.unlink()
    passing.join(LIMIT_S)
    assert not passing.is_alive()
    reach("saving", 2)
    assert list(tmp_path.iterdir()) == []


def test_a_point_without_a_number_is_the_next_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failpoints, "HOLD_S", 0.0)
    (tmp_path / "saved").touch()
    reach = failpoints.from_environ({failpoints.VARIABLE: str(tmp_path)})
    reach("saving", 6)
    reach("saved", 7)
    reach("saved", 8)
    assert [path.name for path in tmp_path.iterdir()] == ["saved.7.hit"]


def test_nothing_is_held_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failpoints, "HOLD_S", 0.0)
    (tmp_path / "saved.7").touch()
    failpoints.from_environ({failpoints.VARIABLE: str(tmp_path)})("saved", 7)
    assert [path.name for path in tmp_path.iterdir()] == ["saved.7.hit"]


def test_a_folder_that_is_gone_holds_nobody(tmp_path: Path) -> None:
    failpoints.from_environ({failpoints.VARIABLE: str(tmp_path / "gone")})("saving", 1)
