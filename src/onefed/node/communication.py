"""A node as ``rejoin`` sees its connections: who is there, and how it takes part again."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from onefed.node.world import NodeError, NodeState
from onefed.peer.messages import NodeId


class Begin(Protocol):
    """``Node.set_start_learning``."""

    def __call__(
        self,
        rounds: int,
        epochs: int | None,
        *,
        founds: bool,
        restores: tuple[NodeId, ...],
    ) -> Awaitable[None]:
        """Learn, with the checkpoints of these nodes, as far as others keep them."""
        ...


@dataclass(frozen=True, slots=True)
class Communication:
    """Of one node, to the others."""

    name: NodeId
    neighbours: Callable[[], Mapping[NodeId, str]]
    """Every other member that is known, and how it is: ``live`` or ``lost``."""
    restored: Callable[[], Awaitable[bool]]
    """Wait until what others have kept was restored; False: nobody has anything."""
    begin: Begin

    async def resume(self, state: NodeState, *, look_elsewhere: bool) -> None:
        """Take part again, as a node that was in the state ``state``."""
        if state.rounds_total < 1:
            raise NodeError(
                f"The state of {state.name} does not say how many rounds there are.",
                hint="Hand in the state of the node that failed, or call set_start_learning.",
            )
        is_same = state.name == self.name
        restores = (state.name,) if look_elsewhere else ()
        await self.begin(state.rounds_total, state.epochs, founds=is_same, restores=restores)
