"""What our grid relies on in flwr 1.41.0: replies that come in parts, at Flower's own server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.common.serde import message_from_proto, run_from_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.message_pb2 import ObjectTree
from flwr.proto.runtime_pb2 import PullTaskInputRequest
from flwr.supercore.inflatable.inflatable_utils import ObjectPushError
from flwr.superlink.grid.http_grid import HttpGrid

from onefed.flower import (
    adapter,
    adapter_fleet,
    adapter_grid,
    adapter_message,
    adapter_runtime,
    bundle,
)


class Node:
    """A node that sends its replies in pieces of our choice."""

    def __init__(self, address: str) -> None:
        key = ec.generate_private_key(ec.SECP384R1())
        self._fleet = adapter_fleet.Fleet(address, None, key)
        control = adapter.Control(address, None)
        control.register_node(adapter_fleet.public_key_to_bytes(key.public_key()), "node")
        control.close()
        self.id = self._fleet.activate()
        self._session = ""
        self.wanted: list[str] = []
        self._answer: adapter_fleet.Answer | None = None
        self._run_id = 0

    def announce(self, text: str, *, as_record: bool = False) -> None:
        """Take the message that waits, and announce a reply to it.

        Args:
            as_record: a record stands where the message should be.
        """
        instruction = self._fleet.pull(self.id)
        assert instruction is not None
        message = message_from_proto(ProtoMessage.FromString(instruction.message))
        reply = Message(RecordDict({"c": ConfigRecord({"text": text})}), reply_to=message)
        self._answer = adapter_fleet._pack(reply, None)
        if as_record:
            self._answer = only_a_record(self._answer)
        self._run_id = instruction.run_id
        wanted, self._session = self._fleet.push(self.id, self._answer, 0.1)
        self.wanted = [name for name in self._answer.objects if name in wanted]

    def has_message(self) -> bool:
        return self._fleet.pull(self.id) is not None

    def send(self, names: list[str]) -> None:
        assert self._answer is not None
        for name in names:
            content = self._answer.objects[name]
            self._fleet.push_object(self.id, self._run_id, self._session, name, content)

    def close(self) -> None:
        self._fleet.close()


def only_a_record(answer: adapter_fleet.Answer) -> adapter_fleet.Answer:
    """The reply's record as if it were the reply."""
    [(name, content)] = [
        (name, content)
        for name, content in answer.objects.items()
        if content.startswith(b"ConfigRecord")
    ]
    proto = ProtoMessage.FromString(answer.message)
    proto.metadata.message_id = name
    tree = ObjectTree(object_id=name).SerializeToString()
    return adapter_fleet.Answer(proto.SerializeToString(), tree, {name: content})


class Hub:
    """A run, its grid, and nodes."""

    def __init__(self, server: Any, fab: bytes, secret: Path, clock: Any) -> None:
        self.server = server
        self.clock = clock
        control = adapter.Control(server.address, None)
        self.run_id = control.start_run(fab, {})
        control.close()
        runtime = adapter_runtime.Runtime(server.address, None, secret)
        task = runtime.acquire()
        runtime.close()
        assert task is not None
        self._flowers = HttpGrid(server.address, insecure=True, token=task.token)
        given = self._flowers._runtime_client.PullTaskInput(PullTaskInputRequest())
        self._flowers.set_run(run_from_proto(given.run))
        adapter_message.pose_as_task()
        self.grid = adapter_grid.CollectingGrid(self._flowers, clock)
        self.nodes: list[Node] = []

    def add(self) -> Node:
        self.nodes.append(Node(self.server.address))
        return self.nodes[-1]

    def ask(self, node: Node) -> str:
        content = RecordDict({"c": ConfigRecord({"n": len(self.nodes)})})
        message = Message(content, node.id, "train")
        message.metadata.__dict__["_run_id"] = self.run_id
        [message_id] = self.grid.push_messages([message])
        return message_id

    def look(self, *message_ids: str) -> list[str]:
        """Texts of the replies that are handed on now; an error by its code."""
        self.clock.sleep(adapter_grid.LOOK_AGAIN_MAX_S)
        return [
            f"error {reply.error.code}" if reply.has_error() else str(reply.content["c"]["text"])
            for reply in self.grid.pull_messages(message_ids)
        ]

    def close(self) -> None:
        for node in self.nodes:
            node.close()
        self._flowers.close()


@pytest.fixture
def hub(
    superlink_server: Any, app_folder: Callable[..., Path], tmp_path: Path, clock: Any
) -> Iterator[Hub]:
    secret = tmp_path / "superexec.secret"
    secret.write_text("5ec7e7" * 10)
    fab = bundle.build(bundle.load(app_folder())).fab
    found = Hub(superlink_server, fab, secret, clock)
    yield found
    found.close()


