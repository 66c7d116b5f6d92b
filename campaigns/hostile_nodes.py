"""What a node with a good key can do to the others, and what bytes do to the SuperLink.

``python -m campaigns.hostile_nodes`` starts a real SuperLink behind a real gateway on loopback, is
its ServerApp and two of its nodes, tries everything of the table, and prints it. Exit 1 where
something came otherwise than the page says. Some of it is Flower's to refuse and is not refused:
the row then says what it needs.
"""

from __future__ import annotations

import contextlib
import hashlib
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.common.constant import SYSTEM_TIME_TOLERANCE, TIMESTAMP_TOLERANCE
from flwr.proto.fleet_pb2 import PullMessagesRequest, PushMessagesRequest, PushMessagesResponse
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.message_pb2 import (
    ObjectTree,
    PullObjectRequest,
    PushObjectRequest,
    PushObjectResponse,
)
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import PullTaskInputRequest
from flwr.supercore.inflatable.inflatable_object import (
    add_header_to_object_body,
    get_object_body,
)
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid.http_grid import HttpGrid

from campaigns import refused
from onefed.flower import adapter, adapter_fleet, adapter_grid, adapter_runtime, bundle, packing

WINDOW_S = TIMESTAMP_TOLERANCE + SYSTEM_TIME_TOLERANCE
"""Flower takes a signature for five minutes, and five seconds for clocks that differ."""

GROWTH_MAX_BYTES = 64 * 2**20
"""What the SuperLink may keep of all the bytes together."""

PULL = "/v1/fleet/pull-messages"
PUSH = "/v1/fleet/push-messages"
PUSH_OBJECT = "/v1/fleet/push-object"

KEYED, STRANGER = "a node with a key", "nobody"


@dataclass(frozen=True)
class Tried:
    """One attempt."""

    who: str
    what: str
    answer: str
    holds: bool
    """Whether it came as documented."""
    remark: str = ""


class Peer:
    """A node that is connected through the gateway, and can send what it likes."""

    def __init__(self, coordinator: refused.Coordinator, name: str) -> None:
        self._coordinator = coordinator
        self.key = refused.Key()
        self.fleet = adapter_fleet.Fleet(
            coordinator.fleet, coordinator.ca_certificate, self.key.private
        )
        control = adapter.Control(coordinator.behind, coordinator.ca_certificate)
        control.register_node(self.key.public, name)
        control.close()
        self.id = self.fleet.activate()
        self.node = Node(node_id=self.id)

    def send(
        self,
        path: str,
        body: Any,
        *,
        at: datetime | None = None,
        signed: bool = True,
        content_type: str = "application/protobuf",
    ) -> httpx.Response:
        """A request with this node's signature, and any body."""
        with self._coordinator.client() as client:
            return client.post(
                f"https://{self._coordinator.fleet}{path}",
                content=body if isinstance(body, bytes) else body.SerializeToString(),
                headers={
                    "content-type": content_type,
                    **(self.key.headers(at) if signed else {}),
                },
            )

    def take(self) -> adapter_fleet.Instruction:
        """The message that waits for this node."""
        instruction = self.fleet.pull(self.id)
        assert instruction is not None, "its message is there"
        return instruction

    def push(self, answer: adapter_fleet.Answer, node: Node | None = None) -> httpx.Response:
        """Announce a reply as this node, or as the one that is said."""
        return self.send(
            PUSH,
            PushMessagesRequest(
                node=node or self.node,
                messages_list=[ProtoMessage.FromString(answer.message)],
                message_object_trees=[ObjectTree.FromString(answer.tree)],
                clientapp_runtime_list=[0.1],
            ),
        )

    def push_part(self, run_id: int, name: str, session: str, content: bytes) -> httpx.Response:
        return self.send(
            PUSH_OBJECT,
            PushObjectRequest(
                node=self.node,
                run_id=run_id,
                object_id=name,
                object_content=content,
                session_id=session,
            ),
        )

    def deliver(self, run_id: int, answer: adapter_fleet.Answer) -> httpx.Response:
        """Announce a reply and send what is wanted of it."""
        announced = self.push(answer)
        for name, session in wanted(announced):
            self.push_part(run_id, name, session, answer.objects[name])
        return announced


