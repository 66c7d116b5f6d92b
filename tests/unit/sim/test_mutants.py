"""Seeded bugs are seen. The whole table takes longer: ``onefed peer simulate --mutants``."""

from __future__ import annotations

import subprocess
import sys

import pytest

from onefed.sim.mutants import MUTANTS

QUICK = 150
"""Schedules in which most of them are seen."""


@pytest.fixture(scope="module")
def lines() -> dict[str, str]:
    command = [sys.executable, "-O", "-m", "onefed.sim.mutants", "--schedules", str(QUICK)]
    printed = subprocess.run(command, check=False, capture_output=True, text=True).stdout
    return {line.split()[0]: line for line in printed.splitlines()[1:]}


@pytest.mark.parametrize("name", [mutant.name for mutant in MUTANTS])
def test_a_mutant_is_seen_by_the_checkers(lines: dict[str, str], name: str) -> None:
    assert "SURVIVES" not in lines[name]
    assert "assertion" not in lines[name]
