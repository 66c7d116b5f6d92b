"""A group without a coordinator on a terminal: its members, and what they have agreed on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from onefed.cli import live
from onefed.telemetry.group import GroupView, MemberView

STATE_STYLES = {
    "starting": "yellow",
    "training": "bold green",
    "no quorum": "bold yellow",
    "finished": "bold green",
    "stopped": "dim",
    "killed": "bold red",
    "gone": "bold red",
    "failed": "bold red",
}


@dataclass(frozen=True, slots=True)
class Standing:
    """What a member says of itself, about once a second."""

    state: str
    """A key of ``STATE_STYLES``."""
    role: str = ""
    leader: str | None = None
    term: int = 0
    voters: tuple[str, ...] = ()
    round_number: int = 0
    """Of its newest model."""
    model_sha256: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """All that is drawn."""

    name: str
    about: tuple[str, ...]
    """App, rule, topology."""
    view: GroupView
    standings: Mapping[str, Standing]
    """By member."""
    rounds_total: int
    status: str
    directory: str
    elapsed_seconds: float
    restarts: int = 0


def draw(picture: Picture) -> RenderableType:
    """The whole picture: members, rounds, charts, times, places, what people are to know."""
    view = picture.view
    title = live.plain(" · ".join((picture.name, *picture.about)))
    left = None if picture.status == "finished" else view.left_seconds(picture.rounds_total)
    times = (
        f"elapsed {live.duration(picture.elapsed_seconds)}",
        f"about {live.duration(left)} left" if left else "",
        f"restarts {picture.restarts}" if picture.restarts else "",
        f"failures {view.failures}" if view.failures else "",
    )
    return Group(
        Panel(live.Fitted(lambda width: _members(picture, width)), title=title, title_align="left"),
        Panel(
            live.Fitted(lambda width: _rounds(picture, width)),
            title=Text(picture.status, style=STATE_STYLES.get(picture.status, "")),
            title_align="left",
        ),
        live.footer(times, {"logs and state": picture.directory}, list(view.notices)),
    )


def _members(picture: Picture, width: int) -> RenderableType:
    names = sorted(picture.standings, key=lambda name: (len(name), name))
    shown, hidden = names[: live.NODES_SHOWN], names[live.NODES_SHOWN :]
    table = Table(box=None, pad_edge=False, header_style="dim")
    columns = ("node", "state", "role", "round", "update in", "model")
    kept = len(columns) if width >= live.WIDE else 2
    for column in columns[:kept]:
        table.add_column(column, no_wrap=True, overflow="ellipsis")
    newest = _newest(picture)
    for name in shown:
        standing = picture.standings[name]
        member = picture.view.members.get(name) or MemberView(name)
        # By its log, or where that is not read, by what it says: it is another command's.
        has = member if member.round_number >= standing.round_number else standing
        votes = newest is None or not standing.role or name in newest.voters
        cells = (
            live.plain(name),
            live.plain(standing.state, style=STATE_STYLES.get(standing.state, "")),
            live.plain(standing.role if votes else "no vote"),
            Text(str(has.round_number) if has.round_number else ""),
            Text(f"round {member.contributed}" if member.contributed else ""),
            live.plain((has.model_sha256 or "")[:12]),
        )
        table.add_row(*cells[:kept])
    parts: list[RenderableType] = [table]
    if hidden:
        counts = Counter(picture.standings[name].state for name in hidden)
        states = ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))
        parts.append(Text(f"and {len(hidden)} more: {states}", style="dim"))
    troubled = [each for each in picture.view.members.values() if each.reason]
    parts += [
        live.plain(f"{each.name}: {live.first_line(each.reason or '')}", style="red")
        for each in troubled[: live.REASONS_SHOWN]
    ]
    return Group(*parts)


def _rounds(picture: Picture, width: int) -> RenderableType:
    view = picture.view
    parts = live.training(
        view.rounds_done, picture.rounds_total, _led(picture), view.history, width
    )
    if view.split is not None:
        told = f"The members have different models of round {view.split}."
        parts.append(Text(told, style="bold red"))
    return Group(*parts)


def _led(picture: Picture) -> str:
    """Who leads, and how many of those that decide are there."""
    newest = _newest(picture)
    if newest is None or picture.status == "finished":
        return ""
    there = [name for name in newest.voters if _is_there(picture.standings.get(name))]
    voters = f"{len(there)} of {len(newest.voters)} voters there"
    return f", {newest.leader} leads term {newest.term}, {voters}"


def _newest(picture: Picture) -> Standing | None:
    """What is said by whoever follows the newest leader, and has its newest round."""
    led = [each for each in picture.standings.values() if each.leader]
    return max(led, key=lambda each: (each.term, each.round_number), default=None)


def _is_there(standing: Standing | None) -> bool:
    return standing is not None and standing.state in ("training", "no quorum", "finished")
