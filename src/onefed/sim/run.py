"""Run one schedule to its end, with all checkers."""

from __future__ import annotations

from dataclasses import dataclass

from onefed.errors import OnefedError
from onefed.peer import journal
from onefed.peer.interface import Received
from onefed.peer.messages import NodeId, Unstash
from onefed.peer.safety import Rules
from onefed.peer.topology import Topology
from onefed.sim import faults
from onefed.sim.content import Matter
from onefed.sim.options import LIVENESS_S, Options
from onefed.sim.violation import Violation
from onefed.sim.world import Compact, Replay, World

BYTES_SHARE_MAX = 1.05
"""Of the bound, sent by a node when nothing goes wrong."""
EVENTS_MAX = 400_000
"""In a schedule; one that has more goes round in circles."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a schedule gave."""

    options: Options
    violation: Violation | None
    virtual_s: float
    events: int
    rounds: int
    """Committed ones."""
    world: World
    """As it was at the end, for those who want to look."""


def run(
    options: Options,
    *,
    matter: Matter | None = None,
    rules: Rules | None = None,
    replay: Replay = journal.replay,
    compact: Compact = journal.compacted,
    sync: bool = True,
    keeps: bool = True,
    compares: bool = True,
    only: frozenset[str] | None = None,
) -> Outcome:
    """Let a schedule happen.

    Args:
        only: of the checkers' promises, those to watch.
    """
    world = World(
        options,
        matter=matter,
        rules=rules,
        replay=replay,
        compact=compact,
        sync=sync,
        keeps=keeps,
        compares=compares,
    )
    world.checkers.only = only
    violation = None
    try:
        faults.arm(world)
        _finish(world)
        _check_bytes(world)
        _check_stashes(world)
    except Violation as found:
        violation = found
    except OnefedError as error:
        violation = Violation("journal", error.message)
    except AssertionError as error:
        violation = Violation("assertion", str(error))
    except (LookupError, TypeError, ValueError) as error:
        violation = Violation("exception", f"{type(error).__name__}: {error}")
    rounds = max(world.checkers.committed)
    return Outcome(options, violation, world.now_s, world.events, rounds, world)


def _finish(world: World) -> None:
    options = world.options
    hosts = list(world.hosts.values())
    limit_s = options.calm_at_s + LIVENESS_S

    def done() -> bool:
        if world.events > EVENTS_MAX:
            raise Violation("liveness", f"{EVENTS_MAX} events and no end")
        finished = all(
            host.left
            or host.dead
            or (host.machine is not None and host.machine.installed == options.rounds)
            for host in hosts
        )
        return finished and not world.returning and not (world.checkers.packed and _not_kept(world))

    if not world.run(limit_s, done) and not world.checkers.is_beyond_help():
        late = [
            f"{host.name} at {host.machine.installed if host.machine else 'down'}"
            for host in hosts
            if not host.left and not host.dead
        ]
        late += [f"{name} is not kept" for name in _not_kept(world)]
        raise Violation("liveness", f"{LIVENESS_S:g} s after the last fault: {', '.join(late)}")


def _not_kept(world: World) -> list[NodeId]:
    """Nodes that wait for others to keep what they have given away."""
    living = {
        host.name: host.name in host.machine.voters
        for host in world.hosts.values()
        if host.machine is not None and not host.left
    }
    return world.checkers.not_kept(living)


def _check_stashes(world: World) -> None:
    """Ask every node what it keeps; the checkers hold the answers against its disk."""
    names = tuple(world.hosts)
    for host in world.hosts.values():
        if world.checkers.packed and host.machine is not None:
            asks = next(name for name in names if name != host.name)
            world.step(host, Received(asks, Unstash(names)))


def _check_bytes(world: World) -> None:
    """Without faults, and where all contribute to all rounds, no node sends more than the bound."""
    options = world.options
    quiet = not (options.faults or options.loss or options.duplication or options.spike_share)
    entries = list(world.checkers.committed.values())[1:]
    if options.topology is not Topology.FULL:
        return  # items cross other members on their way
    for (node, piece), givers in world.checkers.pieces.items():
        if quiet and len(givers) > 1:
            raise Violation("bytes bound", f"{givers} gave {node} the same {piece}")
    if not quiet or any(len(entry.contributors) != len(world.hosts) for entry in entries):
        return
    count = len(world.hosts)  # observers and joiners that contributed to every round, too
    models = (count - 1) if options.whole else 2 * (count - 1) / count
    model_bytes = world.checkers.start.size_bytes
    bound = models * model_bytes * options.rounds * BYTES_SHARE_MAX
    # A dozen numbers do not divide evenly by five: each part may be one longer.
    bound += 0 if options.whole else 2 * count * options.rounds
    for node, sent in world.checkers.sent_bytes.items():
        if sent > bound:
            raise Violation("bytes bound", f"{node} sent {sent}, the bound is {bound:.0f}")
