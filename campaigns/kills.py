"""Kill anything, anywhere in a round: the federation goes on by itself, to the same bits.

``python -m campaigns.kills`` runs a table of cells (who is killed or paused, when, under which
strategy) and ``--soak N`` runs N seeded federations with one to three faults each, pairs, pauses
and all at once among them. Each line that is added to the results is one cell or one seed; what is
there already for the same sources is not run again. ``--table`` prints the results as Markdown.
Exit 1 where a digest differs, a round that was announced was trained again, or a run did not end.
"""

from __future__ import annotations

import argparse
import functools
import random
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from campaigns import kill_table, results, train_calls
from campaigns.faults import EVERYTHING, NODES, WORKER, Fault, Federation, StuckError
from onefed.local import chaos

PHASES = ("sampling", "sending", "training", "collecting", "aggregating", "saving", "announcing")
STRATEGIES = ("FedAvg", "FedAdam", "FedTrimmedAvg", "Krum")

CELLS_TOGETHER = 7
"""In one federation, one after the other, with an undisturbed round between two."""

REFERENCE_ROUNDS = 2 * CELLS_TOGETHER + 2

SOAK_ROUNDS = 5


@dataclass(frozen=True)
class Cell:
    """One thing to try."""

    fault: Fault
    when: str
    """A point of ``onefed.failpoints``."""
    strategy: str = "FedAvg"

    @property
    def name(self) -> str:
        """Unique."""
        return f"{self.strategy}, {self.when}, {self.fault}"


def matrix() -> list[Cell]:
    """The table: every single kill in every phase with FedAvg; the rest where it differs most.

    * FedAvg: each of five processes in each phase, and everything at once in each phase;
      the SuperLink away for 20 s in three phases and for 90 s in two; four pairs in three phases;
      each of five processes paused for 0.2, 1 and 4 s, phases in turn; a ClientApp
    * FedAdam, FedTrimmedAvg, Krum: ServerApp, SuperLink and everything, before, inside and after
      what changes the state of a rule
    """
    single = ("serverapp", "superexec", "superlink", "supervisor", "supernode/1")
    cells = [Cell(Fault((who,)), when) for who in single for when in PHASES]
    cells += [Cell(Fault((EVERYTHING,)), when) for when in PHASES]
    cells.append(Cell(Fault((WORKER,)), "working"))
    cells += [
        Cell(Fault(("superlink",), "outage", seconds), when)
        for seconds, phases in (
            (20.0, ("sending", "collecting", "saving")),
            (90.0, ("collecting",)),
        )
        for when in phases
    ]
    pairs = (
        ("serverapp", "superlink"),
        ("serverapp", "supervisor"),
        ("superexec", "supervisor"),
        ("superlink", "supernode/1"),
    )
    cells += [
        Cell(Fault(pair), when) for pair in pairs for when in ("training", "saving", "announcing")
    ]
    pauses = [(who, seconds) for who in single for seconds in (0.2, 1.0, 4.0)]
    cells += [
        Cell(Fault((who,), "pause", seconds), PHASES[index % len(PHASES)])
        for index, (who, seconds) in enumerate(pauses)
    ]
    cells += [
        Cell(Fault((who,)), when, strategy)
        for strategy in STRATEGIES[1:]
        for who in ("serverapp", "superlink", EVERYTHING)
        for when in ("training", "saving", "announcing")
    ]
    return cells


# --- cells ---------------------------------------------------------------------------------------


def run_cells(
    cells: Sequence[Cell], reference: Sequence[str], ends_s: float
) -> list[dict[str, Any]]:
    """Run cells of one strategy in one federation; a line of results for each.

    Args:
        ends_s: monotonic seconds; no cell begins later, and the run goes on to its end.
    """
    lines: list[dict[str, Any]] = []
    rounds = 2 * len(cells) + 2
    with Federation(strategy=cells[0].strategy, rounds=rounds) as federation:
        try:
            federation.hold("announced.1")
            federation.wait_for("round 1", lambda: federation.held("announced.1"))
            for index, cell in enumerate(cells):
                lines.append(_run_cell(federation, cell, 2 * index + 2))
                if time.monotonic() > ends_s:
                    break
            federation.release(f"announced.{2 * len(lines) + 1}")
            outcome = federation.wait_for_end()
        except StuckError as error:
            outcome = str(error)
            if len(lines) < len(cells):
                lines.append({"cell": cells[len(lines)].name, "hit": False})
        digests = chaos.digests(federation.directory)
        retrained = train_calls.retrained(federation.directory)
        trained = train_calls.submissions(federation.directory)
    for line, number in zip(lines, range(2, rounds, 2), strict=False):
        theirs = digests[number - 1 : number + 1]
        line |= {
            "outcome": outcome,
            "equal": len(theirs) == 2 and list(theirs) == list(reference[number - 1 : number + 1]),
            "trained_after_announced": sum(call.round == number for call in retrained),
            "rounds_lost": trained.get(number, 1) - 1,
        }
    return lines


