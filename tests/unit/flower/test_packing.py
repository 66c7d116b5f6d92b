"""Messages in one piece: the same records on both sides, and only between those who understand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from onefed.flower import packing


def records(size: int = 3) -> RecordDict:
    arrays = {"b": np.arange(size, dtype=np.float32), "a": np.float64(1.5).reshape(())}
    return RecordDict(
        {
            "arrays": ArrayRecord({name: Array(np.asarray(each)) for name, each in arrays.items()}),
            "config": ConfigRecord({"server-round": 3, "word": "x", "raw": b"\x00"}),
            "metrics": MetricRecord({"num-examples": 5, "losses": [0.1, 0.2]}),
        }
    )


def test_records_come_out_as_they_went_in() -> None:
    content = records()
    packed = packing.pack(content)
    assert packed is not None
    assert list(packed) == [packing.PACKED]
    opened = packing.unpack(packed)
    assert opened is not None
    assert opened == content
    assert list(opened["arrays"]) == ["b", "a"]


def test_a_large_message_is_left_as_it_is() -> None:
    assert packing.pack(records(packing.PACKED_BYTES_MAX // 4 + 1)) is None
    text = ConfigRecord({"long": "x" * (packing.PACKED_BYTES_MAX + 1)})
    assert packing.pack(RecordDict({"config": text})) is None


@pytest.mark.parametrize(
    "record",
    [
        ConfigRecord({packing.PACKED: b"\xff\xff\xff"}),
        ConfigRecord({packing.PACKED: "text"}),
        ConfigRecord({"other": b""}),
        MetricRecord({packing.PACKED: 5}),
    ],
)
def test_what_is_called_packed_and_is_not_is_a_value_error(record: Any) -> None:
    with pytest.raises(ValueError, match="packed message"):
        packing.unpack(RecordDict({packing.PACKED: record}))


class TestGrid:
    """Our grid over one with virtual nodes."""

    def send(self, grid: packing.PackingGrid, node_id: int) -> Message:
        """One message to the node and its reply, as the round loop sees them."""
        message = Message(records(), node_id, "train", group_id="3")
        grid.push_messages([message])
        [reply] = grid.pull_messages([message.metadata.message_id])
        return reply

    def ours(self, message: Message) -> Message:
        """What our node does."""
        assert packing.take_offer(message)
        assert message.metadata.group_id == "3"
        assert message.content == records(), "the app sees the records"
        content = packing.pack(RecordDict({"metrics": MetricRecord({"num-examples": 7})}))
        assert content is not None
        return Message(content, reply_to=message)

    def test_a_node_of_ours_is_sent_packed_messages_once_it_has_replied(self, grid: Any) -> None:
        seen = []

        def behave(message: Message) -> Message:
            seen.append(list(message.content))
            return self.ours(message)

        node_id = grid.add("0", behave)
        packing_grid = packing.PackingGrid(grid)
        for _ in range(2):
            reply = self.send(packing_grid, node_id)
            assert reply.content["metrics"]["num-examples"] == 7
        assert seen == [["arrays", "config", "metrics"], [packing.PACKED]]

    def test_a_stock_node_never_sees_a_packed_message(self, grid: Any, hub: Any) -> None:
        seen = []

        def behave(message: Message) -> Message:
            seen.append(list(message.content))
            return hub.answer(message, num_examples=5)

        node_id = grid.add("0", behave)
        packing_grid = packing.PackingGrid(grid)
        for _ in range(2):
            reply = self.send(packing_grid, node_id)
            assert reply.content["metrics"]["num-examples"] == 5
        assert seen == [["arrays", "config", "metrics"]] * 2

    def test_after_an_error_the_node_is_asked_in_plain_again(self, grid: Any, hub: Any) -> None:
        """A stock SuperNode may have taken the place of ours; the SuperLink may answer for it."""
        seen = []

        def behave(message: Message) -> Message:
            seen.append(list(message.content))
            if len(seen) == 2:
                return hub.error_of(message, 8, "crashed", by_superlink=True)
            return self.ours(message)

        node_id = grid.add("0", behave)
        packing_grid = packing.PackingGrid(grid)
        replies = [self.send(packing_grid, node_id) for _ in range(3)]
        assert [reply.has_error() for reply in replies] == [False, True, False]
        assert [len(names) for names in seen] == [3, 1, 3]

    def test_a_reply_that_cannot_be_unpacked_takes_no_other_along(self, grid: Any) -> None:
        broken = RecordDict({packing.PACKED: ConfigRecord({packing.PACKED: b"\xff"})})
        node_id = grid.add("0", lambda message: Message(broken, reply_to=message))
        reply = self.send(packing.PackingGrid(grid), node_id)
        assert list(reply.content.array_records) == []


def test_a_message_without_an_offer_is_left_alone() -> None:
    """That of another ServerApp."""
    message = Message(records(), 5, "train", group_id="round 3")
    assert not packing.take_offer(message)
    assert message.metadata.group_id == "round 3"
