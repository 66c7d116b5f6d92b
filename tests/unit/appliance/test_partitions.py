"""Partitions that survive the removal of older nodes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from onefed.appliance.partitions import Partition, assign


def test_the_first_nodes_get_their_places() -> None:
    assert [assign(["3", "1", "2"], {}, own) for own in "123"] == [
        Partition(0, 3),
        Partition(1, 3),
        Partition(2, 3),
    ]


def test_nobody_moves_when_the_oldest_is_removed_and_the_next_one_takes_its_place() -> None:
    claims = {"1": "0", "2": "1", "3": "2"}
    left = {vm_id: claims[vm_id] for vm_id in "23"}
    assert assign(["2", "3"], left, "2") == Partition(1, 3)
    assert assign(["2", "3"], left, "3") == Partition(2, 3)
    assert assign(["2", "3", "4"], left, "4") == Partition(0, 3)


def test_scaling_up_gives_new_ones() -> None:
    assert assign(["1", "2", "3"], {"1": "0", "2": "1"}, "3") == Partition(2, 3)


def test_ids_are_numbers_and_not_text() -> None:
    assert assign(["9", "10"], {}, "10") == Partition(1, 2)


def test_of_two_with_the_same_claim_the_older_has_it() -> None:
    claims = {"7": "1", "8": "1"}
    assert assign(["7", "8"], claims, "7") == Partition(1, 2)
    assert assign(["7", "8"], claims, "8") == Partition(0, 2)


def test_a_claim_that_makes_no_sense_is_none() -> None:
    for hostile in ("-1", "1e9", "9" * 70_000, "\u0661", "0;id", ""):
        assert assign(["1", "2"], {"1": hostile}, "2") == Partition(1, 2)


def test_who_is_no_member_has_none() -> None:
    assert assign(["1"], {}, "2") is None


@given(
    events=st.lists(st.tuples(st.booleans(), st.integers(0, 20)), max_size=40),
)
def test_nodes_that_boot_one_after_the_other_are_all_different_and_never_move(
    events: list[tuple[bool, int]],
) -> None:
    """Any history of scaling up and down."""
    claims: dict[str, str] = {}
    born = 0
    for is_new, which in events:
        if is_new or not claims:
            born += 1
            own = str(born)
            found = assign([*claims, own], claims, own)
            assert found is not None
            assert found.id <= len(claims)
            claims[own] = str(found.id)
        else:
            del claims[sorted(claims)[which % len(claims)]]
        assert len(set(claims.values())) == len(claims)
        for vm_id, claim in claims.items():
            again = assign(list(claims), claims, vm_id)
            assert again is not None
            assert str(again.id) == claim
            assert again.id < again.count


@given(members=st.sets(st.integers(1, 50).map(str), min_size=1), known=st.data())
def test_all_that_look_at_once_agree(members: set[str], known: st.DataObject) -> None:
    holders = known.draw(st.lists(st.sampled_from(sorted(members)), unique=True))
    claims = {vm_id: str(index) for index, vm_id in enumerate(holders)}
    found = [assign(sorted(members), claims, own) for own in sorted(members)]
    ids = [each.id for each in found if each is not None]
    assert len(set(ids)) == len(members)