def _run_cell(federation: Federation, cell: Cell, number: int) -> dict[str, Any]:
    """One fault in one round; the federation is held before and after it, with all processes."""
    federation.wait_until_whole()
    point = f"{cell.when}.{number}"
    federation.hold(point)
    federation.hold(f"announced.{number + 1}")
    federation.release(f"announced.{number - 1}")
    federation.wait_for(f"{point} to be passed", lambda: federation.held(point))
    over_at = federation.strike(cell.fault, point)
    federation.wait_for("the round after it", lambda: federation.held(f"announced.{number + 1}"))
    announced = federation.announced_after(over_at)  # None: both came while it was paused
    gap_s = round((announced[1] - over_at).total_seconds(), 2) if announced else 0.0
    return {"cell": cell.name, "hit": True, "gap_s": gap_s}


def reference_of(strategy: str, rounds: int) -> list[str]:
    """Digests of every round, undisturbed."""
    with Federation(strategy=strategy, rounds=rounds) as federation:
        outcome = federation.wait_for_end()
        if outcome != "finished":
            raise StuckError(f"the undisturbed run of {strategy}: {outcome}")
        return list(chaos.digests(federation.directory))


# --- soak ----------------------------------------------------------------------------------------


def draw(seed: int) -> tuple[str, dict[str, Fault]]:
    """The strategy of a soak run, and its faults by point; all of it from the seed."""
    chance = random.Random(seed)
    single = ["serverapp", "superexec", "superlink", "supervisor"]
    single += [f"supernode/{index}" for index in range(NODES)]
    rounds = chance.sample(range(1, SOAK_ROUNDS), chance.randint(1, 3))
    faults = {}
    for number in sorted(rounds):
        kind = chance.choice(("kill", "kill", "pair", "pause", "everything"))
        if kind == "kill":
            fault = Fault((chance.choice(single),))
        elif kind == "pair":
            fault = Fault(tuple(chance.sample(single, 2)))
        elif kind == "pause":
            fault = Fault((chance.choice(single),), "pause", round(chance.uniform(0.2, 4.0), 1))
        else:
            fault = Fault((EVERYTHING,))
        faults[f"{chance.choice(PHASES)}.{number}"] = fault
    return chance.choice(STRATEGIES), faults


def run_seed(seed: int, reference: Sequence[str]) -> dict[str, Any]:
    """A federation that suffers what a seed draws; its line of results."""
    strategy, faults = draw(seed)
    started = time.monotonic()
    hits = 0
    with Federation(strategy=strategy, rounds=SOAK_ROUNDS) as federation:
        for point in faults:
            federation.hold(point)
        try:
            for point, fault in faults.items():
                federation.wait_for(
                    f"{point} to be passed", functools.partial(federation.held, point)
                )
                federation.strike(fault, point)
                hits += 1
            outcome = federation.wait_for_end()
        except StuckError as error:
            outcome = str(error)
        digests = list(chaos.digests(federation.directory))
        retrained = train_calls.retrained(federation.directory)
        trained = train_calls.submissions(federation.directory)
    return {
        "soak": seed,
        "strategy": strategy,
        "faults": [f"{point}: {fault}" for point, fault in faults.items()],
        "hit": hits == len(faults),
        "outcome": outcome,
        "equal": digests == list(reference[:SOAK_ROUNDS]),
        "trained_after_announced": len(retrained),
        "rounds_lost": sum(count - 1 for count in trained.values()),
        "seconds": round(time.monotonic() - started, 1),
    }


# --- the results, and the command ----------------------------------------------------------------


