"""FedAvg and the family of the mean: the weighted mean of the client models, then a server step.

McMahan, Moore, Ramage, Hampson, Aguera y Arcas: Communication-Efficient Learning of Deep Networks
from Decentralized Data, AISTATS 2017 (arXiv 1602.05629), Algorithm 1, server side.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from onefed.aggregate import base, integers, kernels

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from onefed.arrays import Arrays


class MeanRule(base.RuleDefaults):
    """A rule that needs no more of the updates than their weighted mean.

    So the updates can be folded one by one (``stream``), and to the same bits: ``step`` is
    ``weighted_mean``, then ``step_mean``.
    """

    def step(
        self,
        state: base.State,
        arrays: Arrays,
        updates: Sequence[base.Update],
        round_number: int,
    ) -> tuple[base.State, Arrays]:
        """Mean of the updates, then the server's step."""
        base.require_updates(self, updates)
        return self.step_mean(state, arrays, weighted_mean(updates, arrays), round_number)

    def step_mean(
        self, state: base.State, arrays: Arrays, mean: Arrays, round_number: int
    ) -> tuple[base.State, Arrays]:
        """State and global model after a round whose updates have this mean: the mean itself.

        ``mean`` has the keys, shapes and dtypes of ``arrays``, the model the round started from.
        It belongs to the rule from here on and may be part of the result.
        """
        base.require_state(self, state, {})
        return {}, mean


@dataclass(frozen=True)
class FedAvg(MeanRule):
    r"""Next model = sum over clients k of (n_k / n) * w_k, with n the sum of the n_k. No state."""

    name: ClassVar[str] = "FedAvg"


def weighted_mean(updates: Sequence[base.Update], template: Arrays) -> Arrays:
    """Mean of the updates, weighted by their weights: the normative arithmetic.

    *Floats.* Per coordinate, from s = 0 and in client order: s = s + n_k * w_k, in float64 with a
    rounding after each operation (no fused multiply-add), then s / n in float64, then one rounding
    to the dtype. A product of float32 or narrower is exact, and where the sum is exact too and
    n < 2**27, the float32 result is the correctly rounded mean. A mean of -0.0 is 0.0.

    *Integers and bools.* The exact mean, rounded half to even (``integers``).

    The mean of equals is that value, and the order of arrival does not show. Takes the memory of
    the result, and a copy of one array of each client whose memory is not in C order.
    """
    assert updates, "a rule is called with at least one update"
    ordered = base.in_client_order(updates)
    weights = [update.weight for update in ordered]

    def of_floats(columns: Sequence[NDArray[Any]], out: NDArray[Any]) -> None:
        kernels.weighted_mean(columns, weights, out)

    def of_integers(columns: Sequence[NDArray[Any]], out: NDArray[Any]) -> None:
        integers.weighted_mean(columns, weights, out)

    return base.by_array(ordered, template, floats=of_floats, integers=of_integers)
