"""Which partition of the data a node trains: a claim that outlives the nodes before it.

A position among the nodes of the role would shift: the platform removes the oldest ones first when
it scales down. So a node publishes the partition that it took (``FL_PARTITION``) and keeps it over
reboots; a new node takes the lowest one that nobody claims. After a scale-down the partitions of
those that left are free, and the next nodes take them.

Two nodes that boot at the same moment see the same members and compute the same assignment. If
membership changes between their looks they may take the same one; whoever is younger sees the claim
of the other on its second look and moves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

PARTITION_MAX = 99_999
"""A claim beyond is no claim: it was published by somebody else's program."""


@dataclass(frozen=True)
class Partition:
    """One part of the data, of how many."""

    id: int
    count: int
    """At least the members, and one more than the highest claim."""

    @property
    def node_config(self) -> str:
        """As Flower's apps read it."""
        return f"partition-id={self.id} num-partitions={self.count}"


def assign(members: Sequence[str], claims: Mapping[str, str], own: str) -> Partition | None:
    """The partition of node ``own``; None when it is not among the members.

    Args:
        members: VM ids of the role's nodes, in any order; ids grow with age.
        claims: what members published, by VM id; hostile text included.
    """
    if own not in members:
        return None
    ordered = sorted(members, key=_age)
    held: dict[str, int] = {}
    for member in ordered:  # of two with the same claim the older one has it
        claim = _claim(claims.get(member, ""))
        if claim is not None and claim not in held.values():
            held[member] = claim
    taken = set(held.values())
    for member in ordered:
        if member not in held:
            held[member] = next(i for i in range(len(members) + 1) if i not in taken)
            taken.add(held[member])
    return Partition(held[own], max(len(members), max(taken) + 1))


def _claim(text: str) -> int | None:
    if not (text.isascii() and text.isdecimal() and len(text) <= len(str(PARTITION_MAX))):
        return None
    return int(text)


def _age(vm_id: str) -> tuple[int, str]:
    return (int(vm_id) if vm_id.isdecimal() else 0, vm_id)
