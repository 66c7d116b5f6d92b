"""A federation on a terminal, drawn anew from its view a few times a second."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from onefed.cli.sparkline import sparkline
from onefed.telemetry import sentences
from onefed.telemetry.status import FederationView, NodeView, RoundView

ROUNDS_SHOWN = 6
NODES_SHOWN = 12
REASONS_SHOWN = 3
NOTICES_SHOWN = 3
KILLS_SHOWN = 10
CHART_WIDTH_MAX = 40
BAR_WIDTH_MAX = 40

FRAME_WIDTH = 4
"""What a panel takes on both sides."""

WIDE = 64
"""Columns that the tables need with all that is in them; with fewer they keep what matters."""

NARROW = 36
"""With fewer columns there are lines instead of tables."""

STATE_STYLES = {
    "booting": "yellow",
    "ready": "cyan",
    "training": "bold green",
    "idle": "green",
    "failed": "bold red",
    "disconnected": "red",
    "stopped": "dim",
    "waiting": "yellow",
    "stalled": "bold yellow",
    "finished": "bold green",
}


def draw(view: FederationView, now: datetime) -> RenderableType:
    """The whole picture: nodes, rounds, charts, times, places."""
    return Group(
        Panel(Fitted(lambda width: _nodes(view, width)), title=_title(view), title_align="left"),
        Panel(
            Fitted(lambda width: _training(view, width)),
            title=Text(view.status, style=STATE_STYLES.get(view.status, "")),
            title_align="left",
        ),
        *([_kills(view)] if view.kills else []),
        _footer(view, now),
    )


def duration(seconds: float) -> str:
    """``1:02:03`` or ``2:03``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


@dataclass
class Fitted:
    """Something that is built for the columns there are."""

    build: Callable[[int], RenderableType]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self.build(options.max_width)


def _title(view: FederationView) -> Text:
    parts = (view.name or "federation", view.app or "", view.strategy or "")
    return plain(" · ".join(part for part in parts if part))


def _nodes(view: FederationView, width: int) -> RenderableType:
    every = sorted(view.nodes.values(), key=_place)
    if not every:
        return Text("no machine yet", style="dim")
    shown, hidden = every[:NODES_SHOWN], every[NODES_SHOWN:]
    parts = [_node_lines(shown) if width < NARROW else _node_table(shown, width)]
    if hidden:
        counts = Counter(node.state for node in hidden)
        states = ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))
        parts.append(Text(f"and {len(hidden)} more: {states}", style="dim"))
    troubled = [node for node in every if node.reason]
    parts += [
        plain(f"{_called(node)}: {first_line(node.reason or '')}", style="red")
        for node in troubled[:REASONS_SHOWN]
    ]
    return Group(*parts)


def _node_lines(nodes: Sequence[NodeView]) -> RenderableType:
    return Group(
        *(
            plain(_called(node)).append(f" {node.state}", style=STATE_STYLES.get(node.state, ""))
            for node in nodes
        )
    )


def _node_table(nodes: Sequence[NodeView], width: int) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    columns = ("machine", "state", "partition", "last reply", "boot step")
    kept = len(columns) if width >= WIDE else 2
    for column in columns[:kept]:
        table.add_column(column, no_wrap=True, overflow="ellipsis")
    for node in nodes:
        cells = (
            plain(_called(node)),
            Text(node.state, style=STATE_STYLES.get(node.state, "")),
            Text("" if node.partition is None else str(node.partition)),
            Text(_last_reply(node)),
            plain("" if node.ready or node.boot_step is None else node.boot_step, style="dim"),
        )
        table.add_row(*cells[:kept])
    return table


def _last_reply(node: NodeView) -> str:
    if node.last_reply_round is None:
        return ""
    seconds = node.last_train_seconds
    return f"round {node.last_reply_round}" + ("" if seconds is None else f", {seconds:.1f} s")


def _place(node: NodeView) -> tuple[bool, str, int, str]:
    """The coordinator first, then by name, ``supernode/2`` before ``supernode/10``."""
    name, _, number = (node.vm or "").partition("/")
    index = int(number) if number.isdecimal() and number.isascii() and len(number) < 10 else 0
    return (node.role != "superlink", name, index, node.node_id or "")


def _training(view: FederationView, width: int) -> RenderableType:
    doing = f", training round {view.round_current}" if view.round_current else ""
    done = [each for each in view.rounds if each.done]
    parts = training(view.rounds_done, view.rounds_total or 0, doing, done, width)
    if view.details:
        parts.append(plain(view.details, style="yellow"))
    return Group(*parts)


