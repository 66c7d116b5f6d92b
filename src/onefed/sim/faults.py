"""Carries out the faults of a schedule, at their time or where they aim."""

from __future__ import annotations

from onefed.peer.interface import (
    AcceptedRecord,
    Action,
    Append,
    CommittedRecord,
    Notice,
    Send,
)
from onefed.peer.messages import Ack, Adopt, Data, Heartbeat, NodeId, Plan, Relay, Shard, Vote
from onefed.peer.state import Role
from onefed.sim.host import Host
from onefed.sim.options import Aim, Fault, Kind
from onefed.sim.world import World


def arm(world: World) -> None:
    """Let the faults of the world's schedule happen, and end at its calm."""
    options = world.options
    aimed = [_Aimed(world, fault) for fault in options.faults if fault.aim is not None]
    for each in aimed:
        world.watches.append(each.watch)
    for fault in options.faults:
        if fault.aim is None:
            world.at(fault.at_s, strike, world, fault, None)
    world.at(options.calm_at_s, _calm, world, aimed)


def strike(world: World, fault: Fault, acting: Host | None) -> None:
    """Let a fault begin; ``acting`` is the host it aims at, or None for the one it names."""
    hosts = list(world.hosts.values())
    host = acting or _named(hosts, fault.node)
    others = [each for each in hosts if each is not host]
    match fault.kind:
        case Kind.CRASH:
            host.actions_left = fault.skip
            world.after(fault.for_s, _restart, world, host)
        case Kind.POWER:
            for each in hosts:
                if each.machine is not None:
                    world.crash(each)
                    world.after(fault.for_s, world.start, each)
        case Kind.PAUSE:
            host.paused_until_s = world.now_s + fault.for_s
        case Kind.SPLIT:
            if acting is None:
                side = {each.name for each in hosts if fault.groups >> each.place & 1}
            else:
                side = {host.name}
            _cut(
                world,
                fault.for_s,
                [
                    (a.name, b.name)
                    for a in hosts
                    for b in hosts
                    if (a.name in side) != (b.name in side)
                ],
            )
        case Kind.DEAF:
            hears = bool(fault.groups & 1)
            pairs = [(o.name, host.name) if hears else (host.name, o.name) for o in others]
            _cut(world, fault.for_s, pairs)
        case Kind.PAIR | Kind.RESET:
            near = [each for each in others if world.linked(host, each)] or others
            other = near[fault.groups % len(near)]
            if fault.kind is Kind.PAIR:
                _cut(world, fault.for_s, [(host.name, other.name), (other.name, host.name)])
            # Not at once: an aimed fault strikes inside of a step, and steps do not nest.
            world.after(0.0, world.reset, host, other, other.life)
            world.after(0.0, world.reset, other, host, host.life)
        case Kind.GONE:
            gone = [each for each in hosts if fault.groups >> each.place & 1]
            # Not inside of a step: one of them may be at it.
            world.after(0.0, _lose, world, gone, fault.for_s)
        case Kind.LEAVE:
            asked = host if host.machine is not None else others[0]
            if host.place < world.options.nodes:
                world.leave(asked, host.name)


def _named(hosts: list[Host], node: int) -> Host:
    if node >= 0:
        return hosts[node % len(hosts)]
    leading = [each for each in hosts if each.machine and each.machine.role is Role.LEADER]
    return leading[-1] if leading else hosts[0]


def _lose(world: World, gone: list[Host], for_s: float) -> None:
    for host in gone:
        world.crash(host)
        host.dead = True
    world.after(for_s, world.evict, gone)


def _restart(world: World, host: Host) -> None:
    host.actions_left = None  # it may have been idle and never come to its end
    world.start(host)


def _cut(world: World, for_s: float, pairs: list[tuple[NodeId, NodeId]]) -> None:
    for pair in pairs:
        world.cut[pair] = world.cut.get(pair, 0) + 1
    world.after(for_s, _heal, world, pairs)


def _heal(world: World, pairs: list[tuple[NodeId, NodeId]]) -> None:
    for pair in pairs:
        world.cut[pair] -= 1
        if not world.cut[pair]:
            del world.cut[pair]


def _calm(world: World, aimed: list[_Aimed]) -> None:
    world.watches.clear()
    del aimed[:]
    world.loss = world.duplication = world.spike_share = world.declines = 0.0
    hosts = list(world.hosts.values())
    dying = [host for host in hosts if host.place < world.options.nodes][: world.options.dead]
    for host in dying:
        world.crash(host)
        host.dead = True
    for host in hosts:
        host.actions_left = None
        world.after(0.0, world.start, host)


class _Aimed:
    """Waits for its moment, once."""

    def __init__(self, world: World, fault: Fault) -> None:
        self._world = world
        self._fault = fault
        self._skip = fault.skip
        self._over = False

    def watch(self, host: Host, action: Action) -> bool:
        """Before each action: whether the host ends here. Other faults strike right after it."""
        world, fault = self._world, self._fault
        if self._over or world.now_s < fault.at_s or not _is(fault.aim, action, host.name):
            return False
        if self._skip:
            self._skip -= 1
            return False
        self._over = True
        if fault.kind is Kind.CRASH:
            host.actions_left = 0  # this action is done, the next is not
            world.after(fault.for_s, _restart, world, host)
        elif fault.kind is Kind.POWER:
            world.after(0.0, strike, world, fault, host)
        else:
            strike(world, fault, host)
        return False


def _is(aim: Aim | None, action: Action, acting: NodeId) -> bool:
    if isinstance(action, Send) and isinstance(action.message, Relay):
        envelope = action.message
        if envelope.origin != acting:
            return False  # it hands on what another one says
        action = Send(action.to, envelope.message)
    match aim, action:
        case Aim.ACCEPTED, Append(AcceptedRecord()):
            return True
        case Aim.COMMITTED, Append(CommittedRecord()):
            return True
        case Aim.ACKED, Send(_, Ack(held=held)):
            return held is not None
        case Aim.ANNOUNCED, Send(_, Heartbeat(_, commit, None)):
            return commit.round_number > 0
        case Aim.PLANNED, Send(_, Heartbeat(_, _, Plan())):
            return True
        case Aim.CHANGING, Send(_, Heartbeat(_, commit, Plan(roster=roster))):
            return roster != commit.roster
        case Aim.ADOPTING, Send(_, Heartbeat(_, _, Adopt())):
            return True
        case Aim.VOTED, Send(_, Vote(ok=True)):
            return True
        case Aim.LED, Notice("leader"):
            return True
        case Aim.REDUCED, Send(_, Data(Shard())):
            return True
        case _:
            return False
