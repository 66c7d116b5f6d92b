"""``rejoin``: a node that failed comes back with what it was."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onefed.node.communication import Communication
    from onefed.node.learner import Learner
    from onefed.node.world import NodeState


async def rejoin(
    state: NodeState,
    learner: Learner,
    communication_protocol: Communication,
    experiment_name: str | None = None,
    round: int | None = None,  # noqa: A002 - the name is the contract's
) -> bool:
    """Restore a node, have it catch up, and let it take part again.

    Tried in this order: checkpoints on its own disk (the last round first; of a round ``local``,
    ``aggregated``, ``round_finished``), what other nodes have kept of it, a fresh start. Whatever
    is restored, the model that is trained next is the one that the group has agreed on.

    Args:
        state: of the node that failed: its name, the rounds of the run.
        learner: of the node that comes back. It has been started, and does not learn yet.
        communication_protocol: of the same, connected to the others. Where the disk of the failed
            node is lost it has another name, ``r1-NAME`` for ``NAME``: it has forgotten its votes.
        experiment_name: None: that of ``state``.
        round: the newest to be restored; None: the last one that is found.

    Returns:
        Whether a checkpoint was restored; the node takes part in any case.

    Raises:
        NodeError: ``state`` does not say how many rounds there are, or the node cannot begin.
    """
    folder = learner.checkpoints
    experiment = folder.experiment if experiment_name is None else experiment_name
    found = None
    if experiment == folder.experiment:
        found = await asyncio.to_thread(folder.newest, state.name, up_to=round)
    if found is not None:
        await learner.restore(found)
    await communication_protocol.resume(state, look_elsewhere=found is None)
    return found is not None or await communication_protocol.restored()
