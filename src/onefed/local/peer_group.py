"""Runs a peer group on this machine: a process for each node, its faults, and how it ended.

The parent is no coordinator: it starts processes, reads their events, and kills or restarts nodes
where it was asked to. The nodes agree among themselves.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from onefed.checkpoint import files
from onefed.errors import ExitCode, OnefedError
from onefed.local.peer_spec import PeerGroup, PeerSpec
from onefed.telemetry import events
from onefed.telemetry.lines import Record
from onefed.telemetry.log import Follower

LOOK_S = 0.05
"""Between two looks at what the nodes have written."""
STALL_S = 180.0
"""Without an event of a round for so long, the run has failed."""
STOP_LIMIT_S = 10.0

ENVIRONMENT = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "VIRTUAL_ENV", "ONEFED_DATA_DIR")
"""What a node gets of ours."""


class PeerRunError(OnefedError):
    """The group did not do what it was asked to."""


@dataclass(frozen=True)
class Failure:
    """Nodes that are killed once a round is complete, and started again before another."""

    nodes: tuple[str, ...]
    after_round: int
    before_round: int | None
    """None: they stay away."""


@dataclass
class NodeView:
    """What the events of one node say."""

    name: str
    round_number: int = 0
    model_sha256: str | None = None
    failures: int = 0
    rounds: dict[int, events.PeerRound] = field(default_factory=dict)

    def read(self, record: Record) -> None:
        """Take one event."""
        match record.event:
            case events.PeerRound() as event:
                self.rounds[event.round] = event
                self.round_number = max(self.round_number, event.round)
                self.model_sha256 = self.rounds[self.round_number].model_sha256
            case events.ClientFailure():
                self.failures += 1
            case _:
                pass


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    status: str
    """``finished``, ``stopped`` or ``failed``."""
    nodes: Mapping[str, NodeView]
    states: Mapping[str, str]
    restarts: int
    seconds: float
    error: str | None

    @property
    def exit_code(self) -> ExitCode:
        codes = {"finished": ExitCode.OK, "stopped": ExitCode.INTERRUPTED}
        return codes.get(self.status, ExitCode.FAILED)


class GroupRun:
    """One run, from the first process to the last."""

    def __init__(
        self,
        group: PeerGroup,
        spec: PeerSpec,
        *,
        environ: Mapping[str, str],
        clock: Callable[[], float],
        say: Callable[[str], None],
        show: Callable[[Sequence[Record]], None],
    ) -> None:
        """``say`` takes a sentence, ``show`` events as they come."""
        self.views = {name: NodeView(name) for name in spec.addresses}
        self.processes: dict[str, asyncio.subprocess.Process] = {}
        self._group = group
        self._spec = spec
        self._environ = environ
        self._clock = clock
        self._say = say
        self._show = show
        self._followers = {name: Follower(group.events(name)) for name in spec.addresses}
        self._killed: set[str] = set()
        self._restarts = 0
        self._progress_s = clock()
        self._stop = asyncio.Event()

    async def run(self, failure: Failure | None = None) -> Outcome:
        """Train all rounds; always ends with no process left."""
        began_s = self._clock()
        error = None
        status = "failed"
        try:
            for name in self._spec.addresses:
                await self.start(name)
            if failure is not None:
                await self._fail_and_recover(failure)
            await self._until(self._all_at(self._spec.rounds))
            status = "stopped" if self._stop.is_set() else "finished"
        except PeerRunError as problem:
            error = str(problem)
        finally:
            states = await self._end()
        if status == "finished" and len({self.views[name].model_sha256 for name in states}) > 1:
            status, error = "failed", "The nodes have different models."
        return Outcome(
            status=status,
            nodes=self.views,
            states=states,
            restarts=self._restarts,
            seconds=self._clock() - began_s,
            error=error,
        )

    def stop(self) -> None:
        """End before all rounds are trained."""
        self._stop.set()

    async def start(self, name: str) -> None:
        """Start a node's process."""
        files.make_folder(self._group.node(name), mode=0o700)
        command = [sys.executable, "-m", "onefed.local.peer_process"]
        command += ["--group", str(self._group.folder), "--node", name]
        command += ["--address", self._spec.addresses[name]]
        with self._group.log(name).open("ab") as log:
            self.processes[name] = await asyncio.create_subprocess_exec(
                *command,
                env=self._environment(name),
                stdin=asyncio.subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._killed.discard(name)

    async def kill(self, name: str) -> None:
        """Kill -9: nothing is said, nothing is saved."""
        process = self.processes[name]
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGKILL)
        self._killed.add(name)
        await process.wait()

    def tell(self, name: str, line: str) -> None:
        """Steer a node (``peer_process``)."""
        stdin = self.processes[name].stdin
        if stdin is not None:
            with contextlib.suppress(OSError):
                stdin.write(f"{line}\n".encode())

    async def until(self, reached: Callable[[], bool]) -> None:
        """Let the group work until something is so."""
        await self._until(reached)

    async def _fail_and_recover(self, failure: Failure) -> None:
        first = failure.after_round + 1
        await self._until(self._all_at(failure.after_round))
        names = list(failure.nodes)
        self._say(
            f"💥💥💥 All nodes completed round {failure.after_round}. "
            f"Failing nodes {names} before round {first} starts 💥💥💥"
        )
        for name in names:
            await self.kill(name)
        self._go(first)
        if failure.before_round is None:
            return
        await self._until(self._all_at(failure.before_round - 1))
        self._say(
            f"🔄🔄🔄 All nodes completed round {failure.before_round - 1}. "
            f"Recovering nodes {names} before round {failure.before_round} starts 🔄🔄🔄"
        )
        for name in names:
            await self.start(name)
            self._restarts += 1
            self._say(f"✅ Node {name} restarted.")
        await self._until(self._all_at(failure.before_round - 1))
        for name in names:
            self._say(
                f"🚀 Started learning workflow for {name} to participate in "
                f"round {failure.before_round} training."
            )
        self._go(failure.before_round)

    def _go(self, round_number: int) -> None:
        """Release a held round, and every one before it that somebody still has to train."""
        for name in self.processes:
            if name not in self._killed:
                for held in self._spec.holds:
                    if held <= round_number:
                        self.tell(name, f"go {held}")

    def _all_at(self, round_number: int) -> Callable[[], bool]:
        """Whether all that live have a round; somebody has to."""

        def reached() -> bool:
            living = [view for name, view in self.views.items() if name not in self._killed]
            return bool(living) and all(view.round_number >= round_number for view in living)

        return reached

    async def _until(self, reached: Callable[[], bool]) -> None:
        while not self._look(reached):
            if self._stop.is_set():
                return
            self._require_alive()
            if self._clock() - self._progress_s > STALL_S:
                raise PeerRunError(
                    f"No round was agreed on for {STALL_S:.0f} s.",
                    hint=f"The nodes' logs are in {self._group.folder / 'nodes'}.",
                )
            await asyncio.sleep(LOOK_S)

    def _look(self, reached: Callable[[], bool]) -> bool:
        records = []
        for name, follower in self._followers.items():
            for record in follower.poll():
                records.append(record)
                self.views[name].read(record)
                if isinstance(record.event, events.PeerRound):
                    self._progress_s = self._clock()
        if records:
            self._show(sorted(records, key=lambda record: record.timestamp))
        return reached()

    def _require_alive(self) -> None:
        for name, process in self.processes.items():
            if process.returncode is not None and name not in self._killed:
                raise PeerRunError(
                    f"{name} ended with exit code {process.returncode}.",
                    hint=f"Its log is {self._group.log(name)}.",
                )

    async def _end(self) -> dict[str, str]:
        """Stop every process; how each was before that."""
        states = {}
        for name, process in self.processes.items():
            done = self.views[name].round_number >= self._spec.rounds
            alive = process.returncode is None
            if name in self._killed:
                states[name] = "killed"
            elif not alive:
                states[name] = "failed"
            else:
                states[name] = "finished" if done else "stopped"
            if alive:
                with contextlib.suppress(ProcessLookupError):
                    process.send_signal(signal.SIGTERM)
        for process in self.processes.values():
            try:
                async with asyncio.timeout(STOP_LIMIT_S):
                    await process.wait()
            except TimeoutError:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
        return states

    def _environment(self, name: str) -> dict[str, str]:
        ours = {key: self._environ[key] for key in ENVIRONMENT if key in self._environ}
        return {
            **ours,
            "FLWR_HOME": str(self._group.node(name) / "flower"),
            "PYTHONUNBUFFERED": "1",
            **dict.fromkeys(
                ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"
            ),  # sums keep their order, and the nodes share this machine
        }


