"""Faults by chance, one after the other and some together, for so many minutes.

The seed decides which fault comes when in the order of faults; the processes take it from there.
After each the group must agree on a round within ``GAP_MAX_S``, and all nodes must become level.
At the end every round is compared with the rule, and memory and descriptors with the beginning.
"""

from __future__ import annotations

import random
import signal
import statistics
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from campaigns.peers import cells, net
from campaigns.peers.group import BrokenError, Group, StuckError
from onefed.node.points import FOLLOWERS_ONLY, LEADERS_ONLY, POINTS

GAP_MAX_S = 30.0
"""From the end of a fault to the next round: far more than any should take."""
TOGETHER = 0.3
"""Share of the network faults in which a node is killed as well."""
WARM_FAULTS = 5
"""After so many, memory is measured for the first time: by then each kind of buffer was used."""

Fault = Callable[[Group, random.Random], None]


def kill(group: Group, chance: random.Random) -> None:
    """Any node, at any moment."""
    _restart(group, chance.choice(group.living))


def kill_at_a_point(group: Group, chance: random.Random) -> None:
    """A leader or a follower, at a named point."""
    victim = chance.choice((group.leader, chance.choice(group.followers)))
    barred = FOLLOWERS_ONLY if victim == group.leader else LEADERS_ONLY
    group.hold(victim, chance.choice([point for point in POINTS if point not in barred]))
    group.wait_for("the point", lambda: group.held(victim))
    _restart(group, victim)


def kill_all(group: Group, chance: random.Random) -> None:
    """All nodes at once."""
    _restart(group, *group.living)


def kill_two(group: Group, chance: random.Random) -> None:
    """More than may fail; nothing is agreed on before one of them is back."""
    _restart(group, *chance.sample(group.living, 2))


def pause(group: Group, chance: random.Random) -> None:
    """SIGSTOP of any node."""
    victim = chance.choice(group.living)
    group.signal(victim, signal.SIGSTOP)
    group.watch(chance.uniform(0.2, 4.0))
    group.signal(victim, signal.SIGCONT)


def part(group: Group, chance: random.Random) -> None:
    """A partition of any form."""
    assert group.network is not None
    order = chance.sample(group.names, len(group.names))
    cut = chance.randint(1, len(order) - 1)
    group.network.split(order[:cut], order[cut:])
    _meanwhile(group, chance)


def deafen(group: Group, chance: random.Random) -> None:
    """One-way cuts at one node."""
    assert group.network is not None
    order = chance.sample(group.names, len(group.names))
    group.network.deafen(order[0], order[1 : chance.randint(2, len(order))])
    _meanwhile(group, chance)


def lose(group: Group, chance: random.Random) -> None:
    """Loss everywhere."""
    assert group.network is not None
    group.network.lose(chance.randint(1, 10))
    _meanwhile(group, chance)


def step_clock(group: Group, chance: random.Random) -> None:
    """An hour, at any node, for good."""
    group.step_clock(chance.choice(group.names), chance.choice((-3600, 0, 3600)))


def run(seed: int, seconds: float) -> dict[str, Any]:
    """A line of results."""
    chance = random.Random(seed)
    kinds: list[Fault] = [kill, kill_at_a_point, kill_at_a_point, pause, kill_all, kill_two]
    networked = cells.missing(cells.NETWORK) is None
    clocks = cells.missing(cells.CLOCKS) is None
    kinds += [part, part, deafen, lose] * networked + [step_clock] * clocks
    names = [f"node-{index}" for index in range(cells.NODES)]
    network = net.Network(names) if networked else None
    done: Counter[str] = Counter()
    gaps: list[float] = []
    line: dict[str, Any] = {"soak": seed, "equal": True, "outcome": "went on"}
    began_s = time.monotonic()
    try:
        with Group(cells.NODES, network=network, clocks=clocks) as group:
            try:
                while time.monotonic() < began_s + seconds:
                    fault = chance.choice(kinds)
                    done[fault.__name__] += 1
                    fault(group, chance)
                    gaps.append(_go_on(group))
                    if sum(done.values()) == WARM_FAULTS:
                        line |= {"memory_before": _most(group.memory_bytes())}
                        line |= {"descriptors_before": _most(group.descriptors())}
                line |= {"memory_after": _most(group.memory_bytes())}
                line |= {"descriptors_after": _most(group.descriptors())}
            finally:
                line["rounds"] = group.reached
            group.require_reference()
    except StuckError as error:
        line["outcome"] = str(error)
    except BrokenError as error:
        line |= {"outcome": str(error), "equal": False}
    finally:
        if network is not None:
            network.close()
    line |= {"seconds": time.monotonic() - began_s, "faults": dict(sorted(done.items()))}
    if gaps:
        line |= {"gap_median_s": statistics.median(gaps), "gap_max_s": max(gaps)}
    return line


def _go_on(group: Group) -> float:
    """End the fault; seconds to the next round, after which all become level."""
    if group.network is not None:
        group.network.heal()
    number = group.reached
    gap_s = group.wait_for("a committed round", lambda: group.reached > number, GAP_MAX_S)
    number = group.reached
    group.wait_for("all to be level", lambda: group.all_at(number, group.names))
    group.require_nobody_died()
    return gap_s


def _restart(group: Group, *names: str) -> None:
    group.kill(*names)
    for name in names:
        group.release(name)
        group.start(name)


def _meanwhile(group: Group, chance: random.Random) -> None:
    """A while of a network fault; in some a node is killed."""
    group.watch(chance.uniform(0.5, 2.0))
    if chance.random() < TOGETHER:
        _restart(group, chance.choice(group.living))
    group.watch(chance.uniform(0.5, 4.0))


def _most(numbers: dict[str, int]) -> int:
    return max(numbers.values())
