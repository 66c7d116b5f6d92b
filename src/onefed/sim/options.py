"""One schedule as data: the group, the network, and the faults. A seed draws it; a test writes it.

Swarm: each seed draws which kinds of fault it has at all, and how strong, so that no kind hides
another. Half of the seeds aim: their faults strike where the protocol is at work.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

from onefed.peer.topology import Topology


class Kind(enum.StrEnum):
    """What can go wrong at a moment."""

    CRASH = "crash"
    """The process ends between two actions; what was not synced may be lost or torn."""
    POWER = "power"
    """All nodes at once."""
    PAUSE = "pause"
    """The process stands still; its clock goes on."""
    SPLIT = "split"
    """Two groups do not hear each other."""
    DEAF = "deaf"
    """A node is not heard, or hears nothing: one direction is cut."""
    PAIR = "pair"
    """Two nodes do not hear each other; both hear the rest."""
    RESET = "reset"
    """A connection is reset, for no reason."""
    LEAVE = "leave"
    """The operator takes a node off the roster."""
    GONE = "gone"
    """Nodes are lost for good, and the operator tells some of the others to go on without them."""


class Aim(enum.StrEnum):
    """Where a fault strikes, if not at a time."""

    ACCEPTED = "accepted"
    """A node has just saved what it accepted."""
    ACKED = "acked"
    """A node has just told the leader that it holds the result."""
    COMMITTED = "committed"
    """The leader has just taken note of a commit, and told nobody."""
    ANNOUNCED = "announced"
    """The leader has told the first follower about a commit."""
    PLANNED = "planned"
    """The leader has told the first follower about a proposal."""
    CHANGING = "changing"
    """The same, of a proposal that changes the roster."""
    ADOPTING = "adopting"
    """The same, of a proposal that finishes an older result."""
    VOTED = "voted"
    """A node has just given its vote."""
    LED = "led"
    """A node has just become leader."""
    REDUCED = "reduced"
    """An owner has sent its shard to the first receiver."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that goes wrong."""

    kind: Kind
    at_s: float
    """When; for an aimed fault, from when on it waits for its moment."""
    for_s: float
    """How long: until the restart, the end of the pause, the healing."""
    node: int
    """Whom, by place; an aimed fault takes the node that acts. -1: whoever leads."""
    aim: Aim | None = None
    skip: int = 0
    """How many moments an aimed fault lets pass; how many actions a crash lets pass."""
    groups: int = 0
    """Bits by place: who is on the one side of a split; the other end of a pair or a reset; who is
    gone."""


@dataclass(frozen=True, slots=True)
class Options:
    """A schedule. Times in virtual seconds."""

    seed: int
    nodes: int = 3
    joiners: int = 0
    """Nodes that are not on the first roster and ask to join."""
    observers: int = 0
    """The same, without asking for a vote."""
    join_at_s: float = 1.0
    rounds: int = 3
    whole: bool = False
    """Robust mode: whole updates."""
    min_contributors: int = 1
    whole_roster: bool = False
    """The rule has no partial aggregation."""
    give_up_s: float | None = None
    evict_after_rounds: int = 0
    beat_s: float = 0.1
    repair_s: float = 0.3
    stall_s: float = 1.5
    straggler_cap_s: float = 3.0
    latency_min_s: float = 0.001
    latency_max_s: float = 0.01
    spike_share: float = 0.0
    """Messages that take up to ``SPIKE_S``: later ones overtake them."""
    loss: float = 0.0
    duplication: float = 0.0
    resets: bool = True
    """Peers of a crashed node see their connection reset; False: they hear nothing."""
    torn: bool = False
    """A crash is a power cut: what was not synced is lost in part, or torn."""
    declines: float = 0.0
    """Share of the trainings that give no update."""
    stash_rounds: int = 0
    """Every so many rounds others keep what a node has; joiners then take what the first node had.
    """
    retrain: bool = False
    """Training twice gives two updates."""
    journal_long_bytes: int | None = None
    """A journal that is longer is compacted; None: none is."""
    drift: float = 0.0
    """Clocks run by so much faster or slower, at most."""
    piece_bytes: int = 2**22
    """A missing model that is longer is fetched in pieces; one has a dozen bytes here."""
    spoils: float = 0.0
    """Share of the models whose pieces do not fit together."""
    train_min_s: float = 0.05
    train_max_s: float = 0.3
    straggler_s: float = 0.0
    """Longer that the last node of the first roster trains."""
    disk_max_s: float = 0.01
    """A model is on disk after at most so long."""
    faults: tuple[Fault, ...] = ()
    topology: Topology = Topology.FULL
    dead: int = 0
    """Nodes, at most a minority, whose last crash is for good."""
    returns: bool = False
    """Nodes that were lost for good come back after all, once the others have gone on."""
    calm_at_s: float = 0.0
    """From then on nothing goes wrong any more."""


