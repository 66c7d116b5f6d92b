"""Everybody who should not get in, at a real SuperLink behind a real gateway."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))  # campaigns lie beside src

from campaigns import hostile_nodes, refused

BODY_BYTES = 48 * 2**20
"""Beyond the gateway's limit and what the SuperLink may grow by; the campaign sends 768 MiB."""


@pytest.mark.flower
@pytest.mark.usefixtures("nginx")
def test_whoever_should_not_get_in_is_refused_and_written_down(tmp_path: Path) -> None:
    """The table also shows that a registered node with its signature does get in."""
    with refused.Coordinator(tmp_path).running() as coordinator:
        rows = refused.table(coordinator, big_body_bytes=BODY_BYTES)
        seen = coordinator.log("superlink")
        tried = hostile_nodes.table(coordinator)
    assert [row for row in rows if not row.refused or not row.logged_in] == []
    assert len(rows) == 18
    assert [row for row in tried if not row.holds] == []
    assert len(tried) > 30
    assert "/v1/control/start-run" not in seen
    secrets = coordinator.log("gateway-access") + coordinator.log("gateway")
    assert "signature" not in secrets
