"""Where the updates of a round go, one after the other, until a rule makes the next model.

A rule of the mean family takes each update as it comes, so that the coordinator's memory does not
grow with the clients: two models for the sums, and one update at a time. Those that come before
their turn wait in memory while they are small together, and on disk beyond that. All other rules
need the whole round at once. Both ways give the same bits.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Protocol

from onefed import aggregate, arrays
from onefed.arrays import Arrays
from onefed.checkpoint.spool import Spool
from onefed.errors import StorageError

HELD_BYTES_MAX = 64 * 2**20
"""Of updates that wait in memory; a model of 10 M float32 is 40 MB."""


class Intake(Protocol):
    """One attempt at a round. Clients are those that were asked, each taken or lost once."""

    def take(self, update: aggregate.Update) -> str | None:
        """Take a checked update; why it is lost all the same, or None."""
        ...

    def lose(self, client: str) -> None:
        """The client gives no usable update."""
        ...

    def step(
        self, state: aggregate.State, model: Arrays, round_number: int
    ) -> tuple[aggregate.State, Arrays]:
        """State and model after the round, once all are taken or lost; asked for once."""
        ...

    def close(self) -> None:
        """Let go of what waits; fine if it was done."""
        ...


def of(rule: aggregate.Rule, model: Arrays, clients: Collection[str], folder: Path) -> Intake:
    """The way of this rule.

    Args:
        clients: keys of those that are asked.
        folder: for what does not fit into memory; made when it is needed.
    """
    if isinstance(rule, aggregate.MeanRule):
        return _Stream(rule, model, clients, folder)
    return _Batch(rule)


def clear(folder: Path) -> None:
    """Remove what a process that was killed had waiting there."""
    if folder.exists():
        Spool(folder).close()


class _Batch:
    def __init__(self, rule: aggregate.Rule) -> None:
        self._rule = rule
        self._updates: list[aggregate.Update] = []

    def take(self, update: aggregate.Update) -> str | None:
        self._updates.append(update)
        return None

    def lose(self, client: str) -> None:
        pass

    def step(
        self, state: aggregate.State, model: Arrays, round_number: int
    ) -> tuple[aggregate.State, Arrays]:
        return self._rule.step(state, model, self._updates, round_number)

    def close(self) -> None:
        self._updates.clear()


class _Stream:
    def __init__(
        self, rule: aggregate.MeanRule, model: Arrays, clients: Collection[str], folder: Path
    ) -> None:
        self._rule = rule
        self._hold = _Hold(folder)
        self._fold = aggregate.OrderedFold(model, clients, self._hold)

    def take(self, update: aggregate.Update) -> str | None:
        try:
            self._fold.add(update)
        except _NotKeptError as error:  # the others wait on
            return error.message
        return None

    def lose(self, client: str) -> None:
        if client in self._fold.waiting:
            self._fold.lose(client)

    def step(
        self, state: aggregate.State, model: Arrays, round_number: int
    ) -> tuple[aggregate.State, Arrays]:
        return self._rule.step_mean(state, model, self._fold.result(), round_number)

    def close(self) -> None:
        self._hold.close()


class _NotKeptError(StorageError):
    """There is no room for an update. One that was kept and cannot be read again is another
    matter: it counts already, so that ends the run, which can be resumed."""


class _Hold:
    """Small updates in memory, up to ``HELD_BYTES_MAX`` of them; the rest on disk."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._held: dict[str, aggregate.Update] = {}
        self._bytes = 0
        self._spool: Spool | None = None

    def put(self, update: aggregate.Update) -> None:
        size_bytes = arrays.nbytes(update.arrays)
        if self._bytes + size_bytes <= HELD_BYTES_MAX:
            self._held[update.client] = update
            self._bytes += size_bytes
            return
        try:
            if self._spool is None:
                self._spool = Spool(self._folder)
            self._spool.put(update)
        except StorageError as error:
            raise _NotKeptError(error.message, hint=error.hint) from error

    def take(self, client: str) -> aggregate.Update:
        held = self._held.pop(client, None)
        if held is not None:
            self._bytes -= arrays.nbytes(held.arrays)
            return held
        assert self._spool is not None, client
        return self._spool.take(client)

    def close(self) -> None:
        self._held.clear()
        if self._spool is not None:
            self._spool.close()
