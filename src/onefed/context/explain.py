"""Every effective value of an appliance, with where it came from."""

from __future__ import annotations

import dataclasses

from onefed.context.outcome import SHOWN_CHARS_MAX, Resolution, show
from onefed.context.table import VARIABLES


@dataclasses.dataclass(frozen=True)
class Explained:
    """One variable, as an operator wants to see it."""

    name: str
    shown: str
    """The effective value; secrets and files hidden, long ones cut. Empty: none."""
    source: str
    """``command line``, ``context file``, ``environment`` or ``default``."""
    changed: str
    """Why this default, or its meaning, differs from the appliance design. Empty: it does not."""


def explain(resolution: Resolution) -> list[Explained]:
    """In the order of the table; a value that was refused is shown as its default."""
    rows = []
    for name, value in resolution.values.items():
        row = VARIABLES[name]
        rows.append(
            Explained(
                name=name,
                shown=_shown(value.text, hide=row.is_hidden),
                source=value.source.value,
                changed=row.changed,
            )
        )
    return rows


def _shown(text: str, *, hide: bool) -> str:
    if not text:
        return ""
    plain = text.isprintable() and len(text) <= SHOWN_CHARS_MAX and not hide
    return text if plain else show(text, hide=hide)
