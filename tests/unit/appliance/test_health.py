"""What READY means, and certificates that end."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from onefed import context
from onefed.appliance import health
from onefed.appliance.paths import Paths
from onefed.context import Role
from onefed.tls import authority, material

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def look(tmp_path: Path, role: Role = Role.SUPERLINK, **more: object) -> list[health.Check]:
    given = {"answer": True, "now": NOW, "variables": {}} | more
    return health.look(
        role,
        context.resolve(role, explicit=given["variables"]),  # type: ignore[arg-type]
        Paths(tmp_path),
        given["now"],  # type: ignore[arg-type]
        healthy=lambda _address, _authority: bool(given["answer"]),
    )


def ready(checks: list[health.Check]) -> bool:
    return all(check.ok for check in checks if check.decides)


@pytest.mark.parametrize("answer", [True, False])
def test_a_coordinator_is_ready_when_its_superlink_answers(tmp_path: Path, answer: bool) -> None:
    assert ready(look(tmp_path, answer=answer)) is answer


def test_a_node_that_was_never_started_is_not_ready(tmp_path: Path) -> None:
    [check] = look(tmp_path, Role.SUPERNODE)
    assert not check.ok
    assert check.detail == "it was never started"


def test_a_context_that_is_not_valid_is_not_ready(tmp_path: Path) -> None:
    assert not ready(look(tmp_path, variables={"FL_NUM_ROUNDS": "x"}))


def test_the_warning_begins_exactly_thirty_days_before_the_end(tmp_path: Path) -> None:
    folder = Paths(tmp_path).certificates
    material.ensure(folder, addresses=["10.0.0.1"], now=NOW)
    end = NOW - authority.BACKDATE + authority.LIFETIME
    assert ready(look(tmp_path, now=end - timedelta(days=5))), "a warning only"
    for left, warned in ((timedelta(days=31), False), (timedelta(days=30), True)):
        checks = health.expiry(folder, end - left)
        assert [check.ok for check in checks] == [True, not warned]
    ended = health.expiry(folder, end + timedelta(days=1))
    assert [check.decides and not check.ok for check in ended] == [False, True]
