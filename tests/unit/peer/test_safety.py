"""The rules, against all small cases."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import pytest

from onefed.peer.messages import Ballot, Entry, Eviction, Member, Roster
from onefed.peer.safety import Rules

RULES = Rules()


def roster(*names: str) -> Roster:
    return tuple(Member(name, "") for name in names)


def entry(round_number: int, term: int, attempt: int) -> Entry:
    return Entry(round_number, f"{term}.{attempt}", 1, Ballot(term, attempt), roster("a"), (), ())


def majorities(names: Roster) -> list[frozenset[str]]:
    return [
        frozenset(member.node for member in some)
        for count in range(len(names) + 1)
        if RULES.is_majority(count, len(names))
        for some in combinations(names, count)
    ]


@pytest.mark.parametrize("count", range(1, 7))
@pytest.mark.parametrize("change", ["none", "one joins", "one leaves"])
def test_majorities_before_and_after_a_change_meet(count: int, change: str) -> None:
    before = roster(*"abcdefg"[:count])
    leaving = ["a"] if change == "one leaves" else []
    joining = [Member("x", ""), Member("y", "")] if change == "one joins" else []
    after = RULES.changed(before, leaving, joining)

    assert abs(len(after) - count) <= 1
    assert all(one & other for one in majorities(before) for other in majorities(after))


def test_the_last_voter_stays() -> None:
    assert RULES.changed(roster("a"), ["a"], []) == roster("a")


def test_a_leader_adopts_the_highest_ballot_on_top_of_its_commit() -> None:
    reported = [entry(3, 2, 1), None, entry(4, 3, 1), entry(4, 3, 2), entry(4, 2, 9)]

    assert RULES.to_adopt(3, reported) == entry(4, 3, 2)
    assert RULES.to_adopt(4, reported) is None


@pytest.mark.parametrize(
    ("asked", "voted_for", "candidate_round", "ok"),
    [
        (6, "b", 4, True),
        (5, None, 4, True),
        (5, "a", 4, True),
        (5, "b", 4, False),
        (4, None, 4, False),
        (6, None, 3, False),
    ],
)
def test_one_vote_a_term_for_a_candidate_that_is_not_behind(
    asked: int, voted_for: str | None, candidate_round: int, ok: bool
) -> None:
    given = RULES.may_vote(
        asked=asked,
        candidate="a",
        term=5,
        voted_for=voted_for,
        candidate_round=candidate_round,
        own_round=4,
    )

    assert given is ok


@pytest.mark.parametrize("count", range(2, 8))
def test_survivors_meet_every_majority_of_which_one_of_them_lives(count: int) -> None:
    everybody = roster(*"abcdefg"[:count])
    names = {member.node for member in everybody}
    for lost in range(1, count):
        for gone in map(set, combinations(sorted(names), lost)):
            survivors = names - gone
            assert RULES.are_survivors(len(survivors), len(survivors))
            assert not RULES.are_survivors(len(survivors) - 1, len(survivors))
            missed = [one for one in majorities(everybody) if not one & survivors]
            assert all(one <= gone for one in missed)
            if lost <= count // 2:  # half of them at most: nothing committed is lost
                assert not missed


def test_histories_part_where_an_operator_decided() -> None:
    decided = replace(entry(6, 9, 1), evictions=(Eviction(5, "2.5", ("b",)),))
    other = replace(decided, evictions=(Eviction(5, "2.5", ("c",)),))

    assert RULES.is_same_history(decided, entry(4, 2, 3))
    assert RULES.is_same_history(entry(5, 2, 5), decided)
    assert not RULES.is_same_history(entry(5, 2, 6), decided)
    assert not RULES.is_same_history(entry(6, 2, 7), decided)
    assert not RULES.is_same_history(decided, other)


def test_terms_of_a_decision_are_no_terms_of_a_majority() -> None:
    first = RULES.term_of_decision(17)

    assert first > 1_000_000
    assert RULES.term_of_decision(first + 17) > first + 1_000_000
