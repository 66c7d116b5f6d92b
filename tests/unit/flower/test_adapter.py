"""The contract with what Flower does not publish, and the Control API against real SuperLinks.

The contract imports nothing of ours: where a name is gone, the adapter would not import either,
and nobody would read why.
"""

from __future__ import annotations

import ast
import http.server
import importlib
import importlib.util
import inspect
import operator
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import flwr
import pytest

ADAPTER = Path(str(importlib.util.find_spec("onefed.flower").origin)).with_name("adapter.py")  # type: ignore[union-attr]

CALLS: Sequence[tuple[str, str, int, tuple[str, ...]]] = [
    ("flwr.cli.build", "build_fab_from_files", 1, ()),
    ("flwr.cli.utils", "collect_files", 1, ()),
    ("flwr.cli.utils", "validate_project_name", 2, ()),
    ("flwr.common.config", "get_fab_config", 1, ()),
    ("flwr.common.config", "validate_config", 1, ("check_module",)),
    ("flwr.common.serde", "user_config_from_proto", 1, ()),
    ("flwr.common.serde", "user_config_to_proto", 1, ()),
    (
        "flwr.supercore.control",
        "ControlHttpClient.from_server_address",
        0,
        ("server_address", "insecure", "root_certificates", "interceptors"),
    ),
    *(
        ("flwr.supercore.control", f"ControlHttpClient.{name}", 2, ())
        for name in (
            *(
                "RegisterNode",
                "UnregisterNode",
                "ListNodes",
                "StartRun",
                "ListRuns",
                "StopRun",
                "StreamLogs",
            ),
        )
    ),
    ("flwr.supercore.control", "ControlHttpClient.close", 1, ()),
    ("flwr.supercore.interceptors", "RuntimeVersionHttpInterceptor", 0, ("component_name",)),
]
"""Module, name, arguments by position and by keyword of every call that the adapter makes."""

FIELDS: Sequence[tuple[str, str, tuple[str, ...]]] = [
    ("flwr.proto.control_pb2", "RegisterNodeRequest", ("public_key", "name")),
    ("flwr.proto.control_pb2", "RegisterNodeResponse", ("node_id",)),
    ("flwr.proto.control_pb2", "ListNodesRequest", ()),
    ("flwr.proto.control_pb2", "ListNodesResponse", ("nodes_info",)),
    ("flwr.proto.control_pb2", "UnregisterNodeRequest", ("node_id",)),
    (
        "flwr.proto.node_pb2",
        "NodeInfo",
        ("node_id", "name", "status", "public_key", "last_activated_at", "last_deactivated_at"),
    ),
    ("flwr.proto.control_pb2", "StartRunRequest", ("fab", "override_config")),
    ("flwr.proto.control_pb2", "StartRunResponse", ("run_id",)),
    ("flwr.proto.fab_pb2", "Fab", ("hash_str", "content")),
    ("flwr.proto.control_pb2", "ListRunsRequest", ("run_id",)),
    ("flwr.proto.control_pb2", "ListRunsResponse", ("run_dict",)),
    ("flwr.proto.run_pb2", "Run", ("status", "override_config", "pending_at")),
    ("flwr.proto.run_pb2", "RunStatus", ("status", "sub_status", "details")),
    ("flwr.proto.control_pb2", "StopRunRequest", ("run_id",)),
    ("flwr.proto.control_pb2", "StreamLogsRequest", ("run_id", "after_timestamp")),
    ("flwr.proto.control_pb2", "StreamLogsResponse", ("log_output",)),
]
"""Module, message and the fields of it that the adapter writes or reads."""


def named(module: str, name: str) -> Any:
    """What the adapter uses, or a failure that says where to look."""
    try:
        return operator.attrgetter(name)(importlib.import_module(module))
    except (ImportError, AttributeError) as error:
        pytest.fail(
            f"flwr {flwr.__version__} has no {module}.{name} ({error}). onefed/flower/adapter.py "
            "uses it: find what Flower's own command line uses instead (flwr/cli), and adapt.",
            pytrace=False,
        )


