"""How the executor starts a ServerApp: forked from its nursery, else as Flower's own program."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence

from onefed.errors import OnefedError
from onefed.flower.nursery import Nursery, NurseryError
from onefed.flower.task_record import TaskRecord

READY_LIMIT_S = 60.0
"""Imports take one to three seconds of CPU; a nursery that needs longer is given up."""


class NurseryDiedError(OnefedError):
    """The nursery has ended after it was ready, and the ServerApps with it: begin anew."""


class Launcher:
    """Starts ServerApps, the quick way where there is one."""

    def __init__(
        self,
        nursery: Nursery | None,
        *,
        clock: Callable[[], float],
        say: Callable[[str], None],
    ) -> None:
        """
        Args:
            nursery: just started; None where nothing can be forked.
            clock: monotonic seconds.
            say: told what a person may want to know.
        """
        self._nursery = nursery
        self._clock = clock
        self._say = say
        self._limit_s = clock() + READY_LIMIT_S
        self._was_ready = False
        self._programs: list[subprocess.Popen[bytes]] = []

    def is_ready(self) -> bool:
        """Whether a task can be started at once; before, none should be taken.

        Raises:
            NurseryDiedError: see there.
        """
        self._programs = [each for each in self._programs if each.poll() is None]
        if self._nursery is None:
            return True
        try:
            ready = self._nursery.is_ready()
        except NurseryError as error:
            if self._was_ready:
                raise NurseryDiedError(f"ServerApps cannot be forked any more. {error}") from error
            return self._give_up(error.message)
        if not ready and self._clock() > self._limit_s:
            return self._give_up(f"It is not ready after {READY_LIMIT_S:.0f} s.")
        if ready and not self._was_ready:
            self._was_ready = True
            self._say("ServerApps are forked from a process that has imported them.")
        return ready

    def start(self, run_id: int, argv: Sequence[str]) -> TaskRecord:
        """Start the ServerApp of a run."""
        if self._nursery is not None:
            try:
                forked = self._nursery.fork(argv)
            except NurseryError as error:
                self._give_up(error.message)
            else:
                return TaskRecord(run_id, forked.pid, forked.started_at)
        # What it prints goes to the SuperLink, and from there into the log of the run.
        program = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self._programs.append(program)
        return TaskRecord.of(run_id, program.pid)

    def close(self) -> None:
        """End the nursery."""
        if self._nursery is not None:
            self._nursery.close()
            self._nursery = None

    def _give_up(self, reason: str) -> bool:
        self._say(f"Every ServerApp is started as a program, which takes seconds. {reason}")
        self.close()
        return True
