"""Runs a peer group on this machine: a process for each node, its faults, and how it ended.

The parent is no coordinator: it starts processes, reads their events, and kills or restarts nodes
where it was asked to. The nodes agree among themselves.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from onefed.errors import ExitCode, OnefedError
from onefed.local.peer_programs import programs
from onefed.local.peer_spec import PeerGroup, PeerSpec
from onefed.telemetry import events
from onefed.telemetry.group import GroupView, MemberView
from onefed.telemetry.lines import Record
from onefed.telemetry.log import Follower

LOOK_S = 0.05
"""Between two looks at what the nodes have written."""
ENDED = frozenset({"finished", "stopped", "failed"})
"""What a node says of itself last; one that says something else and is not there was killed."""
STALL_S = 180.0
"""Without an event of a round for so long, the run has failed."""


class PeerRunError(OnefedError):
    """The group did not do what it was asked to."""


@dataclass(frozen=True)
class Failure:
    """Nodes that are killed once a round is complete, and started again before another."""

    nodes: tuple[str, ...]
    after_round: int
    before_round: int | None
    """None: they stay away."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    status: str
    """``finished``, ``stopped`` or ``failed``."""
    nodes: Mapping[str, MemberView]
    view: GroupView
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
        """``say`` takes a sentence; ``show`` events as they come, and is called without some."""
        self.view = GroupView({name: MemberView(name) for name in spec.addresses})
        self.restarts = 0
        self.status = "starting"
        """``starting``, ``training``, or how it ended."""
        self.has_ended = False
        """No process of it is left."""
        self.programs = programs(group, spec, environ)
        self._group = group
        self._spec = spec
        self._clock = clock
        self._say = say
        self._show = show
        self._followers = {name: Follower(group.events(name)) for name in spec.addresses}
        self._started: set[str] = set()
        self.killed: set[str] = set()
        self._progress_s = clock()
        self._stop = asyncio.Event()
        while self._read():
            pass  # what earlier starts said is known, and not told again
        self.view.begin()

    @property
    def views(self) -> Mapping[str, MemberView]:
        """Of the nodes of this run; others may be in the group."""
        return {name: self.view.members[name] for name in self._spec.addresses}

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
            else:
                await self._go(self._spec.rounds)
            await self._until(self._all_at(self._spec.rounds))
            status = "stopped" if self._stop.is_set() else "finished"
        except PeerRunError as problem:
            error = str(problem)
        finally:
            self.status = status
            states = await self._end()
        # An operator's decision may have parted histories: that is his, and no failure.
        if self.view.split is not None and not evictions(self._group):
            status, error = "failed", f"Nodes have different models of round {self.view.split}."
        return Outcome(
            status=status,
            nodes=self.views,
            view=self.view,
            states=states,
            restarts=self.restarts,
            seconds=self._clock() - began_s,
            error=error,
        )

    def stop(self) -> None:
        """End before all rounds are trained."""
        self._stop.set()

    async def start(self, name: str) -> None:
        """Start a node."""
        await self.programs.start(name)
        self._started.add(name)
        self.killed.discard(name)

    async def kill(self, name: str) -> None:
        """Kill -9: nothing is said, nothing is saved."""
        self.killed.add(name)
        await self.programs.kill(name)

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
        await self._go(first)
        if failure.before_round is None:
            return
        await self._until(self._all_at(failure.before_round - 1))
        self._say(
            f"🔄🔄🔄 All nodes completed round {failure.before_round - 1}. "
            f"Recovering nodes {names} before round {failure.before_round} starts 🔄🔄🔄"
        )
        for name in names:
            await self.start(name)
            self.restarts += 1
            self._say(f"✅ Node {name} restarted.")
        await self._until(self._all_at(failure.before_round - 1))
        for name in names:
            self._say(
                f"🚀 Started learning workflow for {name} to participate in "
                f"round {failure.before_round} training."
            )
        await self._go(failure.before_round)

    async def _go(self, round_number: int) -> None:
        """Release a held round, and every one before it that somebody still has to train."""
        for name in self._started - self.killed:
            for held in self._spec.holds:
                if held <= round_number:
                    await self.programs.go(name, held)

    def _all_at(self, round_number: int) -> Callable[[], bool]:
        """Whether all that live have a round; somebody has to."""

        def reached() -> bool:
            living = [view for name, view in self.views.items() if name not in self.killed]
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
        records = self._read()
        if any(isinstance(record.event, events.PeerRound) for record in records):
            self._progress_s = self._clock()
            if self.status == "starting":
                self.status = "training"
        self._show(records)
        return reached()

    def _read(self) -> list[Record]:
        """What the nodes have written since, in the order of time."""
        found = [record for follower in self._followers.values() for record in follower.poll()]
        found.sort(key=lambda record: record.timestamp)
        self.view.read(found)
        return found

    def _require_alive(self) -> None:
        for name in self._started - self.killed:
            code = self.programs.exit_code(name)
            if code is not None:
                raise PeerRunError(
                    f"{name} ended with exit code {code}.",
                    hint=f"Logs are in {self._group.folder}.",
                )

    async def _end(self) -> dict[str, str]:
        """Stop every process, and read what they said last; how each node was before that."""
        states = {}
        for name in sorted(self._started):
            done = self.views[name].round_number >= self._spec.rounds
            if name in self.killed:
                states[name] = "killed"
            elif self.programs.exit_code(name) is not None:
                states[name] = "failed"
            else:
                states[name] = "finished" if done else "stopped"
        await self.programs.stop()
        self.has_ended = True
        self._look(lambda: True)
        return states


def summary(group: PeerGroup, spec: PeerSpec, outcome: Outcome) -> dict[str, Any]:
    """The document of ``--summary`` (docs/summary.md)."""
    views = outcome.nodes
    done = max((view.round_number for view in views.values()), default=0)
    last = outcome.view.rounds.get(done)
    written = [group.model(name) for name, state in outcome.states.items() if state == "finished"]
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
        "accuracy": None if last is None else last.view.accuracy,
        "loss": None if last is None else last.view.loss,
        "model_sha256": models.pop() if len(models) == 1 else None,
        "checkpoint": next((str(path) for path in written if path.exists()), None),
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
            str(number): list(each.contributors)
            for number, each in sorted(outcome.view.rounds.items())
        },
        "evictions": evictions(group),
        "strategy": spec.strategy,
        "app": spec.app,
        "seed": spec.seed,
        "topology": "peer",
        "directory": str(group.folder),
        "error": outcome.error,
        "exit_code": int(outcome.exit_code),
        "format": 1,
    }


def is_alive(said: Mapping[str, object]) -> bool:
    """Whether the process that wrote this of itself is still there."""
    return said["state"] != "stopped" and said["lives"] is True


def evictions(group: PeerGroup) -> list[dict[str, Any]]:
    """Decisions without a majority, by whoever knows most of them; oldest first."""
    known = [said.get("evictions", []) for said in group.states().values()]
    return [
        {"after_round": each["round_number"], "nodes": each["nodes"]}
        for each in max(known, key=len, default=[])
    ]