SPIKE_S = 1.5
LIVENESS_S = 60.0
"""After ``calm_at_s`` every node must have reached the last round within this time."""


@dataclass(slots=True)
class _Draw:
    random: Random
    faults: list[Fault] = field(default_factory=list)

    def chance(self, share: float) -> bool:
        return self.random.random() < share


def loses(seed: int) -> bool:
    """Whether half of the voters or more are lost for good in the schedule of a seed."""
    return seed % 16 in (11, 14)


def is_sparse(seed: int) -> bool:
    """Whether not all members are connected in the schedule of a seed."""
    return seed % 16 in (5, 8)


def is_cut(seed: int) -> bool:
    """Whether models that are missing are fetched in pieces in the schedule of a seed."""
    return seed % 16 in (2, 3, 5, 13, 14)


def draw(seed: int) -> Options:
    """The schedule of a seed."""
    drawn = _draw(seed)
    if is_sparse(seed):
        drawn = _sparse(drawn)
    elif loses(seed):
        drawn = _with_loss(drawn)
    return _in_pieces(drawn) if is_cut(seed) else drawn


def _in_pieces(drawn: Options) -> Options:
    """The same, with models that are cut."""
    random = Random(f"pieces {drawn.seed}")  # noqa: S311 - repeatable chance
    return replace(
        drawn,
        piece_bytes=random.choice((1, 3, 5)),
        spoils=random.choice((0.0, 0.0, 0.3)),
    )


def _sparse(drawn: Options) -> Options:
    """The same in a group whose members are not all connected; in most of them the roster changes.

    Who has a connection to whom changes with it: the hub of a star leaves, a ring closes anew.
    """
    random = Random(f"topology {drawn.seed}")  # noqa: S311 - repeatable chance
    topology = random.choice((Topology.RING, Topology.LINE, Topology.STAR))
    nodes = random.choice((3, 4, 5, 6))
    changes = random.random() < 0.6
    faults = [each for each in drawn.faults if each.kind is not Kind.LEAVE]
    joiners = random.choice((0, 1, 1, 2)) if changes else 0
    if changes and (not joiners or random.random() < 0.5):
        leaving = random.sample(range(nodes), random.randint(1, nodes - 2))
        faults += [
            Fault(Kind.LEAVE, random.uniform(0.0, drawn.calm_at_s), 0.0, node) for node in leaving
        ]
    if random.random() < 0.4:  # a link between two neighbours, at the moment of a change or not
        aim = random.choice((None, Aim.CHANGING, Aim.PLANNED, Aim.REDUCED, Aim.COMMITTED))
        groups = random.randrange(nodes)
        faults.append(Fault(Kind.PAIR, 0.5, random.uniform(0.5, 4.0), -1, aim, 1, groups))
    return replace(
        drawn,
        topology=topology,
        stash_rounds=0,
        nodes=nodes,
        joiners=joiners,
        observers=1 if changes and random.random() < 0.2 else 0,
        rounds=max(drawn.rounds, 4) if changes else drawn.rounds,
        evict_after_rounds=random.choice((0, 0, 1, 2)) if changes else 0,
        faults=tuple(sorted(faults, key=lambda fault: fault.at_s)),
        dead=min(drawn.dead, 1) if topology is Topology.RING and not changes else 0,
        whole_roster=drawn.whole_roster and not changes,
        calm_at_s=max([drawn.calm_at_s, *(each.at_s + each.for_s for each in faults)]),
    )