class Run:
    """A run whose ServerApp is this program."""

    def __init__(self, coordinator: refused.Coordinator) -> None:
        where = coordinator.behind, coordinator.ca_certificate
        self._control = adapter.Control(*where)
        app = bundle.build(bundle.built_in("image-classification"))
        self.id = self._control.start_run(app.fab, {})
        runtime = adapter_runtime.Runtime(*where, coordinator.paths.superexec_secret)
        task = runtime.acquire()
        runtime.close()
        assert task is not None, "the run waits for its ServerApp"
        self._flowers = HttpGrid(
            runtime_api_address=coordinator.behind,
            root_certificates=coordinator.ca_certificate.read_bytes(),
            token=task.token,
        )
        self._grid = adapter_grid.CollectingGrid(self._flowers, time.monotonic)
        given = self._flowers._runtime_client.PullTaskInput(PullTaskInputRequest())
        TaskIdentity.task_id, TaskIdentity.run_id = given.task_id, given.run.run_id
        TaskIdentity.node_id = given.context.node_id
        self._grid.set_run(adapter_fleet.run_from_proto(given.run))

    def ask(self, peer: Peer) -> str:
        """Send a node a message that no other equals; its id."""
        content = RecordDict({"c": ConfigRecord({"nonce": uuid.uuid4().hex})})
        [message_id] = self._grid.push_messages([Message(content, peer.id, "train")])
        return message_id

    def reply(self, message_id: str) -> str:
        """Text of the complete reply; empty where there is none."""
        for reply in self._grid.pull_messages([message_id]):
            if reply.has_error():
                return f"error {reply.error.code}"
            return str(reply.content["c"]["text"])
        return ""

    def stop(self) -> None:
        self._control.stop_run(self.id)

    def close(self) -> None:
        self._control.close()
        self._flowers.close()


def answer_to(instruction: adapter_fleet.Instruction, text: str) -> adapter_fleet.Answer:
    """A reply as a node makes it."""
    message = adapter_fleet.message_from_proto(ProtoMessage.FromString(instruction.message))
    return adapter_fleet._pack(
        Message(RecordDict({"c": ConfigRecord({"text": text})}), reply_to=message), None
    )


def packed_answer(
    instruction: adapter_fleet.Instruction, text: str, cut_bytes: int = 0
) -> adapter_fleet.Answer:
    """The same in one object, as our nodes make small ones; its records may be cut off."""
    message = adapter_fleet.message_from_proto(ProtoMessage.FromString(instruction.message))
    content = RecordDict({"c": ConfigRecord({"text": text})})
    one = packing.pack(Message(content, reply_to=message))
    answer = adapter_fleet._pack(one, None)
    if not cut_bytes:
        return answer
    [whole] = answer.objects.values()
    cut = add_header_to_object_body(get_object_body(whole, Message)[:-cut_bytes], one)
    proto = ProtoMessage.FromString(answer.message)
    name = proto.metadata.message_id = hashlib.sha256(cut).hexdigest()
    tree = ObjectTree(object_id=name).SerializeToString()
    return adapter_fleet.Answer(proto.SerializeToString(), tree, {name: cut})


def wanted(announced: httpx.Response) -> list[tuple[str, str]]:
    """Parts that the SuperLink wants of a reply, each with its session."""
    if announced.status_code != httpx.codes.OK:
        return []
    response = PushMessagesResponse.FromString(announced.content)
    return [(name, response.session_id) for name in response.objects_to_push]


def table(coordinator: refused.Coordinator) -> list[Tried]:
    """Try everything; a row for each."""
    with contextlib.ExitStack() as closing:
        peers = [Peer(coordinator, f"client:{index}") for index in range(2)]
        run = Run(coordinator)
        for each in (*(peer.fleet for peer in peers), run):
            closing.callback(each.close)
        return _table(coordinator, *peers, run)


