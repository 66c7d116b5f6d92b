"""Real models in a simulated group: arrays of one dtype, trained by a function that is handed in.

The rule works range by range on the flat model, so a shard has the bits that the rule would give
it as part of the whole: the root is the ``model_sha256`` of the hub engine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from onefed import aggregate, arrays
from onefed.arrays import Arrays
from onefed.peer.messages import Contribution, Digest, NodeId
from onefed.sim.content import Content

Train = Callable[[NodeId, Arrays, int], tuple[Arrays, int]]
"""Node, model and round number to update and number of examples."""


class ArrayMatter:
    """Flat vectors of a model whose arrays all have one dtype, under a rule without state."""

    def __init__(self, first: Arrays, train: Train, rule: aggregate.Rule) -> None:
        assert len({array.dtype for array in first.values()}) == 1, "one dtype"
        self._like = first
        self._train = train
        self._rule = rule

    def model(self, flat: Content) -> Arrays:
        """Named arrays of a flat model."""
        cuts = np.cumsum([array.size for array in self._like.values()])[:-1]
        parts = np.split(flat, cuts)
        return {
            name: part.reshape(array.shape)
            for (name, array), part in zip(self._like.items(), parts, strict=True)
        }

    def first(self) -> Content:
        """As handed in."""
        return _flat(self._like)

    def digest(self, model: Content) -> Digest:
        """``model_sha256``."""
        return arrays.digest(self.model(model))

    def size_bytes(self, content: Content) -> int:
        """Of its elements."""
        return int(content.nbytes)

    def train(
        self, node: NodeId, base: Content, round_number: int, salt: int
    ) -> tuple[Content, int]:
        """Ask the function that was handed in."""
        update, examples = self._train(node, self.model(base), round_number)
        return _flat({name: update[name] for name in self._like}), examples

    def part(self, update: Content, index: int, count: int) -> Content:
        """One of ``count`` nearly equal ranges."""
        size = update.size
        return update[index * size // count : (index + 1) * size // count]

    def reduce(
        self, base: Content, parts: Sequence[Content], contributors: Sequence[Contribution]
    ) -> Content:
        """One step of the rule on this range."""
        updates = [
            aggregate.Update(each.node, each.weight, {"part": part})
            for each, part in zip(contributors, parts, strict=True)
        ]
        _, result = self._rule.step({}, {"part": base}, updates, 1)
        return result["part"]

    def join(self, shards: Sequence[Content]) -> Content:
        """One after the other."""
        return np.concatenate(shards)


def _flat(model: Arrays) -> Content:
    return np.concatenate([array.reshape(-1) for array in model.values()])
