"""A node of the simulation and what is under it: its disk, its memory, its clock."""

from __future__ import annotations

from collections import Counter

from onefed.peer.machine import Machine
from onefed.peer.messages import Digest, Item, NodeId, Parcel, Roster, Shard, Slice
from onefed.peer.settings import Settings
from onefed.sim.content import Content
from onefed.sim.disk import Disk

ROUNDING_S = 1e-9


class Host:
    """A node and what is under it."""

    def __init__(self, place: int, settings: Settings, disk: Disk, *, train_s: float) -> None:
        self.place = place
        self.name: NodeId = settings.member.node
        self.settings = settings
        self.disk = disk
        self.train_s = train_s
        self.hoards = False
        """It says that it has an update, and gives it to nobody."""
        self.machine: Machine | None = None
        self.memory: dict[Item, Content] = {}
        """Slices and shards of others, and pieces of models."""
        self._copies: Counter[Item] = Counter()
        """So often each of them came: the machine says of each time whether it is of use."""
        self.updates: dict[Digest, Content] = {}
        """Own ones of this life."""
        self.life = 0
        """Starts so far: what an earlier life has begun ends with it."""
        self.paused_until_s = 0.0
        self.clock_rate = 1.0
        self.clock_start_s = 0.0
        self.tick_at_s = float("inf")
        """When the next tick is in the queue."""
        self.training = 0
        self.trainings = 0
        self.actions_left: int | None = None
        """Crash after so many actions."""
        self.offered: dict[NodeId, tuple[Parcel, ...]] = {}
        """What others have told this life that they keep of its name before."""
        self.may_train = True
        """It does not wait for what others have kept of it."""
        self.near_by: tuple[Roster, frozenset[NodeId]] = ((), frozenset())
        """Its neighbours, by a roster."""
        self.left = False
        self.dead = False
        """Does not come back."""

    def local_s(self, now_s: float) -> float:
        """What its clock says."""
        return self.clock_start_s + now_s * self.clock_rate

    def global_s(self, local_s: float) -> float:
        """When its clock says so, or a little later: never earlier."""
        return (local_s - self.clock_start_s) / self.clock_rate + ROUNDING_S

    def keep(self, item: Item, content: Content) -> None:
        """What has come."""
        self.memory[item] = content
        self._copies[item] += 1

    def drop(self, item: Item) -> None:
        """Forget an item that came once."""
        self._copies[item] -= 1
        if self._copies[item] <= 0:
            self.memory.pop(item, None)
            del self._copies[item]

    def release(self, round_number: int) -> None:
        """Forget slices and shards of rounds up to this one."""
        for item in list(self.memory):
            if isinstance(item, Slice | Shard) and item.round_number <= round_number:
                del self.memory[item]
                self._copies.pop(item, None)

    def forget(self) -> None:
        """All that is not on disk."""
        self.memory.clear()
        self._copies.clear()
        self.updates.clear()
