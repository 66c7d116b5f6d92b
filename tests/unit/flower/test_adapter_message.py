"""The contract with what Flower does not publish, for federations in one process."""

from __future__ import annotations

import importlib

import flwr
import pytest
from flwr.app import Message, MessageType, RecordDict

from onefed.flower import adapter_message

ADAPT = f"flwr {flwr.__version__}: adapt onefed/flower/adapter_message.py"


def test_a_process_that_is_no_task_can_make_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    identity = importlib.import_module("flwr.supercore.task_identity").TaskIdentity
    for name in ("_run_id", "_node_id", "_task_id"):
        assert hasattr(identity, name), f"{ADAPT}; TaskIdentity has no {name}"
        monkeypatch.setattr(identity, name, None)

    adapter_message.pose_as_task()

    assert Message(RecordDict(), 7, MessageType.TRAIN).metadata.run_id == adapter_message.OURS, (
        ADAPT
    )


def test_a_process_that_is_a_task_stays_it(monkeypatch: pytest.MonkeyPatch) -> None:
    identity = importlib.import_module("flwr.supercore.task_identity").TaskIdentity
    monkeypatch.setattr(identity, "_run_id", 99)

    adapter_message.pose_as_task()

    assert identity.run_id == 99


def test_a_reply_refers_to_the_id_that_its_message_was_given() -> None:
    message = Message(RecordDict(), 7, MessageType.TRAIN)

    adapter_message.identify(message, "message-1")

    reply = Message(RecordDict(), reply_to=message)
    assert reply.metadata.reply_to_message_id == "message-1", ADAPT


def test_a_node_says_when_it_was_activated() -> None:
    """What tells the round loop that a node has lost its message."""
    node = adapter_message.node_info(7, "client:0")

    assert (node.node_id, node.name, node.last_activated_at) == (7, "client:0", ""), ADAPT
