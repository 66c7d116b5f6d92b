"""A federation in one process: Flower's grid with nodes that are functions.

The same round loop, and an unchanged ClientApp; what is missing is the network and the isolation of
the apps from each other. A node answers when its reply is asked for, so that replies which nobody
has looked for take no memory, and a thousand clients cost a thousand calls.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NoReturn, TypeAlias

from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from onefed.flower import adapter_message, clients

Node: TypeAlias = Callable[[Message], Message | Sequence[Message] | None]
"""What a node does with a message: its reply, several of them, or nothing.

It may raise, as an app may: that is an error reply. A reply may answer any message.
"""

APP_RAISED = 2
"""Flower's error code of a ClientApp that raised (flwr 1.41.0, common/constant.py, ErrorCode)."""

FIRST_NODE_ID = 2
"""1 is the SuperLink's."""

RunConfig = Mapping[str, bool | int | float | str]


class VirtualGrid(Grid):
    """Nodes by their client key; who is added later is connected from then on."""

    def __init__(self, nodes: Mapping[str, Node] | None = None) -> None:
        adapter_message.pose_as_task()
        self.calls = 0
        """Messages that nodes were given."""
        self._nodes: dict[int, tuple[str, Node]] = {}
        self._numbers = itertools.count(1)
        self._ids = itertools.count(FIRST_NODE_ID)
        self._sent: dict[str, Message] = {}
        """By their id, those that no node was given yet."""
        self._came: dict[str, list[Message]] = {}
        """Further replies that came with the first, by the id of the message they answer."""
        for key, node in (nodes or {}).items():
            self.add(key, node)

    def add(self, key: str, node: Node) -> int:
        """Connect a node as the client ``key``; its node id."""
        node_id = next(self._ids)
        self._nodes[node_id] = (clients.node_name(key), node)
        return node_id

    def remove(self, node_id: int) -> None:
        """Disconnect a node; what it was sent and has not answered is lost."""
        del self._nodes[node_id]

    def get_node_ids(self) -> Iterable[int]:
        """Of the nodes that are connected."""
        return list(self._nodes)

    def get_nodes(self) -> Iterable[Any]:
        """Those that are connected, with the names that carry their client keys."""
        return [
            adapter_message.node_info(node_id, name) for node_id, (name, _) in self._nodes.items()
        ]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Keep the messages for their nodes; an empty id for one that nobody is there to take."""
        return [self._push(message) for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies to these messages, made one by one as they are taken from the iterator."""
        for message_id in list(message_ids):
            yield from self._came.pop(message_id, [])
            message = self._sent.pop(message_id, None)
            if message is not None:
                yield from self._replies(message)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """What Flower's own strategies call; nobody is late here, so nobody is waited for."""
        return list(self.pull_messages(self.push_messages(messages)))

    def _push(self, message: Message) -> str:
        if message.metadata.dst_node_id not in self._nodes:
            return ""
        message_id = f"message-{next(self._numbers)}"
        adapter_message.identify(message, message_id)
        self._sent[message_id] = message
        return message_id

    def _replies(self, message: Message) -> Iterator[Message]:
        _, node = self._nodes.get(message.metadata.dst_node_id, ("", None))
        if node is None:
            return
        self.calls += 1
        try:
            came = node(_own(message))
        except Exception as error:  # noqa: BLE001 - as Flower's process around a ClientApp does
            came = Message(Error(APP_RAISED, f"{type(error)}:<'{error}'>"), reply_to=message)
        yield from [came] if isinstance(came, Message) else came or []

    def set_run(self, run: object) -> None:
        """There is one run, and nothing to know about it."""

    @property
    def run(self) -> NoReturn:
        """None: nothing was submitted."""
        raise NotImplementedError("no run was submitted to this grid")

    def create_message(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Flower's old way to make one."""
        raise NotImplementedError("messages are made by flwr.app.Message")


def node(
    client_app: ClientApp,
    *,
    partition_id: int,
    num_partitions: int,
    run_config: RunConfig | None = None,
) -> Node:
    """A node that runs ``client_app``; what the app keeps in its context lasts."""
    context = Context(
        run_id=1,
        node_id=FIRST_NODE_ID + partition_id,
        node_config={"partition-id": partition_id, "num-partitions": num_partitions},
        state=RecordDict(),
        run_config=dict(run_config or {}),
    )

    def behave(message: Message) -> Message:
        return client_app(message, context)

    return behave


def federation(
    client_app: ClientApp, count: int, run_config: RunConfig | None = None
) -> VirtualGrid:
    """``count`` clients of one app, keys ``0`` to ``count - 1``."""
    return VirtualGrid(
        {
            str(index): node(
                client_app, partition_id=index, num_partitions=count, run_config=run_config
            )
            for index in range(count)
        }
    )


def _own(message: Message) -> Message:
    """The message with records of its own: what one app does to it reaches no other.

    Arrays are shared: their bytes cannot be changed.
    """
    content = RecordDict()
    for key, record in message.content.items():
        match record:
            case ArrayRecord():
                content[key] = ArrayRecord(dict(record.items()))
            case ConfigRecord():
                content[key] = ConfigRecord(dict(record.items()))
            case _:
                content[key] = record
    own = Message(
        content,
        message.metadata.dst_node_id,
        message.metadata.message_type,
        group_id=message.metadata.group_id,
    )
    adapter_message.identify(own, message.metadata.message_id)
    return own
