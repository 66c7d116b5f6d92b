"""The example of the programmatic interface does what its page says."""

from __future__ import annotations

import asyncio
import runpy
from pathlib import Path

import pytest


@pytest.mark.timeout(120)
def test_nodes_in_a_program_of_ones_own_fit_the_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    program = runpy.run_path(str(request.config.rootpath / "examples/peers/line.py"))

    nodes = asyncio.run(program["main"](tmp_path))

    assert {node.state.round_number for node in nodes} == {program["ROUNDS"]}
    assert len({node.state.model_sha256 for node in nodes}) == 1
    said = capsys.readouterr().out
    assert "node-0 is back, from a checkpoint" in said
    assert "y = 3.00 x + -1.00" in said
