"""What a shell offers after --set."""

from __future__ import annotations

from onefed.context import completion
from onefed.context.table import VARIABLES
from onefed.context.variable import Level


def candidates(incomplete: str) -> list[str]:
    return [value for value, _ in completion.complete(incomplete)]


def test_nothing_typed_offers_every_variable_but_those_of_the_platform() -> None:
    offered = {name.removesuffix("=") for name in candidates("")}
    asked = {row.name for row in VARIABLES.values() if row.level is not Level.PLATFORM}
    assert offered == asked


def test_the_beginning_of_a_name_may_be_in_lower_case() -> None:
    assert candidates("fl_num_r") == ["FL_NUM_ROUNDS="]


def test_values_of_lists_and_switches_are_offered() -> None:
    assert candidates("FL_ISOLATION=") == ["FL_ISOLATION=subprocess", "FL_ISOLATION=process"]
    assert candidates("FL_TLS_ENABLED=N") == ["FL_TLS_ENABLED=NO"]
    assert candidates("FL_NUM_ROUNDS=") == ["FL_NUM_ROUNDS=3"]
    assert candidates("NO_SUCH=") == []
