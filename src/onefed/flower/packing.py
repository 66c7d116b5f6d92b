"""Small messages in one piece instead of a dozen, between our ServerApp and our nodes.

Flower sends every record and every array of a message as objects, each by a request of its own that
costs the SuperLink about 10 ms of CPU, and so a round of a small model is spent in requests. Where
both ends are ours, the object of a small message holds its records as well, in the field that
Flower's own protobuf has for them: one object, whatever the model's layers.

The ServerApp offers it in a message's group id. A node of ours replies packed, and so gets its next
messages packed. A stock SuperNode, and every other ServerApp, sees nothing but plain messages; the
app sees the same records either way.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from flwr.app import Message
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_object import (
    add_header_to_object_body,
    get_object_body,
    get_object_children_ids_from_object_content,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

from onefed.flower.adapter_wrapped_grid import WrappedGrid

OFFER = "+packed"
"""Ends the group id of a message whose reply may be packed."""

PACKED_BYTES_MAX = 4 * 1024 * 1024
"""Larger messages travel as Flower's objects, in chunks and two at a time; a gateway takes no
request of more than 8 MiB."""

TOGETHER_BYTES_MAX = 256 * 1024 * 1024
"""Of packed messages that are sent together: the SuperLink keeps each as a whole, while it keeps an
array that several plain ones share only once."""


class Packed(Message):
    """A message that travels as one object."""

    __qualname__ = "Message"
    """Flower writes it into the object, and looks for it there."""

    def __init__(self, message: Message) -> None:
        """The same message: metadata and records are shared."""
        self.__dict__.update(message.__dict__)

    @property
    def children(self) -> None:
        """No object of its own holds a record."""
        return

    def deflate(self) -> bytes:
        """As Flower does it, and with the records."""
        proto = message_to_proto(self)
        proto.metadata.message_id = ""
        return add_header_to_object_body(proto.SerializeToString(deterministic=True), self)


def pack(message: Message, room_bytes: int = PACKED_BYTES_MAX) -> Message:
    """The same message packed; as it is where there is no room for that, or it has no records."""
    if message.has_content() and count_bytes(message) <= min(room_bytes, PACKED_BYTES_MAX):
        return Packed(message)
    return message


def count_bytes(message: Message) -> int:
    """Of its records, about."""
    return sum(record.count_bytes() for record in message.content.values())


def inflate(message_id: str, contents: dict[str, bytes]) -> Message:
    """A message from its objects, packed or not; they are consumed.

    Raises:
        Exception: whatever hostile bytes make protobuf and Flower raise.
    """
    content = contents[message_id]
    if not get_object_children_ids_from_object_content(content):
        proto = ProtoMessage.FromString(get_object_body(content, Message))
        if proto.HasField("content"):
            return Packed(message_from_proto(proto))
    message = inflate_object_from_contents(message_id, contents)
    if not isinstance(message, Message):
        raise TypeError(f"it is a {type(message).__name__}")
    return message


def content_id(message_id: str, contents: Mapping[str, bytes]) -> str:
    """Digest of a message's records, the same whether it is packed or not.

    That of the message itself where it cannot be read: then it is like no other.
    """
    try:
        children = get_object_children_ids_from_object_content(contents[message_id])
        if children:
            return children[0]
        return str(inflate(message_id, dict(contents)).content.object_id)
    except Exception:  # noqa: BLE001 - whatever hostile bytes make protobuf and Flower raise
        return message_id


def take_offer(message: Message) -> bool:
    """On a node: hide the offer from the app; returns whether the reply may be packed."""
    is_offered = message.metadata.group_id.endswith(OFFER)
    if is_offered:
        message.metadata.group_id = message.metadata.group_id.removesuffix(OFFER)
    return is_offered


class PackingGrid(WrappedGrid):
    """A grid that packs for the nodes which understand it."""

    def __init__(self, grid: Grid) -> None:
        super().__init__(grid)
        self._capable: set[int] = set()
        """Node ids that have sent a packed reply, and no error since then."""
        self._asked: dict[str, int] = {}
        """Node by id of the message that it has not answered."""

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        sent = []
        room_bytes = TOGETHER_BYTES_MAX
        for message in messages:
            message.metadata.group_id += OFFER
            if message.metadata.dst_node_id in self._capable:
                message = pack(message, room_bytes)
            if isinstance(message, Packed):
                room_bytes -= count_bytes(message)
            sent.append(message)
        message_ids = list(self._grid.push_messages(sent))
        for message, message_id in zip(sent, message_ids, strict=False):
            if message_id:
                self._asked[message_id] = message.metadata.dst_node_id
        return message_ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        replies = list(self._grid.pull_messages(message_ids))
        for reply in replies:
            node_id = self._asked.pop(reply.metadata.reply_to_message_id, 0)
            if isinstance(reply, Packed):
                self._capable.add(node_id)
            elif not reply.has_content():
                self._capable.discard(node_id)  # another program may run there by now
        return replies
