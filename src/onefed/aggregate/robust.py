"""The family of robust rules: what they share against clients that lie.

Claimed example counts are ignored, since a liar would claim the largest: every mean is plain. There
is no state through which a bad round could outlive itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from onefed.aggregate import base

if TYPE_CHECKING:
    from collections.abc import Sequence

    from onefed.arrays import Arrays


class RobustRule(base.RuleDefaults):
    """A rule without weights and without state."""

    def step(
        self,
        state: base.State,
        arrays: Arrays,
        updates: Sequence[base.Update],
        round_number: int,
    ) -> tuple[base.State, Arrays]:
        """Combine the updates in client order."""
        assert updates, "a rule is called with at least one update"
        base.require_updates(self, updates)
        base.require_state(self, state, {})
        return {}, self.combine(arrays, base.in_client_order(updates))

    def combine(self, arrays: Arrays, updates: Sequence[base.Update]) -> Arrays:
        """The next model; ``updates`` are in client order and as many as the rule needs."""
        raise NotImplementedError


class SelectingRule(RobustRule):
    """A rule that withstands up to f hostile clients among enough others, by their distances.

    A dataclass that derives from it has the field ``num_malicious``. Integer and bool arrays (a
    count of batches, say) are no part of the distances, so that no client can be chosen or left
    out for them; the result holds their coordinate-wise median over all updates, so that a chosen
    client's own value does not count.
    """

    clients_per_malicious: ClassVar[int]
    """a in the bound n >= a * f + 3."""
    num_malicious: int

    @property
    def clients_min(self) -> int:
        """a * f + 3; 1 for f = 0."""
        return self.clients_per_malicious * self.num_malicious + 3 if self.num_malicious else 1

    def updates_needed(self, asked: int) -> int:
        """As many as ``clients_min``: with fewer, f hostile clients may decide the model."""
        return self.clients_min

    def remarks(self, clients: int) -> tuple[str, ...]:
        """That it withstands nobody, where f = 0."""
        if self.num_malicious:
            return ()
        fewest = self.clients_per_malicious + 3
        return (
            f"{self.name} with num_malicious = 0 withstands no hostile client; "
            f"from {fewest} clients on it can withstand one.",
        )
