"""The contract of our node with what Flower does not publish, and Fleet against a real SuperLink.

The contract imports nothing of ours, as that in ``test_adapter.py``.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import operator
import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import flwr
import psutil
import pytest

FOLDER = Path(str(importlib.util.find_spec("onefed.flower").origin)).parent  # type: ignore[union-attr]
MODULES = [FOLDER / "adapter_fleet.py", FOLDER / "packing.py"]

_CLIENT = "flwr.supernode.fleet_http_client"
_OBJECTS = "flwr.supercore.inflatable.inflatable_object"

CALLS: Sequence[tuple[str, str, int, tuple[str, ...]]] = [
    (_CLIENT, "FleetHttpClient.from_server_address", 3, ("interceptors",)),
    (_CLIENT, "FleetHttpClient.close", 1, ()),
    *(
        (_CLIENT, f"FleetHttpClient.{name}", 2, ())
        for name in (
            *("RegisterNode", "ActivateNode", "DeactivateNode", "SendNodeHeartbeat"),
            *("PullMessages", "PushMessages", "GetRun", "GetFab"),
            *("PullObject", "PushObject", "ConfirmMessageReceived"),
        )
    ),
    ("flwr.supercore.interceptors", "RuntimeVersionHttpInterceptor", 0, ("component_name",)),
    ("flwr.supernode.node_auth_http_interceptor", "NodeAuthHttpInterceptor", 2, ()),
    ("flwr.supercore.primitives.asymmetric", "public_key_to_bytes", 1, ()),
    ("flwr.cli.install", "install_from_fab", 1, ("skip_prompt",)),
    (
        "flwr.clientapp.utils",
        "get_load_client_app_fn",
        0,
        ("default_app_ref", "app_path", "multi_app"),
    ),
    ("flwr.common.config", "get_fused_config_from_fab", 2, ()),
    ("flwr.common.config", "parse_config_args", 1, ()),
    *(
        ("flwr.common.serde", name, 1, ())
        for name in (
            *("context_from_proto", "context_to_proto", "message_from_proto", "message_to_proto"),
            "run_from_proto",
        )
    ),
    *(
        (_OBJECTS, name, 1, ())
        for name in (
            *("get_all_nested_objects", "get_object_tree", "iterate_object_tree"),
            "get_object_children_ids_from_object_content",
        )
    ),
    (_OBJECTS, "add_header_to_object_body", 2, ()),
    (_OBJECTS, "get_object_body", 2, ()),
    (_OBJECTS, "no_object_id_recompute", 0, ()),
    ("flwr.supercore.inflatable.inflatable_utils", "inflate_object_from_contents", 2, ()),
    (
        "flwr.supercore.inflatable.inflatable_utils",
        "pull_objects",
        2,
        ("initial_backoff",),
    ),
    ("flwr.app.message", "remove_content_from_message", 1, ()),
]
"""Module, name, arguments by position and by keyword of every call that is made."""

FIELDS: Sequence[tuple[str, str, tuple[str, ...]]] = [
    ("flwr.proto.fleet_pb2", "RegisterNodeFleetRequest", ("public_key",)),
    ("flwr.proto.fleet_pb2", "ActivateNodeRequest", ("public_key", "heartbeat_interval")),
    ("flwr.proto.fleet_pb2", "ActivateNodeResponse", ("node_id",)),
    ("flwr.proto.fleet_pb2", "DeactivateNodeRequest", ("node_id",)),
    ("flwr.proto.heartbeat_pb2", "SendNodeHeartbeatRequest", ("node", "heartbeat_interval")),
    ("flwr.proto.heartbeat_pb2", "SendNodeHeartbeatResponse", ("success",)),
    ("flwr.proto.fleet_pb2", "PullMessagesRequest", ("node",)),
    ("flwr.proto.fleet_pb2", "PullMessagesResponse", ("messages_list", "message_object_trees")),
    (
        "flwr.proto.fleet_pb2",
        "PushMessagesRequest",
        ("node", "messages_list", "message_object_trees", "clientapp_runtime_list"),
    ),
    ("flwr.proto.fleet_pb2", "PushMessagesResponse", ("objects_to_push", "session_id")),
    ("flwr.proto.run_pb2", "GetRunRequest", ("node", "run_id")),
    ("flwr.proto.run_pb2", "GetRunResponse", ("run",)),
    (
        "flwr.proto.run_pb2",
        "Run",
        ("run_id", "series_id", "fab_id", "fab_version", "fab_hash"),
    ),
    ("flwr.proto.fab_pb2", "GetFabRequest", ("node", "hash_str", "run_id")),
    ("flwr.proto.fab_pb2", "GetFabResponse", ("fab",)),
    ("flwr.proto.message_pb2", "PullObjectRequest", ("node", "run_id", "object_id")),
    (
        "flwr.proto.message_pb2",
        "PullObjectResponse",
        ("object_found", "object_available", "object_content"),
    ),
    (
        "flwr.proto.message_pb2",
        "PushObjectRequest",
        ("node", "run_id", "object_id", "object_content", "session_id"),
    ),
    ("flwr.proto.message_pb2", "PushObjectResponse", ("stored",)),
    (
        "flwr.proto.message_pb2",
        "ConfirmMessageReceivedRequest",
        ("node", "run_id", "message_object_id"),
    ),
    ("flwr.proto.message_pb2", "ObjectTree", ("object_id", "children")),
    ("flwr.proto.message_pb2", "Message", ("metadata",)),
    (
        "flwr.proto.message_pb2",
        "Metadata",
        ("run_id", "message_id", "message_type", "group_id", "created_at", "ttl"),
    ),
    ("flwr.proto.message_pb2", "Context", ("state",)),
    ("flwr.proto.node_pb2", "Node", ("node_id",)),
    ("flwr.proto.recorddict_pb2", "RecordDict", ("items",)),
]
"""Module, message and the fields of it that are written or read."""

NAMES: Sequence[tuple[str, str]] = [
    ("flwr.clientapp.client_app", "LoadClientAppError"),
    ("flwr.common.constant", "HEARTBEAT_DEFAULT_INTERVAL"),
    ("flwr.common.constant", "ErrorCode.LOAD_CLIENT_APP_EXCEPTION"),
    ("flwr.common.constant", "ErrorCode.CLIENT_APP_RAISED_EXCEPTION"),
    ("flwr.common.constant", "ErrorCode.CLIENT_APP_CRASHED"),
    ("flwr.common.constant", "ErrorCode.NODE_UNAVAILABLE"),
    ("flwr.supercore.task_identity", "TaskIdentity"),
    ("flwr.supercore.inflatable", "inflatable_utils"),
    ("flwr.supercore.run", "Run"),
]
"""Module and name of what is used otherwise."""

PUBLIC = ("flwr.app", "flwr.clientapp", "flwr.serverapp")


def named(module: str, name: str) -> Any:
    """What is used, or a failure that says where to look."""
    try:
        return operator.attrgetter(name)(__import__(module, fromlist=[name.partition(".")[0]]))
    except (ImportError, AttributeError) as error:
        pytest.fail(
            f"flwr {flwr.__version__} has no {module}.{name} ({error}). Our node uses it: find "
            "what Flower's own SuperNode uses instead (flwr/supernode), and adapt "
            "onefed/flower/adapter_fleet.py.",
            pytrace=False,
        )


class TestContract:
    @pytest.mark.parametrize(
        ("module", "name", "positional", "keywords"), CALLS, ids=[call[1] for call in CALLS]
    )
    def test_a_private_function_takes_the_arguments_it_is_given(
        self, module: str, name: str, positional: int, keywords: tuple[str, ...]
    ) -> None:
        signature = inspect.signature(named(module, name))
        try:
            signature.bind(*[None] * positional, **dict.fromkeys(keywords))
        except TypeError as error:
            pytest.fail(
                f"flwr {flwr.__version__}: {module}.{name}{signature} does not take what our node "
                f"gives it: {error}. Adapt the call in onefed/flower/adapter_fleet.py.",
                pytrace=False,
            )

    @pytest.mark.parametrize(("module", "name", "fields"), FIELDS, ids=[each[1] for each in FIELDS])
    def test_a_message_of_the_fleet_api_has_the_fields_that_are_used(
        self, module: str, name: str, fields: tuple[str, ...]
    ) -> None:
        known = named(module, name).DESCRIPTOR.fields_by_name
        missing = [field for field in fields if field not in known]
        assert not missing, (
            f"flwr {flwr.__version__}: {name} has no {', '.join(missing)} but {', '.join(known)}. "
            f"Look at {module} and adapt onefed/flower/adapter_fleet.py."
        )

    @pytest.mark.parametrize(("module", "name"), NAMES, ids=[name for _, name in NAMES])
    def test_a_private_name_is_there(self, module: str, name: str) -> None:
        named(module, name)

    def test_the_state_of_a_message_lies_where_flower_puts_it(self) -> None:
        """The id and the group id of a message are written into it."""
        source = inspect.getsource(named("flwr.app.metadata", "Metadata"))
        assert '"_message_id"' in source, "see flwr/app/metadata.py: the id has another name"
        assert "group_id.setter" in source, "see flwr/app/metadata.py: the group cannot be set"

    def test_the_client_has_one_connection_pool_and_takes_another(self) -> None:
        """Options of a socket are a matter of the pool, and Flower's client has none for them."""
        module = importlib.import_module("flwr.supercore.protobuf.client")
        source = inspect.getsource(module.ProtobufClient)
        assert "self._client = httpx.Client(" in source
        assert source.count("httpx.Client(") == 1

    @pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name)
    def test_nothing_of_flower_is_used_that_the_contract_does_not_name(self, path: Path) -> None:
        held = {(module, name.partition(".")[0]) for module, name, *_ in (*CALLS, *FIELDS, *NAMES)}
        used = {
            (node.module, alias.name)
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.ImportFrom)
            and (node.module or "").startswith("flwr")
            and node.module not in PUBLIC
            for alias in node.names
        }
        assert used <= held, f"add to CALLS, FIELDS or NAMES: {sorted(used - held)}"

    def test_only_the_adapters_touch_what_is_private(self) -> None:
        """Every other module of the room keeps to Flower's public names."""
        adapters = {*MODULES, *FOLDER.glob("adapter*.py")}
        for path in FOLDER.rglob("*.py"):
            if path in adapters:
                continue
            used = {
                node.module
                for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("flwr")
            }
            assert used <= set(PUBLIC), path


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    from onefed.tls import node_keys

    return node_keys.ensure(tmp_path / "keys").private_key_path


