"""The mean of a round one update at a time: memory that does not grow with the clients.

For every rule of the mean family (``fedavg.MeanRule``), and to the bits of the batch form:
``rule.step_mean(state, arrays, fold.result(), round_number)`` equals ``rule.step(...)``. The caller
checks each update, and sees to it that there are ``rule.updates_needed``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from onefed import arrays
from onefed.aggregate import base, kernels
from onefed.aggregate.integers import ExactSum

if TYPE_CHECKING:
    from collections.abc import Collection

    from numpy.typing import NDArray

    from onefed.arrays import Arrays


class MeanFold:
    """The weighted mean of updates that come in client order; the bits of ``weighted_mean``.

    Holds 8 bytes for each element, floats and integers alike (24 for integers whose sum might
    leave 62 bits). For a float32 model these are two models; with the update being added, or
    with the result, never more than three.
    """

    def __init__(self, template: Arrays) -> None:
        self._template = template
        self._sums: dict[str, NDArray[np.float64] | ExactSum] = {
            key: np.zeros(like.size, np.float64)
            if arrays.is_float(like.dtype)
            else ExactSum(like.size)
            for key, like in template.items()
        }
        self._weight_sum = 0
        self._count = 0
        self._last: str | None = None

    @property
    def count(self) -> int:
        """Updates so far."""
        return self._count

    def add(self, update: base.Update) -> None:
        """Add an update that passed the check, after those of all clients before it in order."""
        assert self._last is None or (
            base.client_order(self._last) < base.client_order(update.client)
        ), f"{update.client!r} does not follow {self._last!r} in order"
        self._last = update.client
        totals, columns = [], []
        for key, total in self._sums.items():
            column = base.flat(update.arrays[key])
            if isinstance(total, ExactSum):
                total.add(column, update.weight)
            elif column.size:
                totals.append(total)
                columns.append(column)
        kernels.fold(totals, columns, update.weight)
        self._weight_sum += update.weight
        self._count += 1

    def result(self) -> Arrays:
        """The mean; can be asked for once, since each sum is let go as it is used."""
        assert self._count, "a mean has at least one update"
        mean: Arrays = {}
        for key, like in self._template.items():
            out: NDArray[Any] = np.empty(like.size, base.native(like.dtype))
            total = self._sums.pop(key)
            if isinstance(total, ExactSum):
                total.divide(self._weight_sum, out)
            elif out.size:
                kernels.divide(total, self._weight_sum, out)
            mean[key] = out.reshape(like.shape)
        return mean


class Hold(Protocol):
    """Where updates wait for those before them: in memory, or on disk. The owner closes it."""

    def put(self, update: base.Update) -> None:
        """Keep an update; no client is put twice."""
        ...

    def take(self, client: str) -> base.Update:
        """Give back what was put for ``client``, bit for bit, and keep it no longer."""
        ...


class OrderedFold:
    """``MeanFold`` for updates that come in any order, out of a known set of clients.

    The next client in order is folded at once; one that comes early waits in ``hold``. Memory, for
    a float32 model: two models for the sums and one update at a time, three in all, besides what
    ``hold`` has in memory. A caller that keeps the update it hands over adds that one while those
    that waited for it are folded.
    """

    def __init__(self, template: Arrays, expected_clients: Collection[str], hold: Hold) -> None:
        self._fold = MeanFold(template)
        self._hold = hold
        self._waiting = set(expected_clients)
        self._held: set[str] = set()
        self._queue = sorted(self._waiting, key=base.client_order, reverse=True)
        """Clients that are not folded or lost yet; the next in order is the last."""

    @property
    def waiting(self) -> frozenset[str]:
        """Clients whose update has neither come nor been given up."""
        return frozenset(self._waiting)

    @property
    def count(self) -> int:
        """Updates that came."""
        return self._fold.count + len(self._held)

    def add(self, update: base.Update) -> None:
        """Take the checked update of a client in ``waiting``."""
        client = update.client
        assert client in self._waiting, f"{client!r} is not waited for"
        self._waiting.remove(client)
        if client != self._queue[-1]:
            self._hold.put(update)
            self._held.add(client)
            return
        self._queue.pop()
        self._fold.add(update)
        del update  # before the next comes out of the hold
        self._advance()

    def lose(self, client: str) -> None:
        """Give up a client in ``waiting``: it will not answer, or its update was rejected."""
        assert client in self._waiting, f"{client!r} is not waited for"
        self._waiting.remove(client)
        self._advance()

    def result(self) -> Arrays:
        """The mean of all that came, once ``waiting`` is empty; can be asked for once."""
        assert not self._waiting, f"still waiting for {len(self._waiting)} clients"
        return self._fold.result()

    def _advance(self) -> None:
        """Fold what waited, up to the next client that may still answer."""
        while self._queue and self._queue[-1] not in self._waiting:
            client = self._queue.pop()
            if client in self._held:
                self._held.remove(client)
                self._fold.add(self._hold.take(client))
