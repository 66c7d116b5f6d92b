"""The cloud of one federation: OneGate, and machines made of processes, from power-on to the end.

``host`` is the program; it owns the state directory meanwhile. The summary of how the federation
ended is written into it.
It deploys as OneFlow does with ``straight`` and ``ready_status_gate``: the superlink first, and
the supernodes once it has reported READY.
SIGINT asks for a stop after the round in flight is saved, a second one or SIGTERM for a stop now.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from onefed import context, failpoints
from onefed.appliance.machine import free_port
from onefed.appliance.paths import Paths
from onefed.checkpoint import files
from onefed.errors import ExitCode, OnefedError
from onefed.flower import libraries
from onefed.local import host, ownership, state, summary, warm
from onefed.local.onegate import OneGateServer
from onefed.local.service import RoleState, ServiceModel, ServiceState, VmRecord
from onefed.local.spec import Spec
from onefed.local.state import SUPERLINK, StateDir
from onefed.telemetry import events
from onefed.telemetry.log import EventLog
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
"""A machine that has not reported READY by then has failed; its health check may take 120 s."""


@dataclass
class Machine:
    """A running machine of the cloud."""

    name: str
    record: VmRecord
    process: asyncio.subprocess.Process | warm.Child


class Cloud:
    """Brings one federation up, watches it, and takes it down."""

    def __init__(
        self,
        directory: StateDir,
        spec: Spec,
        environ: Mapping[str, str],
        warm_process: warm.Warm | None = None,
    ) -> None:
        self._dir = directory
        self._spec = spec
        self._environ = environ
        self._log = EventLog(directory.events, "cloud", lambda: datetime.now(UTC))
        self._follower = state.news(directory.events)
        self._view = FederationView()
        self._run_details: str | None = None
        """What Flower said last about the run."""
        self._model = ServiceModel(SERVICE_ID, spec.name)
        self._machines: list[Machine] = []
        self._warm = warm_process
        self._warm_for_nodes: warm.Warm | None = None
        """It has imported what the app imports, too."""
        self._interrupts = 0
        self._stop_now = asyncio.Event()

    async def run(self) -> summary.Summary:
        """The whole life of the federation; returns how it ended."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGINT, self._interrupt)
        loop.add_signal_handler(signal.SIGTERM, self._stop_now.set)
        started = loop.time()
        self._announce()
        code, error = ExitCode.OK, None
        try:
            await self._live()
        except OnefedError as caught:
            code, error = caught.exit_code, str(caught)
        except OSError as caught:  # no more processes, descriptors or memory
            code, error = ExitCode.FAILED, f"This machine refused: {caught}"
        self._look()
        if error is None and self._view.run_status == "failed":
            error = f"{self._run_details or 'The run failed.'}\nIts logs: onefed logs superlink"
        outcome = summary.make(
            self._dir, self._spec, self._view, error=error, seconds=loop.time() - started
        )
        if code is not ExitCode.OK:
            outcome = summary.with_exit_code(outcome, code)
        self._log.emit(summary.as_event(outcome))
        return outcome

    async def _live(self) -> None:
        for role, count in ((SUPERLINK, 1), ("supernode", self._spec.nodes)):
            self._model.add_role(role, count)
        gate = OneGateServer(self._model)
        try:
            await self._deploy(gate.start())
            await self._watch()
        finally:
            await self._shut_down()
            await asyncio.to_thread(gate.stop)

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
            if role == SUPERLINK:
                await self._warm_up()
            await self._wait_until_ready()
            self._model.set_role_state(role, RoleState.RUNNING)
        self._model.set_service_state(ServiceState.RUNNING)

    def _create(self, role: str, name: str, endpoint: str) -> VmRecord:
        """A machine's disk: its context and token where the platform puts them."""
        paths = Paths(self._dir.root(name))
        free = {
            "FL_FLEET_API_ADDRESS": f"{ADDRESS}:{free_port()}",
            "FL_CONTROL_API_ADDRESS": f"{ADDRESS}:{free_port()}",
            "FL_SUPERLINK_PORT": str(free_port()),
        }
        variables = {**free, **self._spec.context}
        record = self._model.add_vm(
            role,
            f"{name.replace('/', '_')}_(service_{SERVICE_ID})",
            ADDRESS,
            {
                **variables_of(role, variables),
                "ETH0_IP": ADDRESS,
                "ONEGATE_ENDPOINT": endpoint,
                "TOKEN": "YES",
                "NETWORK": "YES",
                "REPORT_READY": "YES",
            },
        )
        files.make_folder(paths.root, mode=0o700)
        files.make_folder(paths.context.parent, mode=0o700)
        files.write_bytes(paths.context, context_document(record.context), mode=0o600)
        files.write_bytes(paths.token, record.token.encode(), mode=0o600)
        if role == SUPERLINK:
            self._prepare_superlink(paths)
        elif self._spec.data is not None:
            link_data(name, paths.data, Path(self._spec.data) / name.rpartition("/")[2])
        return record

    def _prepare_superlink(self, paths: Paths) -> None:
        if not self._spec.waits:
            files.make_folder(paths.app.parent)
            files.write_bytes(paths.app, self._dir.bundle.read_bytes())
        # A stop that was asked for is over, and Flower's own database knows nodes of before.
        # All that a resume needs is in the recovery store.
        paths.stop_request.unlink(missing_ok=True)
        database = Path(self._spec.context.get("FL_DATABASE", "state/state.db")).name
        for leftover in paths.state.rglob(f"{database}*"):
            leftover.unlink()

    async def _power_on(self, role: str, name: str, record: VmRecord) -> Machine:
        root = self._dir.root(name)
        holds = self._environ.get(failpoints.VARIABLE)
        argv = (
            *(sys.executable, "-P", "-m", "onefed.appliance.guest"),
            *("--role", role, "--name", name, "--root", str(root)),
            *("--state-folder", str(self._dir.folder), "--events", str(self._dir.events)),
            *(("--failpoints", holds) if holds else ()),
        )
        environment = host.environment(self._dir.folder, self._environ)
        for forks in (self._warm_for_nodes, self._warm):
            if forks is not None:
                with contextlib.suppress(warm.WarmError):
                    child = await forks.spawn(argv, environment, root, sys.stderr.fileno())
                    return Machine(name, record, child)
        process = await asyncio.create_subprocess_exec(
            *argv,
            env=environment,
            cwd=root,
            stdin=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )
        return Machine(name, record, process)

    async def _warm_up(self) -> None:
        """While the coordinator boots: import once what every node will import with the app."""
        if self._warm is None or self._spec.waits:
            return
        names = libraries.of(self._dir.bundle.read_bytes())
        folder = self._dir.folder
        with contextlib.suppress(warm.WarmError):
            self._warm_for_nodes = await self._warm.with_libraries(
                names, host.environment(folder, self._environ), folder, sys.stderr.fileno()
            )

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
        """Until the run has ended; where apps are submitted, the one that runs at the stop."""
        while self._view.run_status not in summary.RUN_ENDED or (
            self._spec.waits and not self._interrupts
        ):
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
        records = self._follower.poll()
        for record in records:
            if isinstance(record.event, events.RunStatus):
                self._run_details = record.event.details
        self._view = fold(records, self._view)

    def _interrupt(self) -> None:
        """The first one lets a round that is being trained be saved; any other stops at once."""
        self._interrupts += 1
        training = self._view.status in ("training", "stalled")
        request = Paths(self._dir.root(SUPERLINK)).stop_request
        if self._interrupts > 1 or not self._spec.managed or not training:
            self._stop_now.set()
            return
        self._log.emit(events.Notice("INFO", "Stopping once the round in flight is saved."))
        try:
            request.touch()
        except OSError:
            self._stop_now.set()

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
        for forks in (self._warm_for_nodes, self._warm):
            if forks is not None:
                forks.close()
        await asyncio.to_thread(ownership.end_processes, self._dir)

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


