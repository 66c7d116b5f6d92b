"""The cloud of one federation: OneGate, and machines made of processes, from power-on to the end.

``python -m onefed.local.cloud DIR`` owns a state directory while it lives.
It deploys as OneFlow does with ``straight`` and ``ready_status_gate``: the superlink first, and
the supernodes once it has reported READY.
SIGINT asks for a stop after the round in flight is saved, a second one or SIGTERM for a stop now.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from onefed import context
from onefed.appliance import programs
from onefed.appliance.machine import free_port
from onefed.appliance.paths import Paths
from onefed.appliance.process import die_with_parent
from onefed.checkpoint import files
from onefed.errors import ExitCode, OnefedError
from onefed.local import state, summary
from onefed.local.onegate import OneGateServer
from onefed.local.service import RoleState, ServiceModel, ServiceState, VmRecord
from onefed.local.state import SUPERLINK, Spec, StateDir
from onefed.telemetry import events
from onefed.telemetry.log import EventLog, Follower
from onefed.telemetry.status import FederationView, fold

SERVICE_ID = "1"
ADDRESS = "127.0.0.1"
"""Of every machine: they are told apart by their ports."""

LOOK_S = 0.1
"""How often the cloud looks at its machines and events."""

DISK_FREE_MIN_BYTES = 32 * 2**20
"""With less, the federation is stopped while it can still say so."""

STOP_LIMIT_S = 30.0
"""For all machines together; then they are killed."""

READY_LIMIT_S = 180.0
"""A machine that has not reported READY by then has failed (boot.md: health limit 120 s)."""


@dataclass
class Machine:
    """A running machine of the cloud."""

    name: str
    record: VmRecord
    process: asyncio.subprocess.Process


class Cloud:
    """Brings one federation up, watches it, and takes it down."""

    def __init__(self, directory: StateDir, spec: Spec, environ: Mapping[str, str]) -> None:
        self._dir = directory
        self._spec = spec
        self._environ = environ
        self._log = EventLog(directory.events, "cloud", lambda: datetime.now(UTC))
        self._follower = Follower(directory.events)
        self._view = FederationView()
        self._model = ServiceModel(SERVICE_ID, spec.name)
        self._machines: list[Machine] = []
        self._interrupts = 0
        self._stop_now = asyncio.Event()

    async def run(self) -> ExitCode:
        """The whole life of the federation; its outcome is in the summary file."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGINT, self._interrupt)
        loop.add_signal_handler(signal.SIGTERM, self._stop_now.set)
        self._follower.poll()  # what earlier starts said is not this start's
        started = loop.time()
        for role, count in ((SUPERLINK, 1), ("supernode", self._spec.nodes)):
            self._model.add_role(role, count)
        self._announce()
        gate = OneGateServer(self._model)
        code, error = ExitCode.OK, None
        try:
            try:
                await self._deploy(gate.start())
                await self._watch()
            finally:
                await self._shut_down()
                await asyncio.to_thread(gate.stop)
        except OnefedError as caught:
            code, error = caught.exit_code, str(caught)
        self._look()
        outcome = summary.make(
            self._dir, self._spec, self._view, error=error, seconds=loop.time() - started
        )
        if code is ExitCode.OK:
            code = summary.EXIT_CODES[outcome.status]
        outcome = summary.with_exit_code(outcome, code)
        self._log.emit(summary.as_event(outcome))
        summary.write(outcome, self._dir.summary)
        return code

    async def _deploy(self, endpoint: str) -> None:
        self._model.set_service_state(ServiceState.DEPLOYING)
        for role, names in (
            (SUPERLINK, (SUPERLINK,)),
            ("supernode", state.supernodes(self._spec.nodes)),
        ):
            self._model.set_role_state(role, RoleState.DEPLOYING)
            # All machines of a role are in the service before the first one looks for its place.
            records = [self._create(role, name, endpoint) for name in names]
            for name, record in zip(names, records, strict=True):
                self._machines.append(await self._power_on(role, name, record))
            await self._wait_until_ready()
            self._model.set_role_state(role, RoleState.RUNNING)
        self._model.set_service_state(ServiceState.RUNNING)

    def _create(self, role: str, name: str, endpoint: str) -> VmRecord:
        """A machine's disk: its context and token where the platform puts them."""
        paths = Paths(self._dir.root(name))
        variables = {"FL_FLEET_API_ADDRESS": f"{ADDRESS}:{free_port()}", **self._spec.context}
        record = self._model.add_vm(
            role,
            f"{name.replace('/', '_')}_(service_{SERVICE_ID})",
            ADDRESS,
            {
                **{key: text for key, text in variables.items() if _reads(role, key)},
                "ETH0_IP": ADDRESS,
                "ONEGATE_ENDPOINT": endpoint,
                "TOKEN": "YES",
                "NETWORK": "YES",
                "REPORT_READY": "YES",
            },
        )
        files.make_folder(paths.root, mode=0o700)
        files.make_folder(paths.context.parent, mode=0o700)
        text = "".join(f"{key}={_quoted(value)}\n" for key, value in record.context.items())
        files.write_bytes(paths.context, text.encode(), mode=0o600)
        files.write_bytes(paths.token, record.token.encode(), mode=0o600)
        if role == SUPERLINK:
            self._prepare_superlink(paths)
        elif self._spec.data is not None:
            _link_data(paths.data, Path(self._spec.data) / name.rpartition("/")[2])
        return record

    def _prepare_superlink(self, paths: Paths) -> None:
        files.make_folder(paths.app.parent)
        files.write_bytes(paths.app, self._dir.bundle.read_bytes())
        # A stop that was asked for is over, and Flower's own database knows nodes of before.
        # All that a resume needs is in the recovery store.
        paths.stop_request.unlink(missing_ok=True)
        for leftover in paths.state.glob("state.db*"):
            leftover.unlink()

    async def _power_on(self, role: str, name: str, record: VmRecord) -> Machine:
        root = self._dir.root(name)
        environment = {
            **programs.kept(self._environ),
            "PATH": programs.search_path(),
            state.STATE_VARIABLE: str(self._dir.folder),
        }
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "onefed.appliance.guest"),
            *("--role", role, "--name", name, "--root", str(root)),
            *("--state-folder", str(self._dir.folder), "--events", str(self._dir.events)),
            env=environment,
            cwd=root,
            stdin=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )
        return Machine(name, record, process)

    async def _wait_until_ready(self) -> None:
        loop = asyncio.get_running_loop()
        limit = loop.time() + READY_LIMIT_S
        while True:
            unready = [
                machine.name
                for machine in self._machines
                if self._model.attributes(machine.record.vm_id).get("READY") != "YES"
            ]
            if not unready:
                return
            if loop.time() > limit:
                raise BootFailedError(
                    f"{', '.join(unready)} did not become ready in {READY_LIMIT_S:.0f} s.",
                    hint=f"Its log: onefed logs {unready[0]}",
                )
            await self._pause()

    async def _watch(self) -> None:
        """Until the run has ended."""
        while self._view.run_status not in summary.RUN_ENDED:
            await self._pause()

    async def _pause(self) -> None:
        """Wait a moment, then look at everything that may end the federation."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stop_now.wait(), LOOK_S)
        self._look()
        if self._stop_now.is_set():
            raise StoppedByUserError("The federation was stopped.", hint=self._how_to_resume())
        for machine in self._machines:
            if machine.process.returncode is not None:
                self._look()
                raise _machine_failed(machine, self._view)
        if shutil.disk_usage(self._dir.folder).free < DISK_FREE_MIN_BYTES:
            raise DiskFullError(
                f"The disk of {self._dir.folder} is full.",
                hint="Free some space. " + self._how_to_resume(),
            )

    def _look(self) -> None:
        self._view = fold(self._follower.poll(), self._view)

    def _interrupt(self) -> None:
        self._interrupts += 1
        request = Paths(self._dir.root(SUPERLINK)).stop_request
        if self._interrupts > 1 or not self._spec.managed or not request.parent.is_dir():
            self._stop_now.set()
            return
        self._log.emit(events.Notice("INFO", "Stopping once the round in flight is saved."))
        request.touch()

    async def _shut_down(self) -> None:
        """Power off: the nodes first, all at once, then the coordinator; nothing is left."""
        self._model.set_service_state(ServiceState.UNDEPLOYING)
        nodes = [machine for machine in self._machines if machine.name != SUPERLINK]
        for group in (nodes, [each for each in self._machines if each not in nodes]):
            for machine in group:
                with contextlib.suppress(ProcessLookupError):
                    machine.process.terminate()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STOP_LIMIT_S):
                    await asyncio.gather(*(machine.process.wait() for machine in group))
            for machine in group:
                with contextlib.suppress(ProcessLookupError):
                    machine.process.kill()
        await asyncio.to_thread(state.end_processes, self._dir)

    def _announce(self) -> None:
        self._log.emit(
            events.FederationStart(
                name=self._spec.name,
                nodes=self._spec.nodes,
                rounds=self._spec.rounds,
                strategy=self._spec.strategy,
                app=self._spec.app,
                seed=self._spec.seed,
                directory=str(self._dir.folder),
            )
        )

    def _how_to_resume(self) -> str:
        return f"Continue it with: onefed resume {self._spec.name}"


class BootFailedError(OnefedError):
    """A machine did not become ready, or ended although nobody stopped it."""

    exit_code = ExitCode.BOOT


class StoppedByUserError(OnefedError):
    """Stopped by the user, before the run had ended."""

    exit_code = ExitCode.INTERRUPTED


class DiskFullError(OnefedError):
    """Too little space is left to go on."""

    exit_code = ExitCode.STORAGE


def main(arguments: Sequence[str]) -> int:
    """Own the state directory until its federation has ended; the exit code says how."""
    directory = StateDir(Path(arguments[0]))
    if os.environ.get("ONEFED_ATTACHED") == "1":
        die_with_parent(signal.SIGTERM)
    with state.hold(directory):
        state.end_processes(directory)  # of a cloud that was killed
        return int(asyncio.run(Cloud(directory, directory.read_spec(), os.environ).run()))


def _machine_failed(machine: Machine, view: FederationView) -> BootFailedError:
    node = view.nodes.get(machine.name)
    reason = node.reason if node is not None and node.reason else "it ended without a word"
    hint = f"Its log: onefed logs {machine.name}"
    error = BootFailedError(f"{machine.name}: {reason}", hint=hint)
    with contextlib.suppress(ValueError):
        error.exit_code = ExitCode(machine.process.returncode or ExitCode.BOOT)
    return error


def _reads(role: str, variable: str) -> bool:
    """Whether machines of a role take this variable."""
    return context.Role(role) in context.VARIABLES[variable].appliances


def _quoted(value: str) -> str:
    """As OpenNebula writes ``context.sh``."""
    return "'" + value.replace("'", r"'\''") + "'"


def _link_data(link: Path, folder: Path) -> None:
    if not folder.is_dir() or link.is_symlink():
        return
    files.make_folder(link.parent)
    link.symlink_to(folder.absolute())


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
