"""Which rounds stay."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onefed.checkpoint import Retention

ROUNDS = st.sets(st.integers(0, 100), max_size=20)


@pytest.mark.parametrize(
    ("retention", "kept"),
    [
        (Retention(), [5, 10, 12, 15, 20]),
        (Retention(keep_last=2), [15, 20]),
        (Retention(keep_every=10), [10, 20]),
        (Retention(keep_every=6), [12, 20]),
        (Retention(keep_last=2, keep_every=10), [10, 15, 20]),
        (Retention(keep_last=99), [5, 10, 12, 15, 20]),
    ],
    ids=range(6),
)
def test_the_last_and_every_mth_stay(retention: Retention, kept: list[int]) -> None:
    assert sorted(retention.kept([5, 10, 12, 15, 20])) == kept


@settings(max_examples=100)
@given(ROUNDS, st.integers(0, 5), st.integers(0, 7))
def test_the_newest_stays_and_what_went_does_not_change_the_rest(
    rounds: set[int], keep_last: int, keep_every: int
) -> None:
    retention = Retention(keep_last, keep_every)
    kept = retention.kept(rounds)
    assert kept <= rounds
    assert max(rounds, default=None) == max(kept, default=None)
    assert retention.kept(kept) == kept


def test_a_negative_number_is_our_mistake() -> None:
    with pytest.raises(AssertionError):
        Retention(keep_last=-1)
