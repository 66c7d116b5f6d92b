"""The stages of a boot as commands: plan, configure, bootstrap, and what a machine is like now.

A machine with systemd has its programs as units, and ``bootstrap`` ends once they are healthy. A
machine without has a process of its own that keeps them (``guest``), which ``bootstrap`` starts.
"""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from onefed import context
from onefed.appliance import (
    container,
    description,
    drain,
    keeper,
    machine,
    ownership,
    peer,
    peer_state,
    platform,
    steps,
    superlink,
    supernode,
    surroundings,
)
from onefed.appliance.description import Runtime
from onefed.appliance.paths import Paths
from onefed.appliance.steps import Report, Stage, Step
from onefed.appliance.surroundings import Surroundings
from onefed.checkpoint import files
from onefed.errors import ExitCode, OnefedError, StorageError
from onefed.opennebula import onegate
from onefed.telemetry.log import EventLog

KEEPER_POLL_S = 0.1
KEEPER_LIMIT_S = 600.0
"""A node may look for its SuperLink for five minutes, and wait two for its registration."""

STOP_LIMIT_S = 120.0
"""Beyond the limits of all programs together."""


STEPS: Mapping[context.Role, tuple[Step[Any], ...]] = {
    context.Role.SUPERLINK: superlink.STEPS,
    context.Role.SUPERNODE: supernode.STEPS,
    context.Role.PEER: peer.STEPS,
}
"""What each kind of machine boots by."""

Subject = superlink.SuperLink | supernode.SuperNode | peer.Peer

SUBJECTS: Mapping[context.Role, Callable[[machine.Edge, context.Resolution], Subject]] = {
    context.Role.SUPERLINK: superlink.SuperLink,
    context.Role.SUPERNODE: supernode.SuperNode,
    context.Role.PEER: peer.Peer,
}
"""What these steps work on."""


class RuntimeRefusedError(OnefedError):
    """The programs of this machine do not run in that way here."""

    exit_code = ExitCode.USAGE


class DrainError(OnefedError):
    """A machine did not stop in time."""

    exit_code = ExitCode.BOOT


class KeeperError(OnefedError):
    """The process that keeps a machine did not bring it up."""

    def __init__(self, message: str, *, hint: str | None, exit_code: int) -> None:
        super().__init__(message, hint=hint)
        known = exit_code in set(ExitCode) and exit_code != ExitCode.OK
        self.exit_code = ExitCode(exit_code) if known else ExitCode.BOOT


@dataclass(frozen=True)
class Order:
    """Which machine, and how its programs run."""

    role: context.Role
    root: Path
    runtime: Runtime
    context_file: Path | None = None
    """Instead of where the platform puts it."""

    @property
    def paths(self) -> Paths:
        return Paths(self.root)

    @property
    def has_systemd(self) -> bool:
        return platform.has_systemd(self.root)


@dataclass(frozen=True)
class World:
    """What a stage needs of the process that runs it."""

    environ: Mapping[str, str]
    clock: Callable[[], float]
    """Monotonic seconds."""
    now: Callable[[], datetime]
    sleep: Callable[[float], None]
    warn: Callable[[str], None]
    on_report: Callable[[Report], None]


def plan(role: context.Role, stage: Stage | None = None) -> tuple[Step[Any], ...]:
    """The ordered steps of a role, or of one stage: nothing is read and nothing is changed."""
    every = STEPS[role]
    first = next(i for i, step in enumerate(every) if step.stage is Stage.BOOTSTRAP)
    if stage is Stage.CONFIGURE:
        return every[:first]
    return every[first:] if stage is Stage.BOOTSTRAP else every


def apply(order: Order, stage: Stage, world: World) -> None:
    """Run one stage of a boot in this process.

    Raises:
        BootError: a step failed; OneGate was told.
    """
    given = surroundings.look(order.paths, world.warn, order.context_file)
    gate = given.gate(world.warn)
    try:
        _apply(order, stage, world, given, gate)
    except OnefedError as error:
        surroundings.publish_failure(gate, order.role, error)
        raise
    finally:
        if gate is not None:
            gate.close()


