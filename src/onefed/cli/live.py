"""A federation on a terminal, drawn anew from its view a few times a second."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from onefed.cli.sparkline import sparkline
from onefed.telemetry.status import FederationView, NodeView, RoundView

ROUNDS_SHOWN = 6
NODES_SHOWN = 12
NOTICES_SHOWN = 3
CHART_WIDTH = 40
BAR_WIDTH = 40

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
        Panel(_nodes(view.nodes.values()), title=_title(view), title_align="left"),
        Panel(_training(view), title="training", title_align="left"),
        _footer(view, now),
    )


def duration(seconds: float) -> str:
    """``1:02:03`` or ``2:03``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _title(view: FederationView) -> Text:
    parts = [view.name or "federation", view.app or "", view.strategy or ""]
    title = Text(" · ".join(part for part in parts if part))
    return title.append(f" · {view.status}", style=STATE_STYLES.get(view.status, ""))


def _nodes(nodes: Iterable[NodeView]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("machine", "state", "partition", "last reply", "now"):
        table.add_column(column, no_wrap=True, overflow="ellipsis")
    every = list(nodes)
    for node in every[:NODES_SHOWN]:
        reply = (
            f"round {node.last_reply_round}"
            + (f", {node.last_train_seconds:.1f} s" if node.last_train_seconds is not None else "")
            if node.last_reply_round is not None
            else ""
        )
        doing = node.reason or ("" if node.ready else node.boot_step or "")
        table.add_row(
            Text(node.vm or node.node_id or "?"),
            Text(node.state, style=STATE_STYLES.get(node.state, "")),
            "" if node.partition is None else str(node.partition),
            reply,
            Text(doing.splitlines()[0] if doing else "", style="dim"),
        )
    if len(every) > NODES_SHOWN:
        table.add_row(f"and {len(every) - NODES_SHOWN} more", "", "", "", "")
    if not every:
        table.add_row(Text("no machine yet", style="dim"), "", "", "", "")
    return table


def _training(view: FederationView) -> RenderableType:
    total = view.rounds_total or 0
    progress = Table.grid(padding=(0, 2))
    progress.add_row(
        f"round {view.rounds_done} of {total}" if total else "no round yet",
        ProgressBar(total=max(total, 1), completed=view.rounds_done, width=BAR_WIDTH),
        Text(f"now training round {view.round_current}" if view.round_current else "", "dim"),
    )
    done = [each for each in view.rounds if each.done]
    parts: list[RenderableType] = [progress]
    if done:
        parts += [Text(), _charts(done), Text(), _rounds(done[-ROUNDS_SHOWN:])]
    if view.details:
        parts.append(Text(view.details, style="yellow"))
    return Group(*parts)


def _charts(done: list[RoundView]) -> Table:
    charts = Table.grid(padding=(0, 2))
    for name, values, style in (
        ("accuracy", [each.accuracy for each in done], "green"),
        ("loss", [each.loss for each in done], "magenta"),
    ):
        known = [value for value in values if value is not None]
        if known:
            chart = Text(sparkline(values, CHART_WIDTH), style=style)
            charts.add_row(name, chart, f"{known[0]:.4f} → {known[-1]:.4f}")
    return charts


def _rounds(rounds: list[RoundView]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("round", "accuracy", "loss", "clients", "seconds"):
        table.add_column(column, justify="right")
    for each in rounds:
        table.add_row(
            str(each.round),
            "" if each.accuracy is None else f"{each.accuracy:.4f}",
            "" if each.loss is None else f"{each.loss:.4f}",
            str(each.responded),
            "" if each.seconds is None else f"{each.seconds:.1f}",
        )
    return table


def _footer(view: FederationView, now: datetime) -> RenderableType:
    elapsed, left = view.elapsed_seconds(now), view.eta_seconds()
    times = [
        f"elapsed {duration(elapsed)}" if elapsed is not None else "",
        f"about {duration(left)} left" if left else "",
        f"restarts {view.restarts}" if view.restarts else "",
        f"failures {view.failures}" if view.failures else "",
    ]
    lines = [Text(" · ".join(part for part in times if part))]
    if view.directory:
        lines.append(Text(f"logs and state  {view.directory}", style="dim"))
    if view.checkpoint:
        lines.append(Text(f"checkpoint      {view.checkpoint}", style="dim"))
    lines += [Text(notice, style="yellow") for notice in view.notices[-NOTICES_SHOWN:]]
    return Group(*lines)