def summary(group: PeerGroup, spec: PeerSpec, outcome: Outcome) -> dict[str, Any]:
    """The document of ``--summary`` (docs/summary.md)."""
    views = outcome.nodes
    done = max((view.round_number for view in views.values()), default=0)
    models = {
        view.model_sha256
        for name, view in views.items()
        if view.round_number == done and name in outcome.states
    }
    return {
        "status": outcome.status,
        "name": spec.name,
        "rounds_done": done,
        "rounds_total": spec.rounds,
        "accuracy": None,
        "loss": None,
        "model_sha256": models.pop() if len(models) == 1 else None,
        "checkpoint": None,
        "restarts": outcome.restarts,
        "failures": sum(view.failures for view in views.values()),
        "seconds": round(outcome.seconds, 2),
        "nodes": {
            name: {
                "model_sha256": view.model_sha256,
                "rounds": view.round_number,
                "state": outcome.states.get(name, "unknown"),
            }
            for name, view in views.items()
        },
        "contributors": {
            str(event.round): event.contributors.split(",")
            for view in views.values()
            for event in view.rounds.values()
        },
        "strategy": spec.strategy,
        "app": spec.app,
        "seed": spec.seed,
        "topology": "peer",
        "directory": str(group.folder),
        "error": outcome.error,
        "exit_code": int(outcome.exit_code),
        "format": 1,
    }
