"""The grid of a ServerApp, without its waits: a reply is handed on when all of it is there.

A node announces a reply and sends its parts afterwards. Flower's own grid waits for the parts of
one reply, in the middle of a look, until the SuperLink gives it up: three minutes after the last
part, two hours at most. So a node that died in between, or means it, would hold up every other
client of the round, whatever its deadline. Here what is not complete is looked at again by the next
look. Private names of flwr 1.41.0; ``tests/unit/flower/test_adapter_grid.py`` is the contract.

Source: flwr 1.41.0, ``superlink/grid/http_grid.py``, ``pull_messages``.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from flwr.app import ArrayRecord, Message, Metadata, RecordDict
from flwr.app.error import Error
from flwr.app.message import make_message
from flwr.common.constant import ErrorCode
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest
from flwr.proto.runtime_pb2 import PullAppMessagesRequest
from flwr.serverapp import Grid
from flwr.supercore.constant import SYSTEM_MESSAGE_TYPE
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.inflatable.inflatable_protobuf_utils import make_pull_object_fn_protobuf
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    ObjectPushError,
    ObjectUnavailableError,
    pull_objects,
)
from flwr.superlink.grid.http_grid import HttpGrid

from onefed.flower import packing
from onefed.flower.adapter_wrapped_grid import WrappedGrid

_LOG = logging.getLogger(__name__)

LOOK_S = 0.2
"""The parts of a small reply follow within milliseconds, and those of a large one come one after
the other: so long a look may wait for all that are new or went on since the last, together."""

PULL_BACKOFF_S = 0.02

LOOK_AGAIN_MAX_S = 1.0
"""Between two looks at a reply that is not complete, growing."""

HELD_BYTES_MAX = 64 * 2**20
"""Parts of replies that are not complete. Those of one reply may be more, or a large model would
never come; what would exceed it is asked for again."""

REPLY_MODELS_MAX = 4
REPLY_SPARE_BYTES = 64 * 2**20
"""A reply has so many times the bytes of the largest message that was sent, and some, at most."""

UNREADABLE = 1001
"""Our own error code, beside Flower's, of a reply that is none."""

SENDINGS_MAX = 5
"""Of the same messages, when the SuperLink dies under each."""

FORGET_S = 60.0
"""A reply for which nobody has asked so long was given up by its round."""


@dataclass
class _Partial:
    """A reply that was announced."""

    message_id: str
    reply_to: str
    parts: list[str]
    """Object ids; the one that was missing last comes first."""
    asked_at_s: float
    look_at_s: float
    pause_s: float = 0.0
    goes_on: bool = True
    """It is new, or the last look found more of it."""
    contents: dict[str, bytes] = field(default_factory=dict)
    held_bytes: int = 0

    def hold(self, name: str, content: bytes) -> None:
        self.contents[name] = content
        self.held_bytes += len(content)

    def drop(self) -> None:
        self.contents.clear()
        self.held_bytes = 0


class _TooLargeError(ObjectPullError):
    """A reply goes beyond its limit."""


def without_waits(grid: Grid) -> Grid:
    """The grid of a ServerApp without its waits; one of another kind, as in tests, has none."""
    return CollectingGrid(grid, time.monotonic) if isinstance(grid, HttpGrid) else grid


