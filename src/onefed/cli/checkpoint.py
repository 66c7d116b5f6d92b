"""checkpoint list, show, verify, diff and prune: looking into the folders of checkpoints."""

from __future__ import annotations

import contextlib
import enum
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from onefed.appliance.paths import Paths
from onefed.checkpoint import inspect
from onefed.checkpoint.inspect import Entry, Series
from onefed.checkpoint.retention import Retention
from onefed.cli import checkpoint_diff, checkpoint_show, parsing, tables
from onefed.cli.screen import say, table_console
from onefed.errors import ExitCode, InUseError, NotFoundError, OnefedError, StorageError
from onefed.local import ownership, state
from onefed.local.state import SUPERLINK, StateDir

OLDER_LOOKED_AT_MAX = 8
"""Rounds before a damaged one that are read to find one that is whole."""

app = parsing.Typer(
    help="Checkpoints in a folder: what is there, and whether it is whole.",
    no_args_is_help=True,
    suggest_commands=False,
)


class Kind(enum.StrEnum):
    """What ``--kind`` takes."""

    RECOVERY = "recovery"
    EXPORT = "export"


class ChoiceError(OnefedError):
    """Options that do not say enough, or exclude each other."""

    exit_code = ExitCode.USAGE


Place = Annotated[
    str,
    typer.Argument(
        metavar="DIR", help="A folder of checkpoints, or the name or state folder of a federation."
    ),
]
KindOption = Annotated[
    Kind | None,
    typer.Option("--kind", help="Look only at what exact resume uses, or only at the exports."),
]
Json = Annotated[bool, typer.Option("--json", "-j", help="As JSON.")]


@app.command("list")
def list_(place: Place, kind: KindOption = None, json_: Json = False) -> None:
    """List the rounds of a folder, newest first, with what is wrong with them at first sight."""
    looked_at = [(series, series.rounds()) for series in _find(place, kind)]
    found = [(series, entries, _metrics(series, entries)) for series, entries in looked_at]
    if json_:
        tables.print_json([_listed(*each) for each in found])
        return
    for index, (series, entries, metrics) in enumerate(found):
        if index:
            say("")
        say(f"{series.kind}  {series.folder}")
        table = tables.table(
            "round", "saved (UTC)", "size", "loss", "accuracy", numbers=(0, 2, 3, 4)
        )
        table.add_column("", overflow="fold")
        for entry in entries:
            record = metrics.get(entry.round_number)
            notes = ["latest"] if entry.is_latest else []
            notes += [entry.problem] if entry.problem else []
            tables.add_row(
                table,
                str(entry.round_number),
                tables.time(entry.saved_at),
                tables.size(entry.size_bytes),
                tables.number(record.loss if record else None),
                tables.number(record.accuracy if record else None),
                ", ".join(notes),
                style="red" if entry.problem else "",
            )
        table_console().print(table)


@app.command()
def show(
    place: Place,
    round_: Annotated[
        int | None,
        typer.Option("--round", "-r", help="Round to show.", show_default="the newest"),
    ] = None,
    kind: KindOption = None,
    json_: Json = False,
) -> None:
    """Show what a checkpoint holds: the run, the arrays, the state of the rule, the history."""
    series = _find(place, kind)[0]
    number = series.newest() if round_ is None else round_
    found = checkpoint_show.look_into(series, number)
    if json_:
        tables.print_json(checkpoint_show.as_document(found))
    else:
        checkpoint_show.draw(found)
    if found.problems:
        raise StorageError(
            f"Round {number} in {series.folder} is not whole:\n" + "\n".join(found.problems),
            hint=f"See which one is: onefed checkpoint verify {place}",
        )


@app.command()
def verify(
    place: Place,
    round_: Annotated[
        int | None,
        typer.Option("--round", "-r", help="Round to verify.", show_default="the newest"),
    ] = None,
    all_: Annotated[bool, typer.Option("--all", help="Verify every round.")] = False,
    kind: KindOption = None,
    json_: Json = False,
) -> None:
    """Read a checkpoint to its last byte; 0 only if the newest round is complete and untouched.

    Otherwise every problem is named, and the next older round that is whole, and the exit code
    is 7.
    """
    if all_ and round_ is not None:
        raise ChoiceError("Either --round or --all.", hint="See: onefed checkpoint verify --help")
    found = _find(place, kind)
    if round_ is not None:
        found = [each for each in found if round_ in _numbers(each)] or found[:1]
    verdicts = [_judge(series, round_, every=all_) for series in found]
    damaged = [each for each in verdicts if not each.whole]
    if json_:
        tables.print_json(
            {"whole": not damaged, "series": [each.as_document() for each in verdicts]}
        )
    else:
        for verdict in verdicts:
            _print_verdict(verdict)
    if damaged:
        raise StorageError(
            "\n".join(f"Not whole: {each.name}." for each in damaged),
            hint="\n".join(each.advice for each in damaged),
        )