def bootstrap(order: Order, world: World) -> str:
    """The stage after ``configure``: programs run and are healthy. Gives what came of it."""
    if order.has_systemd:
        apply(order, Stage.BOOTSTRAP, world)
        return "every program is a unit of systemd and runs"
    if order.runtime is Runtime.DOCKER:
        raise RuntimeRefusedError(
            "The docker runtime needs systemd: its units start the containers.",
            hint="Use --runtime process here, or run this in a virtual machine.",
        )
    return _bootstrap_keeper(order, world)


def renew(order: Order, world: World) -> steps.Outcome:
    """Renew the server certificate when it ends soon, and have the programs show the new one."""
    given = surroundings.look(order.paths, world.warn, order.context_file)
    order = dataclasses.replace(order, runtime=_runtime_of(order))
    link = _subject(order, world, given, None)
    if not isinstance(link, superlink.SuperLink):
        return steps.skipped("a node has no certificate")
    outcome = superlink.renew(link)
    if outcome.status is steps.Status.DONE:
        ownership.give(order.paths, [order.paths.certificates])
        found = keeper.find(order.paths.keeper)
        if found is not None:
            keeper.renewed(found)
        if isinstance(link.edge.platform, platform.Systemd):
            shown = [
                program
                for program in superlink.all_programs(link)
                if program.name in superlink.SHOW_CERTIFICATE
            ]
            link.edge.platform.restart(shown)
    return outcome


def _runtime_of(order: Order) -> Runtime:
    """How the programs of a machine run that has booted."""
    try:
        main = description.read(order.paths.programs, order.role)
    except StorageError:
        return Runtime.PROCESS  # there is none that systemd would start
    return Runtime.DOCKER if main.argv[0] == container.DOCKER else Runtime.PROCESS


def stop(order: Order, world: World) -> bool:
    """Drain a machine; False when nothing ran.

    Raises:
        DrainError: it did not stop in time.
    """
    given = surroundings.look(order.paths, world.warn, order.context_file)
    if order.role is context.Role.PEER:
        _leave_group(order.paths, world)
    if not order.has_systemd:
        return _stop_keeper(order.paths, world)
    gate = given.gate(world.warn)
    try:
        drain.begin(gate, order.role)
        systemd = _systemd(order, context.resolve(order.role, context_file=given.context), {})
        names = sorted(path.stem for path in order.paths.programs.glob("*.json"))
        # What carries the machine ends last; the others are part of it.
        systemd.stop(sorted(names, key=lambda name: name != order.role))
        drain.end(gate, order.role)
    finally:
        if gate is not None:
            gate.close()
    return bool(names)


def _leave_group(paths: Paths, world: World) -> None:
    """A machine that is drained will not be back; one that is only stopped leaves nothing."""
    peer_state.leave(
        paths,
        machine.read_facts(paths).get("peer_name", ""),
        now=world.now,
        clock=world.clock,
        sleep=world.sleep,
        warn=world.warn,
    )


def _subject(
    order: Order,
    world: World,
    given: Surroundings,
    gate: onegate.OneGate | None,
) -> Subject:
    """A machine as its steps see it."""
    paths = order.paths
    resolution = context.resolve(order.role, context_file=given.context)
    facts = {**machine.read_facts(paths), "address": given.address}
    systemd = _systemd(order, resolution, facts) if order.has_systemd else None
    edge = machine.Edge(
        gate=gate,
        gate_endpoint=given.variable("ONEGATE_ENDPOINT") or None,
        gate_token=given.gate_token or "",
        vm_id=given.variable("VMID"),
        paths=paths,
        inherited=world.environ,
        state_folder=paths.root,
        events=events(paths),
        start=systemd.start if systemd else _nothing_starts,
        running=systemd.running if systemd else lambda _: keeper.find(paths.keeper) is not None,
        given_up=systemd.given_up if systemd else lambda _: False,
        clock=world.clock,
        now=world.now,
        sleep=world.sleep,
        warn=world.warn,
        emit=EventLog(events(paths), order.role.value, world.now).emit,
        platform=systemd or platform.Processes(),
        network=given.network,
        facts=facts,
    )
    return SUBJECTS[order.role](edge, resolution)


def _apply(
    order: Order,
    stage: Stage,
    world: World,
    given: Surroundings,
    gate: onegate.OneGate | None,
) -> None:
    paths = order.paths
    subject = _subject(order, world, given, gate)
    machine.make_folder(paths.config, 0o750)
    wanted = plan(order.role, stage)
    ours = {step.id for step in wanted}
    before = () if stage is Stage.CONFIGURE else steps.read_account(paths.status).reports
    steps.apply(
        wanted,
        subject,
        status_file=paths.status,
        clock=world.clock,
        on_report=world.on_report,
        earlier=[report for report in before if report.id not in ours],
    )