def _with_loss(drawn: Options) -> Options:
    """The same, but for a majority that is lost, and an operator who decides to go on."""
    random = Random(f"loss {drawn.seed}")  # noqa: S311 - repeatable chance
    nodes = random.choice((2, 4, 4, 4, 5, 6, 6))
    least = nodes - nodes // 2
    lost = random.randint(least, nodes - 1) if random.random() < 0.5 else least
    gone = random.sample(range(nodes), lost)
    window_s = drawn.calm_at_s
    aims = (Aim.ACKED, Aim.ACCEPTED, Aim.COMMITTED, Aim.ANNOUNCED, Aim.LED, Aim.REDUCED)
    loss = Fault(
        Kind.GONE,
        at_s=random.uniform(0.0, window_s / 2),
        for_s=random.uniform(0.2, 4.0),
        node=0,
        aim=random.choice(aims) if random.random() < 0.8 else None,
        skip=random.choice((0, 0, 1, 2, 5)),
        groups=sum(1 << place for place in gone),
    )
    kept = [each for each in drawn.faults if each.kind is not Kind.LEAVE]
    if lost > nodes // 2 and random.random() < 0.7:
        # They go on alone before they are lost: what they commit is lost with them.
        kept.append(Fault(Kind.SPLIT, random.uniform(0.0, loss.at_s), 9.0, 0, groups=loss.groups))
    return replace(
        drawn,
        stash_rounds=0,
        nodes=nodes,
        joiners=0,
        observers=0,
        evict_after_rounds=0,
        rounds=max(4, drawn.rounds),
        faults=(*kept, loss),
        dead=0,
        calm_at_s=max([window_s, *(each.at_s + each.for_s for each in kept)]),
        returns=random.random() < (0.8 if lost > nodes // 2 else 0.4),
    )


def _draw(seed: int) -> Options:
    random = Random(f"schedule {seed}")  # noqa: S311 - chance that can be repeated, no secret
    pick = _Draw(random)
    nodes = random.choice((2, 3, 3, 3, 3, 4, 4, 5, 5))
    lossy = pick.chance(0.4)
    joiners = random.choice((1, 1, 2)) if pick.chance(0.25) else 0
    window_s = random.uniform(2.0, 5.0)
    faults = _faults(random, nodes, joiners, window_s, aimed=seed % 2 == 1)
    evict = random.choice((1, 2)) if pick.chance(0.15) else 0
    changes = joiners or evict or any(fault.kind is Kind.LEAVE for fault in faults)
    last_s = max((fault.at_s + fault.for_s for fault in faults), default=0.0)
    drawn = Options(
        seed=seed,
        nodes=nodes,
        joiners=joiners,
        observers=1 if pick.chance(0.1) else 0,
        join_at_s=random.uniform(0.0, window_s),
        rounds=random.randint(2, 5),
        whole=pick.chance(0.2),
        evict_after_rounds=evict,
        beat_s=random.choice((0.1, 0.15, 0.2)),
        repair_s=random.choice((0.2, 0.4)),
        stall_s=random.choice((0.7, 1.5)),
        straggler_cap_s=random.choice((1.0, 3.0)),
        latency_max_s=random.choice((0.005, 0.02, 0.1)),
        spike_share=random.choice((0.01, 0.05)) if pick.chance(0.4) else 0.0,
        loss=random.choice((0.02, 0.1, 0.2)) if lossy else 0.0,
        duplication=random.choice((0.02, 0.2)) if pick.chance(0.3) else 0.0,
        resets=pick.chance(0.6),
        torn=pick.chance(0.5),
        retrain=pick.chance(0.3),
        drift=0.02 if pick.chance(0.3) else 0.0,
        train_max_s=random.choice((0.1, 0.3, 0.8)),
        straggler_s=random.choice((1.0, 4.0)) if pick.chance(0.15) else 0.0,
        disk_max_s=random.choice((0.01, 0.01, 0.4)),
        faults=faults,
        dead=(nodes - 1) // 2 if pick.chance(0.3) and not changes else 0,
        calm_at_s=max(window_s, last_s),
    )
    return _with_later_kinds(drawn, fixed=not changes and not drawn.dead)


def _with_later_kinds(drawn: Options, *, fixed: bool) -> Options:
    """What was added later draws from chance of its own: older seeds stay as they are in the rest.

    Args:
        fixed: the roster stays as it is, and every voter comes back.
    """
    random = Random(f"later {drawn.seed}")  # noqa: S311 - as above
    pick = _Draw(random)
    return replace(
        drawn,
        journal_long_bytes=random.choice((500, 4000)) if pick.chance(0.4) else None,
        declines=random.choice((0.1, 0.4)) if pick.chance(0.2) else 0.0,
        whole_roster=fixed and pick.chance(0.15),
        **_stashing(random) if pick.chance(0.9 if drawn.joiners else 0.25) else {},
    )


def _stashing(random: Random) -> dict[str, Any]:
    """Parcels often, and a network in which a later one overtakes."""
    return {"stash_rounds": random.choice((1, 1, 2)), "spike_share": 0.1, "duplication": 0.2}


RECIPES: tuple[tuple[tuple[Kind, Aim], ...], ...] = (
    # One node holds an older attempt, the others commit a newer one, and nobody is told.
    ((Kind.DEAF, Aim.ACCEPTED), (Kind.CRASH, Aim.COMMITTED)),
    # The leader's last word reaches one follower, which is then alone with it.
    ((Kind.CRASH, Aim.ANNOUNCED), (Kind.DEAF, Aim.LED)),
    # A proposal that changes the roster, on both sides of a split.
    ((Kind.SPLIT, Aim.CHANGING), (Kind.CRASH, Aim.ACCEPTED)),
)
"""Faults that only together come near a rule."""


def _faults(
    random: Random, nodes: int, joiners: int, window_s: float, *, aimed: bool
) -> tuple[Fault, ...]:
    if random.random() < 0.05:
        return ()
    kinds: list[Kind] = random.sample(
        [each for each in Kind if each is not Kind.GONE], random.randint(1, 4)
    )
    aims = random.sample(list(Aim), random.randint(1, 4))
    made = []
    for _ in range(random.randint(1, 6)):
        kind = random.choice(kinds)
        aim = random.choice(aims) if aimed and random.random() < 0.8 else None
        if aim is not None and kind in (Kind.LEAVE, Kind.RESET):
            kind = random.choice((Kind.CRASH, Kind.SPLIT, Kind.DEAF))
        made.append(
            Fault(
                kind=kind,
                at_s=random.uniform(0.0, window_s),
                for_s=random.choice((0.2, 1.0, 3.0)) * random.uniform(0.5, 1.5),
                node=random.choice((-1, *range(nodes + joiners))),
                aim=aim,
                skip=random.choice((0, 0, 0, 1, 2, 5)),
                groups=random.randrange(1, 2 ** (nodes + joiners)),
            )
        )
    if aimed and random.random() < 0.3:
        at_s = random.uniform(0.0, window_s / 2)
        for kind, aim in random.choice(RECIPES):
            for_s, skip = random.uniform(1.0, 4.0), random.choice((0, 0, 1))
            made.append(Fault(kind, at_s, for_s, 0, aim, skip, groups=random.choice((0, 0, 1))))
    if Kind.LEAVE in kinds and random.random() < 0.5:
        at_s = random.uniform(0.0, window_s)
        leaving = random.sample(range(nodes), min(nodes - 1, random.randint(1, 2)))
        made += [Fault(Kind.LEAVE, at_s, 0.0, node) for node in leaving]
    return tuple(sorted(made, key=lambda fault: fault.at_s))