def _table(coordinator: refused.Coordinator, one: Peer, other: Peer, run: Run) -> list[Tried]:
    before = coordinator.memory_bytes()
    rows = [
        *_replays(one),
        _registered_twice(coordinator, one),
        *_in_anothers_name(one, other, run),
        *_parts(one, run),
        *_packed(one, run),
        *_bytes(one),
    ]
    grown = coordinator.memory_bytes() - before
    words = f"SuperLink {grown / 2**20:+.0f} MB"
    rows.append(Tried("all of it", "memory that is kept", words, grown <= GROWTH_MAX_BYTES))
    message = run.ask(other)
    late = run.ask(one)
    other.deliver(run.id, answer_to(other.take(), "honest"))
    said = run.reply(message)
    rows.append(Tried("the other node, afterwards", "a reply", said, said == "honest"))
    instruction = one.take()
    assert instruction.message_id == late
    run.stop()
    rows.append(_of(one.push(answer_to(instruction, "late")), KEYED, "a reply after the run", 403))
    return rows


def _of(answer: httpx.Response, who: str, what: str, *right: int, remark: str = "") -> Tried:
    return Tried(who, what, str(answer.status_code), answer.status_code in right, remark)


def _replays(peer: Peer) -> Iterator[Tried]:
    now = datetime.now(UTC)
    pull = PullMessagesRequest(node=peer.node)
    who = "who has read a node's headers"

    def after(seconds: float) -> httpx.Response:
        return peer.send(PULL, pull, at=now - timedelta(seconds=seconds))

    tls_only = "the signature covers the time only: never without TLS, and no header in a log"
    yield _of(after(0), who, "the same request again", 200, remark=tls_only)
    yield _of(after(WINDOW_S - 5), who, f"again after {WINDOW_S - 5} s", 200)
    yield _of(after(WINDOW_S + 1), who, f"again after {WINDOW_S + 1} s", 401)
    yield _of(after(-60), "a node whose clock is a minute fast", "a request", 401)


def _registered_twice(coordinator: refused.Coordinator, peer: Peer) -> Tried:
    control = adapter.Control(coordinator.behind, coordinator.ca_certificate)
    try:
        control.register_node(peer.key.public, "client:99")
    except adapter.KeyKnownError as error:
        return Tried("a key", "registered twice", str(error.status), True)
    finally:
        control.close()
    return Tried("a key", "registered twice", "taken", False)


def _in_anothers_name(one: Peer, other: Peer, run: Run) -> Iterator[Tried]:
    message = run.ask(other)
    as_other = PullMessagesRequest(node=other.node)
    yield _of(one.send(PULL, as_other), KEYED, "takes another's message", 401)
    instruction = other.take()
    forged = answer_to(instruction, "forged")
    yield _of(one.push(forged, other.node), KEYED, "answers as another", 401)

    guessed = ProtoMessage.FromString(forged.message)
    guessed.metadata.reply_to_message_id = "0" * 64
    guess = adapter_fleet.Answer(guessed.SerializeToString(), forged.tree, forged.objects)
    answer = one.deliver(run.id, guess)
    other.deliver(run.id, answer_to(instruction, "honest"))
    said = run.reply(message)
    yield _of(answer, KEYED, "answers for another a message whose id it guesses", 200, 400)
    yield Tried("the other node", "its own reply then", said, said == "honest")

    message = run.ask(other)
    instruction = other.take()
    answer = one.deliver(run.id, answer_to(instruction, "forged"))
    said = run.reply(message)
    yield Tried(
        KEYED,
        "answers for another a message whose id and node id it knows",
        f"{answer.status_code}, {'taken' if said else 'not taken'}",
        answer.status_code == httpx.codes.OK,
        "both are random or hashes of it, and only that node and the coordinator hear them",
    )


