"""One phase of a round on scripted nodes, in virtual time."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from flwr.app import Message, MessageType, RecordDict

from onefed.flower import clients, exchange
from onefed.flower.exchange import Collected, Reply

TIMEOUT_S = 60.0


class Phase:
    """Asks every node of a grid, and notes what was told of progress."""

    def __init__(self, grid: Any, clock: Any) -> None:
        self.told: list[tuple[float, str]] = []
        self._grid = grid
        self._clock = clock

    def run(self, timeout_s: float = TIMEOUT_S) -> Collected:
        everyone = clients.connected(self._grid)
        return exchange.exchange(
            self._grid,
            {
                client: Message(RecordDict(), client.node_id, MessageType.TRAIN)
                for client in everyone
            },
            timeout_s=timeout_s,
            clock=self._clock,
            sleep=self._clock.sleep,
            on_reply=self._note,
        )

    def _note(self, reply: Reply) -> None:
        self.told.append((self._clock(), reply.client.key))


@pytest.fixture
def phase(grid: Any, clock: Any) -> Phase:
    return Phase(grid, clock)


def replied(collected: Collected) -> list[str]:
    return [reply.client.key for reply in collected.replies]


def failed(collected: Collected) -> dict[str, str]:
    return {failure.client.key: failure.error_type for failure in collected.failures}


def test_replies_are_handed_on_as_they_arrive(
    grid: Any, phase: Phase, hub: SimpleNamespace
) -> None:
    grid.add("0", lambda message: [(9.0, hub.answer(message))])
    grid.add("1", lambda message: [(2.0, hub.answer(message))])
    grid.add("2", hub.answer)

    collected = phase.run()

    assert replied(collected) == ["2", "1", "0"]
    assert [key for _, key in phase.told] == ["2", "1", "0"]
    for reply, (_, due_s) in zip(
        collected.replies, [("2", 0.0), ("1", 2.0), ("0", 9.0)], strict=True
    ):
        assert due_s <= reply.seconds <= due_s + exchange.POLL_MAX_S
    assert collected.failures == ()


def test_a_reply_that_lies_there_at_the_deadline_counts_and_a_later_one_does_not(
    grid: Any, phase: Phase, hub: SimpleNamespace
) -> None:
    grid.add("0", lambda message: [(TIMEOUT_S, hub.answer(message))])
    grid.add("1", lambda message: [(TIMEOUT_S + 0.1, hub.answer(message))])

    collected = phase.run()

    assert replied(collected) == ["0"]
    assert failed(collected) == {"1": "timeout"}


def test_the_deadline_names_every_client_that_was_silent(
    grid: Any, clock: Any, phase: Phase, hub: SimpleNamespace
) -> None:
    for key in ("0", "1"):
        grid.add(key, lambda _message: None)
    grid.add("2", hub.answer)

    collected = phase.run(timeout_s=2.5)

    assert failed(collected) == {"0": "timeout", "1": "timeout"}
    assert {failure.reason for failure in collected.failures} == {"no reply within 2.5 s"}
    assert clock() == pytest.approx(2.5)


def test_a_deadline_of_nothing_still_looks_once(
    grid: Any, phase: Phase, hub: SimpleNamespace
) -> None:
    grid.add("0", hub.answer)
    grid.add("1", lambda message: [(0.01, hub.answer(message))])

    collected = phase.run(timeout_s=0.0)

    assert replied(collected) == ["0"]
    assert failed(collected) == {"1": "timeout"}


@pytest.mark.parametrize(
    ("code", "error_type"),
    [(1, "app_not_loaded"), (2, "app_raised"), (5, "node_unavailable"), (8, "app_crashed")],
)
def test_an_error_that_the_superlink_made_is_that_of_the_silent_client(
    grid: Any, phase: Phase, hub: SimpleNamespace, code: int, error_type: str
) -> None:
    grid.add("0", hub.answer)
    grid.add("1", lambda message: hub.error_of(message, code, "gone", by_superlink=True))

    collected = phase.run()

    assert replied(collected) == ["0"]
    assert failed(collected) == {"1": error_type}


def test_an_unknown_error_code_is_told_with_its_number(
    grid: Any, phase: Phase, hub: SimpleNamespace
) -> None:
    grid.add("0", lambda message: hub.error_of(message, 4711, None, by_superlink=False))

    [failure] = phase.run().failures

    assert (failure.error_type, failure.reason) == ("code_4711", "no reason given")


def test_what_a_client_says_about_its_failure_is_one_bounded_line(
    grid: Any, phase: Phase, hub: SimpleNamespace
) -> None:
    story = "Traceback:\n  File x\n" + "!" * 1_000_000
    grid.add("0", lambda message: hub.error_of(message, 2, story, by_superlink=False))

    [failure] = phase.run().failures

    assert failure.reason.startswith("Traceback: File x !!!")
    assert len(failure.reason) <= exchange.REASON_LENGTH_MAX


def test_a_reply_without_content_or_error_is_malformed(
    grid: Any, phase: Phase, hub: SimpleNamespace
) -> None:
    def hollow(message: Message) -> Message:
        reply = hub.answer(message)
        reply.__dict__["_content"] = None
        return reply

    grid.add("0", hollow)

    assert failed(phase.run()) == {"0": "malformed_reply"}


def test_the_first_of_several_replies_counts(grid: Any, phase: Phase, hub: SimpleNamespace) -> None:
    grid.add(
        "0",
        lambda message: [
            (0.0, hub.answer(message, num_examples=1)),
            (0.0, hub.answer(message, num_examples=2)),
            (0.1, hub.error_of(message, 2, "too late", by_superlink=False)),
        ],
    )
    grid.add("1", lambda message: [(5.0, hub.answer(message))])

    collected = phase.run()

    assert replied(collected) == ["0", "1"]
    assert collected.replies[0].content["metrics"]["num-examples"] == 1
    assert collected.failures == ()


def test_replies_to_other_messages_are_left_alone(
    grid: Any, phase: Phase, hub: SimpleNamespace
) -> None:
    grid.add("0", lambda message: [(1.0, hub.answer(message, num_examples=5))])
    earlier = Message(RecordDict(), 77, MessageType.TRAIN)
    earlier.metadata.__dict__["_message_id"] = "message-of-the-round-before"
    grid.strays = [
        hub.answer(earlier, num_examples=1),
        hub.error_of(earlier, 2, "x", by_superlink=False),
    ]

    collected = phase.run()

    assert [reply.content["metrics"]["num-examples"] for reply in collected.replies] == [5]
    assert collected.failures == ()


def test_messages_that_the_superlink_does_not_take_are_named_at_once(
    grid: Any, clock: Any, phase: Phase, hub: SimpleNamespace
) -> None:
    grid.add("0", hub.answer)
    gone = grid.add("1", hub.answer)
    push = grid.push_messages
    grid.push_messages = lambda messages: [grid.remove(gone), *push(messages)][1:]

    collected = phase.run()

    assert replied(collected) == ["0"]
    assert failed(collected) == {"1": "not_sent"}
    assert clock() == 0.0


def test_messages_that_are_too_large_together_are_nobodys_and_end_nothing(
    grid: Any, clock: Any, phase: Phase, hub: SimpleNamespace
) -> None:
    for key in ("0", "1"):
        grid.add(key, hub.answer)
    grid.full = True

    assert failed(phase.run()) == {"0": "not_sent", "1": "not_sent"}
    assert clock() == 0.0


def test_polling_backs_off_while_nothing_comes_and_is_quick_again_after_a_reply(
    grid: Any, clock: Any, phase: Phase, hub: SimpleNamespace
) -> None:
    grid.add("0", lambda message: [(20.0, hub.answer(message))])
    grid.add("1", lambda _message: None)

    phase.run()

    pauses = [round(later - at, 6) for at, later in itertools.pairwise(grid.polls_at)]
    reply_at = next(index for index, at in enumerate(grid.polls_at) if at >= 20.0)
    before, after = pauses[:reply_at], pauses[reply_at:]
    assert before == sorted(before)
    assert (before[0], before[-1]) == (exchange.POLL_FIRST_S, exchange.POLL_MAX_S)
    assert after[0] == exchange.POLL_FIRST_S
    assert max(pauses) == exchange.POLL_MAX_S
    assert len(grid.polls_at) < TIMEOUT_S / exchange.POLL_MAX_S + 50


def test_asking_nobody_takes_no_time(grid: Any, clock: Any, phase: Phase) -> None:
    assert phase.run() == Collected((), ())
    assert grid.polls_at == []
    assert clock() == 0.0


def test_a_reply_that_flower_cannot_read_ends_no_phase(
    grid: Any, phase: Phase, hub: SimpleNamespace
) -> None:
    """It raises out of Flower's grid, with the replies that came in the same look."""
    grid.add("0", lambda message: [(1.0, hub.answer(message))])
    grid.undecodable.add(grid.add("1", lambda message: [(5.0, hub.answer(message))]))
    grid.add("2", lambda message: [(5.0, hub.answer(message))])
    grid.add("3", lambda message: [(9.0, hub.answer(message))])

    collected = phase.run()

    assert replied(collected) == ["0", "3"]
    assert failed(collected) == {"1": "message_unavailable", "2": "message_unavailable"}


def test_a_superlink_that_is_gone_ends_the_phase(
    grid: Any, phase: Phase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flower has tried again for long; the supervisor decides what comes next."""
    grid.add("0", lambda message: [])

    def refuse(_ids: object) -> None:
        raise httpx.ConnectError("refused")

    monkeypatch.setattr(grid, "pull_messages", refuse)
    with pytest.raises(httpx.ConnectError):
        phase.run()
