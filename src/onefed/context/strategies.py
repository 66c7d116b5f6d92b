"""What an operator chooses with ``FL_STRATEGY``: which variables it reads, how many nodes it needs.

The rules themselves are in another room, which a boot does not wait for; a test keeps both alike.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Strategy:
    """One value of ``FL_STRATEGY``."""

    reads: tuple[str, ...] = ()
    """Variables that go to the rule; their defaults are its own."""
    reads_if_set: tuple[str, ...] = ()
    """Variables that go to the rule when somebody set them; else it has a default of its own."""
    nodes_per_hostile: int = 0
    """k of the requirement n >= k f + 3; 0 where it withstands none by design."""

    def nodes_needed(self, hostile: int) -> int:
        """Fewest nodes with which the rule withstands f = ``hostile`` of them."""
        return self.nodes_per_hostile * hostile + 3 if self.nodes_per_hostile else 1


_ADAPTIVE = ("FL_SERVER_LR", "FL_FEDADAM_TAU")

STRATEGIES: Mapping[str, Strategy] = {
    "FedAvg": Strategy(),
    "FedProx": Strategy(reads=("FL_PROXIMAL_MU",)),
    "FedAvgM": Strategy(reads_if_set=("FL_SERVER_LR", "FL_CLIENT_LR")),
    "FedAdam": Strategy(reads=_ADAPTIVE, reads_if_set=("FL_CLIENT_LR",)),
    "FedAdagrad": Strategy(reads_if_set=(*_ADAPTIVE, "FL_CLIENT_LR")),
    "FedYogi": Strategy(reads_if_set=(*_ADAPTIVE, "FL_CLIENT_LR")),
    "FaultTolerantFedAvg": Strategy(),
    "FedMedian": Strategy(),
    "FedTrimmedAvg": Strategy(reads=("FL_TRIM_BETA",)),
    "Krum": Strategy(reads=("FL_NUM_MALICIOUS",), nodes_per_hostile=2),
    "MultiKrum": Strategy(reads=("FL_NUM_MALICIOUS",), nodes_per_hostile=2),
    "Bulyan": Strategy(reads=("FL_NUM_MALICIOUS",), nodes_per_hostile=4),
}
"""By name, as the registry of rules has them."""

PARAMETERS = tuple(
    dict.fromkeys(
        name for strategy in STRATEGIES.values() for name in strategy.reads + strategy.reads_if_set
    )
)
"""Variables that belong to a strategy; the others ignore them."""