def _parts(peer: Peer, run: Run) -> Iterator[Tried]:
    message = run.ask(peer)
    reply = answer_to(peer.take(), "honest")
    parts = wanted(peer.push(reply))
    name, session = parts[0]
    content = reply.objects[name]
    for what, answer in (
        ("a part with other bytes than its hash", peer.push_part(run.id, name, session, b"other")),
        ("a part in a session that there is not", peer.push_part(run.id, name, "s" * 32, content)),
        ("a part of another run", peer.push_part(run.id + 1, name, session, content)),
    ):
        taken = answer.status_code == httpx.codes.OK and (
            PushObjectResponse.FromString(answer.content).stored
        )
        words = f"{answer.status_code}, {'taken' if taken else 'not taken'}"
        yield Tried(KEYED, what, words, not taken)
    said = run.reply(message)
    yield Tried("the ServerApp", "is given such a reply", said or "no", not said)


def _packed(peer: Peer, run: Run) -> Iterator[Tried]:
    for what, cut_bytes in (("in one object", 0), ("in one object that is cut off", 9)):
        message = run.ask(peer)
        peer.deliver(run.id, packed_answer(peer.take(), "honest", cut_bytes))
        said = run.reply(message)
        right = said.startswith("error") if cut_bytes else said == "honest"
        yield Tried(KEYED, f"a reply {what}", said or "nothing", right)


def _bytes(peer: Peer) -> Iterator[Tried]:
    """Requests that are none, with and without a key. The SuperLink parses before it asks for a
    key, so the gateway's limit is what bounds its work."""
    node = PullMessagesRequest(node=peer.node).SerializeToString()
    trees = PushMessagesRequest(message_object_trees=[ObjectTree(object_id="a" * 64)])
    attempts = (
        ("1,000,000 empty messages", PUSH, node + b"\x12\x00" * 1_000_000, (413,)),
        ("500,000 empty messages", PUSH, node + b"\x12\x00" * 500_000, (500,)),
        ("300,000 unknown fields", PULL, b"\xf8\x7f\x01" * 300_000, (401,)),
        ("nested 100,000 deep", PUSH, nested(100_000), (400,)),
        ("cut short", PUSH, trees.SerializeToString()[:-1], (400,)),
        ("a length beyond the end", PULL, b"\x0a\xff\xff\xff\xff\x07", (400,)),
        ("text", PULL, b"hello", (400,)),
        ("another type", PULL, PullObjectRequest(object_id="x" * 64), (400, 401)),
        ("no bytes", PULL, b"", (401,)),
        ("no message in it", PUSH, node, (500,)),
    )
    for who, signed in ((STRANGER, False), (KEYED, True)):
        for what, path, body, right in attempts:
            answer = peer.send(path, body, signed=signed)
            refusals = tuple(status if signed or status != 500 else 401 for status in right)
            yield _of(answer, who, what, *refusals)
    answer = peer.send(PULL, node, content_type="application/json")
    yield _of(answer, KEYED, "another content type", 400, 415)


def nested(depth: int) -> bytes:
    """A push request with an object tree of so many levels."""
    heads: list[bytes] = []
    size = 0
    for _ in range(depth):
        heads.append(b"\x12" + _varint(size))  # children
        size += len(heads[-1])
    body = b"".join(reversed(heads))
    return b"\x1a" + _varint(len(body)) + body  # message_object_trees


def _varint(number: int) -> bytes:
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*found, number])


def main() -> None:
    """Print the table as Markdown."""
    with tempfile.TemporaryDirectory() as folder:
        place = refused.Coordinator(Path(folder))
        with place.running() as coordinator:
            rows = table(coordinator)
    say: Callable[[str], object] = print
    say("| Who | What | Answer | |")
    say("|---|---|---|---|")
    for row in rows:
        mark = "" if row.holds else "**not as documented** "
        say(f"| {row.who} | {row.what} | {row.answer} | {mark}{row.remark} |")
    sys.exit(0 if all(row.holds for row in rows) else 1)


if __name__ == "__main__":
    main()
