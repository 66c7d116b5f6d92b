"""Named places in a node's round at which a test holds it, and kills it exactly there.

They are those of ``failpoints``: without its variable a node does not even ask. A node that is
held takes no event, while what it has handed to its connections still goes out, so *said* means
that a peer may have heard it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TypeAlias

from onefed.failpoints import Reach
from onefed.peer.interface import (
    AcceptedRecord,
    Action,
    Append,
    Assembled,
    CommittedRecord,
    Event,
    Install,
    Reduce,
    Reduced,
    Send,
    Train,
    Trained,
)
from onefed.peer.messages import Ack, Ballot, Data, Heartbeat, Plan, Shard, Slice

POINTS: Mapping[str, str] = {
    "training": "the app trains; there is no update yet",
    "trained": "the update is in memory; nobody was told",
    "planning": "leader: the plan is made; it was said to nobody",
    "planned": "leader: the plan was said to one; not to the others",
    "sliced": "a part of the own update was sent; the others were not",
    "reduced": "the own part of the result is in memory; nobody has it",
    "sharded": "the own part of the result was sent to one; not to the others",
    "assembled": "the model is on disk; the journal does not know of it",
    "accepted": "the journal has the model, synced; nobody was told that it is held",
    "held": "follower: it was said that the model is held",
    "committing": "the round is known to be committed; the journal does not know it",
    "committed": "the journal has the commit; nothing was said or installed",
    "announced": "leader: the commit was said to one; not to the others",
    "installed": "the model is installed and told",
}
"""Every point, and what has and has not happened there. The number is the round."""

LEADERS_ONLY = frozenset({"planning", "planned", "announced"})
FOLLOWERS_ONLY = frozenset({"held"})

Place: TypeAlias = tuple[str, int]


class Points:
    """Asks at each place, the first time in a round or ballot."""

    def __init__(self, reach: Reach) -> None:
        self._reach = reach
        self._planned = Ballot(0, 0)
        """The newest plan that was said."""
        self._reducing = 0
        """The round of which a part was given out to be reduced."""
        self._said: dict[str, int] = {}
        """Newest round in which something was said that is said to each peer."""

    async def event(self, event: Event) -> None:
        """Before the machine takes it."""
        match event:
            case Trained(round_number=number):
                await self._pass("trained", number)
            case Reduced():
                await self._pass("reduced", self._reducing)
            case Assembled(plan=plan):
                await self._pass("assembled", plan.round_number)
            case _:
                pass

    async def before(self, action: Action) -> None:
        """An action is about to be carried out."""
        match action:
            case Reduce(plan=plan):
                self._reducing = plan.round_number
            case Append(CommittedRecord(entry)):
                await self._pass("committing", entry.round_number)
            case Send(message=Heartbeat(proposal=Plan() as plan)) if plan.ballot > self._planned:
                await self._pass("planning", plan.round_number)
            case _:
                pass

    async def after(self, action: Action) -> None:
        """An action was carried out."""
        match action:
            case Append(AcceptedRecord(entry)):
                await self._pass("accepted", entry.round_number)
            case Append(CommittedRecord(entry)):
                await self._pass("committed", entry.round_number)
            case Send(message=Heartbeat(proposal=Plan() as plan)) if plan.ballot > self._planned:
                self._planned = plan.ballot
                await self._pass("planned", plan.round_number)
            case Send(message=Heartbeat(commit=entry)):
                await self._once("announced", entry.round_number)
            case Send(message=Ack(held=entry)) if entry is not None:
                await self._once("held", entry.round_number)
            case Send(message=Data(Slice(round_number=number))):
                await self._once("sliced", number)
            case Send(message=Data(Shard(round_number=number))):
                await self._once("sharded", number)
            case Train(round_number=number):
                await self._pass("training", number)
            case Install(entry):
                await self._pass("installed", entry.round_number)
            case _:
                pass

    async def _once(self, point: str, number: int) -> None:
        if number > self._said.get(point, 0):
            self._said[point] = number
            await self._pass(point, number)

    async def _pass(self, point: str, number: int) -> None:
        await asyncio.to_thread(self._reach, point, number)
