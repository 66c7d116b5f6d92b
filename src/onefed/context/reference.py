"""The page docs/context.md, made from the table.

``python -m onefed.context.reference > docs/context.md`` writes it.
"""

from __future__ import annotations

import sys

from onefed.context import names
from onefed.context.requirements import BOTH, PEER
from onefed.context.rules import CROSS_RULES
from onefed.context.table import CHANGED_DEFAULTS, GROUPS
from onefed.context.variable import FIRST_RELEASE, Variable

_HEAD = """\
# Context variables

<!-- Generated: python -m onefed.context.reference > docs/context.md -->

A federation is configured by contextualization variables.
They are inputs of the OneFlow service, or CONTEXT of a VM template, or `--set NAME=VALUE`.

For each variable the first source that has a value wins:
`--set`, then the context file, then the environment, then the default.
The environment is not asked for the variables of the platform.
An empty value is no value.
White space around a value is removed, and control characters are refused.
YES and NO are accepted in any letter case, all other words exactly as written here.

Each variable is also accepted as `ONEAPP_NAME`, in any letter case, except those of the platform.
If both are set and differ, the name without prefix counts, with a WARNING.

Everything that is wrong is reported at once, and then nothing is started (exit code 3).
An unknown `FL_*` name is a WARNING; after `--set` every unknown name is an ERROR.
A variable that the appliance does not read is ignored, with an INFO.

Marks:

- **ours**: not among the 48 names of the appliance design.
- **changed**: another default or meaning than there; the reasons are below.
- **since**: the release of onefed that was the first to have it; all others are there since the
  first one, {first_release}.
- **both**: a federation's two machines, superlink and supernode; **all**: a peer, too.
"""


_ON = {BOTH: "both", BOTH | PEER: "all", PEER: "peer"}


def render() -> str:
    """The whole page."""
    parts = [_HEAD.format(first_release=FIRST_RELEASE)]
    parts += [_group(heading, rows) for heading, rows in GROUPS.items()]
    parts += [_changed(), _cross_rules(), _older_names()]
    return "\n".join(parts)


def _group(heading: str, rows: tuple[Variable, ...]) -> str:
    lines = [_row(row) for row in rows]
    return _table(heading, "Name | On | Asked for | Type | Default | Rule | What it does", lines)


def _row(row: Variable) -> str:
    is_later = row.since != FIRST_RELEASE
    marks = {"ours": row.ours, "changed": bool(row.changed), f"since {row.since}": is_later}
    shown_marks = "".join(f" **{mark}**" for mark, applies in marks.items() if applies)
    on = _ON.get(row.appliances) or ", ".join(sorted(row.appliances))
    target = f"run_config `{row.run_config_key}`" if row.run_config_key else row.maps_to
    return _cells(
        f"`{row.name}`{shown_marks}",
        on,
        row.level,
        row.kind,
        f"`{row.default}`" if row.default else "",
        row.rule.text,
        f"{row.help} Goes to: {target}. Example: `{row.example}`.",
    )


def _changed() -> str:
    rows = [_cells(f"`{name}`", reason) for name, reason in CHANGED_DEFAULTS.items()]
    return _table("Changed defaults", "Name | Why", rows)


def _cross_rules() -> str:
    rows = [_cells(rule.id, rule.text) for rule in CROSS_RULES]
    return _table("Rules across variables", "Id | Rule", rows)


def _older_names() -> str:
    aliases = [
        (alias, row.name) for rows in GROUPS.values() for row in rows for alias in row.aliases
    ]
    accepted = [_cells(f"`{alias}`", f"`{name}`", "yes") for alias, name in aliases]
    refused = [_cells(f"`{old}`", f"`{new}`", "no") for old, new in names.FORMER_NAMES.items()]
    return _table("Older names", "Name | Now | Accepted", [*accepted, *refused])


def _table(heading: str, columns: str, rows: list[str]) -> str:
    rule = "|".join(" --- " for _ in columns.split("|"))
    return "\n".join([f"## {heading}", "", f"| {columns} |", f"|{rule}|", *rows, ""])


def _cells(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


if __name__ == "__main__":
    sys.stdout.write(render())
