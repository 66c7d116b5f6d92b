"""Flower's messages without a SuperLink: what a peer's node asks of its app, and the answer.

The same private names of flwr 1.41.0 as ``adapter_fleet``, whose ``Task`` and ``Answer`` these are;
``tests/unit/flower/test_adapter_peer.py`` is the contract.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flwr.app import Context, Message, RecordDict
from flwr.cli.config_utils import get_fab_metadata
from flwr.cli.install import install_from_fab
from flwr.common.serde import context_to_proto
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

from onefed.aggregate import Update
from onefed.arrays import Arrays
from onefed.flower import adapter_message, payload
from onefed.flower.adapter_fleet import Answer, AppReference, Task
from onefed.flower.clients import Client
from onefed.flower.exchange import Failure, Reply

FIRST_NODE_ID = 2
"""1 is a SuperLink's, where there is one."""


@dataclass(frozen=True, slots=True)
class PeerNode:
    """What the app may know of the node that it trains at."""

    partition_id: int
    num_partitions: int
    run_config: Mapping[str, Any]

    @property
    def node_id(self) -> int:
        """The same at every start."""
        return FIRST_NODE_ID + self.partition_id


def identity(fab: bytes) -> tuple[str, str, str]:
    """Id, version and digest of a packed app, as Flower names it."""
    fab_id, version = get_fab_metadata(fab)
    return fab_id, version, hashlib.sha256(fab).hexdigest()


def install(fab: bytes) -> Path:
    """Install an app below ``FLWR_HOME``, as Flower does; the folder with its modules."""
    return Path(install_from_fab(fab, skip_prompt=True))


def task(
    node: PeerNode,
    app: AppReference,
    task_id: int,
    model: Arrays,
    *,
    round_number: int,
    seed: int,
    extra: Mapping[str, Any],
    context: bytes | None,
) -> Task:
    """A train message, cut into its parts as a SuperLink would hand them out.

    Args:
        context: what the app left last time, Flower's bytes; None: it begins.
    """
    adapter_message.pose_as_task()
    message = payload.train_message(
        node.node_id,
        payload.to_record(model),
        round_number=round_number,
        seed=seed,
        extra=extra,
    )
    parts = {name: part.deflate() for name, part in get_all_nested_objects(message).items()}
    return Task(app, task_id, message.object_id, context or _first_context(node), parts)


def read(answer: Answer) -> Update | str:
    """The update in an answer, or why there is none."""
    tree = ObjectTree.FromString(answer.tree)
    message = inflate_object_from_contents(tree.object_id, dict(answer.objects))
    assert isinstance(message, Message), "the top of a message's tree"
    if message.has_error():
        return f"The app failed: {message.error.reason}"
    client = Client("0", FIRST_NODE_ID)
    update = payload.read_update(Reply(client, message.content, 0.0))
    return (
        f"The app's answer is of no use: {update.reason}" if isinstance(update, Failure) else update
    )


def _first_context(node: PeerNode) -> bytes:
    context = Context(
        run_id=adapter_message.OURS,
        node_id=node.node_id,
        node_config={"partition-id": node.partition_id, "num-partitions": node.num_partitions},
        state=RecordDict(),
        run_config=dict(node.run_config),
    )
    return bytes(context_to_proto(context).SerializeToString())
