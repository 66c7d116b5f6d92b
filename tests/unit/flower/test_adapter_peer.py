"""A peer's node gives an app what a SuperNode would, and reads its answer as the hub does."""

from __future__ import annotations

import importlib
import inspect

import pytest
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from onefed import arrays
from onefed.apps.image_classification import client_app, task
from onefed.flower import adapter_fleet, adapter_peer, peer_app, virtual
from onefed.flower.adapter_fleet import AppReference
from onefed.flower.adapter_peer import PeerNode

NODE = PeerNode(1, 3, {"seed": 5, "local-epochs": 2})
REFERENCE = AppReference("onefed/app", "1.0.0", "0" * 64)


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("flwr.cli.config_utils", "get_fab_metadata"),
        ("flwr.cli.install", "install_from_fab"),
        ("flwr.common.serde", "context_to_proto"),
        ("flwr.proto.message_pb2", "ObjectTree"),
        ("flwr.supercore.inflatable.inflatable_object", "get_all_nested_objects"),
        ("flwr.supercore.inflatable.inflatable_utils", "inflate_object_from_contents"),
    ],
)
def test_what_flower_does_not_publish_is_still_there(module: str, name: str) -> None:
    found = getattr(importlib.import_module(module), name)

    assert callable(found)
    source = inspect.getsource(adapter_peer)
    assert name in source


def test_the_app_trains_as_at_a_node_of_the_hub_engine() -> None:
    model = task.initial_arrays({"seed": 5})
    made = adapter_peer.task(
        NODE, REFERENCE, 1, model, round_number=2, seed=5, extra={}, context=None
    )
    update = adapter_peer.read(adapter_fleet.execute(made, lambda: client_app.app))
    assert not isinstance(update, str)

    grid = virtual.VirtualGrid(
        {
            "1": virtual.node(
                client_app.app, partition_id=1, num_partitions=3, run_config=NODE.run_config
            )
        }
    )
    [node_id] = grid.get_node_ids()
    message = adapter_peer.payload.train_message(
        node_id, adapter_peer.payload.to_record(model), round_number=2, seed=5
    )
    [reply] = grid.send_and_receive([message])
    expected = adapter_peer.payload.to_arrays(reply.content.array_records["arrays"])
    assert arrays.digest(update.arrays) == arrays.digest(expected)
    assert update.weight == reply.content.metric_records["metrics"]["num-examples"]


def test_what_an_app_keeps_comes_back_to_it() -> None:
    app, seen = ClientApp(), []

    @app.train()
    def train(message: Message, context: Context) -> Message:
        seen.append(dict(context.state.config_records.get("kept", {})))
        context.state["kept"] = adapter_peer.payload.ConfigRecord({"round": len(seen)})
        return client_app.app(message, context)

    model, context = task.initial_arrays({"seed": 5}), None
    for number in (1, 2):
        made = adapter_peer.task(
            NODE, REFERENCE, number, model, round_number=number, seed=5, extra={}, context=context
        )
        context = adapter_fleet.execute(made, lambda: app).context

    assert seen == [{}, {"round": 1}]


def test_an_app_that_raises_says_why() -> None:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        raise ValueError("no data today")

    made = adapter_peer.task(
        NODE,
        REFERENCE,
        1,
        task.initial_arrays({"seed": 5}),
        round_number=1,
        seed=5,
        extra={},
        context=None,
    )
    answer = adapter_peer.read(adapter_fleet.execute(made, lambda: app))
    assert isinstance(answer, str)
    assert "no data today" in answer


def test_a_packed_app_has_the_name_that_flower_gives_it() -> None:
    fab_id, version, digest = adapter_peer.identity(peer_app.pack(None, "image-classification"))

    assert (fab_id, version) == ("onefed/image-classification", "1.0.0")
    assert len(digest) == 64
