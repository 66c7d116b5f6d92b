"""The check before every rule: one bad update costs its client the round, never the run.

Anything may arrive: another model, NaN, a weight of 10**18, a hundred copies of one reply.
What does not fit is dropped and named; a rule sees the rest only.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from onefed import arrays
from onefed.aggregate import base

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

    from numpy.typing import NDArray

MAGNITUDE_MAX = 2.0**96
MAGNITUDE_MAX_FLOAT64 = 2.0**480
"""Largest absolute values of an element: of float64 arrays, and of all others. With them neither a
weighted sum over a million clients nor a sum of squares leaves float64, and neither a difference of
two models nor what an optimizer remembers of it leaves the type it is stored in. 2**96 is 8e28."""


@dataclass(frozen=True, slots=True)
class Rejected:
    """A client that lost its round."""

    client: str
    """Its key, as it came."""
    reason: str
    """Why, in words; one line, bounded."""


@dataclass(frozen=True, slots=True, eq=False)
class Checked:
    """The updates of one round, sorted out."""

    accepted: tuple[base.Update, ...]
    """Fit for a rule, in client order, each client once."""
    rejected: tuple[Rejected, ...]
    """One entry per client, in client order."""


def check(
    updates: Iterable[base.Update],
    template: Mapping[str, NDArray[Any]],
    *,
    weight_max: int = base.WEIGHT_MAX,
) -> Checked:
    """Accept the updates that have the keys, shapes and dtypes of ``template``, the global model.

    Their elements must be finite and not above the magnitudes at the top of this file, their weight
    an integer from 1 to ``weight_max``. A client that sent more than one update loses them all:
    which one came first must not decide. Arrays in another order or memory layout are fine, since
    names are what counts. Nothing that an update holds makes this raise.
    """
    by_client: dict[str, list[base.Update]] = {}
    for update in updates:
        by_client.setdefault(update.client, []).append(update)
    accepted: list[base.Update] = []
    rejected: list[Rejected] = []
    for client in sorted(by_client, key=base.client_order):
        first, *others = by_client[client]
        if others:
            judged: base.Update | str = f"sent {len(others) + 1} updates in one round"
        else:
            judged = _judge(first, template, weight_max)
        if isinstance(judged, str):
            rejected.append(Rejected(client, judged))
        else:
            accepted.append(judged)
    return Checked(tuple(accepted), tuple(rejected))


def _judge(
    update: base.Update, template: Mapping[str, NDArray[Any]], weight_max: int
) -> base.Update | str:
    """The update as a rule may see it, or what is wrong with it."""
    try:
        if type(update.weight) is not int:
            return f"its weight is a {type(update.weight).__name__}, not an integer"
        if not 1 <= update.weight <= weight_max:
            return f"its weight is not between 1 and {weight_max}"
        plain = _plain(update)
        return _fault(plain.arrays, template) or plain
    except Exception as error:  # noqa: BLE001 - whatever a hostile object makes Python raise
        return f"its model cannot be read: {type(error).__name__}"


def _plain(update: base.Update) -> base.Update:
    """The same update in plain arrays: a subclass (a masked array, say) is seen as its memory."""
    if all(type(array) is np.ndarray for array in update.arrays.values()):
        return update
    views = {
        key: np.ndarray.view(array, np.ndarray) if isinstance(array, np.ndarray) else array
        for key, array in update.arrays.items()
    }
    return dataclasses.replace(update, arrays=views)


def _fault(model: Mapping[str, NDArray[Any]], template: Mapping[str, NDArray[Any]]) -> str | None:
    for key in model:
        if type(key) is not str:
            return f"an array is named by a {type(key).__name__}, not by text"
    difference = arrays.mismatch(model, template)
    if difference is not None:
        return f"its model differs: {difference}"
    for key, array in model.items():
        most = MAGNITUDE_MAX_FLOAT64 if array.dtype == np.float64 else MAGNITUDE_MAX
        if not arrays.magnitude(array) <= most:  # also true for NaN
            return f"its array {arrays.shown(key)} holds NaN, infinity or an absurd value"
    return None
