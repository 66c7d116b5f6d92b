"""Parameters of rules: a default, bounds, and one error for all that is wrong with them."""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, cast

from onefed.aggregate.errors import RuleError

if TYPE_CHECKING:
    from collections.abc import Mapping

Value = TypeVar("Value", bool, int, float)

_BOUNDS = "bounds"


@dataclass(frozen=True, slots=True)
class Bounds:
    """Which values a parameter may have; an absent bound is None. NaN and infinities never fit."""

    above: float | None = None
    at_least: float | None = None
    at_most: float | None = None
    below: float | None = None

    def admit(self, value: float) -> bool:
        """Whether ``value`` is inside."""
        return (
            (self.above is None or value > self.above)
            and (self.at_least is None or value >= self.at_least)
            and (self.at_most is None or value <= self.at_most)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        words = {
            "above": self.above,
            "at least": self.at_least,
            "at most": self.at_most,
            "below": self.below,
        }
        return " and ".join(f"{word} {end:g}" for word, end in words.items() if end is not None)


def parameter(
    default: Value,
    *,
    above: float | None = None,
    at_least: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
) -> Value:
    """A field of a rule. Its type is that of ``default``: bool, int or float (ints are fine)."""
    bounds = Bounds(above, at_least, at_most, below)
    return dataclasses.field(default=default, metadata={_BOUNDS: bounds})


def defaults(kind: type[Any]) -> dict[str, float]:
    """Names and defaults of the parameters of a rule class, in order of declaration."""
    return {field.name: cast("float", field.default) for field in dataclasses.fields(kind)}


def problems(kind: type[Any], values: Mapping[str, object]) -> list[str]:
    """One sentence for each value that is unknown to ``kind``, of another type or out of bounds."""
    fields = {field.name: field for field in dataclasses.fields(kind)}
    found = [
        f"The aggregation rule {kind.name} has no parameter {unknown!r}."
        for unknown in sorted(values.keys() - fields.keys())
    ]
    for name, field in fields.items():
        if name in values and not _fits(field, values[name]):
            found.append(
                f"The parameter {name} of {kind.name} is {values[name]!r}; "
                f"it must be {_wanted(field)}."
            )
    return found


def require(rule: object) -> None:
    """Raise ``RuleError`` with all that is wrong with the parameters of a rule just made."""
    kind = type(rule)
    values = {name: getattr(rule, name) for name in defaults(kind)}
    found = problems(kind, values)
    if found:
        raise RuleError("\n".join(found), hint=known(kind))


def known(kind: type[Any]) -> str:
    """A hint with the names and defaults."""
    named = ", ".join(f"{name} ({default!r})" for name, default in defaults(kind).items())
    return f"Its parameters are: {named or 'none'}."


def _fits(field: dataclasses.Field[Any], value: object) -> bool:
    if isinstance(field.default, bool):
        return isinstance(value, bool)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    if isinstance(field.default, int) and not isinstance(value, int):
        return False
    bounds = cast("Bounds", field.metadata[_BOUNDS])
    return abs(value) <= sys.float_info.max and bounds.admit(value)  # false for NaN


def _wanted(field: dataclasses.Field[Any]) -> str:
    if isinstance(field.default, bool):
        return "True or False"
    kind = "a whole number" if isinstance(field.default, int) else "a finite number"
    return f"{kind} {field.metadata[_BOUNDS]}".rstrip()
