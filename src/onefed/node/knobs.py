"""Settings with the names of the fault tolerance contract: of one node, read when they are used."""

from __future__ import annotations

from dataclasses import dataclass, field

from onefed.peer.interface import Adjusted
from onefed.peer.settings import Pace


@dataclass(slots=True)
class General:
    """``settings.general``."""

    REMOTE_CHECKPOINT_INTERVAL: int = 5
    """Rounds between two checkpoints that other nodes keep; 0 or less: none."""


@dataclass(slots=True)
class Training:
    """``settings.training``."""

    VOTE_TIMEOUT: float = 10.0
    """Seconds: an election begins after no longer than that without a leader."""
    AGGREGATION_TIMEOUT: float = 60.0
    """Seconds: a round waits no longer for an update."""


@dataclass(slots=True)
class Knobs:
    """May be changed while the node runs; what is assigned counts from the next event on."""

    general: General = field(default_factory=General)
    training: Training = field(default_factory=Training)

    @classmethod
    def of(cls, pace: Pace) -> Knobs:
        """As a node begins that is given a pace."""
        return cls(training=Training(AGGREGATION_TIMEOUT=pace.straggler_cap_s))

    def event(self, pace: Pace) -> Adjusted:
        """What the machine is told."""
        return Adjusted(
            stash_rounds=self.general.REMOTE_CHECKPOINT_INTERVAL,
            election_max_s=min(pace.election_max_s, self.training.VOTE_TIMEOUT),
            straggler_cap_s=self.training.AGGREGATION_TIMEOUT,
        )

    def values(self) -> tuple[int, float, float]:
        """All of them, to see whether one was changed."""
        return (
            self.general.REMOTE_CHECKPOINT_INTERVAL,
            self.training.VOTE_TIMEOUT,
            self.training.AGGREGATION_TIMEOUT,
        )
