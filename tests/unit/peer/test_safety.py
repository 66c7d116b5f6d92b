"""The rules, against all small cases."""

from __future__ import annotations

from itertools import combinations

import pytest

from onefed.peer.messages import Ballot, Entry, Member, Roster
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
