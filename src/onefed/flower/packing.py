"""Small messages in one piece instead of twelve, between our ServerApp and our nodes.

Flower sends every array of a message as several objects, each by a request of its own that costs
the SuperLink about 10 ms of CPU, and so a round of a small model is spent in requests. Where both
ends are ours, the records of a small message travel as the bytes of one record: three objects,
whatever the model's layers.

The ServerApp offers it in a message's group id. A node of ours replies packed, and so gets its next
messages packed. A stock SuperNode, and every other ServerApp, sees nothing but plain messages; the
app sees the same records either way.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict
from flwr.serverapp import Grid

from onefed.flower.adapter_wrapped_grid import WrappedGrid

_LOG = logging.getLogger(__name__)

OFFER = "+packed"
"""Ends the group id of a message whose reply may be packed."""

PACKED = "onefed.packed"
"""Name of the one record of a packed message, and of the bytes in it."""

PACKED_BYTES_MAX = 4 * 1024 * 1024
"""Larger messages travel as Flower's objects, in chunks and two at a time; a gateway takes no
request of more than 8 MiB."""


def pack(content: RecordDict) -> RecordDict | None:
    """The same records as one; None where they are too large for it."""
    arrays = (array for record in content.array_records.values() for array in record.values())
    if sum(len(array.data) for array in arrays) > PACKED_BYTES_MAX:
        return None
    packed = recorddict_to_proto(content).SerializeToString(deterministic=True)
    if len(packed) > PACKED_BYTES_MAX:
        return None
    return RecordDict({PACKED: ConfigRecord({PACKED: packed})})


def unpack(content: RecordDict) -> RecordDict | None:
    """The records of a packed message; None for another one.

    Raises:
        ValueError: it is called packed and is not.
    """
    if list(content) != [PACKED]:
        return None
    try:
        return recorddict_from_proto(ProtoRecordDict.FromString(content[PACKED][PACKED]))
    except Exception as error:  # whatever hostile bytes make protobuf and Flower raise
        raise ValueError(f"a packed message cannot be read: {error}") from error


def take_offer(message: Message) -> bool:
    """On a node: turn a message into what the app is to see; returns whether a reply may be packed.

    Raises:
        ValueError: it cannot be unpacked.
    """
    is_offered = message.metadata.group_id.endswith(OFFER)
    if is_offered:
        message.metadata.group_id = message.metadata.group_id.removesuffix(OFFER)
        if message.has_content() and (content := unpack(message.content)) is not None:
            message.content = content
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
        sent = list(messages)
        for message in sent:
            message.metadata.group_id += OFFER
            if message.metadata.dst_node_id in self._capable and message.has_content():
                message.content = pack(message.content) or message.content
        message_ids = list(self._grid.push_messages(sent))
        for message, message_id in zip(sent, message_ids, strict=False):
            if message_id:
                self._asked[message_id] = message.metadata.dst_node_id
        return message_ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [self._opened(reply) for reply in self._grid.pull_messages(message_ids)]

    def _opened(self, reply: Message) -> Message:
        node_id = self._asked.pop(reply.metadata.reply_to_message_id, 0)
        if not reply.has_content():
            self._capable.discard(node_id)  # another program may run there by now
            return reply
        try:
            content = unpack(reply.content)
        except ValueError as error:
            _LOG.warning("Node %s: %s.", node_id, error)
            return reply  # without an array in it: that client's failure
        if content is not None:
            reply.content = content
            self._capable.add(node_id)
        return reply
