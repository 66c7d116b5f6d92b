"""The node's side of ``forks``: which process a message goes to, and what became of it."""

from __future__ import annotations

import contextlib
import enum
import json
import logging
import os
import select
import signal
import socket
from dataclasses import dataclass
from typing import Any, Protocol

from onefed.errors import OnefedError
from onefed.flower import forking
from onefed.flower.adapter_fleet import Answer, AppReference, Task
from onefed.flower.node import forks, wire

_LOG = logging.getLogger(__name__)

LOAD_LIMIT_S = 600.0
"""An app that is imported for longer is given a process of its own for every message."""

START_LIMIT_S = 30.0
"""A fork takes milliseconds; who takes longer is dead or stopped."""

LINGER_S = 5.0
"""After its answer a child may flush what it likes for so long."""


class NurseryDiedError(OnefedError):
    """The process that all others come from is gone; the node has to start anew."""


class Wakes(Protocol):
    """Something that can be waited for."""

    def fileno(self) -> int:
        """Readable when the wait is over."""


class Start(enum.StrEnum):
    """How the process that handles a message comes to be (FL_APP_START)."""

    AUTO = "auto"
    """Forked from one that has imported the app, unless something speaks against it."""
    FORK = "fork"
    """Forked, whatever speaks against it."""
    FRESH = "fresh"
    """Every message imports the app anew."""


@dataclass(frozen=True)
class Crash:
    """A process that ended without an answer."""

    reason: str


class Workers:
    """All processes of a node's apps: a nursery, and the warm process of the newest app."""

    def __init__(self, nursery: socket.socket, start: Start) -> None:
        self._nursery = nursery
        self._start = start
        self._warm: socket.socket | None = None
        self._app: AppReference | None = None
        self._fab = b""
        self._is_cold = start is Start.FRESH
        """No warm process is wanted for this app."""

    def close(self) -> None:
        """End every process."""
        self._drop_warm()
        self._nursery.close()

    def use(self, app: AppReference, fab: bytes) -> str | None:
        """Get ready for messages of this app; returns why they are handled in fresh processes.

        None where they are not, or where that is what was asked for.
        """
        if app == self._app and (self._warm is not None or self._is_cold):
            return None
        self._drop_warm()
        self._app, self._fab = app, fab
        self._is_cold = self._start is Start.FRESH
        why = None if self._is_cold else self._warm_up(app, fab)
        if why is not None:
            self._drop_warm()
            self._is_cold = True
        return why

    def begin(self, task: Task) -> Execution:
        """Hand a message to a new process."""
        if self._warm is not None:
            with contextlib.suppress(OSError, wire.WireError):
                return Execution(self._warm, wire.Job(task))
            _LOG.warning("The process that has the app loaded is gone; a new one is made next.")
            self._drop_warm()
        try:
            return Execution(self._nursery, wire.Job(task, self._fab))
        except (OSError, wire.WireError) as error:
            raise NurseryDiedError(f"No process can be forked: {error}") from error

    def _warm_up(self, app: AppReference, fab: bytes) -> str | None:
        """Fork a process and load the app into it; returns why it is not to be used."""
        ours, theirs = forking.pair()
        with theirs:
            try:
                socket.send_fds(self._nursery, [forks.SERVE], [theirs.fileno()])
                _hear(self._nursery, START_LIMIT_S, "pid")
            except OSError as error:
                ours.close()
                raise NurseryDiedError(f"No process can be forked: {error}") from error
        self._warm = ours
        channel, far = socket.socketpair()
        with channel:
            try:
                with far:
                    socket.send_fds(ours, [forks.LOAD], [far.fileno()])
                wire.write_app(channel, app, fab)
                said = _hear(ours, LOAD_LIMIT_S, "loaded")
            except OSError as error:
                return f"the process died or hung while it imported the app ({error})"
        if not said["loaded"]:
            return f"the app cannot be imported ahead ({said['reason']})"
        hazards = ", ".join(said["hazards"])
        if hazards and self._start is not Start.FORK:
            return f"the app does not fork well once it is imported: {hazards}"
        _LOG.info("%s is loaded in %.2f s.", app.fab_id, said["seconds"])
        return None

    def _drop_warm(self) -> None:
        if self._warm is not None:
            self._warm.close()
            self._warm = None


class Execution:
    """One message in its process."""

    def __init__(self, control: socket.socket, job: wire.Job) -> None:
        """Fork the process and give it the job; raises OSError when its parent is gone."""
        self._control = control
        self._channel, far = socket.socketpair()
        try:
            with far:
                socket.send_fds(control, [forks.MESSAGE], [far.fileno()])
            self._pid = int(_hear(control, START_LIMIT_S, "pid")["pid"])
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it died: see wait
                wire.write_job(self._channel, job)
        except BaseException:
            self._channel.close()
            raise

    def wait(self, wake: Wakes | None, timeout_s: float) -> Answer | Crash | None:
        """Wait for the end, until ``wake`` can be read or the time is over (then None)."""
        watched: list[Wakes] = [self._channel, self._control, *([wake] if wake else [])]
        ready, _, _ = select.select(watched, [], [], timeout_s)
        if self._channel in ready or self._control in ready:
            return self._finish()
        return None

    def kill(self) -> None:
        """End the process and what it has started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._pid, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):  # it may not have a group of its own yet
            os.kill(self._pid, signal.SIGKILL)
        self._ended()
        self._channel.close()

    def _finish(self) -> Answer | Crash:
        try:
            with self._channel.makefile("rb") as source:
                answer: Answer | None = wire.read_answer(source)
        except (OSError, wire.WireError):
            answer = None
        self._channel.close()
        ended = self._ended()
        if answer is not None:
            return answer
        return Crash(f"The process of the ClientApp {_fate(ended)} without a reply.")

    def _ended(self) -> dict[str, Any] | None:
        """What its parent says of its end; a process that lingers is killed."""
        try:
            return _hear(self._control, LINGER_S, "ended")
        except TimeoutError:
            _LOG.warning("The process of the ClientApp does not end after its reply: killed.")
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._pid, signal.SIGKILL)
        except OSError:
            return None
        with contextlib.suppress(OSError):
            return _hear(self._control, LINGER_S, "ended")
        return None


def _hear(control: socket.socket, limit_s: float, about: str) -> dict[str, Any]:
    """The next thing that a server says about something; what it says else is passed over.

    Raises:
        TimeoutError: it says nothing.
        OSError: it is gone.
    """
    control.settimeout(limit_s)
    try:
        while text := control.recv(forks.DATAGRAM_BYTES_MAX):
            said = json.loads(text)
            assert isinstance(said, dict), said
            if about in said:
                return said
    finally:
        control.settimeout(None)
    raise ConnectionResetError("it has ended")


def _fate(ended: dict[str, Any] | None) -> str:
    if ended is None:
        return "ended"
    status = int(ended["status"])
    if status >= 0:
        return f"ended with exit code {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"was killed by signal {-status}"