@app.command()
def diff(
    place: Place,
    round_a: Annotated[int, typer.Argument(metavar="A", help="A round.")],
    round_b: Annotated[
        int | None,
        typer.Argument(metavar="B", help="The round to compare it with.", show_default="A"),
    ] = None,
    other: Annotated[
        str | None,
        typer.Option("--other", metavar="DIR2", help="Where B is.", show_default="in DIR"),
    ] = None,
    kind: KindOption = None,
    json_: Json = False,
) -> None:
    """Compare the models of two rounds, array by array; 0 if they are equal, 1 if they differ."""
    if round_b is None and other is None:
        raise ChoiceError("Two rounds, or --other.", hint="See: onefed checkpoint diff --help")
    first = _find(place, kind)[0]
    second = first if other is None else _find(other, kind)[0]
    one = checkpoint_diff.Model(first, round_a, first.arrays(round_a))
    two_number = round_a if round_b is None else round_b
    two = checkpoint_diff.Model(second, two_number, second.arrays(two_number))
    comparison = checkpoint_diff.compare(one, two)
    if json_:
        tables.print_json(comparison)
    else:
        checkpoint_diff.draw(one, two, comparison)
    raise typer.Exit(ExitCode.OK if comparison["equal"] else ExitCode.FAILED)


@app.command()
def prune(
    place: Place,
    keep_last: Annotated[
        int, typer.Option("--keep-last", min=0, help="Newest rounds that stay.")
    ] = 0,
    keep_every: Annotated[
        int,
        typer.Option("--keep-every", min=0, help="Rounds stay whose number this divides."),
    ] = 0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would go, and remove nothing.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    kind: KindOption = None,
    json_: Json = False,
) -> None:
    """Remove checkpoints that are not to be kept, after asking; never the latest."""
    if not keep_last and not keep_every:
        raise ChoiceError(
            "Nothing says which rounds stay.", hint="Give --keep-last, --keep-every or both."
        )
    found = _find(place, kind)
    if len(found) > 1:
        raise ChoiceError(f"{place} holds both kinds of checkpoints.", hint="Give --kind.")
    [series] = found
    retention = Retention(keep_last=keep_last, keep_every=keep_every)
    doomed = series.prune(retention, dry_run=True)
    if doomed and not dry_run:
        _require_idle(series.folder)
        _require_whole(series)
    sizes = {path: _bytes_of(path) for path in doomed}
    if not json_:
        for path in doomed[: tables.ROWS_SHOWN]:
            say(f"to remove  {path.name}  {tables.size(sizes[path])}")
        tables.say_more(len(doomed))
    total = f"{len(doomed)} files, {tables.size(sum(sizes.values()))}"
    removed: list[Path] = []
    if doomed and not dry_run and (yes or _agreed(f"Remove {total}?", asking=not json_)):
        removed = series.prune(retention)
    if json_:
        tables.print_json(
            {
                "kind": series.kind,
                "folder": str(series.folder),
                "dry_run": dry_run,
                "files": [{"path": str(path), "size_bytes": sizes[path]} for path in doomed],
                "kept": _numbers(series) if removed or not doomed else None,
            }
        )
    elif not doomed:
        say("There is nothing to remove.")
    elif removed:
        say(f"Removed {total}; rounds that stay: {', '.join(map(str, _numbers(series)))}")
    else:
        say(f"{total}. Nothing was removed.")


def _find(place: str, kind: Kind | None) -> list[Series]:
    """The checkpoints of a folder or a federation, those for exact resume first."""
    folder = Path(place)
    if not os.path.lexists(folder) and state.NAME.fullmatch(place):
        folder = state.find(state.home(os.environ), place).folder
    federation = StateDir(folder)
    if federation.spec_file.exists():
        paths = Paths(federation.root(SUPERLINK))
        found = [*_in_folder(paths.recovery), *_in_folder(paths.checkpoints)]
        if not found:
            raise NotFoundError(
                f"The federation in {folder} has no checkpoint.",
                hint="It has one after its first round.",
            )
    else:
        found = inspect.open_folder(folder)
    chosen = [each for each in found if kind is None or each.kind == kind]
    if not chosen:
        raise NotFoundError(
            f"There are no checkpoints of kind {kind} in {folder}.",
            hint=f"There are those of kind {found[0].kind}.",
        )
    return chosen


def _in_folder(folder: Path) -> list[Series]:
    with contextlib.suppress(NotFoundError):
        return inspect.open_folder(folder)
    return []


