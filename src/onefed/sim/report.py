"""Runs of many schedules, and what is said about them."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields

from onefed.sim import minimise, options, show
from onefed.sim.options import Options
from onefed.sim.run import Outcome, run

LINES_SHOWN = 60
"""Last events of a failure."""
CHUNK = 16
"""Schedules that a process takes at once."""


@dataclass(frozen=True, slots=True)
class Result:
    """What is kept of a schedule."""

    seed: int
    violation: str | None
    rounds: int
    events: int
    virtual_s: float


@dataclass(slots=True)
class Totals:
    """Of many schedules."""

    schedules: int = 0
    rounds: int = 0
    events: int = 0
    virtual_s: float = 0.0
    failures: int = 0

    def add(self, result: Result) -> None:
        """Count one."""
        self.schedules += 1
        self.rounds += result.rounds
        self.events += result.events
        self.virtual_s += result.virtual_s
        self.failures += result.violation is not None


def one(seed: int) -> Result:
    """The schedule of a seed, without the world around it."""
    outcome = run(options.draw(seed))
    said = None if outcome.violation is None else str(outcome.violation)
    return Result(seed, said, outcome.rounds, outcome.events, outcome.virtual_s)


def many(first: int, count: int, *, processes: int) -> Iterator[Result]:
    """Schedules of seeds in a row, in their order."""
    seeds = range(first, first + count)
    if processes == 1 or count < 2 * CHUNK:
        yield from map(one, seeds)
        return
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        yield from pool.imap(one, seeds, chunksize=CHUNK)


def failure(outcome: Outcome, *, lines: int = LINES_SHOWN) -> str:
    """Everything one needs to look into it."""
    assert outcome.violation is not None
    events = [show.line(*each) for each in list(outcome.world.log)[-lines:]]
    return "\n".join(
        [
            f"seed {outcome.options.seed}: {outcome.violation}",
            f"  at {outcome.virtual_s:.3f} virtual s, after {outcome.events} events",
            *_described(outcome.options),
            *events,
        ]
    )


def smallest(seed: int, execute: Callable[[Options], Outcome] = run) -> Outcome:
    """The failure of a seed, with everything left out that it does not need."""
    found = execute(options.draw(seed))
    assert found.violation is not None
    promise = found.violation.promise

    def fails(candidate: Options) -> bool:
        violation = execute(candidate).violation
        return violation is not None and violation.promise == promise

    return execute(minimise.minimise(found.options, fails))


def _described(chosen: Options) -> Iterator[str]:
    """What differs from the defaults."""
    plain = Options(seed=chosen.seed)
    for each in fields(chosen):
        value = getattr(chosen, each.name)
        if each.name == "faults":
            for fault in value:
                where = f"at {fault.at_s:.3f} s" if fault.aim is None else f"aimed at {fault.aim}"
                yield f"  fault {fault.kind} {where}, n{fault.node}, for {fault.for_s:.2f} s, " + (
                    f"skips {fault.skip}, groups {fault.groups:b}"
                )
        elif value != getattr(plain, each.name):
            yield f"  {each.name} = {value}"
