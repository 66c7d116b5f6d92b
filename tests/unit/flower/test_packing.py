"""Messages in one piece: the same records on both sides, and only between those who understand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import validate_object_content

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


def question(content: RecordDict | None = None) -> Message:
    return Message(records() if content is None else content, 5, "train", group_id="3")


def objects(message: Message) -> dict[str, bytes]:
    """What Flower sends of it, by the names it has at the SuperLink."""
    return {name: part.deflate() for name, part in get_all_nested_objects(message).items()}


def test_a_packed_message_is_one_object_with_the_same_records() -> None:
    message = question()
    parts = objects(packing.pack(message))
    [name] = parts
    opened = packing.inflate(name, dict(parts))
    assert isinstance(opened, packing.Packed)
    assert opened.content == message.content
    assert list(opened.content["arrays"]) == ["b", "a"]
    assert opened.metadata == message.metadata
    # Flower's SuperLink looks at it before it keeps it.
    validate_object_content(parts[name])


def test_a_plain_message_is_read_as_before() -> None:
    parts = objects(question())
    assert len(parts) > 5
    opened = packing.inflate(question_name(parts), dict(parts))
    assert not isinstance(opened, packing.Packed)
    assert opened.content == records()
    error = Message(Error(7, "why"), reply_to=opened)
    [name] = objects(error)
    assert packing.inflate(name, objects(error)).error.reason == "why"


def question_name(parts: dict[str, bytes]) -> str:
    return list(parts)[-1]  # after everything that it is made of


def test_a_message_has_one_content_id_packed_or_not() -> None:
    plain, packed = objects(question()), objects(packing.pack(question()))
    other = objects(packing.pack(question(records(4))))
    ids = [packing.content_id(question_name(each), each) for each in (plain, packed, other)]
    assert ids[0] == ids[1] != ids[2]


def test_what_cannot_be_read_has_a_content_id_like_no_other() -> None:
    for content in (
        b"",
        b"Message\x1f\x1f3\x00abc",
        objects(packing.pack(question())).popitem()[1][:-9],
    ):
        assert packing.content_id("its id", {"its id": content}) == "its id"


def test_a_large_message_is_left_as_it_is() -> None:
    for content in (
        records(packing.PACKED_BYTES_MAX // 4 + 1),
        RecordDict({"config": ConfigRecord({"long": "x" * (packing.PACKED_BYTES_MAX + 1)})}),
    ):
        message = question(content)
        assert packing.pack(message) is message
    assert packing.pack(question(), room_bytes=10) is not packing.pack(question())
    assert not isinstance(packing.pack(question(), room_bytes=10), packing.Packed)


@pytest.mark.parametrize("cut_bytes", [1, 20, 60])
def test_damaged_messages_do_not_pass_for_others(cut_bytes: int) -> None:
    [(name, content)] = objects(packing.pack(question())).items()
    with pytest.raises(Exception):  # noqa: B017, PT011 - protobuf's and Flower's many
        packing.inflate(name, {name: content[:-cut_bytes]})


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
        content = RecordDict({"metrics": MetricRecord({"num-examples": 7})})
        return packing.pack(Message(content, reply_to=message))

    def test_a_node_of_ours_is_sent_packed_messages_once_it_has_replied(self, grid: Any) -> None:
        seen = []

        def behave(message: Message) -> Message:
            seen.append(isinstance(message, packing.Packed))
            return self.ours(message)

        node_id = grid.add("0", behave)
        packing_grid = packing.PackingGrid(grid)
        for _ in range(2):
            reply = self.send(packing_grid, node_id)
            assert reply.content["metrics"]["num-examples"] == 7
        assert seen == [False, True]

    def test_a_stock_node_never_sees_a_packed_message(self, grid: Any, hub: Any) -> None:
        seen = []

        def behave(message: Message) -> Message:
            seen.append(isinstance(message, packing.Packed))
            return hub.answer(message, num_examples=5)

        node_id = grid.add("0", behave)
        packing_grid = packing.PackingGrid(grid)
        for _ in range(2):
            reply = self.send(packing_grid, node_id)
            assert reply.content["metrics"]["num-examples"] == 5
        assert seen == [False, False]

    def test_after_an_error_the_node_is_asked_in_plain_again(self, grid: Any, hub: Any) -> None:
        """A stock SuperNode may have taken the place of ours; the SuperLink may answer for it."""
        seen = []

        def behave(message: Message) -> Message:
            seen.append(isinstance(message, packing.Packed))
            if len(seen) == 2:
                return hub.error_of(message, 8, "crashed", by_superlink=True)
            return self.ours(message)

        node_id = grid.add("0", behave)
        packing_grid = packing.PackingGrid(grid)
        replies = [self.send(packing_grid, node_id) for _ in range(3)]
        assert [reply.has_error() for reply in replies] == [False, True, False]
        assert seen == [False, True, False]

    def test_packed_messages_of_a_large_fleet_do_not_fill_the_superlink(
        self, grid: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: dict[int, list[bool]] = {}

        def behave(message: Message) -> Message:
            seen.setdefault(message.metadata.dst_node_id, []).append(
                isinstance(message, packing.Packed)
            )
            return self.ours(message)

        nodes = [grid.add(str(index), behave) for index in range(3)]
        packing_grid = packing.PackingGrid(grid)
        room = 2 * packing.count_bytes(question())
        monkeypatch.setattr(packing, "TOGETHER_BYTES_MAX", room)
        for _ in range(2):
            messages = [Message(records(), node, "train", group_id="3") for node in nodes]
            packing_grid.push_messages(messages)
            packing_grid.pull_messages([each.metadata.message_id for each in messages])
        assert [seen[node][1] for node in nodes] == [True, True, False]


def test_a_message_without_an_offer_is_left_alone() -> None:
    """That of another ServerApp."""
    message = Message(records(), 5, "train", group_id="round 3")
    assert not packing.take_offer(message)
    assert message.metadata.group_id == "round 3"
