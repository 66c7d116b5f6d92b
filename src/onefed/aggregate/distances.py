"""Squared distances between updates, and what Krum makes of them.

Updates differ by little and share almost everything: the model that they started from. So each is
first centred on it; distances of the models themselves drown in rounding, and the wrong client
wins (in float32 they are off by a quarter on real clients, and by more the smaller the updates).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from onefed import arrays
from onefed.aggregate import base, kernels

if TYPE_CHECKING:
    from collections.abc import Sequence

    from onefed.arrays import Arrays

Distances: TypeAlias = NDArray[np.float64]
"""(n, n), symmetric, 0 on the diagonal; infinite where a square leaves float64."""


def squared_distances(updates: Sequence[base.Update], model: Arrays) -> Distances:
    """||u_i - u_j||^2 over all float arrays, for updates in client order.

    With G the Gram matrix of the updates centred on ``model``, summed over the float arrays in
    code-point order of their keys: d_ij = max(0, (G_ii + G_jj) - 2 * G_ij), in float64. Two
    identical updates are at distance exactly 0. An update whose own G_ii is not finite (one near
    the end of float32 minus a model of the opposite sign) is infinitely far from all others.
    """
    count = len(updates)
    gram = np.zeros((count, count), np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        for key in sorted(model):
            like = model[key]
            if like.size and arrays.is_float(like.dtype):
                gram += kernels.gram(
                    [base.flat(update.arrays[key]) for update in updates], base.flat(like)
                )
        own = np.diagonal(gram)
        distances: Distances = np.maximum(0.0, (own[:, None] + own[None, :]) - 2.0 * gram)
    distances[~np.isfinite(distances)] = np.inf
    np.fill_diagonal(distances, 0.0)
    return distances


class Candidates:
    """Clients that Krum may still choose, by their index in client order.

    Blanchard et al. 2017: the score of i is the sum of its squared distances to the c others that
    are closest to it, c = max(1, n - f - 2) among n left; summed in ascending order, in float64.
    The smallest score wins, ties by client order.
    """

    def __init__(self, distances: Distances, num_malicious: int) -> None:
        count = len(distances)
        others = ~np.eye(count, dtype=bool)
        far = distances[others].reshape(count, max(0, count - 1))
        who = np.broadcast_to(np.arange(count), (count, count))[others].reshape(far.shape)
        ascending = np.argsort(far, axis=1, kind="stable")
        self._left = np.arange(count)
        self._far = np.take_along_axis(far, ascending, axis=1)
        self._who = np.take_along_axis(who, ascending, axis=1)
        self._num_malicious = num_malicious

    def scores(self) -> NDArray[np.float64]:
        """One for each client left, in client order; all 0 when one is left."""
        closest = max(1, len(self._left) - self._num_malicious - 2)
        scores = np.zeros(len(self._left))
        for neighbour in range(min(closest, self._far.shape[1])):
            scores += self._far[:, neighbour]
        return scores

    def best(self, count: int) -> list[int]:
        """The ``count`` clients of smallest score, in client order; they stay candidates."""
        ranked = np.argsort(self.scores(), kind="stable")[:count]
        return sorted(self._left[ranked].tolist())

    def take(self) -> int:
        """Choose the client of smallest score and remove it."""
        row = int(np.argmin(self.scores()))
        chosen = int(self._left[row])
        stays = self._left != chosen
        count = len(self._left) - 1
        self._left = self._left[stays]
        kept = self._who[stays] != chosen
        self._far = self._far[stays][kept].reshape(count, max(0, count - 1))
        self._who = self._who[stays][kept].reshape(self._far.shape)
        return chosen