class TestContract:
    def test_the_version_is_the_one_whose_private_names_are_known(self) -> None:
        source = ADAPTER.read_text(encoding="utf-8")
        assert f'FLOWER_VERSION = "{flwr.__version__}"' in source, (
            f"flwr {flwr.__version__} is installed: read flwr/cli for changes, run these tests, "
            "and then change FLOWER_VERSION in onefed/flower/adapter.py and the pin."
        )

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
                f"flwr {flwr.__version__}: {module}.{name}{signature} does not take what "
                f"onefed/flower/adapter.py gives it: {error}. Adapt the call there.",
                pytrace=False,
            )

    @pytest.mark.parametrize(("module", "name", "fields"), FIELDS, ids=[each[1] for each in FIELDS])
    def test_a_message_of_the_control_api_has_the_fields_that_are_used(
        self, module: str, name: str, fields: tuple[str, ...]
    ) -> None:
        known = named(module, name).DESCRIPTOR.fields_by_name
        missing = [field for field in fields if field not in known]
        assert not missing, (
            f"flwr {flwr.__version__}: {name} has no {', '.join(missing)} but {', '.join(known)}. "
            f"Look at {module} and adapt onefed/flower/adapter.py."
        )

    def test_nothing_of_flower_is_used_that_the_contract_does_not_name(self) -> None:
        held = {(module, name.partition(".")[0]) for module, name, _, _ in CALLS}
        held |= {(module, name) for module, name, _ in FIELDS}
        used = {
            (node.module, alias.name)
            for node in ast.walk(ast.parse(ADAPTER.read_text(encoding="utf-8")))
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("flwr")
            for alias in node.names
        }
        assert used <= held, f"add to CALLS or FIELDS: {sorted(used - held)}"

    def test_the_words_that_decide_something_are_flowers_words(self) -> None:
        from onefed.flower import adapter, adapter_grid, exchange, run_watch

        assert named("flwr.supercore.constant", "NodeStatus").ONLINE == adapter.NODE_ONLINE, (
            "the status of a connected node has another name: see flwr/supercore/constant.py"
        )
        assert named("flwr.common.constant", "Status").FINISHED == adapter.FINISHED, (
            "the status of a finished run has another name: see flwr/common/constant.py"
        )
        catalog = named("flwr.supercore.error.catalog", "API_ERROR_MAP")
        codes = named("flwr.supercore.error", "ApiErrorCode")
        assert adapter.KEY_KNOWN in catalog[codes.PUBLIC_KEY_ALREADY_IN_USE].public_message, (
            "a key that is known is refused in other words: see flwr/supercore/error/catalog.py"
        )
        runner = inspect.getsource(importlib.import_module("flwr.superlink.runtime.run_serverapp"))
        assert run_watch.APP_EXCEPTION in runner, (
            "an app that raised is told in other words: see flwr/superlink/runtime/run_serverapp.py"
        )
        errors = named("flwr.common.constant", "ErrorCode")
        numbers = {value for value in vars(errors).values() if isinstance(value, int)}
        assert adapter_grid.UNREADABLE not in numbers, "our own code means something in Flower"
        assert numbers == set(exchange.ERROR_NAMES) - {adapter_grid.UNREADABLE}, (
            "Flower knows other error codes: see ErrorCode in flwr/common/constant.py"
        )


# --- the Control API -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def adapter() -> ModuleType:
    return importlib.import_module("onefed.flower.adapter")


@pytest.fixture
def fab(app_folder: Callable[..., Path]) -> bytes:
    from onefed.flower import bundle

    return bundle.build(bundle.load(app_folder())).fab