def test_a_reply_is_handed_on_when_its_last_part_has_come(hub: Hub) -> None:
    node = hub.add()
    message_id = hub.ask(node)
    assert hub.look(message_id) == []
    node.announce("hello")
    assert len(node.wanted) > 2
    for name in node.wanted:
        assert hub.look(message_id) == []
        node.send([name])
    assert hub.look(message_id) == ["hello"]


def test_one_that_stops_in_the_middle_holds_up_nobody(hub: Hub) -> None:
    """Flower's own grid would wait for its parts before it hands on any other reply."""
    slow, other = hub.add(), hub.add()
    ids = [hub.ask(slow), hub.ask(other)]
    slow.announce("slow")
    slow.send(slow.wanted[:1])
    other.announce("other")
    other.send(other.wanted)
    assert hub.look(*ids) == ["other"]
    assert hub.look(ids[0]) == []
    slow.send(slow.wanted[1:])
    assert hub.look(ids[0]) == ["slow"]


def test_one_that_flower_has_given_up_is_an_error(hub: Hub) -> None:
    node = hub.add()
    message_id = hub.ask(node)
    node.announce("hello")
    assert hub.look(message_id) == []
    hub.server.state.object_store.delete_objects_in_run(hub.run_id)
    [error] = hub.look(message_id)
    assert error.startswith("error ")


def test_what_nobody_asks_for_any_more_is_forgotten(hub: Hub) -> None:
    node = hub.add()
    message_id = hub.ask(node)
    node.announce("hello")
    assert hub.look(message_id) == []
    hub.clock.sleep(adapter_grid.FORGET_S)
    hub.look("0" * 64)
    assert hub.grid._partials == {}


def test_parts_beyond_the_limit_are_asked_for_again(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter_grid, "HELD_BYTES_MAX", 0)
    nodes = [hub.add(), hub.add()]
    ids = [hub.ask(node) for node in nodes]
    for node in nodes:
        node.announce("hello")
        node.send(node.wanted[:-1])
    assert hub.look(*ids) == []
    none, one = sorted(each.held_bytes for each in hub.grid._partials.values())
    assert none == 0
    assert one > 0, "one may be as large as it likes"
    for node in nodes:
        node.send(node.wanted[-1:])
    assert hub.look(*ids) == ["hello", "hello"]


def test_what_is_no_reply_is_an_error_of_its_sender_alone(hub: Hub) -> None:
    """Flower's own grid raises, and the other replies of that look are lost."""
    bad, other = hub.add(), hub.add()
    ids = [hub.ask(bad), hub.ask(other)]
    bad.announce("bad", as_record=True)
    bad.send(bad.wanted)
    other.announce("other")
    other.send(other.wanted)
    assert hub.look(*ids) == [f"error {adapter_grid.UNREADABLE}", "other"]


def test_more_bytes_than_a_reply_may_have_are_an_error(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter_grid, "REPLY_SPARE_BYTES", 10)
    node = hub.add()
    message_id = hub.ask(node)
    node.announce("hello")
    node.send(node.wanted)
    assert hub.look(message_id) == [f"error {adapter_grid.UNREADABLE}"]
    assert hub.grid._partials == {}


def test_a_grid_of_another_kind_is_left_alone(grid: Any) -> None:
    assert adapter_grid.without_waits(grid) is grid


class TestSendingAnew:
    """A SuperLink dies while it takes a part: Flower asks again, is refused, and ends the run."""

    def test_what_is_missing_comes_and_nothing_twice(
        self, hub: Hub, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        node = hub.add()
        client = hub.grid._http._runtime_client
        push, taken = client.PushObject, []

        def first_answer_lost(request: Any) -> Any:
            if not taken:
                push(request)
            taken.append(request.object_id)
            return push(request)

        monkeypatch.setattr(client, "PushObject", first_answer_lost)
        message_id = hub.ask(node)
        assert len(taken) > 2
        node.announce("hello")
        node.send(node.wanted)
        assert hub.look(message_id) == ["hello"]
        assert not node.has_message()

    def test_a_superlink_that_dies_under_every_sending_is_told(
        self, hub: Hub, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        node = hub.add()
        client = hub.grid._http._runtime_client
        push = client.PushObject
        monkeypatch.setattr(client, "PushObject", lambda request: (push(request), push(request))[1])
        monkeypatch.setattr(adapter_grid, "SENDINGS_MAX", 2)
        with pytest.raises(ObjectPushError):
            hub.ask(node)
