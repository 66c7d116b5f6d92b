"""gRPC is told what has changed, and nothing else: it frees what it had, in use or not."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from onefed.node import pins
from onefed.node.contact import Contact
from onefed.node.pins import Pins
from onefed.tls import member_identity

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def test_only_a_change_is_told_and_after_those_before_have_begun(tmp_path: Path) -> None:
    identities = {
        name: member_identity.ensure(tmp_path / name, name, NOW) for name in ("a", "b", "c")
    }
    contacts = {"b": Contact("b:1", identities["b"].certificate)}
    paused: list[float] = []
    told = Pins(identities["a"], lambda: contacts, paused.append)

    assert told.changed() is None
    contacts["c"] = Contact("c:1", identities["c"].certificate)
    assert paused == []
    assert told.changed() is not None
    assert paused == [pins.SETTLE_S]
    assert told.changed() is None
    del contacts["c"]
    assert told.changed() is not None