@pytest.fixture
def new_key(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], bytes]:
    """Makes a node's public key, as it is registered."""
    from onefed.tls import node_keys

    def make() -> bytes:
        key = node_keys.ensure(tmp_path_factory.mktemp("node") / "keys")
        return node_keys.public_key_bytes(key.public_key)

    return make


@pytest.mark.flower
class TestRealSuperLink:
    @pytest.fixture
    def control(self, plain_superlink: str, adapter: Any) -> Iterator[Any]:
        control = adapter.Control(plain_superlink, None)
        yield control
        control.close()

    def test_a_registered_node_is_listed_under_its_name(
        self, control: Any, new_key: Callable[[], bytes]
    ) -> None:
        ids = [control.register_node(new_key(), name) for name in ("client:a", "client:b")]

        nodes = {node.node_id: node for node in control.nodes()}

        assert [nodes[node_id].name for node_id in ids] == ["client:a", "client:b"]
        assert {nodes[node_id].status for node_id in ids} == {"registered"}
        assert list(nodes) == sorted(nodes)

    def test_an_unregistered_node_is_refused_for_good(
        self, control: Any, adapter: Any, new_key: Callable[[], bytes]
    ) -> None:
        public_key = new_key()
        node_id = control.register_node(public_key, "client:9")
        [node] = [each for each in control.nodes() if each.node_id == node_id]
        assert (node.public_key, node.seen_at) == (public_key, "")
        control.unregister_node(node_id)
        [node] = [each for each in control.nodes() if each.node_id == node_id] or [None]
        assert node is None or node.status == "unregistered"
        with pytest.raises(adapter.KeyKnownError):
            control.register_node(public_key, "client:9")

    def test_a_key_that_is_known_is_told_apart_from_one_that_is_no_key(
        self, control: Any, adapter: Any, new_key: Callable[[], bytes]
    ) -> None:
        key = new_key()
        control.register_node(key, "client:c")

        with pytest.raises(adapter.KeyKnownError):
            control.register_node(key, "client:c")
        with pytest.raises(adapter.SuperLinkError) as refused:
            control.register_node(b"no key", "client:d")
        assert not isinstance(refused.value, adapter.KeyKnownError)
        assert "client:d" in refused.value.message
        assert refused.value.answer == "The provided public key is not valid."

    def test_a_run_is_pending_until_somebody_executes_it_and_can_be_stopped(
        self, control: Any, adapter: Any, fab: bytes
    ) -> None:
        run_id = control.start_run(fab, {"run": "r", "seed": 3, "checkpoint-enabled": True})

        assert control.run_status(run_id) == adapter.RunStatus("pending", "", "")
        control.stop_run(run_id)
        status = control.run_status(run_id)
        assert (status.finished, status.sub_status) == (True, "stopped")
        assert list(control.log_output(run_id)) == []

    def test_an_unknown_run_is_told_as_such(self, control: Any, adapter: Any) -> None:
        with pytest.raises(adapter.UnknownRunError, match="does not know run 12345"):
            control.run_status(12345)

    @pytest.mark.parametrize("overrides", [{"not-in-the-app": 1}, {"seed": None}])
    def test_a_run_that_will_never_be_accepted_is_refused(
        self, control: Any, adapter: Any, fab: bytes, overrides: dict[str, Any]
    ) -> None:
        with pytest.raises(adapter.RunRefusedError):
            control.start_run(fab, overrides)