def training(
    rounds_done: int, rounds_total: int, doing: str, done: Sequence[RoundView], width: int
) -> list[RenderableType]:
    """How far it is, how good the models are, and the last rounds."""
    line = plain(f"round {rounds_done} of {rounds_total}" if rounds_total else "no round yet")
    line.append_text(plain(doing, style="dim"))
    bar = ProgressBar(
        total=max(rounds_total, 1), completed=rounds_done, width=min(width, BAR_WIDTH_MAX)
    )
    parts: list[RenderableType] = [line, bar]
    if done:
        parts += [Text(), *_charts(done, width)]
        if width >= NARROW:
            parts += [Text(), _rounds(done[-ROUNDS_SHOWN:], width)]
    return parts


def _kills(view: FederationView) -> RenderableType:
    """What was killed on purpose, and when training had gone on."""
    table = Table.grid(padding=(0, 2))
    for kill in view.kills[-KILLS_SHOWN:]:
        back = kill.seconds is not None
        fate = f"round {kill.recovered_round} done {kill.seconds:.1f} s later" if back else "..."
        table.add_row(
            Text(f"kill {kill.number}", style="dim"),
            plain(kill.victim, style="bold red"),
            Text(f"in round {kill.round}"),
            Text("✓" if back else "✗", style="bold green" if back else "bold red"),
            Text(fate, style="" if back else "yellow"),
        )
    title = Text(f"chaos · {view.kills[-1].number} of {view.kills[-1].total} kills", "bold red")
    return Panel(table, title=title, title_align="left")


def _charts(done: Sequence[RoundView], width: int) -> list[RenderableType]:
    charts: list[RenderableType] = []
    for name, values, style in (
        ("accuracy", [each.accuracy for each in done], "green"),
        ("loss    ", [each.loss for each in done], "magenta"),
    ):
        known = [value for value in values if value is not None]
        if not known:
            continue
        numbers = f"{_number(known[0])} → {_number(known[-1])}"
        room = min(CHART_WIDTH_MAX, width - len(name) - len(numbers) - len("    "))
        chart = Text(f"{name}  ")
        if room > 0:
            chart.append(sparkline(values, room) + "  ", style=style)
        charts.append(chart.append(numbers))
    return charts


def _rounds(rounds: Sequence[RoundView], width: int) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    columns = ("round", "accuracy", "loss", "clients", "seconds")
    kept = len(columns) if width >= WIDE else 3
    for column in columns[:kept]:
        table.add_column(column, justify="right", no_wrap=True)
    for each in rounds:
        cells = (
            str(each.round),
            _number(each.accuracy),
            _number(each.loss),
            str(each.responded),
            "" if each.seconds is None else f"{each.seconds:.1f}",
        )
        table.add_row(*cells[:kept])
    return table


def _footer(view: FederationView, now: datetime) -> RenderableType:
    elapsed, left = view.elapsed_seconds(now), view.eta_seconds()
    times = (
        f"elapsed {duration(elapsed)}" if elapsed is not None else "",
        f"about {duration(left)} left" if left else "",
        f"restarts {view.restarts}" if view.restarts else "",
        f"failures {view.failures}" if view.failures else "",
    )
    places = {"logs and state": view.directory, "checkpoint": view.checkpoint}
    return footer(times, places, view.notices)


def footer(
    times: Sequence[str], places: Mapping[str, str | None], notices: Sequence[str]
) -> RenderableType:
    """What is below the panels; what is empty is left out."""
    lines = [Text(" · ".join(part for part in times if part))]
    lines += [plain(f"{what:14}  {place}", style="dim") for what, place in places.items() if place]
    lines += [plain(notice, style="yellow") for notice in notices[-NOTICES_SHOWN:]]
    return Group(*lines)


def _number(value: float | None) -> str:
    """Four decimals, or four digits of a number that would be long."""
    if value is None:
        return ""
    return f"{value:.4f}" if abs(value) < 1e6 else f"{value:.4g}"


def _called(node: NodeView) -> str:
    return node.vm or node.node_id or "?"


def first_line(text: str) -> str:
    return next(iter(text.splitlines()), "")


def plain(text: str, style: str = "") -> Text:
    """What came from elsewhere: one line, in which nothing moves the cursor or is mark-up."""
    return Text(sentences.visible(text), style=style)