class Results(results.Lines):
    """The file in which they add up."""

    def has(self, key: str, value: object) -> bool:
        """Whether that is there already, for the same sources."""
        return any(line.get(key) == value for line in self.of_these_sources())

    def reference(self, strategy: str, rounds: int) -> list[str]:
        """Digests of the undisturbed run of a strategy; it runs once."""
        for line in self.lines:
            fits = line.get("reference") == strategy and line["commit"] == self.commit
            if fits and len(line["digests"]) >= rounds:
                return list(line["digests"])
        digests = reference_of(strategy, rounds)
        self.add({"reference": strategy, "digests": digests})
        return digests


def is_good(line: dict[str, Any]) -> bool:
    """Whether a cell or a seed went as it must."""
    return bool(
        "reference" in line
        or (
            line["hit"]
            and line["outcome"] == "finished"
            and line["equal"]
            and not line["trained_after_announced"]
        )
    )


def _batches(cells: Sequence[Cell]) -> Iterator[list[Cell]]:
    for strategy in dict.fromkeys(cell.strategy for cell in cells):
        of_it = [cell for cell in cells if cell.strategy == strategy]
        for start in range(0, len(of_it), CELLS_TOGETHER):
            yield of_it[start : start + CELLS_TOGETHER]


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # federations are ended on the way
    options = _options()
    found = Results(options.results)
    if options.table:
        sys.stdout.write(kill_table.page(found.lines, is_good, cells_total=len(matrix())))
        return
    before = len(found.lines)
    ends_s = time.monotonic() + options.minutes * 60
    if options.soak is None:
        _fill_table(found, options.cells, ends_s)
    else:
        _soak(found, range(options.seed, options.seed + options.soak), options.jobs, ends_s)
    added = [line for line in found.lines[before:] if "reference" not in line]
    bad = [line for line in added if not is_good(line)]
    sys.stderr.write(f"kills: {len(added)} run, {len(bad)} bad\n")
    sys.exit(1 if bad else 0)


def _fill_table(found: Results, texts: Sequence[str], ends_s: float) -> None:
    left = [cell for cell in matrix() if not found.has("cell", cell.name)]
    for batch in _batches([cell for cell in left if all(text in cell.name for text in texts)]):
        if time.monotonic() > ends_s:
            return
        reference = found.reference(batch[0].strategy, REFERENCE_ROUNDS)
        for line in run_cells(batch, reference, ends_s):
            found.add(line)
            _tell(line)


def _soak(found: Results, seeds: Iterable[int], jobs: int, ends_s: float) -> None:
    left = [seed for seed in seeds if not found.has("soak", seed)]

    def run(seed: int) -> dict[str, Any] | None:
        if time.monotonic() > ends_s:
            return None
        return run_seed(seed, found.reference(draw(seed)[0], SOAK_ROUNDS))

    with ThreadPoolExecutor(jobs) as pool:
        strategies = sorted({draw(seed)[0] for seed in left})
        list(pool.map(lambda strategy: found.reference(strategy, SOAK_ROUNDS), strategies))
        for line in pool.map(run, left):
            if line is not None:
                found.add(line)
                _tell(line)


def _tell(line: dict[str, Any]) -> None:
    verdict = "good" if is_good(line) else f"BAD {line}"
    what = line.get("cell") or f"seed {line['soak']}, {line['strategy']}, {line['faults']}"
    sys.stderr.write(f"{what}: {verdict}, {line.get('gap_s', line.get('seconds'))} s\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m campaigns.kills", description=__doc__)
    parser.add_argument(
        "--results", type=Path, default=results.ROOT / "campaigns/results/kills.jsonl"
    )
    parser.add_argument("--soak", type=int, metavar="N", help="N seeded runs instead of the table")
    parser.add_argument("--seed", type=int, default=0, help="the first one")
    parser.add_argument("--jobs", type=int, default=1, help="soak runs at a time")
    parser.add_argument(
        "--cells", nargs="*", default=[], metavar="TEXT", help="cells whose name has all of these"
    )
    parser.add_argument(
        "--minutes", type=float, default=10_000.0, help="begin nothing new after so long"
    )
    parser.add_argument("--table", action="store_true", help="print the results as Markdown")
    return parser.parse_args()


if __name__ == "__main__":
    main()
