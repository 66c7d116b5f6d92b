"""A node of a group on this machine, from its start to its end, whatever process it lives in."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from onefed.arrays import Arrays
from onefed.checkpoint import files, life_lock, write_model
from onefed.errors import OnefedError
from onefed.flower import peer_app
from onefed.local.peer_judging import Judging
from onefed.local.peer_spec import PeerGroup, PeerSpec
from onefed.node import Node, NodeState, Pace, World, contact
from onefed.node.training import Task, Trained, TrainingError
from onefed.node.world import MakeTransport
from onefed.peer.messages import Member
from onefed.peer.topology import Topology
from onefed.telemetry import events
from onefed.telemetry.log import EventLog

LOOK_S = 0.2
"""How soon a member that the operator lists is let in, and a request is seen."""

START_LIMIT_S = 60.0
"""The others of the first roster have listed themselves by then."""

STRAGGLER_FLOOR_S = 10.0
"""On one machine all nodes share its cores: one that is slow is waited for, so that all of them
contribute to every round and the same seed gives the same bits."""

HELD_FLOOR_S = 60.0
"""The same in a group whose rounds are held: the wait for a node that is started again counts."""


class HeldApp:
    """A Flower app whose rounds may be held until somebody says go."""

    def __init__(self, app: peer_app.PeerApp, holds: Sequence[int], *, outlives: bool) -> None:
        """``outlives``: the app is used again when its node comes back in the same process."""
        self._app = app
        self._outlives = outlives
        self._holds = {each: threading.Event() for each in holds}

    def go(self, round_number: int) -> None:
        """Let a round be trained."""
        if round_number in self._holds:
            self._holds[round_number].set()

    def initial_model(self) -> Arrays:
        return self._app.initial_model()

    def train(self, task: Task, cancelled: threading.Event) -> Trained:
        hold = self._holds.get(task.round_number)
        while hold is not None and not hold.wait(peer_app.LOOK_S):
            if cancelled.is_set():
                raise TrainingError("The round was not wanted any more.")
        try:
            update = self._app.train(
                task.model, task.round_number, task.epochs, task.private, cancelled
            )
        except OnefedError as error:
            raise TrainingError(error.message, hint=error.hint) from error
        if update is None:
            raise TrainingError("The round was not wanted any more.")
        return Trained(update.model, update.examples, update.context)

    def evaluate(self, model: Arrays) -> Mapping[str, float]:
        """By the app's own measure; nothing where it has none."""
        if not self._app.judges:
            return {}
        score = self._app.judge(model)
        known = {"loss": score.loss, "accuracy": score.accuracy}
        return {name: value for name, value in known.items() if value is not None}

    def close(self) -> None:
        if not self._outlives:
            self._app.close()


def partition(spec: PeerSpec, name: str) -> tuple[int, int]:
    """Which part of the data is a node's, and of how many."""
    names = list(spec.addresses)
    own = names.index(name) if name in names else int(name.rpartition("-")[2])
    return own, max(len(names), own + 1)


async def run(
    place: PeerGroup,
    name: str,
    address: str,
    flower: peer_app.PeerApp,
    app: HeldApp,
    make_transport: MakeTransport,
    stop: asyncio.Event,
    killed: asyncio.Event,
    *,
    events_file: Path | None = None,
    checkpoints: Path | None = None,
    kept_rounds: int | None = None,
    on_state: Callable[[NodeState], None] = lambda _: None,
) -> OnefedError | None:
    """Be a node until ``stop``, or until it fails; the answer is why.

    Args:
        killed: it ends at once, and writes down nothing more.
        events_file: instead of the node's own.
        checkpoints, kept_rounds: as ``Node`` takes them; None: as the group says.
        on_state: told every second what the node is.
    """
    spec = place.read()
    names = list(spec.addresses)
    log = EventLog(events_file or place.events(name), role=name, clock=lambda: datetime.now(UTC))
    judging = Judging(name, spec.rounds, flower, log)
    world = World(
        make_transport=make_transport,
        clock=time.monotonic,
        now=lambda: datetime.now(UTC),
        jitter=random.Random().random,  # noqa: S311 - keeps elections apart, no secret
        emit=judging.emit,
    )
    node = Node(
        app,
        place.node(name),
        name=name,
        address=address,
        experiment=spec.name,
        rule=flower.rule,
        world=world,
        pace=Pace(
            straggler_floor_s=HELD_FLOOR_S if spec.holds else STRAGGLER_FLOOR_S,
            evict_after_rounds=spec.evict_after_rounds,
            topology=Topology(spec.topology),
        ),
        checkpoints=checkpoints,
        kept_rounds=kept_rounds or spec.kept_rounds,
    )
    node.settings.general.REMOTE_CHECKPOINT_INTERVAL = spec.remote_checkpoint_interval
    tasks: list[asyncio.Future[None]] = []
    life = contextlib.ExitStack()
    try:
        await node.start()
        _list_member(place, node.member)
        await _wait_for_members(place, [each for each in names if each != name], stop)
        for member in begins_with(_members(place), name, names):
            node.connect(member)
        await node.set_start_learning(spec.rounds, spec.epochs, founds=name in names)
        tasks += [
            asyncio.ensure_future(each)
            for each in (
                _look_around(place, node),
                _show(place, node, on_state, life),
                judging.run(node),
            )
        ]
        ended, stopped = asyncio.ensure_future(node.ended()), asyncio.ensure_future(_set(stop))
        tasks += [ended, stopped]
        await asyncio.wait([ended, stopped], return_when=asyncio.FIRST_COMPLETED)
        if node.error is None and node.state.state == "finished" and not killed.is_set():
            model = await node.model()
            await asyncio.to_thread(_finish, place, name, spec, model, judging, log)
        if node.error is None:
            await stopped  # until then it serves the others
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await node.stop()
        if not killed.is_set():
            _write_state(place, node)
        life.close()
        log.close()
    return node.error