def _require_idle(folder: Path) -> None:
    """A run writes its checkpoints alone."""
    absolute = folder.resolve()
    for above in (absolute, *absolute.parents):
        federation = StateDir(above)
        if federation.spec_file.exists() and ownership.owner(federation) is not None:
            raise InUseError(
                f"The federation in {above} is running, and writes to {folder}.",
                hint="Stop it first: onefed down NAME",
            )


def _require_whole(series: Series) -> None:
    """The older rounds are what a run goes on from when the newest is damaged."""
    newest = series.newest()
    if problems := series.verify(newest):
        raise StorageError(
            f"Nothing was removed, for round {newest} is not whole:\n" + "\n".join(problems),
            hint=f"Restore it first. See which is whole: onefed checkpoint verify {series.folder}",
        )


def _numbers(series: Series) -> list[int]:
    return [entry.round_number for entry in series.rounds()]


@dataclass(frozen=True)
class _Metrics:
    loss: float | None
    accuracy: float | None


def _metrics(series: Series, entries: Sequence[Entry]) -> dict[int, _Metrics]:
    """Loss and accuracy by round, from the newest history that can be read."""
    readable = next((entry for entry in entries if entry.problem is None), None)
    if readable is not None:
        with contextlib.suppress(StorageError):
            history = series.snapshot(readable.round_number).history
            return {each.round_number: _Metrics(each.loss, each.accuracy) for each in history}
    return {}


def _listed(
    series: Series, entries: Sequence[Entry], metrics: Mapping[int, _Metrics]
) -> dict[str, object]:
    none = _Metrics(None, None)
    return {
        "kind": series.kind,
        "folder": str(series.folder),
        "rounds": [
            {
                "round": entry.round_number,
                "latest": entry.is_latest,
                "saved_at": entry.saved_at.isoformat() if entry.saved_at else None,
                "size_bytes": entry.size_bytes,
                "loss": metrics.get(entry.round_number, none).loss,
                "accuracy": metrics.get(entry.round_number, none).accuracy,
                "problem": entry.problem,
                "paths": [str(path) for path in entry.paths],
            }
            for entry in entries
        ],
    }


@dataclass(frozen=True)
class _Verdict:
    """What reading the rounds of a series gave."""

    series: Series
    rounds: dict[int, list[str]]
    """Problems by round, in the order they were read."""
    older_whole: int | None
    """The next older round that is whole, where the newest is not."""

    @property
    def damaged(self) -> list[int]:
        return [number for number, problems in self.rounds.items() if problems]

    @property
    def whole(self) -> bool:
        return not self.damaged

    @property
    def name(self) -> str:
        return f"round {', '.join(map(str, self.damaged))} in {self.series.folder}"

    @property
    def advice(self) -> str:
        newest_read = next(iter(self.rounds))
        if newest_read not in self.damaged:
            return f"Round {newest_read} is whole: a run can go on. Restore or prune the others."
        if self.older_whole is None:
            return "Restore the folder from a copy."
        return f"Go on from round {self.older_whole}, which is whole, or restore the folder."

    def as_document(self) -> dict[str, object]:
        return {
            "kind": self.series.kind,
            "folder": str(self.series.folder),
            "newest": self.series.newest(),
            "whole": self.whole,
            "rounds": [
                {"round": number, "whole": not problems, "problems": problems}
                for number, problems in self.rounds.items()
            ],
            "older_whole": self.older_whole,
        }


def _judge(series: Series, number: int | None, *, every: bool) -> _Verdict:
    newest = series.newest()
    numbers = _numbers(series) if every else [newest if number is None else number]
    rounds = {each: series.verify(each) for each in numbers}
    first = numbers[0]
    older_whole = None
    if rounds[first]:
        before = [each for each in _numbers(series) if each < first][:OLDER_LOOKED_AT_MAX]
        whole = (each for each in before if not (rounds.get(each) or series.verify(each)))
        older_whole = next(whole, None)
    return _Verdict(series, rounds, older_whole)


def _print_verdict(verdict: _Verdict) -> None:
    newest = verdict.series.newest()
    for number, problems in verdict.rounds.items():
        called = (
            f"{verdict.series.kind} round {number}{', the newest,' if number == newest else ''}"
        )
        say(f"{called} is {'not ' if problems else ''}whole  {verdict.series.folder}")
        for problem in problems:
            say(f"  {problem}")
    if verdict.older_whole is not None:
        say(f"{verdict.series.kind} round {verdict.older_whole} is whole  {verdict.series.folder}")


def _agreed(question: str, *, asking: bool) -> bool:
    if asking and sys.stdin.isatty() and sys.stdout.isatty():
        return typer.confirm(question)
    raise ChoiceError(
        "Nothing was removed: there is no terminal to ask on.", hint="Give --yes or --dry-run."
    )


def _bytes_of(path: Path) -> int:
    with contextlib.suppress(OSError):
        return path.lstat().st_size
    return 0
