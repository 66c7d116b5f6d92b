"""The processes of a group, what their events say, and a checker that looks at every round.

Everything is seen from outside: signals, the network, and what the nodes write down. Times are the
campaign's own, so a clock that is stepped at a node does not matter here.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import psutil

from campaigns.peers import node as toy
from campaigns.peers.net import Network
from onefed import aggregate, arrays
from onefed.local.peer_spec import free_addresses
from onefed.node.content import client_key
from onefed.telemetry import events
from onefed.telemetry.log import Follower

POLL_S = 0.005
STEP_LIMIT_S = 90.0
"""Whatever takes longer has hung."""
ROUNDS = 1_000_000
"""More than any campaign lives to see."""
PARAMETERS = 20_000
TRAIN_S = 0.04
PORT = 9200
FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1")


class StuckError(Exception):
    """Something did not come in time."""


class BrokenError(Exception):
    """A promise was broken: two models in one round, or a round whose model is not the rule's."""


@dataclass
class View:
    """What one node says."""

    follower: Follower
    rounds: dict[int, events.PeerRound] = field(default_factory=dict)
    reached: int = 0
    notices: list[str] = field(default_factory=list)
    rejoined: list[str] = field(default_factory=list)
    """What each ``rejoin`` has returned."""
    warnings: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