def _finish(
    place: PeerGroup, name: str, spec: PeerSpec, model: Arrays, judging: Judging, log: EventLog
) -> None:
    """The last model as a file, and how good it is, where the app can tell."""
    about = {"group": spec.name, "round": str(spec.rounds), "strategy": spec.strategy}
    try:
        write_model(place.model(name), model, about, overwrite=True)
    except OnefedError as error:
        log.emit(events.Notice("WARNING", str(error)))
    judging.judge(spec.rounds, model)


async def _set(event: asyncio.Event) -> None:
    await event.wait()


def _list_member(place: PeerGroup, member: Member) -> None:
    """Have the others let this node in: on one machine, the operator's list is a folder."""
    document = {"node": member.node, "contact": member.contact}
    files.write_json(place.members / member.node, document)


def begins_with(
    members: Sequence[Member], name: str, founders: Collection[str]
) -> tuple[Member, ...]:
    """Whom a node takes for the first roster: the founders, where it is one of them.

    Who joins asks everybody it knows: the founders may have left, and it has no vote by its list.
    """
    return tuple(each for each in members if each.node in founders or name not in founders)


def _members(place: PeerGroup) -> list[Member]:
    found = []
    for name in files.names_in(place.members):
        if not contact.NAME.fullmatch(name):
            continue
        document = files.read_json(place.members / name)
        if isinstance(document, dict):
            found.append(Member(str(document["node"]), str(document["contact"])))
    return found


async def _wait_for_members(place: PeerGroup, names: Sequence[str], stop: asyncio.Event) -> None:
    """Until all of the first roster have listed themselves, or the node is to stop."""
    deadline_s = time.monotonic() + START_LIMIT_S
    while missing := set(names) - set(files.names_in(place.members)):
        if time.monotonic() > deadline_s:
            raise OnefedError(
                f"{', '.join(sorted(missing))} did not start within {START_LIMIT_S:.0f} s.",
                hint=f"The nodes' logs are in {place.folder / 'nodes'}.",
            )
        if await _is_set(stop, LOOK_S / 4):
            return


async def _is_set(stop: asyncio.Event, wait_s: float) -> bool:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(wait_s):
            await stop.wait()
    return stop.is_set()


async def _look_around(place: PeerGroup, node: Node) -> None:
    """Keep to the operator's list as it changes, and do what was asked for in a file."""
    while True:
        await asyncio.sleep(LOOK_S)
        try:
            _follow_list(place, node)
            _take_requests(place, node)
        except OnefedError as error:
            sys.stderr.write(f"{error}\n")  # somebody wrote nonsense there: the node goes on


def _follow_list(place: PeerGroup, node: Node) -> None:
    members = _members(place)
    for member in members:
        node.connect(member)
    for name in node.listed - {member.node for member in members}:
        node.forget(name)


def _take_requests(place: PeerGroup, node: Node) -> None:
    folder = place.requests(node.member.node)
    for name in files.names_in(folder):
        verb, *who = name.split(" ")
        if not who or not all(contact.NAME.fullmatch(each) for each in who):
            continue  # one that is being written
        if verb == "leave":
            files.remove(folder / name)
            node.leave(who[0])
        elif verb == "evict":
            files.remove(folder / name)
            node.evict(who)


async def _show(
    place: PeerGroup,
    node: Node,
    on_state: Callable[[NodeState], None],
    life: contextlib.ExitStack,
) -> None:
    """Write down what the node is, for ``onefed peer status``.

    It lives for others from the first time on: what lies there before that is of an earlier life.
    """
    _write_state(place, node)
    life.enter_context(life_lock.hold(place.life_lock(node.state.name)))
    while True:
        on_state(node.state)
        await asyncio.sleep(1.0)
        _write_state(place, node)


def _write_state(place: PeerGroup, node: Node) -> None:
    state: Mapping[str, object] = {**asdict(node.state), "pid": os.getpid()}
    with contextlib.suppress(OnefedError):
        files.write_json(place.node(node.state.name) / "state.json", state)
