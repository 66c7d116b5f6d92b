"""A program says once that it works, where somebody listens."""

from __future__ import annotations

from pathlib import Path

from onefed.flower.lifesign import VARIABLE, LifeSign


def test_it_is_given_once(tmp_path: Path) -> None:
    file = tmp_path / "worked"
    sign = LifeSign({VARIABLE: str(file)})
    assert not file.exists()
    sign.give()
    assert file.exists()
    file.unlink()
    sign.give()
    assert not file.exists()


def test_a_program_without_a_keeper_says_nothing_and_one_that_cannot_goes_on(
    tmp_path: Path,
) -> None:
    LifeSign({}).give()
    LifeSign({VARIABLE: str(tmp_path / "missing" / "worked")}).give()