class TestRunsAndLogs:
    def test_the_newest_unfinished_run_of_an_identity_is_found(
        self, superlink_server: Any, adapter: Any, fab: bytes
    ) -> None:
        control = adapter.Control(superlink_server.address, None)
        first, second, _other = (control.start_run(fab, {"run": run}) for run in ("a", "a", "b"))

        assert control.unfinished_run("a") == second
        control.stop_run(second)
        assert control.unfinished_run("a") == first
        control.stop_run(first)
        assert control.unfinished_run("a") is None
        control.close()

    def test_what_a_server_app_prints_comes_in_pieces_until_its_end(
        self, superlink_server: Any, adapter: Any, fab: bytes
    ) -> None:
        control = adapter.Control(superlink_server.address, None)
        run_id = control.start_run(fab, {})
        superlink_server.run_starts(run_id)
        superlink_server.run_prints(run_id, "first\nno newline y")
        pieces = control.log_output(run_id)

        assert next(pieces) == "first\nno newline y"
        superlink_server.run_prints(run_id, "et\n")
        superlink_server.run_ends(run_id, "failed", "ServerApp failed with exception: x")
        assert "".join(pieces) == "et\n"
        assert control.run_status(run_id) == adapter.RunStatus(
            "finished", "failed", "ServerApp failed with exception: x"
        )
        control.close()

    def test_what_is_printed_while_the_superlink_looks_away_is_not_lost(
        self,
        superlink_server: Any,
        adapter: Any,
        fab: bytes,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """It reads the log, then whether the run has ended: what comes between is in no piece."""
        control = adapter.Control(superlink_server.address, None)
        run_id = control.start_run(fab, {})
        superlink_server.run_starts(run_id)
        read = superlink_server.state.get_task_log

        def read_then_end(*arguments: Any) -> Any:
            answer = read(*arguments)
            monkeypatch.undo()
            superlink_server.run_prints(run_id, "last words\n")
            superlink_server.run_ends(run_id, "failed", "x")
            return answer

        monkeypatch.setattr(superlink_server.state, "get_task_log", read_then_end)
        assert "".join(control.log_output(run_id)) == "last words\n"
        control.close()

    def test_a_closed_connection_is_told_like_a_lost_one(
        self, superlink_server: Any, adapter: Any
    ) -> None:
        control = adapter.Control(superlink_server.address, None)
        control.close()

        with pytest.raises(adapter.SuperLinkError):
            control.nodes()


class TestNoSuperLink:
    def test_a_refused_connection_says_what_was_tried_and_what_to_do(self, adapter: Any) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            free = f"127.0.0.1:{probe.getsockname()[1]}"
        control = adapter.Control(free, None)

        questions: list[Callable[[], object]] = [
            control.nodes,
            lambda: control.run_status(1),
            lambda: list(control.log_output(1)),
        ]
        for ask in questions:
            with pytest.raises(adapter.SuperLinkError, match="refused") as raised:
                ask()
            assert raised.value.message.startswith("Could not ")
            assert raised.value.status is None
            assert "may be down" in (raised.value.hint or "")
        control.close()

    @pytest.mark.parametrize(
        ("status", "body"),
        [(200, b"<html>a web server</html>"), (404, b"\xff" * 100_000), (500, b'{"detail": 5}')],
    )
    def test_another_server_at_the_address_is_no_superlink(
        self, adapter: Any, status: int, body: bytes
    ) -> None:
        class Answer(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        with http.server.HTTPServer(("127.0.0.1", 0), Answer) as server:
            thread = threading.Thread(target=server.serve_forever, args=(0.01,))
            thread.start()
            control = adapter.Control(f"127.0.0.1:{server.server_port}", None)
            try:
                with pytest.raises(adapter.SuperLinkError) as raised:
                    control.nodes()
            finally:
                control.close()
                server.shutdown()
                thread.join()
        assert len(raised.value.message) < 2 * adapter.ANSWER_LENGTH_MAX

    @pytest.mark.parametrize("content", [None, b"", b"not a certificate", b"\xff\xfe"])
    def test_an_unusable_ca_certificate_is_named(
        self, adapter: Any, tmp_path: Path, content: bytes | None
    ) -> None:
        path = tmp_path / "ca.crt"
        if content is not None:
            path.write_bytes(content)

        with pytest.raises(adapter.SuperLinkError, match=r"ca\.crt cannot be used"):
            adapter.Control("127.0.0.1:1", path)