class TestFleet:
    @pytest.fixture
    def fleet(self, superlink_server: Any, key_file: Path) -> Any:
        from onefed.flower import adapter_fleet
        from onefed.tls import node_keys

        fleet = adapter_fleet.Fleet(superlink_server.address, None, node_keys.private_key(key_file))
        yield fleet
        fleet.close()

    def test_a_key_has_the_same_node_id_however_often_it_joins(self, fleet: Any) -> None:
        fleet.register()
        node_id = fleet.activate()
        fleet.deactivate(node_id)
        fleet.register()
        assert fleet.activate() == node_id

    def test_a_node_that_is_there_is_not_taken_twice(self, fleet: Any) -> None:
        from onefed.flower import adapter_fleet

        fleet.register()
        fleet.activate()
        with pytest.raises(adapter_fleet.FleetError, match="activate this node"):
            fleet.activate()

    def test_nothing_waits_for_a_new_node(self, fleet: Any) -> None:
        fleet.register()
        assert fleet.pull(fleet.activate()) is None

    def test_a_node_that_is_unknown_is_told_as_such(self, fleet: Any) -> None:
        from onefed.flower import adapter_fleet

        with pytest.raises(adapter_fleet.UnknownNodeError):
            fleet.pull(5)

    def test_every_connection_has_the_probes_that_were_asked_for(
        self, superlink_server: Any, key_file: Path
    ) -> None:
        from onefed.flower import adapter_fleet
        from onefed.flower.node.keepalive import Keepalive
        from onefed.tls import node_keys

        options = Keepalive(time_s=30, timeout_s=9).socket_options()
        key = node_keys.private_key(key_file)
        fleet = adapter_fleet.Fleet(superlink_server.address, None, key, options)
        fleet.register()
        found = [
            each
            for each in psutil.Process().net_connections("tcp4")
            if each.raddr and f"{each.raddr.ip}:{each.raddr.port}" == superlink_server.address
        ]
        assert found
        for each in found:
            with socket.socket(fileno=os.dup(each.fd)) as channel:
                for level, name, value in options:
                    assert channel.getsockopt(level, name) == value
        fleet.close()

    def test_a_superlink_that_is_gone_is_worth_another_try(self, key_file: Path) -> None:
        from onefed.flower import adapter_fleet
        from onefed.tls import node_keys

        fleet = adapter_fleet.Fleet("127.0.0.1:1", None, node_keys.private_key(key_file))
        questions: list[Callable[[], object]] = [lambda: fleet.pull(1), fleet.activate]
        for ask in questions:
            with pytest.raises(adapter_fleet.UnreachableError):
                ask()
        fleet.close()
