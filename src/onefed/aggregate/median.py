"""FedMedian: the coordinate-wise median.

Yin, Chen, Ramchandran, Bartlett: Byzantine-Robust Distributed Learning: Towards Optimal Statistical
Rates, ICML 2018 (arXiv 1803.01498), Definition 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from onefed.aggregate import base, integers, kernels
from onefed.aggregate.robust import RobustRule

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from onefed.arrays import Arrays


@dataclass(frozen=True)
class FedMedian(RobustRule):
    """Per coordinate, the middle value; of an even number, the mean of the middle two.

    With fewer hostile clients than half, each coordinate stays between the smallest and the largest
    honest value. The mean of two is taken in float64 and rounded once; integers likewise, half to
    even; a bool is the majority by heads, a tie is False.
    """

    name: ClassVar[str] = "FedMedian"

    def combine(self, arrays: Arrays, updates: Sequence[base.Update]) -> Arrays:
        """Median of each coordinate."""
        return base.by_array(updates, arrays, floats=_median, integers=integers.median)


def _median(columns: Sequence[NDArray[Any]], out: NDArray[Any]) -> None:
    count = len(columns)
    kernels.sorted_mean(columns, (count - 1) // 2, count // 2 + 1, out)
