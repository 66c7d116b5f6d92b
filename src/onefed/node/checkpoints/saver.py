"""``save_checkpoint``: a checkpoint of a node, whenever somebody wants one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from onefed.node.checkpoints.file import Kind

if TYPE_CHECKING:
    from onefed.node.learner import Learner
    from onefed.node.world import NodeState


async def save_checkpoint(
    state: NodeState,
    learner: Learner,
    round: int | None = None,  # noqa: A002 - the name is the contract's
    include_evaluation: bool = False,
    *,
    kind: Kind = Kind.LOCAL,
) -> Path:
    """Write what a node has now, durably; every save is told as an event.

    A node writes its checkpoints by itself after each training, aggregation and round; this is for
    one more, for example with an evaluation.

    Args:
        state: of the node.
        learner: of the same node; it has a model.
        round: after which it is named; None: the last one that is installed.
        include_evaluation: judge the model by the app's own measure, where it has one. Slower.

    Raises:
        StorageError: it cannot be written.
    """
    number = state.round_number if round is None else round
    return await learner.save(kind, number, state, include_evaluation=include_evaluation)
