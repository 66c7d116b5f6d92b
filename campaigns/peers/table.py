"""The results of ``campaigns.peer_faults`` as a page of Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Line = Mapping[str, Any]

HEAD = "\n".join(
    (
        "# Faults on real processes of a peer group\n",
        "Written by `python -m campaigns.peer_faults --table`.",
        "A cell is one fault to a group of four nodes that trains: processes of their own, gRPC "
        "with mutual TLS and disks as in production; the app takes 40 ms and the model has 20,000 "
        "parameters, so that what is seen is the protocol.",
        "A node is held at the named point (`onefed.node.points`), so the fault falls exactly "
        "there: *training*, *trained* (ready), *sliced* (sending), *reduced* (reducing), *sharded* "
        "and *assembled* (gathering), *accepted* and *held* (held), *committing*, *committed*, "
        "*installed* (installing). Every contributor owns a part of the result, so each kill is "
        "one of an owner, too.",
        "Network faults are made with nftables in a network namespace for each node, clocks are "
        "stepped with libfaketime, disks that fill up are small tmpfs.\n",
        "* *Next*: seconds from the fault to the next committed round; of an even split, from its "
        "healing.",
        "* *Again*: seconds from the end of the fault until all nodes are level and the victim "
        "contributes; after a kill this is nearly all the start of a process.",
        "* *Models*: how many nodes live in the end, and the model (SHA-256) that all of them have "
        "of the same round. No two nodes ever told of different models of a round, and every round "
        "of the group is what the rule makes of its contributors, computed anew.\n",
        "A cell is good when the group went on by itself, all models are equal, and what must not "
        "happen did not: a round of a minority, an election for a clock's sake, memory for "
        "nonsense.\n",
    )
)

LOAD_QUIET_MAX = 5.0
"""Of a machine that does nothing else: a group of four makes about so much by itself."""

BUGS = (
    (
        "one-way: a follower does not hear another",
        "A link that was cut without a word cost every round two attempts of 5 s before the leader "
        "owned everything: 20.8 s to the second round. Now the attempt after the first stall does, "
        "and so do the next 32 rounds: 6.3 s, as long as the one stall takes",
    ),
    (
        "a member that sends truncated frames",
        "gRPC was told anew at each connection which certificates are pinned, and frees what it "
        "was told before although another thread may just begin a handshake with it: a few hundred "
        "connections within a second, of a stranger even, ended a node with a segmentation fault. "
        "Now it is told what has changed (`onefed.node.pins`), and a node accepts 256 connections "
        "at a time, so that strangers cannot take its descriptors from its disk",
    ),
    (
        "thousands of frames that a member may make (tests/unit/node/test_hostile.py)",
        "Asked for part 0 of 0 of its update a node divided by zero and ended; headers of chunks "
        "and bases of parcels that are none were exceptions that nobody expected, and ended the "
        "stream only",
    ),
    (
        "random messages to the machine (tests/unit/node/test_nonsense.py)",
        "A heartbeat in the leader's own term, and another model of a committed round, ended a "
        "node with an assertion",
    ),
    (
        "a member that keeps its update for itself (tests/unit/node/test_driver.py)",
        "Every attempt was made with it again, and no round was agreed on any more",
    ),
)
"""By what it was found, and what was wrong."""

EXPLAINED = {
    "clock of the leader an hour on": "libfaketime read its file at every look at a clock then, "
    "which made every process slow; it reads it once a second now. That this was the reason is "
    "likely and not shown",
    "a member that sends truncated frames": "a node had ended by itself with a segmentation "
    "fault of gRPC, which connections that come together could provoke: see the bugs below",
    "disk of the leader full": "the campaign's mistake: nodes write checkpoints by now, of which "
    "the small disk was full before it was filled, so that two of four nodes were gone; they keep "
    "those of two rounds now",
    "a member that sends replayed frames": "the consequence of the one before: with that node "
    "gone, the kill of this cell left two of four",
}
"""Of cells that went wrong in an earlier run: what is known about it."""


def is_good(line: Line) -> bool:
    """Whether a cell or a soak went as it must."""
    return line["outcome"] == "went on" and line["equal"] and not line.get("wrong", False)


def page(lines: Sequence[Line], *, cells: Sequence[str]) -> str:
    """The page, with the newest result of each of the ``cells``, in their order, and the soaks."""
    newest = {line["cell"]: line for line in lines if "cell" in line}
    found = {cell: newest[cell] for cell in cells if cell in newest}
    soaks = [line for line in lines if "soak" in line]
    parts = [HEAD]
    if found:
        good = sum(is_good(line) for line in found.values())
        parts.append(
            f"## Cells\n\nOf the table's {len(cells)} cells {len(found)} were run, and {good} are "
            f"good.\n{_goals(list(found.values()))}\n"
        )
        rows = [_row(line) for line in found.values()]
        head = "| Fault | Next, s | Again, s | Models | Seen | |\n|---|---|---|---|---|---|"
        parts.append("\n".join([head, *rows]) + "\n")
    failed = [line for line in lines if "cell" in line and not is_good(line)]
    if failed:
        rows = [
            f"| {_row(line).removeprefix('| ').split(' | ')[0]} | {line['commit']} "
            f"| {line.get('said', '') if line['outcome'] == 'went on' else line['outcome']} "
            f"| {EXPLAINED.get(line['cell'], '')} |"
            for line in failed
        ]
        head = "| Fault | Commit | Seen | Known |\n|---|---|---|---|"
        parts.append(
            "## Runs that went wrong\n\nThe table above has the newest run of each cell; these, "
            "older or not, were bad.\n\n" + "\n".join([head, *rows]) + "\n"
        )
    if soaks:
        rows = [_soak_row(line) for line in soaks]
        head = (
            "| Seed | Minutes | Faults | Rounds | Median, worst gap, s | Memory, MiB | Descriptors "
            "| Equal | |\n|---|---|---|---|---|---|---|---|---|"
        )
        parts.append("## Soak\n\n" + "\n".join([head, *rows]) + "\n")
    rows = [f"| {found_by} | {wrong} |" for found_by, wrong in BUGS]
    head = "| Found by | What was wrong |\n|---|---|"
    parts.append("## Bugs found, by what\n\n" + "\n".join([head, *rows]) + "\n")
    sources = sorted({line["commit"] for line in (*found.values(), *soaks)})
    parts.append(f"Sources: {', '.join(sources)}.\n")
    return "\n".join(parts)


def _goals(lines: Sequence[Line]) -> str:
    said = []
    for what, goal_s in (("killed or with another clock", 2.0), ("silent or cut off", 5.0)):
        theirs = [line for line in lines if line.get("goal_s") == goal_s and "gap_s" in line]
        if theirs:
            within = sum(line["gap_s"] <= goal_s for line in theirs)
            worst = max(line["gap_s"] for line in theirs)
            said.append(
                f"Nodes {what}: the next round within {goal_s:g} s in {within} of {len(theirs)} "
                f"cells, {worst:.1f} s at worst."
            )
    loads = sorted(line["load"] for line in lines)
    said.append(
        f"On two cores; load at the end of a cell {loads[0]} to {loads[-1]}."
        + (" They had other work: times are upper bounds." if loads[-1] > LOAD_QUIET_MAX else "")
    )
    return "\n".join(said)


def _row(line: Line) -> str:
    said = line.get("said", "") if line["outcome"] == "went on" else line["outcome"]
    cells = (
        *(line["cell"], _seconds(line, "gap_s"), _seconds(line, "again_s")),
        *(_models(line), said, _verdict(line)),
    )
    return f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |"


def _models(line: Line) -> str:
    """Whether they are equal, and which model who lives has in the end."""
    if not line["equal"] or "model_sha256" not in line:
        return _yes(line["equal"])
    return f"{line['living']} have {line['model_sha256'][:8]} of round {line['round']}"


def _soak_row(line: Line) -> str:
    faults = ", ".join(f"{count} {name}" for name, count in line["faults"].items())
    memory = [line.get(key, 0) / 2**20 for key in ("memory_before", "memory_after")]
    descriptors = [line.get(key, 0) for key in ("descriptors_before", "descriptors_after")]
    cells = (
        *(str(line["soak"]), f"{line['seconds'] / 60:.0f}"),
        *(f"{sum(line['faults'].values())}: {faults}".replace("_", " "), str(line["rounds"])),
        f"{_seconds(line, 'gap_median_s')}, {_seconds(line, 'gap_max_s')}",
        f"{memory[0]:.0f}, then {memory[1]:.0f}",
        f"{descriptors[0]}, then {descriptors[1]}",
        *(_yes(line["equal"]), _verdict(line)),
    )
    return f"| {' | '.join(cells)} |"


def _seconds(line: Line, key: str) -> str:
    return f"{line[key]:.2f}" if key in line else ""


def _verdict(line: Line) -> str:
    if is_good(line):
        return "good"
    return f"**bad**: {line['outcome']}" if "soak" in line else "**bad**"


def _yes(fact: bool) -> str:
    return "yes" if fact else "no"
