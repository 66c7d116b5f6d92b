"""What every room raises, and what the command line turns it into.

An error says what happened, to what, and what to do next.
The first two are the message, the last is the hint.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import TypeVar

Found = TypeVar("Found")


class ExitCode(enum.IntEnum):
    """Exit codes of every ``onefed`` program. Documented for users in docs/exit-codes.md."""

    OK = 0
    """The command did what it was asked to do."""
    FAILED = 1
    """The training run failed, or something broke that no other code names."""
    USAGE = 2
    """An unknown command, option or option value."""
    CONFIG = 3
    """Context variables or settings are not valid; all of them are reported at once."""
    APP = 4
    """The Flower app cannot be used: no configuration, or it does not import."""
    IN_USE = 5
    """A name, a state directory, a port or a checkpoint belongs to something else."""
    NOT_FOUND = 6
    """There is no federation, checkpoint or model of that name."""
    STORAGE = 7
    """The disk is full, or a file cannot be read or written."""
    BOOT = 8
    """A virtual machine of the federation did not become ready."""
    DATA = 9
    """Training data on a node cannot be used."""
    DIFFERENT = 10
    """A model is not the one that it should be, bit by bit (``onefed up --chaos``)."""
    INTERRUPTED = 130
    """Stopped by the user (Ctrl-C or ``onefed down``); ``onefed resume`` continues."""


class OnefedError(Exception):
    """Base of all errors that a user may see.

    Raised as it is only where no room has a more exact class.
    """

    exit_code: ExitCode = ExitCode.FAILED

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        """What happened, and to what. One sentence, or one per line."""
        self.hint = hint
        """What to do next."""

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}\n{self.hint}"


class InUseError(OnefedError):
    """A name, folder, port or checkpoint belongs to something else."""

    exit_code = ExitCode.IN_USE


class NotFoundError(OnefedError):
    """There is nothing of that name."""

    exit_code = ExitCode.NOT_FOUND


class StorageError(OnefedError):
    """A file or folder cannot be read or written."""

    exit_code = ExitCode.STORAGE


class Attempts:
    """Checks that are all made before anything is refused: whoever asks is told all of it at once.

    What a check found is None where it failed; what depends on it is left out.
    """

    def __init__(self) -> None:
        self._problems: list[OnefedError] = []

    def make(self, check: Callable[[], Found]) -> Found | None:
        """Make a check; what it raises is kept."""
        try:
            return check()
        except OnefedError as error:
            self._problems.append(error)
            return None

    def conclude(self) -> None:
        """Go on if nothing was wrong.

        Raises:
            OnefedError: every reason, and the exit code of the first.
        """
        if len(self._problems) == 1:
            raise self._problems[0]
        if self._problems:
            parts = []
            for problem in self._problems:
                parts.append(problem.message)
                if problem.hint:
                    parts.append(f"  {problem.hint}")
            together = OnefedError("\n".join(parts), hint="Correct all of them and start again.")
            together.exit_code = self._problems[0].exit_code
            raise together
