"""What a rule is, what it is given, and the one order of clients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from onefed import arrays
from onefed.aggregate import parameters
from onefed.aggregate.errors import AggregationError, RuleError
from onefed.arrays import Arrays

if TYPE_CHECKING:
    from collections.abc import Mapping

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
    """The client's model. A rule reads it and keeps no reference, but for a result that is one
    client's model (``Krum``): that may be this very memory. So nobody changes it."""


class Rule(Protocol):
    """One way to make the next global model out of the updates of a round.

    An implementation is a frozen dataclass whose fields are its parameters. All methods are pure:
    no clock, no randomness, no I/O, arguments unchanged. Equal arguments give equal bits, in
    whatever order the updates come.
    """

    name: ClassVar[str]
    """As in ``FL_STRATEGY`` and in the registry."""

    SUPPORTS_PARTIAL_AGGREGATION: ClassVar[bool]
    """Whether a round may go on without the updates of some members. Where not, a group of peers
    waits for all of them, and fails when they do not come."""

    @property
    def clients_min(self) -> int:
        """Fewest clients with which the rule can ever work, at least 1."""
        ...

    def updates_needed(self, asked: int) -> int:
        """Fewest accepted updates with which a round counts that asked ``asked`` clients."""
        ...

    def scores_needed(self, asked: int) -> int:
        """Fewest evaluation replies with which a score counts that ``asked`` clients owe."""
        ...

    def remarks(self, clients: int) -> tuple[str, ...]:
        """What an operator should know about this rule with so many clients, one sentence each."""
        ...

    def init(self, arrays: Arrays) -> State:
        """State before round 1, for a global model such as ``arrays``."""
        ...

    def step(
        self, state: State, arrays: Arrays, updates: Sequence[Update], round_number: int
    ) -> tuple[State, Arrays]:
        """State and global model after the round.

        ``arrays`` is the global model the round started from; the result has its keys, their
        order, its shapes and dtypes, and is finite. ``updates`` holds at least one, each with a
        different client and with the keys, shapes and dtypes of ``arrays``. ``round_number`` is
        that of the run, from 1, over all its restarts.

        Raises:
            AggregationError: fewer updates than the rule needs, a state of another rule or model,
                or a result that would not be finite.
        """
        ...


class RuleDefaults:
    """What most rules answer: any number of clients will do, and there is no state.

    A subclass is a frozen dataclass; its fields are checked against their bounds when it is made.
    """

    name: ClassVar[str]
    SUPPORTS_PARTIAL_AGGREGATION: ClassVar[bool] = True

    def __post_init__(self) -> None:
        parameters.require(self)

    @property
    def clients_min(self) -> int:
        """1."""
        return 1

    def updates_needed(self, asked: int) -> int:
        """1, however many were asked."""
        return 1

    def scores_needed(self, asked: int) -> int:
        """1: without a reply there is no score, and any reply gives one."""
        return 1

    def remarks(self, clients: int) -> tuple[str, ...]:
        """None."""
        return ()

    def init(self, arrays: Arrays) -> State:
        """No state."""
        return {}


def require_clients(rule: Rule, clients: int) -> None:
    """Raise ``RuleError`` where ``rule`` can never work with so many clients."""
    if clients < rule.clients_min:
        raise RuleError(
            f"{rule} needs at least {rule.clients_min} clients; there are {clients}.",
            hint=f"Have at least {rule.clients_min} clients, "
            "or choose parameters or a rule that need fewer.",
        )


def require_updates(rule: Rule, updates: Sequence[Update]) -> None:
    """Raise ``AggregationError`` where there are fewer updates than ``rule`` works with."""
    needed = rule.updates_needed(len(updates))
    if len(updates) < needed:
        raise AggregationError(
            f"{rule} needs at least {needed} updates; the round has {len(updates)}.",
            hint=f"Let a round wait for {needed} clients, or choose a rule that needs fewer.",
        )


def require_state(rule: Rule, state: State, expected: Mapping[str, NDArray[Any]]) -> None:
    """Raise ``AggregationError`` where ``state`` is not shaped as ``expected``."""
    difference = arrays.mismatch(state, expected)
    if difference is not None:
        raise AggregationError(
            f"The state does not fit {rule.name} and this model: {difference}.",
            hint="Continue a run with the rule and the model it began with.",
        )


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
    assert len({update.client for update in updates}) == len(updates), "a client counts once"
    return tuple(sorted(updates, key=lambda update: client_order(update.client)))


def flat(array: NDArray[Any]) -> NDArray[Any]:
    """Elements in C order, 1-D, aligned: a view where they lie so already, else a copy.

    The dtype says "native", not "little-endian" where that is the same: compiled code asks.
    """
    assert array.dtype.isnative, array.dtype
    lies_well = array.flags.c_contiguous and array.flags.aligned
    column: NDArray[Any] = (array if lies_well else np.array(array, order="C")).reshape(-1)
    return column if column.dtype.byteorder in "=|" else column.view(native(column.dtype))


def native(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """An equal dtype that says "native" where it says "little-endian" and that is the same."""
    return dtype.newbyteorder("=")


Combine: TypeAlias = Callable[[Sequence[NDArray[Any]], NDArray[Any]], None]
"""Reads one flat column per client, in client order, and fills the flat result."""


def by_array(
    updates: Sequence[Update], template: Arrays, *, floats: Combine, integers: Combine
) -> Arrays:
    """Combine array by array; keys, order, shapes and dtypes are those of ``template``.

    Args:
        updates: in client order.
        floats: for arrays of a float dtype.
        integers: for integer and bool arrays.

    Takes the result, and a copy of one array of each client whose memory is not in C order.
    """
    result: Arrays = {}
    for key, like in template.items():
        out = np.empty(like.size, native(like.dtype))
        if out.size:
            combine = floats if arrays.is_float(like.dtype) else integers
            combine([flat(update.arrays[key]) for update in updates], out)
        result[key] = out.reshape(like.shape)
    return result
