"""The world around the machines: one queue of events in virtual time, hosts, and their network.

Everything that happens is an entry of the queue, and every choice comes from generators that are
seeded by the schedule: a schedule happens the same way every time.
"""

from __future__ import annotations

import functools
import heapq
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Any, TypeAlias

from onefed.peer import journal, topology
from onefed.peer.interface import (
    AcceptedRecord,
    Action,
    Append,
    Assemble,
    Assembled,
    Combine,
    Combined,
    CommittedRecord,
    Declined,
    Drop,
    Event,
    EvictAsked,
    Fail,
    Forget,
    Install,
    LeaveAsked,
    Lost,
    Notice,
    Pack,
    Packed,
    Received,
    Reduce,
    Reduced,
    Release,
    Restore,
    Send,
    Started,
    Tick,
    Train,
)
from onefed.peer.interface import Trained as TrainedEvent
from onefed.peer.machine import Machine
from onefed.peer.messages import (
    Ballot,
    Blob,
    Contribution,
    Data,
    Digest,
    Entry,
    Item,
    Member,
    Message,
    NodeId,
    Parcel,
    Piece,
    Plan,
    Shard,
    Slice,
    Stashes,
)
from onefed.peer.safety import Rules
from onefed.peer.settings import Saved, Settings
from onefed.peer.topology import Topology
from onefed.sim.checkers import Checkers, Trained
from onefed.sim.content import Content, Matter, Numbers
from onefed.sim.disk import Disk
from onefed.sim.host import Host
from onefed.sim.options import SPIKE_S, Options
from onefed.sim.violation import Violation

LOG_EVENTS_MAX = 400
"""Last events that are kept to be shown."""
REDUCE_MAX_S = 0.004
DECLINED_S = 2.0
"""An app that gave nothing is tried again after so long."""
EVICT_AGAIN_S = 0.7
"""How often the operator repeats what was refused, or was told to a node that crashed."""

Watch: TypeAlias = Callable[[Host, Action], bool]
"""Asked before every action; True: the host ends here."""
Replay: TypeAlias = Callable[[bytes, NodeId, str], journal.Replayed]
Compact: TypeAlias = Callable[[NodeId, str, Saved], bytes]


