"""Who has a connection to whom: everybody, or a ring, a line, a star of the members in their order.

Pure functions of the members' names, so all nodes that know the same roster know the same links.
"""

from __future__ import annotations

import enum
import functools
from collections.abc import Collection, Iterable

from onefed.peer.messages import NodeId


class Topology(enum.StrEnum):
    """Shape of a group."""

    FULL = "full"
    RING = "ring"
    LINE = "line"
    STAR = "star"
    """The first member has a connection to everybody, the others only to it."""


def in_order(nodes: Iterable[NodeId]) -> tuple[NodeId, ...]:
    """Members along a line: shorter names first, so that ``node-10`` comes after ``node-9``."""
    return tuple(sorted(set(nodes), key=lambda node: (len(node), node)))


@functools.lru_cache(maxsize=4096)
def neighbours(topology: Topology, order: tuple[NodeId, ...], node: NodeId) -> frozenset[NodeId]:
    """Whom a member has a connection to."""
    others = frozenset(order) - {node}
    place, count = order.index(node), len(order)
    match topology:
        case Topology.FULL:
            return others
        case Topology.STAR:
            return others if place == 0 else frozenset(order[:1])
        case Topology.LINE:
            return frozenset(order[max(place - 1, 0) : place + 2]) - {node}
        case Topology.RING:
            return frozenset((order[place - 1], order[(place + 1) % count])) - {node}


def distances(
    topology: Topology,
    order: tuple[NodeId, ...],
    start: NodeId,
    without: Collection[NodeId] = (),
) -> dict[NodeId, int]:
    """Hops from a member to every other that can be reached, not going through some."""
    found, frontier = {start: 0}, [start]
    while frontier:
        ahead = []
        for node in frontier:
            if node in without and node != start:
                continue  # it may be the end of a path, not a part of one
            for other in sorted(neighbours(topology, order, node) - found.keys()):
                found[other] = found[node] + 1
                ahead.append(other)
        frontier = ahead
    return found
