"""A machine made of processes: boots, keeps its programs running, and drains when told to stop.

``python -m onefed.appliance.guest --role superlink --root DIR --name VM``: what power-on, systemd
and power-off are for a virtual machine, in one process whose children are the machine's programs.
Its context lies below the root as the platform would have put it there.

Exit codes: 0 after a stop that was asked for, else the exit code of what failed (errors.ExitCode).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
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
from onefed.appliance import machine, steps, superlink, supernode
from onefed.appliance.paths import Paths
from onefed.appliance.process import ProcessRuntime, Program, Restart, die_with_parent
from onefed.errors import ExitCode, OnefedError, StorageError
from onefed.opennebula import onegate
from onefed.telemetry import events
from onefed.telemetry.log import EventLog

LOOPBACK = "127.0.0.1"

ERROR_CODE: Mapping[ExitCode, str] = {
    ExitCode.CONFIG: "config_invalid",
    ExitCode.IN_USE: "port_in_use",
    ExitCode.DATA: "data_unreadable",
    ExitCode.STORAGE: "storage",
}
"""``FL_ERROR`` of a machine that failed; see ``_error_code`` for the rest."""

TOKEN_BYTES_MAX = 4096
"""A token has about 50."""


class StoppedError(Exception):
    """The machine was told to stop while it booted: no failure, of whatever step."""


class ProgramDiedError(OnefedError):
    """A program of the machine keeps dying."""

    exit_code = ExitCode.BOOT


@dataclass(frozen=True)
class Options:
    """The command line of a guest."""

    role: context.Role
    root: Path
    name: str
    """Of the machine, for people: ``supernode/2``."""
    state_folder: Path
    events: Path


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a machine until it is told to stop or fails."""
    die_with_parent(signal.SIGTERM)
    return asyncio.run(Guest(_options(arguments), os.environ).run())


class Guest:
    """One machine from power-on to power-off."""

    def __init__(self, options: Options, environ: Mapping[str, str]) -> None:
        self._options = options
        self._environ = environ
        self._paths = Paths(options.root)
        self._log = EventLog(options.events, options.role.value, lambda: datetime.now(UTC))
        self._stopping = threading.Event()
        self._stop_asked = asyncio.Event()
        self._runtime = ProcessRuntime(self._on_restart)
        self._died: ProgramDiedError | None = None
        self._context = context.ContextFile({})

    async def run(self) -> int:
        """Boot, stay up, stop; returns the exit code."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._ask_to_stop)
        self._state("booting")
        gate: onegate.OneGate | None = None
        exit_code = ExitCode.OK
        try:
            self._context = self._read_context()
            gate = self._gate()
            await asyncio.to_thread(self._boot, loop, gate)
            self._state("running")
            await self._stop_asked.wait()
            self._go_on()
        except StoppedError:
            pass
        except OnefedError as error:
            exit_code = error.exit_code
            self._state("failed", str(error))
            await asyncio.to_thread(self._publish_failure, gate, error)
        finally:
            await self._runtime.stop()
            if gate is not None:
                gate.close()
        if exit_code is ExitCode.OK:
            self._state("stopped")
        return int(exit_code)

    def _boot(self, loop: asyncio.AbstractEventLoop, gate: onegate.OneGate | None) -> None:
        """Apply the steps of the role, in a thread of its own."""

        def start(program: Program) -> None:
            asyncio.run_coroutine_threadsafe(self._runtime.start(program), loop).result()

        edge = machine.Edge(
            gate=gate,
            gate_endpoint=self._variable("ONEGATE_ENDPOINT") or None,
            vm_id=self._variable("VMID"),
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
            facts={
                **machine.read_facts(self._paths),
                "address": self._variable("ETH0_IP") or LOOPBACK,
            },
        )
        resolution = context.resolve(self._options.role, context_file=self._context)
        apply: Callable[[], None]
        if self._options.role is context.Role.SUPERLINK:
            coordinator = superlink.SuperLink(edge, resolution)
            apply = functools.partial(steps.apply, superlink.STEPS, coordinator)
        else:
            node = supernode.SuperNode(edge, resolution)
            apply = functools.partial(steps.apply, supernode.STEPS, node)
        machine.make_folder(self._paths.config, 0o750)
        apply(
            status_file=self._paths.status,
            clock=time.monotonic,
            on_report=self._on_report,
            before_step=self._go_on,
        )
        self._go_on()

    def _go_on(self) -> None:
        """Raise what ends the life of the machine, if it came up."""
        if self._died is not None:
            raise self._died
        if self._stopping.is_set():
            raise StoppedError

    def _sleep(self, seconds: float) -> None:
        if self._stopping.wait(seconds):
            raise StoppedError

    def _ask_to_stop(self) -> None:
        self._stopping.set()
        self._stop_asked.set()

    def _publish_failure(self, gate: onegate.OneGate | None, error: OnefedError) -> None:
        if gate is None:
            return
        is_superlink = self._options.role is context.Role.SUPERLINK
        failed = {
            "FL_ERROR": _error_code(error),
            "FL_READY" if is_superlink else "FL_NODE_READY": "NO",
        }
        for name, value in failed.items():
            with contextlib.suppress(onegate.OneGateError):
                gate.publish(name, value)

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
            self._died = ProgramDiedError(
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

    def _gate(self) -> onegate.OneGate | None:
        """OneGate, if the machine has what it takes; a static address works without."""
        endpoint = self._variable("ONEGATE_ENDPOINT")
        token = _read(self._paths.token, TOKEN_BYTES_MAX)
        if not endpoint or token is None:
            return None
        try:
            return onegate.OneGate(endpoint, token.decode(errors="replace"), self._variable("VMID"))
        except onegate.OneGateError as error:
            self._warn(f"This machine goes without OneGate. {error}")
            return None

    def _read_context(self) -> context.ContextFile:
        content = _read(self._paths.context, context.FILE_BYTES_MAX + 1)
        if content is None:
            self._warn(f"There is no {self._paths.context}: every variable has its default.")
        return context.parse_context_file(content or b"")

    def _variable(self, name: str) -> str:
        """A variable of the platform, which the table does not hold."""
        given = self._context.assignments.get(name)
        return "" if given is None else given.text


def _error_code(error: OnefedError) -> str:
    """What ``FL_ERROR`` says of a failure."""
    cause = error.__cause__ if isinstance(error, steps.BootError) else error
    if isinstance(cause, machine.UnhealthyError):
        return "health_check_timeout"
    if isinstance(cause, ProgramDiedError):
        return "program_died"
    return ERROR_CODE.get(error.exit_code, "boot_failed")


def _read(path: Path, bytes_max: int) -> bytes | None:
    """The beginning of a file that the platform wrote; None when there is none."""
    try:
        with path.open("rb") as stream:
            return stream.read(bytes_max)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(
            f"{path} cannot be read: {error.strerror or error}.",
            hint="The platform writes it before the boot: look at the guest agent's log.",
        ) from error


def _options(arguments: Sequence[str] | None) -> Options:
    parser = argparse.ArgumentParser(prog="python -m onefed.appliance.guest")
    parser.add_argument("--role", type=context.Role, choices=list(context.Role), required=True)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--state-folder", type=Path, required=True)
    parser.add_argument("--events", type=Path, required=True)
    return Options(**vars(parser.parse_args(arguments)))


if __name__ == "__main__":
    raise SystemExit(main())
