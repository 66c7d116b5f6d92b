"""Which node is which client, and which clients take part in a round.

A node id is Flower's and changes when a node registers anew; a client key is ours and stays.
The supervisor registers every node under a name that carries the key, and Flower hands that name
to the ServerApp with the list of nodes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from flwr.serverapp import Grid

from onefed.aggregate import client_order

_NAME_PREFIX = "client:"


@dataclass(frozen=True)
class Client:
    """A node that can be sent a message now."""

    key: str
    """Partition id where the node has one, else the fingerprint of its key, else its node id."""
    node_id: int
    activated_at: str = field(default="", compare=False)
    """When the node last connected, in Flower's words; another text is another connection."""


def node_name(key: str) -> str:
    """The name to register a node under, so that its client key comes back with it."""
    return f"{_NAME_PREFIX}{key}"


def client_key(name: str, node_id: int) -> str:
    """The client key in a node's name; its node id when it was registered by somebody else."""
    key = name.removeprefix(_NAME_PREFIX)
    return key if key and key != name else str(node_id)


def connected(grid: Grid) -> tuple[Client, ...]:
    """The clients that are connected at this moment, in client order.

    Two nodes may claim one partition id, after a scale-down for example.
    Then the node id tells them apart, so that neither takes the other's place.
    """
    found = [
        Client(client_key(node.name, node.node_id), node.node_id, node.last_activated_at)
        for node in grid.get_nodes()
    ]
    claims = Counter(client.key for client in found)
    return in_order(
        replace(client, key=f"{client.key}-{client.node_id}") if claims[client.key] > 1 else client
        for client in found
    )


def in_order(clients: Iterable[Client]) -> tuple[Client, ...]:
    """Clients in the one order in which everything about them is done."""
    return tuple(sorted(clients, key=lambda client: client_order(client.key)))


def sample(
    clients: Sequence[Client], fraction: float, *, at_least: int, seed: int, round_number: int
) -> tuple[Client, ...]:
    """Choose the clients of a round; the same clients, seed and round give the same choice.

    Args:
        clients: those connected, in any order, each once.
        fraction: of the clients, 0 to 1; rounded up.
        at_least: chosen even when the fraction is less, as far as there are so many.

    Returns:
        The chosen, in client order, each once.
    """
    ordered = in_order(clients)
    # Without the rounding, 0.1 of 30 clients would be 3.0000000000000004, and so 4.
    share = math.ceil(round(fraction * len(ordered), 6))
    count = min(len(ordered), max(at_least, share))
    if count == len(ordered):
        return ordered
    chosen = np.random.default_rng([seed, round_number]).choice(len(ordered), count, replace=False)
    return tuple(ordered[index] for index in sorted(chosen))