class CollectingGrid(WrappedGrid):
    """Flower's grid, but for how replies are collected."""

    def __init__(self, grid: HttpGrid, clock: Callable[[], float]) -> None:
        super().__init__(grid)
        self._http = grid
        self._clock = clock
        self._partials: dict[str, _Partial] = {}
        """By id of the message that is answered."""
        self._sent_bytes_max = 0
        """Of the arrays of a message."""

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies that have come as a whole; never waits for longer than ``LOOK_S``."""
        asked, now_s = list(message_ids), self._clock()
        self._announce([name for name in asked if name not in self._partials], now_s)
        ends_s = now_s + LOOK_S
        found = []
        for each in [self._partials[name] for name in asked if name in self._partials]:
            each.asked_at_s = now_s
            if each.look_at_s > now_s:
                continue
            left_s = ends_s - self._clock() if each.goes_on else 0.0
            message = self._collect(each, max(0.0, left_s))
            if message is not None:
                del self._partials[each.reply_to]
                found.append(message)
        for each in list(self._partials.values()):
            if now_s - each.asked_at_s > FORGET_S:
                del self._partials[each.reply_to]
        return found

    def _announce(self, message_ids: list[str], now_s: float) -> None:
        """Ask for replies that were not announced yet: of others the SuperLink knows nothing any
        more, and says that they are lost."""
        if not message_ids:
            return
        request = PullAppMessagesRequest(message_ids=message_ids)
        answer = self._http._runtime_client.PullMessages(request)
        for proto, tree in zip(answer.messages_list, answer.message_object_trees, strict=True):
            reply_to = proto.metadata.reply_to_message_id
            parts = list(dict.fromkeys(part.object_id for part in iterate_object_tree(tree)))
            self._partials[reply_to] = _Partial(
                proto.metadata.message_id, reply_to, parts, now_s, now_s
            )

    def _collect(self, each: _Partial, patience_s: float) -> Message | None:
        """The whole reply; an error in its place when it will never be whole; None: later."""
        client, run_id = self._http._runtime_client, self._http.run.run_id
        pull = make_pull_object_fn_protobuf(
            pull_object_protobuf=client.PullObject, node=self._http.node, run_id=run_id
        )
        held_before = each.held_bytes
        limit_bytes = REPLY_MODELS_MAX * self._sent_bytes_max + REPLY_SPARE_BYTES
        missing: list[str] = []

        def part(name: str) -> bytes:
            if (held := each.contents.get(name)) is not None:
                return held
            try:
                content = pull(name)
            except ObjectUnavailableError:
                missing.append(name)
                raise
            each.hold(name, content)
            if each.held_bytes > limit_bytes:
                raise _TooLargeError(name, "the reply is too large")
            return content

        try:
            contents = pull_objects(
                list(each.parts),
                part,
                max_time=patience_s,
                initial_backoff=PULL_BACKOFF_S,
                backoff_cap=PULL_BACKOFF_S,
            )
        except _TooLargeError:
            return self._failed(each, UNREADABLE, f"it has more than {limit_bytes} bytes")
        except ObjectPullError as error:
            if missing:
                each.goes_on = each.held_bytes > held_before
                self._put_off(each, missing[-1])
                return None
            reason = f"it was not sent as a whole: {error}"
            return self._failed(each, ErrorCode.MESSAGE_UNAVAILABLE, reason)
        each.drop()
        client.ConfirmMessageReceived(
            ConfirmMessageReceivedRequest(
                node=self._http.node, run_id=run_id, message_object_id=each.message_id
            )
        )
        try:
            message = packing.inflate(each.message_id, contents)
        except Exception as error:  # noqa: BLE001 - whatever hostile bytes make Flower raise
            _LOG.exception("A reply cannot be read.")
            reason = f"Flower cannot read it: {type(error).__name__}: {error}"
            return self._failed(each, UNREADABLE, reason)
        message.metadata.__dict__["_message_id"] = each.message_id
        return message

    def _put_off(self, each: _Partial, missing: str) -> None:
        each.parts.sort(key=lambda name: name != missing)
        others = sum(other.held_bytes for other in self._partials.values() if other is not each)
        if others and others + each.held_bytes > HELD_BYTES_MAX:
            each.drop()
            each.goes_on, each.pause_s = False, LOOK_AGAIN_MAX_S
        elif each.goes_on:
            each.pause_s = 0.0
        each.look_at_s = self._clock() + each.pause_s
        each.pause_s = min(2 * each.pause_s + PULL_BACKOFF_S, LOOK_AGAIN_MAX_S)

    def _failed(self, each: _Partial, code: int, reason: str) -> Message:
        """An error in the place of a reply, as Flower's own grid makes them."""
        node_id = self._http.node.node_id
        return make_message(
            metadata=Metadata(
                run_id=self._http.run.run_id,
                message_id="",
                src_node_id=node_id,
                dst_node_id=node_id,
                message_type=SYSTEM_MESSAGE_TYPE,
                group_id="",
                ttl=0,
                reply_to_message_id=each.reply_to,
                created_at=datetime.now(UTC).timestamp(),
            ),
            error=Error(code, reason),
        )

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        sent = list(messages)
        for message in sent:
            if message.has_content():
                self._sent_bytes_max = max(self._sent_bytes_max, _array_bytes(message.content))
        sendings = 0
        while True:
            sendings += 1
            try:
                return self._grid.push_messages(sent)
            except ObjectPushError as error:
                # The SuperLink had taken this part when it died, and takes none a second time; or
                # has given up the sending. It knows a message by its id, so that sending the same
                # again brings what is missing, and nothing twice.
                if sendings == SENDINGS_MAX:
                    raise
                _LOG.warning("The SuperLink was lost while messages were sent: %s", error)


def _array_bytes(content: RecordDict) -> int:
    records = (record for record in content.values() if isinstance(record, ArrayRecord))
    return sum(len(array.data) for record in records for array in record.values())
