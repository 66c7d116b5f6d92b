"""How good the models are that a group agrees on, while it trains."""

from __future__ import annotations

import asyncio

from onefed.arrays import Arrays
from onefed.errors import OnefedError
from onefed.flower import peer_app
from onefed.node import Node
from onefed.telemetry import events
from onefed.telemetry.log import EventLog


class Judging:
    """Of one node: it judges those models of whose contributors it is the first.

    The newest counts: where the measure takes longer than a round, some are left out. The last
    model is judged by every node, whoever is left.
    """

    def __init__(
        self, name: str, rounds_total: int, flower: peer_app.PeerApp, log: EventLog
    ) -> None:
        """``flower`` has the measure, if there is one; ``log`` takes the scores."""
        self._name = name
        self._rounds_total = rounds_total
        self._flower = flower
        self._log = log
        self._wanted = asyncio.Event()

    def emit(self, event: events.Event) -> None:
        """Write an event of the node down, and see whether there is a model to judge."""
        self._log.emit(event)
        if (
            isinstance(event, events.PeerRound)
            and event.round < self._rounds_total
            and event.contributors.split(",")[0] == self._name
        ):
            self._wanted.set()

    async def run(self, node: Node) -> None:
        """Judge while there is a measure and it works."""
        works = self._flower.judges
        while works:
            await self._wanted.wait()
            self._wanted.clear()
            number, model = node.state.round_number, await node.model()
            works = await asyncio.to_thread(self.judge, number, model)

    def judge(self, round_number: int, model: Arrays) -> bool:
        """Tell how good a model is, where the app can; False where its measure fails."""
        if not self._flower.judges:
            return True
        try:
            score = self._flower.judge(model)
        except OnefedError as error:
            self._log.emit(events.Notice("WARNING", str(error)))
            return False
        self._log.emit(
            events.EvaluationResult(round_number, score.loss, score.accuracy, score.num_examples)
        )
        return True
