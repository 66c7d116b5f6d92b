"""What Flower does not publish and a grid in one process needs: who we are, and ids of messages.

For flwr 1.41.0; ``tests/unit/flower/test_adapter_message.py`` is the contract.
"""

from __future__ import annotations

from flwr.app import Message
from flwr.proto.node_pb2 import NodeInfo
from flwr.supercore.task_identity import TaskIdentity

OURS = 1
"""Run, node and task of a process that is no task of a SuperLink."""


def pose_as_task() -> None:
    """Let this process make messages, which Flower allows tasks only; a real one stays itself."""
    try:
        known = bool(TaskIdentity.run_id)
    except RuntimeError:
        known = False
    if not known:
        TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = OURS


def identify(message: Message, message_id: str) -> None:
    """Give a message the id that its replies refer to; Flower's own grid gives it its digest."""
    message.metadata.__dict__["_message_id"] = message_id


def node_info(node_id: int, name: str) -> NodeInfo:
    """A connected node, as a grid lists it."""
    return NodeInfo(node_id=node_id, name=name)
