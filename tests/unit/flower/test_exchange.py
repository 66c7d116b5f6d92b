"""One phase of a round on scripted nodes, in virtual time."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from flwr.app import Message, MessageType, RecordDict

from onefed.flower import clients, exchange
from onefed.flower.exchange import Reply

TIMEOUT_S = 60.0


@dataclass
class Collected:
    """Every outcome of a phase."""

    replies: list[Reply] = field(default_factory=list)
    failures: list[exchange.Failure] = field(default_factory=list)


class Phase:
    """Asks every node of a grid, and notes what was told of progress."""

    def __init__(self, grid: Any, clock: Any) -> None:
        self.told: list[tuple[float, str]] = []
        self.stalls: list[tuple[float, int, int]] = []
        self.required = 10**9
        """Replies that are enough; more than there are, unless a test says so."""
        self.limit_enough_s: float | None = None
        self._grid = grid
        self._clock = clock

    def run(self, timeout_s: float = TIMEOUT_S, **options: Any) -> Collected:
        everyone = clients.connected(self._grid)
        collected = Collected()
        for outcome in exchange.exchange(
            self._grid,
            everyone,
            lambda client: Message(RecordDict(), client.node_id, MessageType.TRAIN),
            patience=exchange.Patience(
                enough=lambda: len(collected.replies) >= self.required,
                limit_s=lambda: timeout_s,
                limit_enough_s=lambda: self.limit_enough_s or timeout_s,
                stalled=lambda *told: self.stalls.append(told),
            ),
            clock=self._clock,
            sleep=self._clock.sleep,
            **{"reply_bytes": 1, **options},
        ):
            if isinstance(outcome, Reply):
                self.told.append((self._clock(), outcome.client.key))
                collected.replies.append(outcome)
            else:
                collected.failures.append(outcome)
        return collected


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
    assert collected.failures == []


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
    assert collected.failures == []


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
    assert collected.failures == []


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
    assert phase.run() == Collected()
    assert grid.polls_at == []
    assert clock() == 0.0


def test_a_reply_that_flower_cannot_read_ends_no_phase(
    grid: Any, phase: Phase, hub: SimpleNamespace
) -> None:
    """It raises out of Flower's grid, with the replies that came in the same look: their clients
    are asked again."""
    grid.add("0", lambda message: [(1.0, hub.answer(message))])
    grid.undecodable.add(grid.add("1", lambda message: [(5.0, hub.answer(message))]))
    grid.add("2", lambda message: [(5.0, hub.answer(message))])
    grid.add("3", lambda message: [(9.0, hub.answer(message))])

    collected = phase.run()

    assert replied(collected) == ["0", "3", "2"]
    assert failed(collected) == {"1": "malformed_reply"}


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


class TestComingBack:
    """A node that restarts has lost its message: Flower delivers at most once."""

    def test_a_node_that_came_back_gets_its_message_again(
        self, grid: Any, clock: Any, phase: Phase, hub: SimpleNamespace
    ) -> None:
        node = grid.add("0", lambda _message: None)
        grid.add("1", hub.answer)
        clock.at(10.0, lambda: grid.remove(node))
        clock.at(12.0, lambda: grid.add("0", hub.answer, node))

        collected = phase.run()

        assert replied(collected) == ["1", "0"]
        assert collected.failures == []
        assert clock() < 15
        assert [message.metadata.dst_node_id for message in grid.sent].count(node) == 2

    def test_who_answered_a_look_of_which_the_superlink_died_is_asked_again(
        self, grid: Any, clock: Any, phase: Phase, hub: SimpleNamespace
    ) -> None:
        quick = grid.add("0", hub.answer)
        slow = grid.add("1", lambda message: [(exchange.DOUBT_S - 1, hub.answer(message))])
        grid.loses_answer = True

        collected = phase.run(interruptions=lambda: grid.interruptions)

        assert replied(collected) == ["1", "0"]
        assert collected.failures == []
        asked = [message.metadata.dst_node_id for message in grid.sent]
        assert (asked.count(quick), asked.count(slow)) == (2, 1), "who works on is left alone"
        assert clock() < exchange.DOUBT_S + 2

    def test_a_node_that_stays_gets_one_message(self, grid: Any, phase: Phase) -> None:
        grid.add("0", lambda _message: None)

        phase.run()

        assert len(grid.sent) == 1

    def test_the_first_reply_counts_whichever_message_it_answers(
        self, grid: Any, clock: Any, phase: Phase, hub: SimpleNamespace
    ) -> None:
        node = grid.add("0", lambda message: [(20.0, hub.answer(message, num_examples=1))])
        grid.add("1", lambda message: [(40.0, hub.answer(message))])
        again = [(25.0, 2)]
        clock.at(
            5.0,
            lambda: grid.add(
                "0",
                lambda m: [(delay_s, hub.answer(m, num_examples=n)) for delay_s, n in again],
                node,
            ),
        )

        collected = phase.run()

        assert replied(collected) == ["0", "1"]
        assert collected.replies[0].content["metrics"]["num-examples"] == 1

    def test_an_error_about_the_old_message_does_not_cost_the_new_one(
        self, grid: Any, clock: Any, phase: Phase, hub: SimpleNamespace
    ) -> None:
        node = grid.add("0", lambda m: [(20.0, hub.error_of(m, 5, "gone", by_superlink=True))])
        clock.at(5.0, lambda: grid.add("0", lambda message: [(30.0, hub.answer(message))], node))

        assert replied(phase.run()) == ["0"]

    def test_who_is_reported_gone_is_waited_for_while_it_is_needed(
        self, grid: Any, clock: Any, phase: Phase, hub: SimpleNamespace
    ) -> None:
        node = grid.add("0", lambda m: [(3.0, hub.error_of(m, 5, "gone", by_superlink=True))])
        grid.add("1", hub.answer)
        clock.at(2.0, lambda: grid.remove(node))
        clock.at(35.0, lambda: grid.add("0", hub.answer, node))

        collected = phase.run()

        assert replied(collected) == ["1", "0"]
        assert [(round(waited_s), *rest) for waited_s, *rest in phase.stalls] == [
            (10, 1, 1),
            (20, 1, 1),
            (30, 1, 1),
        ]

    def test_and_not_when_there_is_enough_without_it(
        self, grid: Any, clock: Any, phase: Phase, hub: SimpleNamespace
    ) -> None:
        phase.required = 1
        node = grid.add("0", lambda m: [(3.0, hub.error_of(m, 5, "gone", by_superlink=True))])
        grid.add("1", hub.answer)
        clock.at(2.0, lambda: grid.remove(node))

        collected = phase.run()

        assert failed(collected) == {"0": "node_unavailable"}
        assert clock() < 4

    def test_and_not_when_another_client_could_take_its_place(
        self, grid: Any, clock: Any, phase: Phase, hub: SimpleNamespace
    ) -> None:
        node = grid.add("0", lambda m: [(3.0, hub.error_of(m, 5, "gone", by_superlink=True))])
        grid.add("1", hub.answer)
        clock.at(2.0, lambda: grid.remove(node))
        clock.at(20.0, lambda: grid.add("2", hub.answer))

        collected = phase.run()

        assert failed(collected) == {"0": "node_unavailable"}
        assert 20 <= clock() < 23

    def test_a_node_that_comes_and_goes_is_sent_a_bounded_number_of_messages(
        self, grid: Any, clock: Any, phase: Phase
    ) -> None:
        node = grid.add("0", lambda _message: None)
        for second in range(2, 50, 2):
            clock.at(float(second), lambda: grid.add("0", lambda _message: None, node))

        assert failed(phase.run()) == {"0": "timeout"}
        assert len(grid.sent) == exchange.MESSAGES_MAX


class TestPatience:
    def test_once_there_is_enough_the_rest_has_until_the_shorter_limit(
        self, grid: Any, clock: Any, phase: Phase, hub: SimpleNamespace
    ) -> None:
        phase.required, phase.limit_enough_s = 1, 5.0
        grid.add("0", lambda message: [(1.0, hub.answer(message))])
        grid.add("1", lambda message: [(4.0, hub.answer(message))])
        grid.add("2", lambda message: [(6.0, hub.answer(message))])

        collected = phase.run()

        assert replied(collected) == ["0", "1"]
        assert failed(collected) == {"2": "timeout"}
        assert clock() == pytest.approx(5.0)

    def test_while_there_is_not_enough_the_longer_one_counts(
        self, grid: Any, clock: Any, phase: Phase, hub: SimpleNamespace
    ) -> None:
        phase.required, phase.limit_enough_s = 2, 5.0
        grid.add("0", hub.answer)
        grid.add("1", lambda message: [(40.0, hub.answer(message))])

        assert replied(phase.run()) == ["0", "1"]


class TestUnreadable:
    def test_an_unreadable_reply_costs_only_its_own_client(
        self, grid: Any, clock: Any, phase: Phase, hub: SimpleNamespace
    ) -> None:
        """Those of the same look are lost with it in Flower, so they are asked again."""
        for key in "0123":
            grid.add(key, hub.answer)
        grid.undecodable = {grid.add("4", hub.answer)}

        collected = phase.run()

        assert sorted(replied(collected)) == list("0123")
        assert failed(collected) == {"4": "malformed_reply"}
        assert "Flower cannot read it" in collected.failures[0].reason
        assert clock() < 5

    def test_who_had_not_answered_yet_is_asked_twice_and_counts_once(
        self, grid: Any, phase: Phase, hub: SimpleNamespace
    ) -> None:
        """Nobody says whether its reply was among those that are lost."""
        slow = grid.add("0", lambda message: [(9.0, hub.answer(message))])
        grid.undecodable = {grid.add("1", hub.answer)}

        assert replied(phase.run()) == ["0"]
        assert [message.metadata.dst_node_id for message in grid.sent].count(slow) == 2

    def test_who_did_it_once_is_looked_at_alone_from_then_on(
        self, grid: Any, phase: Phase, hub: SimpleNamespace
    ) -> None:
        suspects: set[str] = set()
        for key in "013":
            grid.add(key, hub.answer)
        grid.undecodable = {grid.add("2", hub.answer)}
        phase.run(suspects=suspects)
        assert suspects == {"2"}
        sent_before = len(grid.sent)

        assert failed(phase.run(suspects=suspects)) == {"2": "malformed_reply"}
        assert len(grid.sent) == sent_before + 4


def test_a_look_asks_for_no_more_than_fits_into_memory(
    grid: Any, phase: Phase, hub: SimpleNamespace
) -> None:
    asked: list[int] = []
    pull = grid.pull_messages

    def count(message_ids: Any) -> Any:
        asked.append(len(list(message_ids)))
        return pull(message_ids)

    grid.pull_messages = count
    for key in range(7):
        grid.add(str(key), hub.answer)

    collected = phase.run(reply_bytes=exchange.LOOK_BYTES_MAX // 3)

    assert len(collected.replies) == 7
    assert asked == [3, 3, 1]
