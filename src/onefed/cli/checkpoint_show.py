"""checkpoint show: what one checkpoint holds."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray
from rich.table import Table
from rich.text import Text

from onefed import arrays as arrays_
from onefed.arrays import Arrays
from onefed.checkpoint import DamagedError, Snapshot
from onefed.checkpoint.inspect import Entry, Series
from onefed.cli import tables
from onefed.cli.checkpoint_diff import norm
from onefed.cli.screen import picture_console
from onefed.cli.sparkline import sparkline
from onefed.telemetry import sentences

ROUNDS_SHOWN = 6
"""Rounds of the history in a table for people."""
CHART_WIDTH_MAX = 40
DIGEST_CHARACTERS = 12
"""Of a SHA-256 in a table."""


@dataclass(frozen=True)
class Content:
    """What could be read of a checkpoint."""

    series: Series
    entry: Entry
    snapshot: Snapshot | None
    arrays: Arrays | None
    rule_state: Arrays | None
    problems: list[str]
    """One for each part that could not."""


def look_into(series: Series, number: int) -> Content:
    entries = {entry.round_number: entry for entry in series.rounds()}
    if number not in entries:
        series.snapshot(number)  # says that there is none, and which there are
    found: dict[str, Any] = {}
    problems: list[str] = []
    for name, read in (
        ("snapshot", series.snapshot),
        ("arrays", series.arrays),
        ("rule_state", series.rule_state),
    ):
        try:
            found[name] = read(number)
        except DamagedError as error:
            found[name] = None
            if error.message not in problems:
                problems.append(error.message)
    return Content(series=series, entry=entries[number], problems=problems, **found)


def as_document(found: Content) -> dict[str, object]:
    snapshot = found.snapshot
    told = {
        field: getattr(snapshot, field, None)
        for field in ("run", "rounds_total", "rule", "seed", "app_sha256", "config_sha256")
    }
    return {
        "kind": found.series.kind,
        "folder": str(found.series.folder),
        "round": found.entry.round_number,
        **told,
        "versions": dict(snapshot.versions) if snapshot else None,
        "saved_at": found.entry.saved_at.isoformat() if found.entry.saved_at else None,
        "size_bytes": found.entry.size_bytes,
        "model_sha256": arrays_.digest(found.arrays) if found.arrays is not None else None,
        "arrays": _described(found.arrays),
        "rule_state": _described(found.rule_state),
        "history": [dataclasses.asdict(each) for each in snapshot.history] if snapshot else None,
        "problems": found.problems,
    }


def _described(arrays: Arrays | None) -> list[dict[str, object]] | None:
    if arrays is None:
        return None
    return [
        {
            "key": key,
            "dtype": arrays_.dtype_name(array.dtype),
            "shape": list(array.shape),
            "size_bytes": array.nbytes,
            "norm": norm(array),
            "sha256": arrays_.array_digest(array),
        }
        for key, array in arrays.items()
    ]


def draw(found: Content) -> None:
    console, entry, snapshot = picture_console(), found.entry, found.snapshot
    facts = Table.grid(padding=(0, 2))
    of = f" of {snapshot.rounds_total}" if snapshot else ""
    lines = [("round", f"{entry.round_number}{of}{', the latest' if entry.is_latest else ''}")]
    if snapshot:
        versions = ", ".join(f"{name} {each}" for name, each in snapshot.versions.items())
        lines += [
            ("run", snapshot.run),
            ("rule", snapshot.rule),
            ("seed", str(snapshot.seed)),
            ("app sha256", snapshot.app_sha256),
            ("config sha256", snapshot.config_sha256),
            ("written by", versions),
        ]
    lines += [
        ("saved", f"{tables.time(entry.saved_at)} UTC"),
        ("size", tables.size(entry.size_bytes)),
    ]
    if found.arrays is not None:
        lines.append(("model sha256", arrays_.digest(found.arrays)))
    for name, text in lines:
        facts.add_row(Text(name, style="dim"), Text(sentences.visible(text), overflow="fold"))
    console.print(facts)
    for title, arrays in (("array", found.arrays), ("state of the rule", found.rule_state)):
        if arrays:
            console.print()
            console.print(_array_table(title, arrays))
            tables.say_more(len(arrays))
    if snapshot and snapshot.history:
        console.print()
        for line in _charts(snapshot):
            console.print(line)
        console.print(_history_table(snapshot))


def _array_table(title: str, arrays: Arrays) -> Table:
    table = tables.table(title, "type", "shape", "size", "norm", "sha256", numbers=(3, 4))
    for key, array in list(arrays.items())[: tables.ROWS_SHOWN]:
        tables.add_row(
            table,
            key,
            arrays_.dtype_name(array.dtype),
            _shape(array),
            tables.size(array.nbytes),
            f"{norm(array):.4g}",
            arrays_.array_digest(array)[:DIGEST_CHARACTERS],
        )
    return table


def _charts(snapshot: Snapshot) -> Iterator[Text]:
    for name, values, style in (
        ("accuracy", [each.accuracy for each in snapshot.history], "green"),
        ("loss    ", [each.loss for each in snapshot.history], "magenta"),
    ):
        known = [value for value in values if value is not None]
        if known:
            chart = sparkline(values, CHART_WIDTH_MAX)
            numbers = f"{tables.number(known[0])} → {tables.number(known[-1])}"
            yield Text.assemble(f"{name}  ", (chart, style), f"  {numbers}")


def _history_table(snapshot: Snapshot) -> Table:
    table = tables.table(
        "round", "accuracy", "loss", "clients", "failures", "seconds", numbers=range(6)
    )
    for record in snapshot.history[-ROUNDS_SHOWN:]:
        tables.add_row(
            table,
            str(record.round_number),
            tables.number(record.accuracy),
            tables.number(record.loss),
            str(len(record.contributors)),
            str(record.failures),
            f"{record.seconds:.1f}",
        )
    return table


def _shape(array: NDArray[Any]) -> str:
    return " x ".join(map(str, array.shape)) or "scalar"
