"""The results of ``campaigns.kills`` as a page of Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Line = Mapping[str, Any]

HEAD = """# Kills

Written by `python -m campaigns.kills --table`, from runs of real federations on one machine.
A cell is one fault in one round of a federation of three nodes: the built-in app, quorum of all.
The program is held at the named point (`onefed.failpoints`), so the fault falls exactly there.
*Equal*: the models of that round and of the next have the SHA-256 of the undisturbed run.
*Lost*: how often that round had been trained for nothing, by the nodes' log of train calls.
*Gap*: seconds from the fault, or from when its victim may come back, to the next announced round.
A cell is good when it was hit, the run ended by itself with equal digests, and no node trained a
round after it had been announced.
"""

SEEDS_SHOWN = 10

BUGS = """## Bugs found, by what

| Found by | What was wrong |
|---|---|
| SuperLink killed by `--chaos` | What it gave out to a node as it died was lost: the round hung |
| reading Flower after that | The same with a reply that it gave out to the ServerApp |
| SuperLink killed by `bench/restarts.py` | It had taken a part of a message as it died, and \
refused it when it was sent again: the run was over, or a node waited for the other parts |
| SuperLink killed in *sampling* (this table, a bad cell of 26 November) | Nodes that joined again \
were asked twice; the second message came to be trained when its round was over and announced. A \
node gives its last answer again now |
"""


def page(lines: Sequence[Line], is_good: Callable[[Any], bool], *, cells_total: int) -> str:
    """The page, with the newest result of each cell and seed."""
    cells = {line["cell"]: line for line in lines if "cell" in line}
    seeds = {line["soak"]: line for line in lines if "soak" in line}
    parts = [HEAD]
    if cells:
        good = sum(is_good(line) for line in cells.values())
        gaps = {name: line["gap_s"] for name, line in cells.items() if "gap_s" in line}
        alone = sorted(gap for name, gap in gaps.items() if _is_single_kill(name))
        others = sorted(gap for name, gap in gaps.items() if not _is_single_kill(name))
        parts.append(
            f"## Cells\n\nOf the table's {cells_total} cells {len(cells)} were run, and {good} are "
            f"good.\n{_gaps('One process killed', alone)}"
            f"{_gaps('Pairs, pauses, outages, all at once', others)}"
        )
        rows = [_cell_row(name, line, is_good(line)) for name, line in cells.items()]
        head = "| Strategy | When | Fault | Outcome | Hit | Equal | Lost | Gap, s | |"
        parts.append("\n".join([head, "|---|---|---|---|---|---|---|---|---|", *rows]) + "\n")
    if seeds:
        good = sum(is_good(line) for line in seeds.values())
        parts.append(
            f"## Soak\n\nSeeded runs of five rounds with one to three faults each: "
            f"{good} of {len(seeds)} are good.\nEach is a line of "
            "[kills.jsonl](../campaigns/results/kills.jsonl); the first ten, and any that is bad:\n"
        )
        shown = {
            seed: is_good(line)
            for place, (seed, line) in enumerate(sorted(seeds.items()))
            if place < SEEDS_SHOWN or not is_good(line)
        }
        rows = [_seed_row(seed, seeds[seed], good) for seed, good in shown.items()]
        head = "| Seed | Strategy | Faults | Outcome | Equal | Lost | |"
        parts.append("\n".join([head, "|---|---|---|---|---|---|---|", *rows]) + "\n")
    commits = sorted({line["commit"] for line in (*cells.values(), *seeds.values())})
    parts.append(BUGS)
    parts.append(f"Sources: {', '.join(commits)}.\n")
    return "\n".join(parts)


def _is_single_kill(name: str) -> bool:
    fault = name.split(", ", 2)[2]
    return fault.startswith("kill: ") and "+" not in fault and "everything" not in fault


def _gaps(what: str, gaps: Sequence[float]) -> str:
    if not gaps:
        return ""
    within = sum(gap <= 5.0 for gap in gaps)
    return (
        f"{what}: gaps of {statistics.median(gaps):.1f} s in the median, {gaps[-1]:.1f} s at most, "
        f"{within} of {len(gaps)} within 5 s.\n"
    )


def _cell_row(name: str, line: Line, good: bool) -> str:
    strategy, when, fault = name.split(", ", 2)
    cells = (
        *(strategy, when, fault, line["outcome"], _yes(line["hit"]), _yes(line["equal"])),
        *(line["rounds_lost"], line.get("gap_s", ""), "good" if good else "**bad**"),
    )
    return f"| {' | '.join(map(str, cells))} |"


def _seed_row(seed: int, line: Line, good: bool) -> str:
    cells = (
        *(seed, line["strategy"], "; ".join(line["faults"]), line["outcome"]),
        *(_yes(line["equal"]), line["rounds_lost"], "good" if good else "**bad**"),
    )
    return f"| {' | '.join(map(str, cells))} |"


def _yes(fact: bool) -> str:
    return "yes" if fact else "no"
