"""What a rule is, what it is given, and the one order of clients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol, TypeAlias

from onefed.arrays import Arrays

if TYPE_CHECKING:
    from collections.abc import Sequence

WEIGHT_MAX = 2**29 - 1
"""Largest example count of one client. A float32 (24 bits) times a weight below 2**29 is exact in
float64 (53 bits), so that only the order of the clients decides the bits of a weighted sum."""

State: TypeAlias = Arrays
"""What a rule remembers between rounds. Named tensors, so that it is saved and restored exactly."""


@dataclass(frozen=True, slots=True, eq=False)
class Update:
    """What one client sent in one round. A rule only ever sees updates that passed the check."""

    client: str
    """Stable client key: the partition id where there is one, else the node key."""
    weight: int
    """Examples the client trained on, 1 to ``WEIGHT_MAX``."""
    arrays: Arrays
    """The client's model. The owner stays the caller: a rule reads it and keeps no reference."""


class Rule(Protocol):
    """One way to make the next global model out of the updates of a round.

    An implementation is a frozen dataclass whose fields are its parameters. Both methods are pure:
    no clock, no randomness, no I/O, arguments unchanged. Equal arguments give equal bits, in
    whatever order the updates come.
    """

    name: ClassVar[str]
    """As in ``FL_STRATEGY`` and in the registry."""

    def init(self, arrays: Arrays) -> State:
        """State before round 1, for a global model such as ``arrays``."""
        ...

    def step(
        self, state: State, arrays: Arrays, updates: Sequence[Update], round_number: int
    ) -> tuple[State, Arrays]:
        """State and global model after the round.

        ``arrays`` is the global model the round started from; the result has its keys, their
        order, its shapes and dtypes. ``updates`` holds at least one, each with a different client
        and with the keys, shapes and dtypes of ``arrays``.
        """
        ...


def client_order(client: str) -> tuple[bool, int, str, str]:
    """Sort key of client keys: the one order in which updates are accumulated.

    Keys of ASCII digits only come first, by value (``2`` before ``10``); leading zeros break a tie
    (``01`` before ``1``). All others follow by code point. A total order: two clients compare equal
    only if they are the same.
    """
    if client.isascii() and client.isdigit():
        digits = client.lstrip("0")
        return (False, len(digits), digits, client)
    return (True, 0, "", client)


def in_client_order(updates: Sequence[Update]) -> tuple[Update, ...]:
    """Put updates into the order of ``client_order``."""
    return tuple(sorted(updates, key=lambda update: client_order(update.client)))
