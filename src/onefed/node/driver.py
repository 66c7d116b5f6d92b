"""A node of a peer group: the machine of ``peer``, and everything around it that is real.

One task takes the events in turn, lets the machine decide, and carries out its actions in their
order. The duties of the caller are those of ``peer.interface``; the order that matters is: a record
is on disk before the message that speaks of it is sent, and a model before its record is made. What
takes long (training, the rule, a model's file) is done beside that task and comes back as an event.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import threading
from collections import defaultdict
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, assert_never

from onefed import aggregate, arrays
from onefed.checkpoint.files import DamagedError
from onefed.errors import OnefedError
from onefed.node import codec, contact
from onefed.node.checkpoints.folder import Folder
from onefed.node.communication import Communication
from onefed.node.contact import Contact
from onefed.node.content import Content
from onefed.node.door import Door
from onefed.node.inbox import Inbox
from onefed.node.items import Items
from onefed.node.knobs import Knobs
from onefed.node.learner import Learner
from onefed.node.members import Members
from onefed.node.points import Points
from onefed.node.refusals import Refusals
from onefed.node.shortage import Shortage
from onefed.node.store import Store
from onefed.node.training import App
from onefed.node.transport import Transport
from onefed.node.work import Work
from onefed.node.world import ContributionsError, EstrangedError, NodeError, NodeState, World
from onefed.peer.interface import (
    AcceptedRecord,
    Action,
    Adjusted,
    Append,
    Assemble,
    Combine,
    CommittedRecord,
    Drop,
    Event,
    EvictAsked,
    Fail,
    Forget,
    Install,
    LeaveAsked,
    Notice,
    Pack,
    Reduce,
    Release,
    Restore,
    Send,
    Started,
    Tick,
    Train,
)
from onefed.peer.machine import Machine
from onefed.peer.messages import (
    Ballot,
    Blob,
    Data,
    Entry,
    Item,
    Member,
    NodeId,
    Parcel,
    Piece,
    Want,
)
from onefed.peer.settings import Pace, Settings
from onefed.telemetry import events
from onefed.tls import member_identity

_LOG = logging.getLogger(__name__)

LOOK_S = 0.25
"""Between two looks at whom it hears."""
GIVING_MAX = 64
"""Items on disk that are made ready for one peer at a time; further ones are asked for again."""
OVERDUE_MAX = 64
"""Events that are taken before a tick that is due: what lies here is neither silence nor missing,
but no flood of it keeps the node from its heartbeats."""


class Node:
    """One member: ``start``, ``connect`` to the others, ``set_start_learning``, ``stop``.

    All members are given the same list of members, rounds, rule and app; a node that was killed is
    made anew on the same folder and goes on from what it finds there.
    """

    def __init__(
        self,
        app: App,
        data: Path,
        *,
        name: NodeId,
        address: str,
        experiment: str,
        rule: aggregate.Rule,
        world: World,
        pace: Pace | None = None,
        votes: bool = True,
        checkpoints: Path | None = None,
        kept_rounds: int | None = None,
    ) -> None:
        """Make a node.

        Args:
            data: folder of this node alone: identity, journal, models, private state.
            address: ``host:port`` at which the others reach it.
            experiment: the same at all members; nodes of another one are not talked to.
            votes: False: it contributes and gets every model, and has no vote.
            checkpoints: the root of its checkpoints; None: ``checkpoints`` in ``data``.
            kept_rounds: of its own checkpoints, the newest so many rounds; None: all.
        """
        self._app = app
        self._data = data
        self._name = name
        self._address = address
        self._experiment = experiment
        self._rule = rule
        self._world = world
        self._pace = pace or Pace()
        self._votes = votes
        self.settings = Knobs.of(self._pace)
        """Of this node; may be changed while it runs."""
        self._tuned = self.settings.values()
        self._checkpoints = Folder(
            checkpoints or data / "checkpoints",
            experiment,
            name,
            kept_rounds=kept_rounds,
            warn=lambda text: world.emit(events.Notice("WARNING", text)),
            system=world.system,
        )
        self._learner: Learner | None = None
        self._content = Content(app.initial_model(), rule)
        self._items = Items(self._content)
        self._inbox = Inbox()
        self._members = Members(name)
        self._refusals = Refusals(world.emit, world.clock)
        self._door: Door | None = None
        self._giving: dict[NodeId, set[Blob | Piece | Parcel]] = defaultdict(set)
        self._member: Member | None = None
        self._points = None if world.reach is None else Points(world.reach)
        self._store: Store | None = None
        self._transport: Transport | None = None
        self._machine: Machine | None = None
        self._work: Work | None = None
        self._rounds_total = 0
        self._round_number = 0
        self._root: str | None = None
        self._model_sha256: str | None = None
        self._round_started_s = 0.0
        self._cancelled = threading.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop: asyncio.Task[None] | None = None
        self._says = "idle"
        self._ended = asyncio.Event()
        self.error: OnefedError | None = None
        """Why it failed."""

    # What people call

    @property
    def member(self) -> Member:
        """This node as the others list it; known once it has started."""
        assert self._member is not None, "start comes first"
        return self._member

    async def start(self) -> None:
        """Take the folder, find or make the identity, and listen.

        Raises:
            InUseError: another process has the folder.
        """
        self._store = Store(self._data, system=self._world.system)
        self._work = Work(
            self._name,
            self._app,
            self._content,
            self._items,
            self._store,
            self._world,
            self._inbox.put_own,
        )
        self._learner = Learner(
            self._name,
            self._app,
            self._content,
            self._store,
            self._work,
            self._world,
            self._checkpoints,
            lambda: self.state,
            lambda: {"neighbours": self._neighbours(), "settings": asdict(self.settings)},
            self._inbox.put_own,
        )
        self._work.trained = lambda *made: self._begin(self.learner.trained, *made)
        identity = member_identity.ensure(self._data / "identity", self._name, self._world.now())
        own = Contact(self._address, identity.certificate)
        self._member = own.member(self._name)
        self._transport = self._world.make_transport(
            self._name, identity, self._address, self._members.contacts
        )
        self._door = Door(
            self._members,
            self._items,
            self._content,
            self._inbox,
            self._refusals,
            (self._store, self._work, self._learner),
            self._fail,
            self._begin,
        )
        await self._transport.start(self._door)

    def connect(self, member: Member) -> None:
        """Let another member in: its certificate is pinned as it is given here."""
        self._members.list(member)

    def forget(self, name: NodeId) -> None:
        """Let a member in no more, once it is on no roster: the operator has struck it out."""
        self._members.strike(name)

    @property
    def listed(self) -> frozenset[NodeId]:
        """Whom ``connect`` has let in, on the roster or not."""
        return frozenset(self._members.listed)

    async def set_start_learning(
        self,
        rounds: int,
        epochs: int | None = None,
        *,
        founds: bool = True,
        restores: tuple[NodeId, ...] = (),
    ) -> None:
        """Train so many rounds with all members that are connected, or go on doing so.

        Args:
            rounds: of the whole run.
            epochs: passes over the node's data a round; None: as the app is configured.
            founds: whether this node is on the first roster; False: it joins one that learns.
            restores: names under which it was here before it lost its disk, or its own where only
                its checkpoints are lost: what others have kept of them is fetched before it
                trains. A node of a successor's name (``r1-NAME``) looks for its predecessors by
                itself.

        Raises:
            JournalError: the journal in the folder cannot be trusted.
            NodeError: the rule does not work with so few members.
        """
        store, door = self._store, self._door
        assert store is not None, "start comes first"
        assert door is not None, "start comes first"
        assert self._machine is None, "a node learns once"
        self._rounds_total, self._job.epochs = rounds, epochs
        if not store.exists:
            entry, model = self._first(founds=founds)
            await asyncio.to_thread(store.create, self._name, self._experiment, entry, model)
        saved = await asyncio.to_thread(store.load, self._name, self._experiment)
        needed = max(self._rule.clients_min, self._rule.updates_needed(len(saved.commit.roster)))
        if len(saved.commit.roster) < needed:
            raise NodeError(
                f"{self._rule.name} needs {needed} members; there are {len(saved.commit.roster)}.",
                hint="Have more members, or choose another rule.",
            )
        self._members.learn(saved.commit.roster)
        with contextlib.suppress(DamagedError):
            kept = store.read_private()
            if kept is not None and kept[0] <= saved.commit.round_number:
                self._job.private = kept[1]
        before = restores or contact.predecessors(self._name)
        is_new = self._job.private is None and not saved.commit.round_number
        looks = before if is_new or self._name in before else ()
        every = self.settings.general.REMOTE_CHECKPOINT_INTERVAL
        saved = await asyncio.to_thread(self.learner.with_parcels, saved, every)
        if not looks:
            self.learner.restored(done=False)
        settings = Settings(
            member=self.member,
            experiment=self._experiment,
            rounds_total=rounds,
            rule=hashlib.sha256(repr(self._rule).encode()).hexdigest(),
            whole_updates=self._content.whole,
            votes=self._votes,
            min_contributors=needed,
            whole_roster=not self._rule.SUPPORTS_PARTIAL_AGGREGATION,
            give_up_s=self._pace.straggler_cap_s,
            restores=looks,
            **asdict(self._pace),
        )
        self._machine = Machine(settings, saved, jitter=self._world.jitter)
        door.is_open = True
        self._inbox.put_own(self._adjusted())
        self._round_started_s = self._world.clock()
        self._says = "training"
        self._loop = asyncio.get_running_loop().create_task(self._guarded(self._run))

    def leave(self, node: NodeId | None = None) -> None:
        """Have a member taken off the roster with the next commit: this one, or another."""
        self._inbox.put_own(LeaveAsked(node or self._name))

    def evict(self, nodes: Sequence[NodeId]) -> None:
        """Go on without voters that are gone for good, where no majority is left to decide it.

        Unsafe: what only they have committed is lost, and if one of them goes on there are two
        histories from here on. It is refused where a leader is heard, or one of them.
        """
        self._inbox.put_own(EvictAsked(tuple(nodes)))

    @property
    def learner(self) -> Learner:
        """Its model and what its app keeps for itself; known once it has started."""
        assert self._learner is not None, "start comes first"
        return self._learner

    @property
    def communication_protocol(self) -> Communication:
        """Its connections, for ``rejoin``."""
        return Communication(
            self._name, self._neighbours, self.learner.was_restored, self.set_start_learning
        )

    @property
    def state(self) -> NodeState:
        """As it is now."""
        machine = self._machine
        says = self._says
        if says == "no quorum" and machine is not None and machine.leader is not None:
            says = "training"
        return NodeState(
            name=self._name,
            state=says,
            role="none" if machine is None else machine.role.value,
            leader=None if machine is None else machine.leader,
            term=0 if machine is None else machine.term,
            round_number=self._round_number,
            rounds_total=self._rounds_total,
            model_sha256=self._model_sha256,
            voters=() if machine is None else machine.voters,
            roster=() if machine is None else machine.roster,
            experiment=self._experiment,
            epochs=None if self._work is None else self._work.epochs,
            evictions=() if machine is None else machine.evictions,
        )

    async def model(self) -> arrays.Arrays:
        """The newest model that is installed; read only."""
        assert self._root is not None, "a round is installed"
        return self._content.model(await self._job.model(self._root))

    async def ended(self) -> None:
        """Wait until the last round is installed, or the node has failed.

        It serves the others until it is stopped.
        """
        await self._ended.wait()

    async def stop(self) -> None:
        """End: nothing is lost, the same folder goes on."""
        self._cancelled.set()
        tasks = [*self._tasks, *([self._loop] if self._loop else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._transport is not None:
            await self._transport.stop()
        self._app.close()
        if self._work is not None:
            self._work.close()
        if self._learner is not None:
            self._learner.close()
        if self._store is not None:
            self._store.close()
            self._store = None
        if self._says not in ("finished", "failed"):
            self._says = "stopped"

    # The one task

    async def _run(self) -> None:
        machine, transport, clock = self._machine, self._transport, self._world.clock
        assert machine is not None
        assert transport is not None
        await self._step(Started())
        shortage = Shortage(self._name, self._world.emit, clock, grace_s=self._pace.suspect_s)
        look_at_s = clock()
        overdue = 0
        while True:
            if clock() >= look_at_s and self._says != "finished":  # then they go, one by one
                look_at_s = clock() + LOOK_S
                shortage.look(machine.neighbours, self.settings.training.VOTE_TIMEOUT)
                if self._says == "no quorum" and machine.leader is None:
                    # All are asked, and too few answer: it may be their connections that are dead.
                    for node in set(machine.voters) - {self._name}:
                        transport.renew(node)
            wait_s = max(0.0, machine.due_s - clock())
            event = None if overdue >= OVERDUE_MAX else await self._inbox.get(wait_s)
            overdue = overdue + 1 if event is not None and wait_s == 0 else 0
            if self.settings.values() != self._tuned:
                await self._step(self._adjusted())
            if event is not None:
                await self._step(event)
            elif machine.due_s <= clock():
                await self._step(Tick())

    async def _step(self, event: Event) -> None:
        assert self._machine is not None
        points = self._points
        if points is not None:
            await points.event(event)
        for action in self._machine.step(self._world.clock(), event):
            if points is not None:
                await points.before(action)
            await self._perform(action)
            if points is not None:
                await points.after(action)

    async def _perform(self, action: Action) -> None:
        match action:
            case Append(record, sync):
                if isinstance(record, AcceptedRecord):
                    self._begin(self.learner.accepted, record.entry)
                self._disk.append(record)
                if sync or self._disk.is_long:
                    await asyncio.to_thread(self._disk.sync)
                if isinstance(record, CommittedRecord):
                    self._members.learn(record.entry.roster)
            case Send(to, Data(item)):
                self._send_item(to, item)
            case Send(to, message):
                if isinstance(message, Want) and isinstance(message.item, Blob | Piece):
                    self._items.want(message.item)
                assert self._transport is not None
                self._transport.talk(to, codec.encode(message))
            case Train():
                self._cancelled.set()
                self._cancelled = threading.Event()
                self._begin(self._job.train, action, self._cancelled)
            case Reduce():
                self._begin(self._job.reduce, action)
            case Assemble():
                self._begin(self._job.assemble, action)
            case Combine():
                self._begin(self._job.combine, action)
            case Install(entry):
                await self._install(entry)
            case Pack():
                self._begin(self.learner.pack, action)
            case Restore(parcel):
                await self.learner.restore_parcel(parcel)
            case Release(round_number):
                self._items.release(round_number)
            case Drop(item):
                self._items.drop(item)
            case Forget(root):
                await asyncio.to_thread(self._disk.forget_model, root)
            case Notice(kind, detail):
                if kind == "no_quorum":
                    self._says = "no quorum"
                if kind == "not_restored":
                    self.learner.restored(done=False)
                if kind == "nonsense":
                    self._refusals.tell(kind, detail)
                    return
                self._world.emit(events.PeerNotice(kind, detail))
                if kind == "estranged":
                    raise EstrangedError.of(self._name, detail)
            case Fail(reason):
                self._fail(ContributionsError.of(reason))
            case _:
                assert_never(action)

    def _send_item(self, to: NodeId, item: Item) -> None:
        assert self._transport is not None
        content = None if isinstance(item, Blob | Parcel) else self._items.get(item)
        if content is not None:
            self._transport.carry(to, item, content)
            return
        assert isinstance(item, Blob | Piece | Parcel), "the machine sends what is here"
        giving = self._giving[to]  # it may be asked for any number of times
        if item not in giving and len(giving) < GIVING_MAX:
            giving.add(item)
            self._begin(self._give, to, item)

    async def _give(self, to: NodeId, item: Blob | Piece | Parcel) -> None:
        """What is on disk."""
        assert self._transport is not None
        try:
            if isinstance(item, Parcel):
                await self.learner.send(to, item, self._transport)
                return
            with contextlib.suppress(DamagedError):  # forgotten or broken: others have it
                content: bytes | memoryview = await self._job.model(item.root)
                if isinstance(item, Piece):
                    content = self._content.piece(content, item.index, item.count)
                self._transport.carry(to, item, content)
        finally:
            self._giving[to].discard(item)

    async def _install(self, entry: Entry) -> None:
        content = await self._job.model(entry.root)
        model_sha256 = await asyncio.to_thread(self._content.model_sha256, entry.root, content)
        round_number, private = self._job.left_private
        if private is not None and round_number == entry.round_number:
            self._job.private = private
            await asyncio.to_thread(self._disk.write_private, round_number, private)
        self._round_number, self._root = entry.round_number, entry.root
        self.learner.model = self._content.model(content)
        self._model_sha256 = model_sha256
        now_s = self._world.clock()
        if entry.round_number:
            self._world.emit(
                events.PeerRound(
                    round=entry.round_number,
                    model_sha256=model_sha256,
                    contributors=",".join(each.node for each in entry.contributors),
                    term=entry.ballot.term,
                    round_duration_seconds=now_s - self._round_started_s,
                )
            )
        self._round_started_s = now_s
        if entry.round_number:
            self._begin(self.learner.finished, entry, self.learner.model)
        if entry.round_number >= self._rounds_total:
            self._says = "finished"
            self._ended.set()

    # Helpers

    def _adjusted(self) -> Adjusted:
        self._tuned = self.settings.values()
        return self.settings.event(self._pace)

    def _neighbours(self) -> Mapping[NodeId, str]:
        lost = frozenset() if self._machine is None else self._machine.lost
        return self._members.conditions(lost)

    @property
    def _disk(self) -> Store:
        assert self._store is not None, "the node runs"
        return self._store

    @property
    def _job(self) -> Work:
        assert self._work is not None, "start comes first"
        return self._work

    def _first(self, *, founds: bool) -> tuple[Entry, bytes]:
        """What all begin with."""
        members = [each.member(node) for node, each in self._members.listed.items()]
        members += [self.member] if founds else []
        roster = tuple(sorted(members, key=lambda member: member.node))
        model = self._content.first()
        root = self._content.root(model)
        return Entry(0, root, len(model), Ballot(0, 0), roster, (), ()), model

    def _begin(self, work: Callable[..., Coroutine[Any, Any, None]], *arguments: object) -> None:
        """Do something beside the one task; what goes wrong there ends the node."""
        task = asyncio.get_running_loop().create_task(self._guarded(work, *arguments))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _guarded(
        self, work: Callable[..., Coroutine[Any, Any, None]], *arguments: object
    ) -> None:
        try:
            await work(*arguments)
        except OnefedError as error:
            self._fail(error)
        except Exception as error:  # noqa: BLE001 - a mistake of ours ends the node: it must not hang
            _LOG.exception("The node found itself wrong")
            self._fail(NodeError(f"The node found itself wrong: {type(error).__name__}: {error}"))

    def _fail(self, error: OnefedError) -> None:
        """End as if killed: the others go on, and the folder holds what was promised."""
        self.error, self._says = error, "failed"
        self.learner.failed(error)
        self._world.emit(events.Notice("ERROR", str(error)))
        self._cancelled.set()
        if self._loop is not None:
            self._loop.cancel()
        self._ended.set()
