"""The life of a node between a SuperLink of four methods and an app that is not reached."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from onefed.flower import forking
from onefed.flower.adapter_fleet import Instruction, RunOverError, UnreachableError
from onefed.flower.node.loop import Limits, Node, Wake
from onefed.flower.node.membership import Membership
from onefed.flower.node.workers import Start, Workers

ORDER = Instruction(
    run_id=1,
    message_id="ab" * 32,
    message_type="train",
    round_name="1",
    repeats=False,
    object_ids=(),
    expires_at_s=1e12,
    message=b"",
)


def lost(*, arrived: bool) -> UnreachableError:
    """No answer; whether the request may have been acted on."""
    error = UnreachableError("no answer")
    error.arrived = arrived
    return error


class Superlink:
    """Gives out what a test wants, then stops the node."""

    def __init__(self, wake: Wake, *answers: Any) -> None:
        self.heard: list[str] = []
        self._answers = list(answers)
        self._wake = wake

    def pull(self, _node_id: int) -> Instruction | None:
        answer = self._answers.pop(0) if self._answers else None
        if not self._answers:
            self._wake.stop()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def activate(self) -> int:
        self.heard.append("activate")
        return 7

    def deactivate(self, _node_id: int) -> None:
        self.heard.append("deactivate")

    def heartbeat(self, _node_id: int) -> None:
        self.heard.append("heartbeat")

    def run(self, _node_id: int, _run_id: int) -> None:
        self.heard.append("asked for the run")
        raise RunOverError("it is over")


@pytest.mark.parametrize(
    ("answers", "heard"),
    [
        ((lost(arrived=True), lost(arrived=False), None), ["deactivate", "activate"]),
        ((lost(arrived=False), None), ["heartbeat"]),
        ((lost(arrived=True), ORDER), ["heartbeat", "asked for the run"]),
    ],
    ids=["an answer was lost", "nobody was there", "the message came all the same"],
)
def test_a_node_that_may_have_lost_a_message_joins_anew_so_that_it_is_asked_again(
    tmp_path: Path, answers: tuple[Any, ...], heard: list[str]
) -> None:
    """Flower gives a message out once; a ServerApp sees who was activated since it sent it."""
    wake = Wake()
    fleet: Any = Superlink(wake, None, *answers, None)
    ours, theirs = forking.pair()
    workers = Workers(ours, Start.AUTO)
    node = Node(
        fleet,
        Membership(fleet, "127.0.0.1:1", tmp_path / "present.json", registers=False),
        workers,
        node_config={},
        fleet_size=1,
        limits=Limits(None, None, 0.0),
        wake=wake,
        clock=lambda: 0.0,
        wall_clock=lambda: 0.0,
        random=lambda: 0.0,
        warn=lambda _: None,
    )
    try:
        node.run()
    finally:
        workers.close()
        theirs.close()
    assert fleet.heard == ["activate", *heard, "deactivate"]