def events(paths: Paths) -> Path:
    """What happened on a machine that ``onefed appliance`` boots, one JSON object a line."""
    return paths.logs / "events.jsonl"


def _systemd(
    order: Order, resolution: context.Resolution, facts: Mapping[str, str]
) -> platform.Systemd:
    """Values that are not valid are defaults here: the step that checks them stops the boot."""
    framework = resolution.values.get("ML_FRAMEWORK")
    exports = resolution.values.get("FL_CHECKPOINT_PATH")
    return platform.Systemd(
        role=order.role,
        runtime=order.runtime,
        paths=order.paths,
        framework="" if framework is None else framework.text,
        checkpoint_path=None if exports is None else Path(exports.text),
        gpus=lambda: container.Gpus(facts["gpus"]) if facts.get("gpus") else None,
        running_version=lambda: facts.get("version") or resolution.values["FLOWER_VERSION"].text,
    )


def _nothing_starts(_: object) -> None:
    raise AssertionError("without systemd the keeper starts programs, in a process of its own")


def _bootstrap_keeper(order: Order, world: World) -> str:
    paths = order.paths
    given = surroundings.look(paths, world.warn, order.context_file)
    found = keeper.find(paths.keeper)
    if found is not None and found.context_sha256 == given.context_sha256:
        return f"unchanged: it runs already, kept by process {found.pid}"
    if found is not None:
        world.warn("The context has changed: the machine is drained and boots anew.")
        _stop_keeper(paths, world)
    files.make_folder(paths.logs)
    with (paths.logs / "guest.log").open("ab") as log:
        process = subprocess.Popen(
            _guest(order),
            env={**world.environ},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    started = world.clock()
    seen = 0
    while (now := keeper.find(paths.keeper)) is None or now.state != "running":
        seen = _tell_new(paths, seen, process.pid, now, world)
        code = process.poll()
        if code is not None:
            account = steps.read_account(paths.status)
            failed = [each for each in account.reports if each.status is steps.Status.FAILED]
            what = "; ".join(f"step {each.id} ({each.name}): {each.detail}" for each in failed)
            raise KeeperError(
                f"The machine did not come up: {what or f'its process ended with {code}'}",
                hint=account.hint or f"Its log is {paths.logs / 'guest.log'}.",
                exit_code=code,
            )
        if world.clock() - started > KEEPER_LIMIT_S:
            process.terminate()
            raise KeeperError(
                f"The machine was not ready after {KEEPER_LIMIT_S:.0f} s.",
                hint=f"Its log is {paths.logs / 'guest.log'}.",
                exit_code=ExitCode.BOOT,
            )
        world.sleep(KEEPER_POLL_S)
    _tell_new(paths, seen, process.pid, now, world)
    return f"it runs, kept by process {now.pid}"


def _tell_new(paths: Paths, seen: int, pid: int, found: keeper.Keeper | None, world: World) -> int:
    """Report steps that the keeper is through with since the last look."""
    if found is None or found.pid != pid:
        return seen  # the status file is still of another boot
    reports = steps.read_account(paths.status).reports
    for report in reports[seen:]:
        world.on_report(report)
    return max(seen, len(reports))


def _guest(order: Order) -> Sequence[str]:
    paths = order.paths
    return (
        *(sys.executable, "-P", "-m", "onefed.appliance.guest", "--detached"),
        *("--role", order.role, "--root", str(paths.root), "--name", order.role),
        *("--state-folder", str(paths.root), "--events", str(events(paths))),
        *(("--context", str(order.context_file)) if order.context_file else ()),
    )


def _stop_keeper(paths: Paths, world: World) -> bool:
    found = keeper.find(paths.keeper)
    if found is None:
        return False
    keeper.stop(found)
    started = world.clock()
    while keeper.find(paths.keeper) is not None:
        if world.clock() - started > STOP_LIMIT_S:
            raise DrainError(
                f"The machine kept by process {found.pid} did not stop in {STOP_LIMIT_S:.0f} s.",
                hint=f"Its logs are in {paths.logs}.",
            )
        world.sleep(KEEPER_POLL_S)
    return True
