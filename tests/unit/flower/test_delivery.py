"""What the exchange relies on, in Flower's own server: who loses a message, and how that shows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from flwr.app import ConfigRecord, Message, MessageType, RecordDict

from onefed.flower import adapter, adapter_message, bundle, clients, exchange
from onefed.tls import node_keys


@pytest.fixture
def run(superlink_server: Any, app_folder: Callable[..., Path], tmp_path: Path) -> SimpleNamespace:
    """A run that goes on, and a node of it that is connected."""
    control = adapter.Control(superlink_server.address, None)
    key = node_keys.ensure(tmp_path / "keys")
    public = node_keys.public_key_bytes(key.public_key)
    node_id = control.register_node(public, clients.node_name("0"))
    run_id = control.start_run(bundle.build(bundle.load(app_folder())).fab, {})
    control.close()
    superlink_server.run_starts(run_id)
    superlink_server.connect(node_id)
    return SimpleNamespace(id=run_id, node=node_id, server=superlink_server)


def ask(run: SimpleNamespace) -> Message:
    """Send a message to the node."""
    message = Message(RecordDict({"c": ConfigRecord({"x": 1})}), run.node, MessageType.TRAIN)
    message.metadata.__dict__["_run_id"] = run.id
    adapter_message.identify(message, message.object_id)
    assert run.server.state.store_message_ins(message)
    return message


def answers(run: SimpleNamespace, message: Message) -> list[Message]:
    found: list[Message] = run.server.state.get_message_res(
        {message.metadata.message_id}, run_id=run.id
    )
    return found


def activated_at(run: SimpleNamespace) -> str:
    [info] = run.server.state.get_node_info(node_ids=[run.node])
    return str(info.last_activated_at)


def test_a_message_goes_out_once_and_a_node_that_comes_back_does_not_get_it_again(
    run: SimpleNamespace,
) -> None:
    ask(run)
    before = activated_at(run)

    first = run.server.state.get_message_ins(node_id=run.node, limit=None)
    run.server.disconnect(run.node)
    run.server.connect(run.node)
    second = run.server.state.get_message_ins(node_id=run.node, limit=None)

    assert (len(first), len(second)) == (1, 0)
    assert activated_at(run) != before


def test_while_it_is_away_its_reply_is_an_error_of_a_node_that_is_gone(
    run: SimpleNamespace,
) -> None:
    message = ask(run)
    run.server.state.get_message_ins(node_id=run.node, limit=None)

    run.server.disconnect(run.node)

    [answer] = answers(run, message)
    assert answer.has_error()
    assert answer.error.code in exchange.GONE
    assert answer.metadata.reply_to_message_id == message.metadata.message_id


def test_the_same_words_again_are_another_message(run: SimpleNamespace) -> None:
    assert ask(run).metadata.message_id != ask(run).metadata.message_id


def test_a_reply_is_given_out_once_and_asked_again_the_server_says_nothing(
    run: SimpleNamespace,
) -> None:
    """So who was in a look that failed has to be asked anew."""
    message = ask(run)
    [received] = run.server.state.get_message_ins(node_id=run.node, limit=None)
    reply = Message(RecordDict(), reply_to=received)
    reply.metadata.__dict__["_src_node_id"] = run.node
    adapter_message.identify(reply, reply.object_id)
    assert run.server.state.store_message_res(reply)

    assert [answer.has_error() for answer in answers(run, message)] == [False]
    assert answers(run, message) == []
