"""The small chart."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from onefed.cli.sparkline import GAP, LEVELS, sparkline

NUMBERS = st.lists(st.none() | st.floats(), max_size=50)
KNOWN = st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=50)


@given(NUMBERS, st.integers(1, 60))
def test_there_is_one_character_for_each_of_the_last_values(
    values: list[float | None], width: int
) -> None:
    chart = sparkline(values, width)
    assert len(chart) == min(len(values), width)
    assert set(chart) <= {*LEVELS, GAP}


@given(NUMBERS)
def test_what_is_not_known_is_a_gap(values: list[float | None]) -> None:
    for value, mark in zip(values, sparkline(values, 60), strict=True):
        assert (mark == GAP) == (value is None or not math.isfinite(value))


@given(KNOWN)
def test_a_higher_value_is_never_drawn_lower(values: list[float]) -> None:
    drawn = sorted(zip(values, map(LEVELS.index, sparkline(values, 60)), strict=True))
    levels = [level for _, level in drawn]
    assert levels == sorted(levels)


@given(KNOWN)
def test_the_lowest_and_the_highest_are_at_the_edges(values: list[float]) -> None:
    chart = sparkline(values, 60)
    if min(values) < max(values):
        assert chart[values.index(min(values))] == LEVELS[0]
        assert chart[values.index(max(values))] == LEVELS[-1]
    else:
        assert len(set(chart)) == 1


def test_a_falling_loss_falls() -> None:
    assert sparkline([8, 7, 6, 5, 4, 3, 2, 1], 8) == "█▇▆▅▄▃▂▁"
    assert sparkline([1, None, 2], 8) == "▁ █"
    assert sparkline([3, 3], 8) == "▅▅"
    assert sparkline([], 8) == ""
    assert sparkline([1, 2, 3, 4], 2) == "▁█"