class DataGoneError(OnefedError):
    """Training data that was there when the federation was made is not there any more."""

    exit_code = ExitCode.DATA


def run(
    directory: StateDir,
    warm_process: warm.Warm | None,
    environ: Mapping[str, str],
    copy: Path | None,
) -> int:
    """The federation of a state directory that this process owns; returns its exit code.

    Args:
        warm_process: forks the machines.
        copy: of the summary, where one is wanted.
    """
    spec = directory.read_spec()
    outcome = asyncio.run(Cloud(directory, spec, environ, warm_process).run())
    for path in (directory.summary, *([] if copy is None else [copy])):
        summary.write(outcome, path)
    return outcome.exit_code


def variables_of(role: str, given: Mapping[str, str]) -> dict[str, str]:
    """The variables that machines of a role read; one that nobody knows is theirs to judge."""
    rows = context.VARIABLES
    return {
        name: text
        for name, text in given.items()
        if name not in rows or context.Role(role) in rows[name].appliances
    }


def context_document(variables: Mapping[str, str]) -> bytes:
    """A context file as OpenNebula writes it.

    What is not UTF-8 goes through as it was given: the machine refuses it by name.
    """
    lines = [f"{name}={_quoted(text)}\n" for name, text in variables.items()]
    return "".join(lines).encode(errors="surrogateescape")


def link_data(machine: str, link: Path, folder: Path) -> None:
    """Show a node its training data, where its app looks for it.

    Raises:
        DataGoneError: there is none. Without it the app would train on its built-in examples, and
            nobody would notice.
    """
    if not folder.is_dir():
        raise DataGoneError(
            f"{machine}: its training data {folder} is no folder any more.",
            hint="Put it back, and continue with onefed resume.",
        )
    if not link.is_symlink():
        files.make_folder(link.parent)
        link.symlink_to(folder)


def _machine_failed(machine: Machine, view: FederationView) -> BootFailedError:
    node = view.nodes.get(machine.name)
    reason = node.reason if node is not None and node.reason else "it ended without a word"
    hint = f"Its log: onefed logs {machine.name}"
    error = BootFailedError(f"{machine.name}: {reason}", hint=hint)
    with contextlib.suppress(ValueError):
        error.exit_code = ExitCode(machine.process.returncode or ExitCode.BOOT)
    return error


def _quoted(value: str) -> str:
    return "'" + value.replace("'", r"'\''") + "'"
