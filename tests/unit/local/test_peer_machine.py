"""Who is let in at a peer's machine, and what its node is told."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from onefed.appliance import peers
from onefed.checkpoint import files
from onefed.context import PeerContact
from onefed.errors import StorageError
from onefed.local import peer_machine, peer_member
from onefed.local.peer_spec import PeerGroup
from onefed.node import contact
from onefed.peer.messages import Member
from onefed.tls import member_identity


@pytest.fixture
def known(tmp_path: Path) -> Callable[..., PeerContact]:
    """A contact of that name, with a key of its own."""

    def make(name: str, key: str = "") -> PeerContact:
        identity = member_identity.ensure(tmp_path / f"key-{name}{key}", name, datetime.now(UTC))
        return peers.contact(name, "10.0.0.1:9095", identity.certificate)

    return make


@pytest.fixture
def place(tmp_path: Path) -> PeerGroup:
    made = PeerGroup(tmp_path / "group")
    files.make_folder(made.members)
    return made


def listed(place: PeerGroup) -> dict[str, Member]:
    """As the node reads the list."""
    found = {}
    for name in files.names_in(place.members):
        document = files.read_json(place.members / name)
        assert isinstance(document, dict)
        found[name] = Member(str(document["node"]), str(document["contact"]))
    return found


def test_a_contact_is_the_member_that_its_node_lists_itself_as(place, known, tmp_path) -> None:
    """To the byte: a member that lists itself differently is refused."""
    other = known("peer-2-1")
    peer_machine.let_in(place, "peer-1-0", [other], [])
    certificate = (tmp_path / "key-peer-2-1" / member_identity.CERTIFICATE).read_bytes()
    itself = contact.Contact("10.0.0.1:9095", certificate).member("peer-2-1")
    assert listed(place) == {"peer-2-1": itself}


def test_who_is_gone_from_the_service_is_let_in_no_more_but_founders_stay(place, known) -> None:
    founder, late = known("peer-2-1"), known("peer-3-2")
    peer_machine.let_in(place, "peer-1-0", [founder], [founder, late])
    assert set(listed(place)) == {"peer-2-1", "peer-3-2"}
    peer_machine.let_in(place, "peer-1-0", [founder], [])
    assert set(listed(place)) == {"peer-2-1"}


def test_nobody_takes_a_founders_place_by_its_name(place, known) -> None:
    founder, impostor = known("peer-2-1"), known("peer-2-1", key="another")
    peer_machine.let_in(place, "peer-1-0", [founder], [impostor])
    assert listed(place)["peer-2-1"].contact.endswith(founder.certificate)


def test_a_nodes_own_entry_is_its_own(place, known) -> None:
    own = {"node": "peer-1-0", "contact": "as it says itself"}
    files.write_json(place.members / "peer-1-0", own)
    peer_machine.let_in(place, "peer-1-0", [known("peer-1-0", key="stolen")], [])
    assert listed(place)["peer-1-0"].contact == "as it says itself"


@pytest.mark.parametrize("text", ["{}", "[]", '{"format": 2}', '{"format": 1, "x": 1}', "no"])
def test_instructions_of_another_kind_are_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "peer.json"
    file.write_text(text)
    with pytest.raises(StorageError):
        peer_machine.read(file)


def test_a_founder_begins_with_the_founders_and_who_joins_asks_everybody_it_knows() -> None:
    """All founders must take the same first roster; one that joins later may find none of them."""
    members = [Member(name, "") for name in ("peer-1", "peer-2", "peer-3")]

    assert peer_member.begins_with(members, "peer-1", ("peer-1", "peer-2")) == tuple(members[:2])
    assert peer_member.begins_with(members, "peer-4", ("peer-1", "peer-2")) == tuple(members)