class World:
    """Hosts, network and time. Faults come from outside (``faults``)."""

    def __init__(
        self,
        options: Options,
        *,
        matter: Matter | None = None,
        rules: Rules | None = None,
        replay: Replay = journal.replay,
        compact: Compact = journal.compacted,
        sync: bool = True,
        keeps: bool = True,
        compares: bool = True,
    ) -> None:
        self.options = options
        self.rules = rules or Rules()
        self.replay = replay
        self.sync = sync
        self.keeps = keeps
        self.compares = compares
        self.now_s = 0.0
        self.events = 0
        self.random = Random(f"network {options.seed}")  # noqa: S311 - repeatable chance
        self.watches: list[Watch] = []
        self.log: deque[tuple[float, NodeId, object]] = deque(maxlen=LOG_EVENTS_MAX)
        self.returning: set[NodeId] = set()
        """Gone ones that will come back, once the others have gone on."""
        self.cut: dict[tuple[NodeId, NodeId], int] = {}
        """Directions that carry nothing, each by how many faults."""
        self.loss = options.loss
        self.duplication = options.duplication
        self.spike_share = options.spike_share
        self.declines = options.declines
        self._queue: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order = 0
        count = options.nodes + options.joiners + options.observers
        members = [Member(f"n{place}", f"host-{place}") for place in range(count)]
        self.matter = matter or Numbers(options.seed, whole=options.whole)
        model = self.matter.first()
        start = Entry(
            round_number=0,
            root=self.matter.digest(model),
            size_bytes=self.matter.size_bytes(model),
            ballot=Ballot(0, 0),
            roster=tuple(members[: options.nodes]),
            contributors=(),
            owners=(),
        )
        self.checkers = Checkers(start, self.matter, whole_roster=options.whole_roster)
        self.checkers.models[start.root] = model
        self.hosts: dict[NodeId, Host] = {}
        for place, member in enumerate(members):
            disk = Disk(
                journal.header(member.node, "sim", start),
                long_bytes=options.journal_long_bytes,
                compact=functools.partial(compact, member.node, "sim"),
            )
            disk.models[start.root] = model
            straggles = options.straggler_s if place == options.nodes - 1 else 0.0
            host = Host(
                place,
                _settings(
                    options,
                    member,
                    votes=place < options.nodes + options.joiners,
                    restores=tuple(each.node for each in members[:2])
                    if place >= options.nodes
                    else (),
                ),
                disk,
                train_s=self.random.uniform(options.train_min_s, options.train_max_s) + straggles,
            )
            host.clock_rate = 1.0 + self.random.uniform(-options.drift, options.drift)
            host.clock_start_s = self.random.uniform(0.0, 1000.0)
            self.hosts[host.name] = host
            begins_s = options.join_at_s if place >= options.nodes else 0.0
            self.at(begins_s + self.random.uniform(0.0, 0.05), self.start, host)
        self.checkers.disks = {name: host.disk for name, host in self.hosts.items()}

    # Time

    def at(self, when_s: float, what: Callable[..., None], *arguments: Any) -> None:
        """Let something happen at a time."""
        self._order += 1
        heapq.heappush(self._queue, (when_s, self._order, what, arguments))

    def after(self, delay_s: float, what: Callable[..., None], *arguments: Any) -> None:
        """Let something happen later."""
        self.at(self.now_s + delay_s, what, *arguments)

    def run(self, until_s: float, done: Callable[[], bool]) -> bool:
        """Let time pass until ``done``; False when that was not to be by ``until_s``."""
        queue = self._queue
        while queue and queue[0][0] <= until_s:
            self.now_s, _, what, arguments = heapq.heappop(queue)
            self.events += 1
            what(*arguments)
            if done():
                return True
        self.now_s = max(self.now_s, until_s)
        return done()

    # Hosts

    def start(self, host: Host) -> None:
        """A process begins, with what is on its disk."""
        if host.machine is not None or host.dead:
            return
        replayed = self.replay(bytes(host.disk.journal), host.name, "sim")
        host.disk.cut(replayed.good_bytes)
        host.life += 1
        host.training = 0
        saved = host.disk.known = replayed.saved
        jitter = Random(f"jitter {self.options.seed} {host.name} {host.life}")  # noqa: S311
        host.offered.clear()
        host.disk.told = host.disk.newest_parcels()
        host.may_train = host.disk.restored or not host.settings.restores
        host.machine = Machine(
            replace(host.settings, restores=()) if host.disk.restored else host.settings,
            replace(
                saved,
                models=tuple(host.disk.models),
                parcels=tuple(host.disk.newest_parcels().values()),
                own_parcel=host.disk.own_parcel,
            ),
            jitter=jitter.random,
            rules=self.rules,
        )
        host.tick_at_s = float("inf")
        self.log.append((self.now_s, host.name, "starts"))
        self.step(host, Started())

    def crash(self, host: Host) -> None:
        """A process ends now."""
        if host.machine is None:
            return
        self.log.append((self.now_s, host.name, "crashes"))
        host.machine = None
        host.forget()
        host.actions_left = None
        host.paused_until_s = 0.0
        host.disk.crash(self.random, torn=self.options.torn)
        if self.options.resets:
            for other in self.hosts.values():
                if (
                    other is not host
                    and (host.name, other.name) not in self.cut
                    and self.linked(host, other)
                ):
                    self.after(self._latency_s(), self.reset, other, host, host.life)

    def reset(self, host: Host, peer: Host, life: int) -> None:
        """A connection breaks, if the peer is still what it was."""
        if peer.life == life and self.linked(host, peer):
            self.step(host, Lost(peer.name))

    def leave(self, host: Host, node: NodeId) -> None:
        """The operator's wish, told to one node."""
        self.hosts[node].left = True
        self.step(host, LeaveAsked(node))

    def evict(self, gone: list[Host]) -> None:
        """The operator says that hosts are gone, to some of the others, until these have gone on.

        Between the first word and the deed he sees to it that what he says stays true.
        """
        checkers = self.checkers
        if not checkers.gone:
            checkers.on_decision(frozenset(host.name for host in gone))
            if self.options.returns:
                self.returning = set(checkers.gone)
        others = [host for host in self.hosts.values() if host not in gone]
        if any(entry.evictions for entry in checkers.committed.values()):
            # Where the others are out of reach or asleep, they would go on by themselves.
            awake = all(host.machine and host.paused_until_s <= self.now_s for host in others)
            reachable = self.now_s >= self.options.calm_at_s and not self.cut and awake
            for host in gone:
                if host.name in self.returning and reachable:
                    host.dead = False
                    self.start(host)
                    self.returning.discard(host.name)
        elif all(host.machine and host.machine.installed == self.options.rounds for host in others):
            self.returning.clear()
            return  # there was nothing left to decide
        else:
            told = self.random.sample(others, self.random.randint(1, len(others)))
            for host in told:
                self.step(host, EvictAsked(tuple(sorted(checkers.gone))))
        if self.returning or not any(e.evictions for e in checkers.committed.values()):
            self.after(EVICT_AGAIN_S, self.evict, gone)

    def step(self, host: Host, event: Event) -> None:
        """Give an event to a host; one that stands still takes it later."""
        machine = host.machine
        if machine is None:
            return
        if host.paused_until_s > self.now_s:
            self.at(host.paused_until_s, self._resume, host, host.life, event)
            return
        match event:
            case Received(_, Data(Parcel() as parcel)):
                known = host.disk.told.get(parcel.node)
                if known is None or parcel.round_number > known.round_number:
                    host.disk.told[parcel.node] = replace(parcel, base="")
            case _:
                pass
        actions = machine.step(host.local_s(self.now_s), event)
        for action in actions:
            if host.actions_left is not None:
                host.actions_left -= 1
                if host.actions_left < 0:
                    self.crash(host)
                    return
            for watch in self.watches:
                if watch(host, action):
                    self.crash(host)
                    return
            _PERFORM[type(action)](self, host, action)
        if host.actions_left == 0:
            self.crash(host)
            return
        due_s = host.global_s(machine.due_s)
        if due_s < host.tick_at_s:
            host.tick_at_s = max(due_s, self.now_s)
            self.at(host.tick_at_s, self._tick, host, host.life, host.tick_at_s)

    def _resume(self, host: Host, life: int, event: Event) -> None:
        if host.life == life:
            self.step(host, event)

    def _tick(self, host: Host, life: int, at_s: float) -> None:
        machine = host.machine
        if machine is None or host.life != life or at_s != host.tick_at_s:
            return
        if host.paused_until_s > self.now_s:
            host.tick_at_s = host.paused_until_s
            self.at(host.tick_at_s, self._tick, host, life, host.tick_at_s)
            return
        host.tick_at_s = float("inf")
        if machine.due_s > host.local_s(self.now_s):
            due_s = host.global_s(machine.due_s)
            if due_s < float("inf"):
                host.tick_at_s = max(due_s, self.now_s)
                self.at(host.tick_at_s, self._tick, host, life, host.tick_at_s)
            return
        self.step(host, Tick())

    # Network

    def linked(self, one: Host, other: Host) -> bool:
        """Whether there is a connection: they are neighbours by the roster that one of them knows.

        Whoever takes the other for a neighbour connects to it.
        """
        if self.options.topology is Topology.FULL:
            return True
        return other.name in self._near(one) or one.name in self._near(other)

    def _near(self, host: Host) -> frozenset[NodeId]:
        known = host.disk.known
        roster = self.checkers.start.roster if known is None else known.commit.roster
        if roster is not host.near_by[0]:
            order = topology.in_order((*(member.node for member in roster), host.name))
            host.near_by = roster, topology.neighbours(self.options.topology, order, host.name)
        return host.near_by[1]

    def _latency_s(self) -> float:
        options = self.options
        if self.spike_share and self.random.random() < self.spike_share:
            return self.random.uniform(options.latency_max_s, SPIKE_S)
        return self.random.uniform(options.latency_min_s, options.latency_max_s)

    def deliver(self, host: Host, sender: NodeId, message: Message, bytes_: Content | None) -> None:
        """A message arrives, if it can."""
        if host.machine is None or (self.cut and (sender, host.name) in self.cut):
            return
        if isinstance(message, Data):
            assert bytes_ is not None
            item = message.item
            if isinstance(item, Blob):
                if self.matter.digest(bytes_) != item.root:
                    raise Violation("bytes", f"{sender} gave {host.name} another model")
                host.disk.models[item.root] = bytes_
            elif isinstance(item, Parcel):
                if item.base and item.base not in host.disk.models:
                    return  # it cannot be unpacked here
                if self.keeps:
                    host.disk.parcels.add(replace(item, base=""))
            else:
                host.keep(item, bytes_)
        if isinstance(message, Stashes):
            host.offered[sender] = message.parcels
        self.step(host, Received(sender, message))

    # Actions

    def _append(self, host: Host, action: Append) -> None:
        record = action.record
        if isinstance(record, AcceptedRecord):
            self.log.append((self.now_s, host.name, action))
            self.checkers.on_accept(host.name, record.entry)
        host.disk.append(record, sync=action.sync and self.sync)
        if isinstance(record, CommittedRecord):
            self.log.append((self.now_s, host.name, action))
            self.checkers.on_commit(host.name, record.entry)

    def _send(self, host: Host, action: Send) -> None:
        message, to = action.message, action.to
        bytes_ = None
        if isinstance(message, Data):
            bytes_ = self._bytes(host, message.item)
            account = self.checkers.sent_bytes
            if not isinstance(message.item, Parcel):
                account[host.name] = account.get(host.name, 0) + self.matter.size_bytes(bytes_)
            if isinstance(message.item, Piece):
                self.checkers.pieces.setdefault((to, message.item), []).append(host.name)
        else:
            self.checkers.on_send(host.name, to, message)
        self.log.append((self.now_s, host.name, action))
        kept_back = host.hoards and isinstance(message, Data) and isinstance(message.item, Slice)
        receiver = self.hosts[to]
        if (
            kept_back
            or (self.cut and (host.name, to) in self.cut)
            or not self.linked(host, receiver)
            or (self.loss and self.random.random() < self.loss)
        ):
            return
        self.after(self._latency_s(), self.deliver, receiver, host.name, message, bytes_)
        if self.duplication and self.random.random() < self.duplication:
            self.after(self._latency_s(), self.deliver, receiver, host.name, message, bytes_)

    def _bytes(self, host: Host, item: Item) -> Content:
        match item:
            case Blob(root):
                found = host.disk.models.get(root)
            case Piece(root, index, count) if root in host.disk.models:
                found = self.matter.part(host.disk.models[root], index, count)
            case Parcel(node, _, digest) if node == host.name:
                found = digest if digest in host.disk.packed else None
            case Parcel():
                found = item.digest if item in host.disk.parcels else None
            case Slice(_, _, digest, index, count) if digest in host.updates:
                found = self.matter.part(host.updates[digest], index, count)
            case _:
                found = host.memory.get(item)
        if found is None:
            raise Violation("bytes", f"{host.name} sends {item}, which it does not have")
        return found

    def _pack(self, host: Host, action: Pack) -> None:
        digest = f"{host.name} {action.round_number} {action.base}"
        host.disk.packed.add(digest)
        host.disk.own_parcel = Parcel(host.name, action.round_number, digest, action.base)
        self.checkers.on_pack(host.name, action.round_number, digest)
        self.after(self.random.uniform(0.0, REDUCE_MAX_S), self._packed, host, host.life, action)

    def _packed(self, host: Host, life: int, action: Pack) -> None:
        if host.life == life and host.machine is not None:
            digest = f"{host.name} {action.round_number} {action.base}"
            self.step(host, Packed(action.round_number, action.base, digest))

    def _restore(self, host: Host, action: Restore) -> None:
        self.log.append((self.now_s, host.name, action))
        offered = [parcel for parcels in host.offered.values() for parcel in parcels]
        self.checkers.on_restore(host.name, action.parcel, offered)
        host.disk.restored = host.may_train = True

    def _train(self, host: Host, action: Train) -> None:
        if not host.may_train:
            raise Violation("restored", f"{host.name} trains before it has what it was")
        host.training += 1
        base = host.disk.models[action.base]
        duration_s = host.train_s * self.random.uniform(0.8, 1.2)
        self.after(duration_s, self._trained, host, host.life, host.training, action, base)

    def _trained(self, host: Host, life: int, training: int, action: Train, base: Content) -> None:
        if (host.life, host.training) != (life, training) or host.machine is None:
            return
        if self.declines and self.random.random() < self.declines:
            self.step(host, Declined(action.round_number, action.base))
            self.after(DECLINED_S, self._trained, host, life, training, action, base)
            return
        host.trainings += 1
        salt = host.trainings if self.options.retrain else 0
        made, weight = self.matter.train(host.name, base, action.round_number, salt)
        digest = self.matter.digest(made)
        host.updates[digest] = made
        self.checkers.updates[digest] = Trained(made, action.round_number, action.base)
        contribution = Contribution(host.name, weight, digest, self.matter.size_bytes(made))
        self.step(host, TrainedEvent(action.round_number, action.base, contribution))

    def _reduce(self, host: Host, action: Reduce) -> None:
        plan, index, count = action.plan, action.index, action.plan.shard_count
        parts = [
            self._bytes(host, Slice(plan.round_number, each.node, each.digest, index, count))
            for each in plan.contributors
        ]
        base = self.matter.part(host.disk.models[plan.base], index, count)
        made = self.matter.reduce(base, parts, plan.contributors)
        delay_s = self.random.uniform(0.0, REDUCE_MAX_S)
        self.after(delay_s, self._reduced, host, host.life, plan, index, made)

    def _reduced(self, host: Host, life: int, plan: Plan, index: int, made: Content) -> None:
        if host.life == life and host.machine is not None:
            host.memory[Shard(plan.round_number, plan.ballot, index)] = made
            self.step(host, Reduced(plan.ballot, index))

    def _assemble(self, host: Host, action: Assemble) -> None:
        made = self.matter.join([self._bytes(host, shard) for shard in action.shards])
        delay_s = self.random.uniform(0.0, self.options.disk_max_s)
        self.after(delay_s, self._assembled, host, host.life, action.plan, made)

    def _assembled(self, host: Host, life: int, plan: Plan, made: Content) -> None:
        if host.life == life and host.machine is not None:
            root = self.matter.digest(made)
            host.disk.models[root] = self.checkers.models[root] = made
            self.step(host, Assembled(plan, root, self.matter.size_bytes(made)))

    def _combine(self, host: Host, action: Combine) -> None:
        made = self.matter.join([self._bytes(host, piece) for piece in action.pieces])
        if self.matter.digest(made) != action.root:
            raise Violation("bytes", f"{host.name} has pieces that make another model")
        if self.options.spoils and self.random.random() < self.options.spoils:
            made = self.matter.first()  # somebody's memory is bad
        delay_s = self.random.uniform(0.0, self.options.disk_max_s)
        self.after(delay_s, self._combined, host, host.life, action.root, made)

    def _combined(self, host: Host, life: int, root: Digest, made: Content) -> None:
        if host.life == life and host.machine is not None:
            fits = self.matter.digest(made) == root or not self.compares
            if fits:
                host.disk.models[root] = made
            self.step(host, Combined(root, fits))

    def _install(self, host: Host, action: Install) -> None:
        self.log.append((self.now_s, host.name, action))
        self.checkers.on_install(host.name, action.entry)

    def _release(self, host: Host, action: Release) -> None:
        host.release(action.round_number)

    def _drop(self, host: Host, action: Drop) -> None:
        host.drop(action.item)

    def _forget(self, host: Host, action: Forget) -> None:
        host.disk.models.pop(action.root, None)

    def _notice(self, host: Host, action: Notice) -> None:
        self.log.append((self.now_s, host.name, action))
        assert action.kind != "nonsense", action.detail  # nobody lies here
        if action.kind == "estranged":
            host.dead = True  # as the driver does: it ends, and people look at it
            self.after(0.0, self.crash, host)
        host.may_train |= action.kind == "not_restored"

    def _fail(self, host: Host, action: Fail) -> None:
        self.log.append((self.now_s, host.name, action))
        host.actions_left = 0


def _settings(
    options: Options, member: Member, *, votes: bool, restores: tuple[NodeId, ...]
) -> Settings:
    return Settings(
        member=member,
        experiment="sim",
        rounds_total=options.rounds,
        whole_updates=options.whole,
        votes=votes,
        min_contributors=options.min_contributors,
        whole_roster=options.whole_roster,
        give_up_s=options.give_up_s,
        stash_rounds=options.stash_rounds,
        restores=restores if options.stash_rounds else (),
        beat_s=options.beat_s,
        repair_s=options.repair_s,
        stall_s=options.stall_s,
        straggler_cap_s=options.straggler_cap_s,
        catch_up_grace_s=1.0,
        evict_after_rounds=options.evict_after_rounds,
        topology=options.topology,
        piece_bytes=options.piece_bytes,
    )


_PERFORM: dict[type, Callable[[World, Host, Any], None]] = {
    Append: World._append,
    Send: World._send,
    Train: World._train,
    Pack: World._pack,
    Restore: World._restore,
    Reduce: World._reduce,
    Assemble: World._assemble,
    Combine: World._combine,
    Install: World._install,
    Release: World._release,
    Drop: World._drop,
    Forget: World._forget,
    Notice: World._notice,
    Fail: World._fail,
}
