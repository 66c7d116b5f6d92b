"""version and doctor."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from onefed import __version__
from onefed.errors import ExitCode

Run = Callable[..., Any]


def test_the_version_names_what_decides_the_bits(onefed: Run) -> None:
    shown = onefed("version", "--json")
    found = json.loads(shown.out)
    assert found["onefed"] == __version__
    assert found["python"] == platform.python_version()
    assert found["flwr"] == "1.41.0"
    assert {"numpy", "scikit-learn", "cryptography", "platform"} <= set(found)
    lines = onefed("version").out.splitlines()
    assert [line.split(maxsplit=1) for line in lines] == [[*pair] for pair in found.items()]


def test_a_machine_that_has_everything_is_told_so(onefed: Run, home: Path) -> None:
    shown = onefed("doctor")
    assert (shown.code, shown.err) == (0, "")
    assert "Everything that is needed is here." in shown.out
    assert str(home) in shown.out
    assert not home.exists()


def test_what_is_missing_comes_with_the_way_to_get_it(
    onefed: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ONEFED_HOME", str(tmp_path / "file/home"))
    shown = onefed("doctor")
    assert shown.code == ExitCode.FAILED
    [line] = [each for each in shown.out.splitlines() if "state folder" in each][:1]
    assert "missing" in line
    assert "ONEFED_HOME" in line
    assert "Needed before onefed can work here: state folder" in shown.out


def test_nothing_that_is_shown_is_cut_in_a_pipe(
    onefed: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / ("long-" * 40) / "[red]home[/]"
    monkeypatch.setenv("ONEFED_HOME", str(place))
    assert str(place) in onefed("doctor").out


def test_the_checks_are_there_for_programs(onefed: Run) -> None:
    shown = onefed("doctor", "--json")
    checks = json.loads(shown.out)
    assert shown.code == 0
    assert all(check["ok"] for check in checks if check["needed"])
    assert all(set(check) == {"name", "ok", "needed", "finding", "remedy"} for check in checks)
    names = [check["name"] for check in checks]
    assert names[:3] == ["Python", "Flower", "flower-superlink"]
