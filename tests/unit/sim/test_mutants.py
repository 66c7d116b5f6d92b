"""Seeded bugs are seen. ``onefed peer simulate --mutants`` prints the same table."""

from __future__ import annotations

import subprocess
import sys

import pytest

from onefed.sim.mutants import MUTANTS

SCHEDULES = 600
"""In which each of them is seen."""


@pytest.mark.timeout(300)
def test_every_mutant_is_seen_by_the_checkers_without_the_cores_assertions() -> None:
    command = [sys.executable, "-O", "-m", "onefed.sim.mutants", "--schedules", str(SCHEDULES)]
    printed = subprocess.run(command, check=False, capture_output=True, text=True).stdout
    seen = {line.split()[0]: line.split()[2] for line in printed.splitlines()[1:]}

    assert set(seen) == {mutant.name for mutant in MUTANTS}
    assert not {"SURVIVES", "assertion"} & set(seen.values())
