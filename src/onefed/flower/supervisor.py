"""The coordinator's own program: registers nodes, submits the run, watches it to its end.

It is started beside the SuperLink and kept alive by whatever keeps the SuperLink alive.
``registration`` and ``run_watch`` do the work; here they are asked again and again.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from onefed import failpoints
from onefed.checkpoint import RecoveryStore
from onefed.errors import OnefedError, StorageError
from onefed.flower import adapter, enrolment_server
from onefed.flower.desk import Desk
from onefed.flower.instructions import Instructions
from onefed.flower.lifesign import LifeSign
from onefed.flower.registration import Registrar
from onefed.flower.roster import Roster
from onefed.flower.run_watch import RunWatch
from onefed.opennebula import onegate
from onefed.telemetry import events, voice
from onefed.telemetry.log import EventLog

_LOG = logging.getLogger("onefed")

POLL_S = 0.5
"""One round of looking: new keys, nodes that came or went, the state of the run."""

ROLE = "superlink"

CALM_POLL_S = 2.0
"""Between two looks at nodes and run while a ServerApp lives: its death is seen by itself, and each
look costs the SuperLink, which the round needs, two requests."""

DEATH_LOOK_S = 0.05
"""In between, the kernel is asked whether the ServerApp of a run lives; that costs 0.1 ms."""


class Supervisor:
    """One coordinator's supervisor. ``step`` is called again and again until it says it is over."""

    def __init__(
        self,
        instructions: Instructions,
        *,
        control: adapter.Control,
        gate: onegate.OneGate | None,
        emit: Callable[[events.Event], None],
        now: Callable[[], datetime],
        clock: Callable[[], float],
        committed: Callable[[], int] | None = None,
        reach: failpoints.Reach = failpoints.nothing,
    ) -> None:
        """
        Args:
            clock: monotonic seconds.
            committed: the last committed round; None: that of the recovery store.
            reach: where a test holds the process.
        """
        roster = Roster(instructions.roster, now)
        self._nodes = Registrar(
            control=control, gate=gate, roster=roster, listed=instructions.node_keys, emit=emit
        )
        self._run = RunWatch(
            instructions,
            control=control,
            emit=emit,
            committed=committed or (lambda: committed_round(instructions.recovery)),
            clock=clock,
            reach=reach,
        )
        self._desk = Desk(instructions, roster, self._nodes, self._run, control=control, now=now)
        self._clock = clock
        self._looked_s = -CALM_POLL_S
        """When nodes and run were looked at last."""

    def step(self, *, only_the_run: bool = False) -> bool:
        """Look once at everything; True when the run has ended, until another is submitted.

        Args:
            only_the_run: it waits for us, and nothing else does.
        """
        if not only_the_run:
            self._desk.look()
            if self._run.is_under_way and self._clock() - self._looked_s < CALM_POLL_S:
                return False
            self._nodes.look()
        self._looked_s = self._clock()
        return self._run.look(len(self._nodes.online))

    def server_app_died(self) -> bool:
        """Whether the ServerApp of the run has died, said once; asks only the kernel."""
        return self._run.server_app_died()


def main(arguments: list[str]) -> int:
    """``python -m onefed.flower.supervisor INSTRUCTIONS``: supervise until SIGTERM.

    When the run has ended it stays: nodes are listed and revoked, and another app may come.
    """
    told = Instructions.read(Path(arguments[0]))

    def now() -> datetime:
        return datetime.now(UTC)

    voice.configure(_LOG, ROLE, os.environ)
    log = EventLog(Path(os.environ["ONEFED_EVENTS"]), ROLE, now)
    relay = voice.Relay(log.path, ROLE, sys.stdout) if voice.wants_json(os.environ) else None
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    try:
        control = adapter.Control(told.superlink, told.ca_certificate)
        gate = None
        if told.onegate_endpoint is not None:
            token = told.token_file.read_text(encoding="ascii").strip()
            gate = onegate.OneGate(told.onegate_endpoint, token, told.vm_id)
        supervisor = Supervisor(
            told,
            control=control,
            gate=gate,
            emit=log.emit,
            now=now,
            clock=time.monotonic,
            reach=failpoints.from_environ(os.environ),
        )
        if told.enrolment_socket is not None:
            enrolment_server.start(told.enrolment_socket, told.requests)
        _supervise(supervisor, LifeSign(os.environ), stopping, relay)
        control.close()
    except OnefedError as error:
        log.emit(events.Notice("ERROR", str(error)))
        log.emit(events.RunStatus("failed", error.message))
    if relay is not None:
        relay.look()  # the last words, too
    stopping.wait()
    return 0


def committed_round(recovery: Path) -> int:
    """The last round in a recovery store; 0 where there is none, or none that can be read."""
    try:
        newest = RecoveryStore(recovery).peek()
    except StorageError:
        return 0
    return 0 if newest is None else newest.round_number


def _supervise(
    supervisor: Supervisor, sign: LifeSign, stopping: threading.Event, relay: voice.Relay | None
) -> None:
    """Look again and again, until we are stopped."""
    said, died = "", False
    while not stopping.is_set():
        try:
            supervisor.step(only_the_run=died)
            sign.give()
            said = ""
        except (adapter.SuperLinkError, onegate.OneGateError) as error:
            # The servers may be starting; the next look is half a second away.
            if error.message != said:
                said = error.message
                _LOG.warning("%s", said)
        if relay is not None:
            relay.look()
        died = _wait(supervisor, stopping)


def _wait(supervisor: Supervisor, stopping: threading.Event) -> bool:
    """A pause, which ends when the ServerApp dies; returns whether it did."""
    for _ in range(round(POLL_S / DEATH_LOOK_S)):
        if stopping.wait(DEATH_LOOK_S):
            break
        if supervisor.server_app_died():
            return True
    return False


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
