"""Faults on real processes of a peer group: what happens, and how soon it goes on.

``python -m campaigns.peer_faults`` runs a table of cells (kill -9 of each role at each stage of a
round, pauses, disks, partitions, loss, clocks, nonsense); ``--soak`` draws faults from a seed for
``--minutes``. Each line that is added to the results is one cell or one soak; what is there already
for the same sources is not run again. ``--table`` writes the results to docs/peer-faults.md.
Exit 1 where two models of a round were seen, a round was not the rule's, or a group did not go on.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

from campaigns import results
from campaigns.peers import cells, net, soak, table
from campaigns.peers.group import BrokenError, StuckError

PAGE = results.ROOT / "docs/peer-faults.md"
IN_CI = bool(os.environ.get("CI"))
"""There, a machine that lacks a part is a failure."""


class Results(results.Lines):
    """The file in which they add up."""

    def has(self, cell: str) -> bool:
        """Whether that is there already and good, for the same sources."""
        return any(
            line.get("cell") == cell and table.is_good(line) for line in self.of_these_sources()
        )

    def add(self, line: Mapping[str, Any]) -> None:
        """Seconds to the millisecond, with the load of the machine."""
        rounded = {key: round(x, 3) if isinstance(x, float) else x for key, x in line.items()}
        super().add({**rounded, "load": round(os.getloadavg()[0], 1)})


def fill_table(found: Results, worlds: list[str], texts: list[str], ends_s: float) -> int:
    """Run the cells that are left; how many went wrong."""
    left = [
        cell
        for cell in cells.matrix()
        if cell.world in worlds
        and not found.has(cell.what)
        and all(text in cell.what for text in texts)
    ]
    bad = 0
    for world, batch in groupby(left, key=lambda cell: cell.world):
        if _is_left_out(world):
            bad += IN_CI
            continue
        waiting = list(batch)
        while waiting and time.monotonic() < ends_s:
            for line in _run_together(world, waiting, ends_s):
                waiting.pop(0)
                found.add(line)
                _tell(line)
                bad += not table.is_good(line)
    return bad


def _run_together(world: str, waiting: list[cells.Cell], ends_s: float) -> list[dict[str, Any]]:
    """Cells in one group, until one of them goes wrong."""
    lines: list[dict[str, Any]] = []
    try:
        with cells.group_of(world) as group:
            for cell in waiting:
                if time.monotonic() > ends_s and lines:
                    break
                lines.append({"cell": cell.what, "equal": True, "outcome": "not ended"})
                line = cell.run(group)
                lines[-1] |= {"outcome": "went on", **line, **cells.settle(group)}
            rounds = group.require_reference()
            for line in lines:
                line["rounds"] = rounds
    except StuckError as error:
        _blame(lines, waiting, outcome=str(error))
    except BrokenError as error:
        _blame(lines, waiting, outcome=str(error), equal=False)
    return lines


def _is_left_out(world: str) -> bool:
    """Whether this machine cannot have a world, which is told."""
    reason = cells.missing(world)
    if reason is not None:
        sys.stderr.write(f"{world}: left out on a machine {reason}\n")
    return reason is not None


def _blame(lines: list[dict[str, Any]], waiting: list[cells.Cell], **how: object) -> None:
    if not lines:
        lines.append({"cell": waiting[0].what, "equal": True})
    lines[-1] |= how


def _tell(line: dict[str, Any]) -> None:
    verdict = "good" if table.is_good(line) else "BAD"
    what = line.get("cell") or f"soak {line['soak']}"
    sys.stderr.write(f"{verdict}: {what}: {line}\n")


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # processes are ended on the way
    options = _options()
    if options.table:
        names = [cell.what for cell in cells.matrix()]
        PAGE.write_text(table.page(Results(options.results).lines, cells=names))
        return
    net.enter("-m", "campaigns.peer_faults", *sys.argv[1:])
    found = Results(options.results)
    if options.soak:
        line = soak.run(options.seed, options.minutes * 60)
        found.add(line)
        _tell(line)
        bad = int(not table.is_good(line))
        bad += IN_CI * sum(map(_is_left_out, (cells.NETWORK, cells.CLOCKS)))
    else:
        ends_s = time.monotonic() + options.minutes * 60
        bad = fill_table(found, options.worlds, options.cells, ends_s)
    sys.exit(1 if bad else 0)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m campaigns.peer_faults", description=__doc__)
    parser.add_argument(
        "--results", type=Path, default=results.ROOT / "campaigns/results/peer_faults.jsonl"
    )
    parser.add_argument("--soak", action="store_true", help="faults by chance instead of the table")
    parser.add_argument("--seed", type=int, default=0, help="of the soak")
    parser.add_argument(
        "--cells", nargs="*", default=[], metavar="TEXT", help="cells whose name has all of these"
    )
    parser.add_argument(
        "--worlds", nargs="+", default=cells.WORLDS, choices=cells.WORLDS, help="cells of these"
    )
    parser.add_argument(
        "--minutes", type=float, default=30.0, help="begin nothing new after so long"
    )
    parser.add_argument("--table", action="store_true", help=f"write {PAGE.name}")
    return parser.parse_args()


if __name__ == "__main__":
    main()
