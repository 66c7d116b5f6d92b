"""A machine made of processes: boots, keeps its programs running, and drains when told to stop.

``python -m onefed.appliance.guest --role superlink --root DIR --name VM``: what power-on, systemd
and power-off are for a virtual machine, in one process whose children are the machine's programs.
Its context lies below the root as the platform would have put it there.

Exit codes: 0 after a stop that was asked for, else the exit code of what failed (errors.ExitCode).
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from onefed import context
from onefed.appliance import (
    activity,
    drain,
    keeper,
    machine,
    peer,
    steps,
    superlink,
    supernode,
    surroundings,
)
from onefed.appliance.paths import Paths
from onefed.appliance.process import ProcessRuntime, Program, Restart, Spawn, die_with_parent
from onefed.errors import ExitCode, OnefedError
from onefed.opennebula import onegate
from onefed.telemetry import events
from onefed.telemetry.log import EventLog


class StoppedError(Exception):
    """The machine was told to stop while it booted: no failure, of whatever step."""


@dataclass(frozen=True)
class Options:
    """The command line of a guest."""

    role: context.Role
    root: Path
    name: str
    """Of the machine, for people: ``supernode/2``."""
    state_folder: Path
    events: Path
    context: Path | None = None
    """Where the context lies instead of where the platform puts it."""
    detached: bool = False
    """Nobody waits: it lives on when its parent ends, and holds the lock of ``Paths.keeper``."""
    failpoints: Path | None = None
    """Where a test holds the programs: a local cloud passes on what it was started with."""


def main(arguments: Sequence[str] | None = None, spawn: Spawn | None = None) -> int:
    """Run a machine until it is told to stop or fails.

    Args:
        spawn: how its programs are started; None: as children.
    """
    options = _options(arguments)
    if not options.detached:
        die_with_parent(signal.SIGTERM)
        return asyncio.run(Guest(options, os.environ, spawn=spawn).run())
    with keeper.hold(Paths(options.root).keeper) as tell:
        return asyncio.run(Guest(options, os.environ, tell).run())


class Guest:
    """One machine from power-on to power-off."""

    def __init__(
        self,
        options: Options,
        environ: Mapping[str, str],
        tell: Callable[[keeper.Keeper], None] = lambda _: None,
        spawn: Spawn | None = None,
    ) -> None:
        self._options = options
        self._environ = environ
        self._paths = Paths(options.root)
        self._log = EventLog(options.events, options.role.value, lambda: datetime.now(UTC))
        self._stopping = threading.Event()
        self._stop_asked = asyncio.Event()
        self._runtime = ProcessRuntime(self._on_restart, spawn)
        self._died: surroundings.ProgramDiedError | None = None
        self._tell = tell
        self._coordinator: superlink.SuperLink | None = None

    async def run(self) -> int:
        """Boot, stay up, stop; returns the exit code."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._ask_to_stop)
        loop.add_signal_handler(signal.SIGHUP, self._take_new_certificate)
        self._state("booting")
        gate: onegate.OneGate | None = None
        reporting: activity.Reporting | None = None
        exit_code = ExitCode.OK
        try:
            given = surroundings.look(self._paths, self._warn, self._options.context)
            if self._options.detached:
                self._paths.status.unlink(missing_ok=True)  # of an earlier boot
            self._say("booting", given)
            gate = given.gate(self._warn)
            await asyncio.to_thread(self._boot, loop, gate, given)
            self._state("running")
            self._say("running", given)
            if self._options.role is context.Role.SUPERNODE:
                facts = machine.read_facts(self._paths)
                reporting = activity.begin(given, facts, self._warn)
            await self._until_asked_to_stop()
            self._go_on()
        except StoppedError:
            pass
        except OnefedError as error:
            exit_code = error.exit_code
            self._state("failed", str(error))
            role = self._options.role
            await asyncio.to_thread(surroundings.publish_failure, gate, role, error)
        finally:
            if reporting is not None:
                await asyncio.to_thread(reporting.stop)
            leaves = gate if self._options.detached else None  # else the cloud is leaving, too
            await asyncio.to_thread(drain.begin, leaves, self._options.role)
            await self._runtime.stop()
            await asyncio.to_thread(drain.end, leaves, self._options.role)
            if gate is not None:
                gate.close()
        if exit_code is ExitCode.OK:
            self._state("stopped")
        return int(exit_code)

    def _boot(
        self,
        loop: asyncio.AbstractEventLoop,
        gate: onegate.OneGate | None,
        given: surroundings.Surroundings,
    ) -> None:
        """Apply the steps of the role, in a thread of its own."""

        def start(program: Program) -> None:
            asyncio.run_coroutine_threadsafe(self._runtime.start(program), loop).result()

        edge = machine.Edge(
            gate=gate,
            gate_endpoint=given.variable("ONEGATE_ENDPOINT") or None,
            gate_token=given.gate_token or "",
            vm_id=given.variable("VMID"),
            paths=self._paths,
            inherited=self._environ,
            state_folder=self._options.state_folder,
            events=self._options.events,
            start=start,
            running=self._runtime.running,
            given_up=self._runtime.given_up,
            clock=time.monotonic,
            now=lambda: datetime.now(UTC),
            sleep=self._sleep,
            warn=self._warn,
            emit=self._log.emit,
            facts={
                **machine.read_facts(self._paths),
                "address": given.address,
            },
            failpoints=self._options.failpoints,
        )
        resolution = context.resolve(self._options.role, context_file=given.context)
        apply: Callable[..., None]
        match self._options.role:
            case context.Role.SUPERLINK:
                self._coordinator = superlink.SuperLink(edge, resolution)
                apply = functools.partial(steps.apply, superlink.STEPS, self._coordinator)
            case context.Role.SUPERNODE:
                node = supernode.SuperNode(edge, resolution)
                apply = functools.partial(steps.apply, supernode.STEPS, node)
            case context.Role.PEER:
                apply = functools.partial(steps.apply, peer.STEPS, peer.Peer(edge, resolution))
        machine.make_folder(self._paths.config, 0o750)
        apply(
            status_file=self._paths.status,
            clock=time.monotonic,
            on_report=self._on_report,
            before_step=self._go_on,
        )
        self._go_on()

    def _say(self, state: str, given: surroundings.Surroundings) -> None:
        self._tell(keeper.Keeper(os.getpid(), state, given.context_sha256))

    def _go_on(self) -> None:
        """Raise what ends the life of the machine, if it came up."""
        if self._died is not None:
            raise self._died
        if self._stopping.is_set():
            raise StoppedError

    def _sleep(self, seconds: float) -> None:
        if self._stopping.wait(seconds):
            raise StoppedError

    async def _until_asked_to_stop(self) -> None:
        """Stay up; once a day look whether the server certificate ends soon."""
        while True:
            try:
                await asyncio.wait_for(self._stop_asked.wait(), superlink.RENEWAL_LOOK_S)
            except TimeoutError:
                await asyncio.to_thread(self._renew)
            else:
                return

    def _renew(self) -> None:
        if self._coordinator is None:
            return
        try:
            outcome = superlink.renew(self._coordinator)
        except OnefedError as error:
            self._warn(f"The server certificate was not renewed. {error}")
            return
        if outcome.status is steps.Status.DONE:
            os.kill(os.getpid(), signal.SIGHUP)

    def _take_new_certificate(self) -> None:
        """SIGHUP: ``onefed appliance renew`` has written one."""
        for name in superlink.SHOW_CERTIFICATE:
            self._runtime.restart(name)

    def _ask_to_stop(self) -> None:
        self._stopping.set()
        self._stop_asked.set()

    def _on_report(self, report: steps.Report) -> None:
        self._log.emit(
            events.BootStep(
                vm=self._options.name,
                role=self._options.role.value,
                step=report.id,
                name=report.name,
                status=report.status.value,
                reason=report.detail,
                seconds=report.seconds,
            )
        )

    def _on_restart(self, restart: Restart) -> None:
        if restart.given_up:
            log = self._paths.logs / f"{restart.program}.log"
            if restart.is_beside:
                self._warn(f"{restart.program} keeps dying and was given up. Its log is {log}.")
                return
            self._died = surroundings.ProgramDiedError(
                f"{restart.program} keeps dying and was given up.", hint=f"Its log is {log}."
            )
            self._stop_asked.set()  # a boot ends at its next step, or says what it waited for
            return
        self._log.emit(
            events.ServiceRestart(
                vm=self._options.name,
                service=restart.program,
                exit_code=restart.exit_code,
                attempt=restart.attempt,
                delay_seconds=restart.delay_s,
            )
        )

    def _state(self, state: events.MachineState, reason: str | None = None) -> None:
        role = self._options.role.value
        self._log.emit(events.VmState(self._options.name, role, state, reason))

    def _warn(self, message: str) -> None:
        self._log.emit(events.Notice("WARNING", message))


def _options(arguments: Sequence[str] | None) -> Options:
    parser = argparse.ArgumentParser(prog="python -m onefed.appliance.guest")
    parser.add_argument("--role", type=context.Role, choices=list(context.Role), required=True)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--state-folder", type=Path, required=True)
    parser.add_argument("--events", type=Path, required=True)
    parser.add_argument("--context", type=Path)
    parser.add_argument("--detached", action="store_true")
    parser.add_argument("--failpoints", type=Path)
    return Options(**vars(parser.parse_args(arguments)))


if __name__ == "__main__":
    raise SystemExit(main())
