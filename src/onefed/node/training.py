"""What a node asks of an app: the trainer is handed in, so this room knows no framework."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Protocol

from onefed.arrays import Arrays
from onefed.errors import ExitCode, OnefedError


class TrainingError(OnefedError):
    """The app did not give an update."""

    exit_code = ExitCode.APP


@dataclass(frozen=True, slots=True)
class Task:
    """A round to train."""

    round_number: int
    epochs: int | None
    """Passes over the node's data; None: as the app is configured."""
    model: Arrays
    """The committed model of the round before; read only."""
    private: bytes | None
    """What the app left after the last round of this node that was committed."""


@dataclass(frozen=True, slots=True)
class Trained:
    """An update."""

    model: Arrays
    examples: int
    private: bytes | None
    """What the app wants to find again; kept when the round is committed."""


class App(Protocol):
    """Trains in another process than the node's, so that it cannot delay a heartbeat."""

    def initial_model(self) -> Arrays:
        """The model before round 1, the same at every node."""
        ...

    def train(self, task: Task, cancelled: threading.Event) -> Trained:
        """Train; called in a thread. An update that comes after ``cancelled`` is of no use.

        Raises:
            TrainingError: there is no update.
        """
        ...

    def close(self) -> None:
        """End its processes."""
        ...