class Group:
    """Processes of nodes on loopback or in a network of namespaces; gone when the block ends."""

    def __init__(
        self,
        nodes: int = 4,
        *,
        network: Network | None = None,
        clocks: bool = False,
        record: str | None = None,
        options: Sequence[str] = (),
    ) -> None:
        """Make it; nothing runs yet.

        Args:
            clocks: whether wall clocks can be stepped.
            record: a node that writes down what it says.
            options: of every node (``campaigns.peers.node``).
        """
        self.folder = Path(os.path.realpath(tempfile.mkdtemp(prefix="peers-")))
        self.names = [f"node-{index}" for index in range(nodes)]
        self.founders = tuple(self.names)
        self.network = network
        self.views: dict[str, View] = {}
        self.first_at: dict[int, float] = {}
        """When a round was first seen at any node, monotonic seconds."""
        self.leaders: dict[int, str] = {}
        """By term."""
        self.killed: set[str] = set()
        """Who does not run because we have ended it."""
        self._clocks = clocks
        self._record = record
        self._options = options
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._logs: dict[str, IO[bytes]] = {}
        (self.folder / "members").mkdir()
        self._addresses = dict(zip(self.names, self._free(nodes), strict=True))

    def __enter__(self) -> Group:
        for name in self.names:
            self.start(name)
        self.wait_for("the first rounds", lambda: self.all_at(2))
        return self

    def require_nobody_died(self) -> None:
        """Every node that was not killed lives.

        Raises:
            BrokenError: one has ended by itself.
        """
        for name in self.names:
            code = self.exit_code(name)
            if code is not None and name not in self.killed:
                why = "; ".join(self.views[name].errors[-1:]) or self._last_words(name)
                raise BrokenError(f"{name} ended by itself with exit code {code}: {why}")

    def _last_words(self, name: str) -> str:
        lines = (self.folder / f"{name}.log").read_text(errors="replace").splitlines()
        return " / ".join(lines[-3:])

    def __exit__(self, *_: object) -> None:
        for process in self._processes.values():
            _end(process)
        for log in self._logs.values():
            log.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    # What is done to nodes

    def start(self, name: str, *options: str) -> None:
        """Start a node, for the first time or again; ``options`` are its own."""
        self.killed.discard(name)
        if name not in self.names:
            self.names.append(name)
            self._addresses[name] = self._free(1)[0]
        self.points(name).mkdir(exist_ok=True)
        prefix = self.network.prefix(name) if self.network else []
        command = [
            *(*prefix, sys.executable, "-m", "campaigns.peers.node", "--folder", str(self.folder)),
            *("--data", str(self.disk(name)), "--node", name, "--address", self._addresses[name]),
            *("--founders", *self.founders, "--rounds", str(ROUNDS)),
            *("--parameters", str(PARAMETERS), "--train-s", str(TRAIN_S)),
            *("--points", str(self.points(name))),
            *(*self._options, *options),
        ]
        if name == self._record:
            command += ["--record", str(self.frames(name))]
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "PYTHONFAULTHANDLER": "1",
        }
        if self._clocks:
            self.step_clock(name, 0)
            environment |= {
                "LD_PRELOAD": str(FAKETIME),
                "FAKETIME_TIMESTAMP_FILE": str(self.folder / f"{name}.clock"),
                "FAKETIME_CACHE_DURATION": "1",
                "FAKETIME_DONT_FAKE_MONOTONIC": "1",
                "DONT_FAKE_MONOTONIC": "1",
            }
        if name not in self._logs:
            self._logs[name] = (self.folder / f"{name}.log").open("ab")
        if name in self._processes:
            _end(self._processes[name])
        log = self._logs[name]
        self._processes[name] = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment
        )
        self.views.setdefault(name, View(Follower(self.folder / f"{name}.jsonl")))

    def kill(self, *names: str) -> None:
        """Kill -9, all at once."""
        self.killed |= set(names)
        for name in names:
            self._processes[name].kill()
        for name in names:
            _end(self._processes[name])

    def retire(self, name: str) -> None:
        """Kill a node that will not come back: nobody expects anything of it."""
        self.kill(name)
        self.names.remove(name)
        (self.folder / "members" / name).unlink()

    def signal(self, name: str, number: signal.Signals) -> None:
        self._processes[name].send_signal(number)

    def hold(self, name: str, point: str) -> None:
        """Have a node wait where it passes a point next."""
        (self.points(name) / point).touch()

    def release(self, name: str) -> None:
        """Let a node go on, and hold it nowhere."""
        for path in self.points(name).glob("*"):  # none of one that has not begun
            path.unlink(missing_ok=True)

    def held(self, name: str) -> bool:
        """Whether a node waits at a point."""
        return any(self.points(name).glob("*.hit"))

    def step_clock(self, name: str, seconds: int) -> None:
        """Have a node's wall clock go wrong by so much; its monotonic one is right."""
        (self.folder / f"{name}.clock").write_text(f"{seconds:+d}\n")

    def disk(self, name: str) -> Path:
        return self.folder / name

    def points(self, name: str) -> Path:
        return self.folder / f"{name}.points"

    def frames(self, name: str) -> Path:
        return self.folder / f"{name}.frames"

    def address(self, name: str) -> str:
        return self._addresses[name]

    # What is seen

    @property
    def leader(self) -> str:
        """Of the newest term that anybody has told of."""
        return self.leaders[max(self.leaders)]

    @property
    def followers(self) -> list[str]:
        return [name for name in self.living if name != self.leader]

    @property
    def living(self) -> list[str]:
        """Nodes whose process runs."""
        return [name for name in self.names if self.exit_code(name) is None]

    @property
    def reached(self) -> int:
        """The newest round that anybody has."""
        return max(self.first_at, default=0)

    def exit_code(self, name: str) -> int | None:
        return self._processes[name].poll()

    def all_at(self, number: int, names: Sequence[str] | None = None) -> bool:
        """Whether all that live have a round."""
        chosen = self.living if names is None else names
        return all(self.views[name].reached >= number for name in chosen)

    def contributes_after(self, name: str, number: int) -> bool:
        """Whether a node's update is in a round after that one."""
        newest = self.round(self.reached)
        return self.reached > number and name in newest.contributors.split(",")

    def round(self, number: int) -> events.PeerRound:
        return next(view.rounds[number] for view in self.views.values() if number in view.rounds)

    def memory_bytes(self) -> dict[str, int]:
        """Resident memory of each node that lives."""
        return {
            name: psutil.Process(self._processes[name].pid).memory_info().rss
            for name in self.living
        }

    def descriptors(self) -> dict[str, int]:
        """Open descriptors of each node that lives."""
        return {name: psutil.Process(self._processes[name].pid).num_fds() for name in self.living}

    def look(self) -> None:
        """Read what is new.

        Raises:
            BrokenError: two nodes have different models of one round.
        """
        now_s = time.monotonic()
        for name, view in self.views.items():
            for record in view.follower.poll():
                match record.event:
                    case events.PeerRound() as event:
                        self._see_round(name, event, now_s)
                    case events.PeerNotice(kind="leader", detail=detail):
                        leader, _, term = detail.partition(" leads term ")
                        self.leaders[int(term)] = leader
                    case events.PeerNotice(kind=toy.REJOINED, detail=detail):
                        view.rejoined.append(detail)
                    case events.Notice(level="WARNING", message=message):
                        view.warnings.append(message)
                    case events.PeerNotice(kind=kind):
                        view.notices.append(kind)
                    case events.Notice(level="ERROR", message=message):
                        view.errors.append(message)
                    case _:
                        pass

    def wait_for(
        self, what: str, reached: Callable[[], bool], limit_s: float = STEP_LIMIT_S
    ) -> float:
        """Look until something is so; seconds that it took.

        Raises:
            StuckError: it did not come.
        """
        began_s = time.monotonic()
        while True:
            self.look()
            if reached():
                return time.monotonic() - began_s
            if time.monotonic() - began_s > limit_s:
                where = {name: view.reached for name, view in self.views.items()}
                raise StuckError(f"{what} did not come within {limit_s:.0f} s: {where}")
            time.sleep(POLL_S)

    def watch(self, seconds: float) -> None:
        """Look for so long."""
        with contextlib.suppress(StuckError):
            self.wait_for("the end of the time", lambda: False, seconds)

    def require_reference(self) -> int:
        """Compare every round with the rule over its contributors; how many there are.

        Raises:
            BrokenError: a round is missing, or its model is another one.
        """
        rule = aggregate.rule(toy.RULE)
        model = toy.first_model(PARAMETERS)
        state = rule.init(model)
        for number in range(1, self.reached + 1):
            if number not in self.first_at:
                raise BrokenError(f"nobody has told of round {number}")
            told = self.round(number)
            updates = [
                aggregate.Update(
                    client_key(name), toy.examples(name), toy.trained(name, model, number)
                )
                for name in told.contributors.split(",")
            ]
            state, model = rule.step(state, model, updates, number)
            if arrays.digest(model) != told.model_sha256:
                raise BrokenError(f"round {number} is not what {toy.RULE} makes of its updates")
        return self.reached

    def _see_round(self, name: str, event: events.PeerRound, now_s: float) -> None:
        for other in self.views.values():
            theirs = other.rounds.get(event.round)
            if theirs is None:
                continue
            if (theirs.model_sha256, theirs.contributors) != (
                event.model_sha256,
                event.contributors,
            ):
                raise BrokenError(f"{name} has another model of round {event.round}")
            break
        view = self.views[name]
        view.rounds[event.round] = event
        view.reached = max(view.reached, event.round)
        self.first_at.setdefault(event.round, now_s)

    def _free(self, count: int) -> list[str]:
        if self.network is None:
            return free_addresses(count)
        return [f"{self.network.address(name)}:{PORT}" for name in self.names[-count:]]


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill -9, unless it has ended; nothing of it is left."""
    process.kill()
    process.wait()
    assert process.stdin is not None
    process.stdin.close()
