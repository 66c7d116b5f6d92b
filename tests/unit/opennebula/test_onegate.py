"""The client meets the local OneGate, which answers as the real one, and a hostile server."""

from __future__ import annotations

import contextlib
import json
import logging
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator

import httpx
import hypothesis
import pytest
from hypothesis import strategies as st

from onefed.local import onegate as local_onegate
from onefed.local import service
from onefed.opennebula import onegate

TOKEN = "dG9rZW4tb2YtdGhlLXRlc3Q="


@pytest.fixture(scope="module")
def model() -> service.ServiceModel:
    model = service.ServiceModel("6", "fed-1")
    model.add_role("superlink", 1)
    model.add_role("supernode", 2)
    template: service.UserTemplate = {
        "HYPERVISOR": "dummy",
        "USER_INPUTS": {"ONEAPP_FL_ROUNDS": "O|number"},
    }
    model.add_vm("superlink", "superlink_0", "192.168.150.100", {}, template)
    model.add_vm("supernode", "supernode_0", "192.168.150.101", {})
    model.set_service_state(service.ServiceState.RUNNING)
    return model


@pytest.fixture(scope="module")
def endpoint(model: service.ServiceModel) -> Iterator[str]:
    with local_onegate.OneGateServer(model) as endpoint:
        yield endpoint


@pytest.fixture(scope="module")
def superlink(model: service.ServiceModel, endpoint: str) -> Iterator[onegate.OneGate]:
    with onegate.OneGate(endpoint, model.snapshot().vms["0"].token, "0") as client:
        yield client


def test_vm_reads_itself(superlink: onegate.OneGate) -> None:
    vm = superlink.vm()
    assert (vm.id, vm.name, vm.addresses) == ("0", "superlink_0", ("192.168.150.100",))
    assert vm.attributes["ROLE_NAME"] == "superlink"
    assert "USER_INPUTS" not in vm.attributes


def test_service_lists_roles_and_nodes(superlink: onegate.OneGate) -> None:
    nodes = (onegate.RoleNode("0", "superlink_0"),), (onegate.RoleNode("1", "supernode_0"),)
    roles = (
        onegate.Role("superlink", 1, state=0, nodes=nodes[0]),
        onegate.Role("supernode", 2, state=0, nodes=nodes[1]),
    )
    assert superlink.service() == onegate.Service("6", "fed-1", state=2, roles=roles)


def test_published_attribute_is_seen_by_a_sibling_until_it_is_erased(
    model: service.ServiceModel, endpoint: str, superlink: onegate.OneGate
) -> None:
    superlink.publish("FL_ENDPOINT", "10.0.0.1:9092")
    with onegate.OneGate(endpoint, model.snapshot().vms["1"].token, "1") as supernode:
        assert supernode.vm_by_id("0").attributes["FL_ENDPOINT"] == "10.0.0.1:9092"
        supernode.publish_to("0", "FL_SET_BY", "supernode")
    superlink.erase("FL_ENDPOINT")
    assert "FL_ENDPOINT" not in superlink.vm().attributes
    assert superlink.vm().attributes["FL_SET_BY"] == "supernode"


SAFE = st.characters(exclude_categories=["C", "Z"], exclude_characters=',[]"\\') | st.just(" ")


@hypothesis.settings(max_examples=60, derandomize=True, deadline=None)
@hypothesis.given(st.text(SAFE, max_size=300).map(str.strip))
@hypothesis.example("")
@hypothesis.example("QUJDREVGRw==")
@hypothesis.example("50% off; a=b&c=d+e #f 'g' $(h) `i` ${j}")
def test_any_safe_value_is_read_back_as_it_was(superlink: onegate.OneGate, value: str) -> None:
    before = dict(superlink.vm().attributes)
    superlink.publish("FL_VALUE", value)
    assert superlink.vm().attributes == {**before, "FL_VALUE": value}


@pytest.mark.parametrize(
    "value",
    ["a,b", "[1]", '{"a":1}', "a\\b", "a\nb", "a\tb", "\x00", "\u202e", " a", "a ", "\ud800"],
)
def test_value_that_would_not_be_stored_is_refused(superlink: onegate.OneGate, value: str) -> None:
    with pytest.raises(onegate.UnsafeAttributeError, match="the value of FL_BAD") as caught:
        superlink.publish("FL_BAD", value)
    assert (caught.value.path, caught.value.status) == ("/vm", None)
    assert str(caught.value).isascii()
    assert "FL_BAD" not in superlink.vm().attributes


def test_long_value_is_refused(superlink: onegate.OneGate) -> None:
    superlink.publish("FL_LONG", "x" * onegate.VALUE_BYTES_MAX)
    with pytest.raises(onegate.UnsafeAttributeError, match="more than 65536 bytes"):
        superlink.publish("FL_LONG", "x" * onegate.VALUE_BYTES_MAX + "x")


@pytest.mark.parametrize("name", ["", "fl_x", "1FL", "_FL", "FL-X", "FL.X", "FL X", "FL\n", "É"])
def test_name_that_would_be_stored_otherwise_is_refused(
    superlink: onegate.OneGate, name: str
) -> None:
    with pytest.raises(onegate.UnsafeAttributeError, match="no name of an attribute"):
        superlink.publish(name, "1")
    with pytest.raises(onegate.UnsafeAttributeError):
        superlink.erase(name)


def test_refusals_of_the_server_are_told_apart(endpoint: str, superlink: onegate.OneGate) -> None:
    stranger = onegate.OneGate(endpoint, TOKEN, "0")
    with stranger, pytest.raises(onegate.NotAuthorizedError, match="Not auth") as unauthorized:
        stranger.vm()
    assert (unauthorized.value.status, unauthorized.value.path) == (401, "/vm")
    assert unauthorized.value.hint is not None
    with pytest.raises(onegate.OneGateError, match="does not contain VM 9") as foreign:
        superlink.vm_by_id("9")
    assert (foreign.value.status, foreign.value.path) == (400, "/vms/9")
    with pytest.raises(onegate.OneGateError) as restricted:
        superlink.publish("SERVICE_ID", "9")
    assert (restricted.value.status, restricted.value.reason) == (
        *(403, "Attribute (SERVICE_ID) cannot be modified"),
    )
    with pytest.raises(onegate.OneGateError) as missing:
        superlink.erase("FL_MISSING")
    assert missing.value.status == 500


Script = Callable[[socket.socket], None]
STEP_S = 0.02
"""Pause between two bytes of an answer that drips: well inside a timeout of a read."""


class HostileServer:
    """Answers the n-th connection by the n-th script, and later ones by the last."""

    def __init__(self, *scripts: Script) -> None:
        self.requests: list[bytes] = []
        self._scripts = scripts
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = "http://{}:{}".format(*self._listener.getsockname())
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> HostileServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                script = self._scripts[min(len(self.requests), len(self._scripts) - 1)]
                with connection, contextlib.suppress(OSError):
                    connection.settimeout(5)
                    self.requests.append(self._request(connection))
                    script(connection)

    def _request(self, connection: socket.socket) -> bytes:
        request = b""
        while b"\r\n\r\n" not in request:
            request += connection.recv(65_536)
        return request


def answer(status: int, body: str | bytes, *headers: str) -> Script:
    content = body if isinstance(body, bytes) else body.encode()
    lines = [f"HTTP/1.1 {status} Said", f"Content-Length: {len(content)}", *headers, "", ""]
    return lambda connection: connection.sendall("\r\n".join(lines).encode() + content)


def hang(connection: socket.socket) -> None:
    connection.recv(1)  # until the client goes


def drip(start: bytes) -> Script:
    def script(connection: socket.socket) -> None:
        connection.sendall(start)
        gone = threading.Event()
        while not gone.wait(STEP_S):
            connection.sendall(b"x")

    return script


def endless(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        connection.sendall(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")


def vm_answer(**changes: object) -> Script:
    vm = {"ID": "0", "NAME": "vm", "USER_TEMPLATE": {"A": "1"}, "TEMPLATE": {}}
    return answer(200, json.dumps({"VM": {**vm, **changes}}))


def client_of(
    server: HostileServer, *, timeout_s: float = 5.0, waits: list[float] | None = None
) -> onegate.OneGate:
    sleep = (waits if waits is not None else []).append
    return onegate.OneGate(
        server.endpoint, TOKEN, "0", timeout_s=timeout_s, sleep=sleep, rng=random.Random(7)
    )


@pytest.mark.parametrize(
    "script",
    [
        hang,
        drip(b"HTTP/1.1 200 OK\r\nX-Long: "),
        drip(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n"),
        drip(b"HTTP/1.1 200 OK\r\n\r\n"),  # its body would end as the connection is cut
    ],
    ids=["hang", "drip-headers", "drip-body", "drip-body-without-length"],
)
def test_call_ends_within_its_timeout(script: Script) -> None:
    with HostileServer(script) as server, client_of(server, timeout_s=0.3) as client:
        began_s = time.monotonic()
        with pytest.raises(
            onegate.OneGateUnreachableError, match=r"no complete answer within 0.3 s"
        ):
            client.vm()
        assert time.monotonic() - began_s < 2.0
        assert len(server.requests) == 1


@pytest.mark.parametrize("script", [endless, answer(200, b"x" * (onegate.ANSWER_BYTES_MAX + 1))])
def test_long_answer_is_not_read_to_its_end(script: Script) -> None:
    with (
        HostileServer(script) as server,
        client_of(server) as client,
        pytest.raises(onegate.OneGateError, match="more than 1048576 bytes"),
    ):
        client.vm()


def test_redirect_is_not_followed() -> None:
    with HostileServer(lambda connection: script(connection)) as server:
        script = answer(302, "", f"Location: {server.endpoint}/elsewhere")
        with client_of(server) as client, pytest.raises(onegate.OneGateError, match="redirect"):
            client.vm()
        assert len(server.requests) == 1


def test_compressed_answer_is_not_unpacked() -> None:
    packed = answer(200, b"\x1f\x8b\x08" + b"\0" * 20, "Content-Encoding: gzip")
    with HostileServer(packed) as server, client_of(server) as client:
        with pytest.raises(onegate.OneGateError, match="not JSON"):
            client.vm()
        assert b"Accept-Encoding: identity" in server.requests[0]


@pytest.mark.parametrize(
    "body",
    [
        "",
        "Not JSON",
        "[" * 100_000,
        '{"VM":' * 50_000,
        b'{"VM":{"ID":"\xff"}}',
        "1" * 10_000,
        "null",
        "3",
        "[1]",
        '"VM"',
        '{"VM":[1]}',
        '{"VM":"x"}',
        '{"VM":{}}',
        '{"VM":{"ID":true}}',
        '{"VM":{"ID":-1}}',
        '{"VM":{"ID":1.5}}',
        '{"VM":{"ID":"../1"}}',
        '{"VM":{"ID":{"a":1}}}',
        '{"VM":{"ID":1,"NAME":7}}',
        '{"VM":{"ID":1,"USER_TEMPLATE":"x"}}',
        '{"VM":{"ID":1,"USER_TEMPLATE":[1]}}',
        '{"VM":{"ID":1,"TEMPLATE":7}}',
        '{"VM":{"ID":1,"TEMPLATE":{"NIC":"x"}}}',
        '{"VM":{"ID":1,"TEMPLATE":{"NIC":[[1]]}}}',
        '{"VM":{"ID":1,"TEMPLATE":{"NIC":[{"IP":7}]}}}',
        '{"SERVICE":{"id":1,"roles":7}}',
        '{"SERVICE":{"id":1,"roles":[{"state":"x"}]}}',
        '{"SERVICE":{"id":1,"roles":[{"cardinality":[]}]}}',
        '{"SERVICE":{"id":1,"roles":[{"nodes":[{}]}]}}',
        '{"SERVICE":{"id":1,"roles":[{"nodes":[{"deploy_id":null,"vm_info":{"VM":3}}]}]}}',
        '{"SERVICE":{"id":1,"state":"1e9"}}',
    ],
)
def test_senseless_answer_is_an_error_of_onegate(body: str | bytes) -> None:
    """Whatever the answer, callers catch one class, and its text can be printed."""
    with HostileServer(answer(200, body)) as server, client_of(server) as client:
        read = client.service if "SERVICE" in str(body) else client.vm
        with pytest.raises(onegate.OneGateError) as caught:
            read()
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("template", "addresses"),
    [
        ({"NIC": {"IP": "10.0.0.1"}}, ("10.0.0.1",)),
        ({"NIC": [{"IP": "10.0.0.1"}, {"IP": "10.0.0.2"}]}, ("10.0.0.1", "10.0.0.2")),
        ({"NIC": [], "NIC_ALIAS": {"IP": "10.0.0.3"}}, ("10.0.0.3",)),
        ({"NIC": {"IP": "10.0.0.1", "IP6_GLOBAL": "2001:db8::1"}}, ("10.0.0.1", "2001:db8::1")),
        ({"NIC": {"IP": "10.0.0.1; reboot"}}, ()),
        ({"NIC": {"MAC": "02:00:00:00:00:01"}}, ()),
        ({}, ()),
        ("", ()),
        (None, ()),
    ],
)
def test_addresses_are_found_in_every_shape(template: object, addresses: tuple[str, ...]) -> None:
    with HostileServer(vm_answer(TEMPLATE=template)) as server, client_of(server) as client:
        assert client.vm().addresses == addresses


def test_absent_keys_and_both_kinds_of_ids_are_understood() -> None:
    nodes = [{"deploy_id": 1}, {"deploy_id": "2"}, {"vm_info": {"VM": {"ID": 3, "NAME": "c"}}}]
    body = json.dumps({"SERVICE": {"id": 6, "roles": {"name": "supernode", "nodes": nodes}}})
    scripts = vm_answer(ID=5, USER_TEMPLATE=[], NAME=None), answer(200, body)
    with HostileServer(*scripts) as server, client_of(server) as client:
        assert client.vm() == onegate.VirtualMachine("5", "", {}, ())
        found = tuple(onegate.RoleNode(*pair) for pair in (("1", ""), ("2", ""), ("3", "c")))
        role = onegate.Role("supernode", 3, 0, found)
        assert client.service() == onegate.Service("6", "", 0, (role,))


FAILURE = answer(500, "Internal server error")


def reset(connection: socket.socket) -> None:
    connection.close()


def test_transient_failures_are_tried_again_with_growing_waits() -> None:
    waits: list[float] = []
    with HostileServer(FAILURE, reset, vm_answer()) as server:
        with client_of(server, waits=waits) as client:
            assert client.vm().attributes == {"A": "1"}
        assert len(server.requests) == 3
    assert 0.125 <= waits[0] <= 0.25 <= waits[1] <= 0.5


def test_attempts_are_bounded() -> None:
    waits: list[float] = []
    with HostileServer(FAILURE) as server, client_of(server, waits=waits) as client:
        with pytest.raises(onegate.OneGateError, match="Internal server error") as caught:
            client.publish("FL_X", "1")
        assert len(server.requests) == onegate.ATTEMPTS_MAX == len(waits) + 1
    assert caught.value.status == 500


@pytest.mark.parametrize(("status", "attempts"), [(401, 1), (400, 1), (403, 1), (404, 1), (503, 3)])
def test_refusal_is_not_tried_again(status: int, attempts: int) -> None:
    with HostileServer(answer(status, "No.")) as server, client_of(server) as client:
        with pytest.raises(onegate.OneGateError) as caught:
            client.vm()
        assert len(server.requests) == attempts
    assert (caught.value.status, caught.value.reason) == (status, "No.")
    assert isinstance(caught.value, onegate.NotAuthorizedError) == (status == 401)


def test_erase_is_sent_once() -> None:
    with HostileServer(FAILURE) as server, client_of(server) as client:
        with pytest.raises(onegate.OneGateError):
            client.erase("FL_X")
        assert len(server.requests) == 1


def test_no_server_is_unreachable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        endpoint = "http://{}:{}".format(*listener.getsockname())
    waits: list[float] = []
    client = onegate.OneGate(endpoint, TOKEN, "0", sleep=waits.append)
    with client, pytest.raises(onegate.OneGateUnreachableError, match="ConnectError") as caught:
        client.vm()
    assert len(waits) == onegate.ATTEMPTS_MAX - 1
    assert caught.value.__suppress_context__, "frames of the HTTP library hold the token"
    assert caught.value.hint is not None
    assert endpoint in caught.value.hint


def test_answer_that_is_not_http_is_unreachable() -> None:
    garbage = b"SSH-2.0-OpenSSH_9.2\r\n\r\n"
    with (
        HostileServer(lambda connection: connection.sendall(garbage)) as server,
        client_of(server) as client,
        pytest.raises(onegate.OneGateUnreachableError, match="RemoteProtocolError"),
    ):
        client.vm()


def test_token_is_told_to_nobody_else(caplog: pytest.LogCaptureFixture) -> None:
    """Not even when the other side repeats it."""
    echo = f"{TOKEN} \x1b[31m {TOKEN}"
    scripts = [answer(400, echo), answer(401, echo), answer(500, echo), reset, vm_answer()]
    told = []
    caplog.set_level(logging.DEBUG)
    with HostileServer(*scripts) as server, client_of(server) as client:
        told.append(repr(client))
        for _ in range(2):
            with pytest.raises(onegate.OneGateError) as caught:
                client.vm()
            told += [str(caught.value), repr(caught.value), caught.value.reason]
        client.vm()
        assert all(f"X-ONEGATE-TOKEN: {TOKEN}".encode() in each for each in server.requests)
    assert TOKEN not in caplog.text + "".join(told)
    assert "\x1b" not in "".join(told)


@pytest.mark.parametrize("token", ["", " ", "a b", "a\nb", "a\x00", "tökén"])
def test_bad_token_is_refused_and_not_shown(token: str) -> None:
    with pytest.raises(onegate.OneGateError, match="the token is empty or holds") as caught:
        onegate.OneGate("http://127.0.0.1:1", token, "0")
    assert caught.value.hint is not None


def test_line_end_of_the_token_file_is_no_part_of_the_token() -> None:
    with HostileServer(vm_answer()) as server:
        with onegate.OneGate(server.endpoint + "/", f"{TOKEN}\n", "0") as client:
            client.vm()
        assert server.requests[0].startswith(b"GET /vm HTTP/1.1\r\n")
        assert f"X-ONEGATE-TOKEN: {TOKEN}\r\n".encode() in server.requests[0]


@pytest.mark.parametrize(
    "endpoint",
    ["", "127.0.0.1:5030", "ftp://h", "http://", "http://h:x", "http://h/?a=1", "http://h/#a"],
)
def test_bad_endpoint_is_refused(endpoint: str) -> None:
    with pytest.raises(onegate.OneGateError, match="no plain http or https URL"):
        onegate.OneGate(endpoint, TOKEN, "0")


def test_password_in_the_endpoint_is_refused_and_not_shown() -> None:
    with pytest.raises(onegate.OneGateError, match="a URL with a password") as caught:
        onegate.OneGate("http://user:secret@127.0.0.1", TOKEN, "0")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("vm_id", ["", "../1", "-1", "0x1", "1 ", "1" * 19])
def test_bad_id_is_refused(superlink: onegate.OneGate, vm_id: str) -> None:
    with pytest.raises(onegate.OneGateError, match="no id of a virtual machine"):
        superlink.vm_by_id(vm_id)
    with pytest.raises(onegate.OneGateError, match="no id of a virtual machine"):
        superlink.publish_to(vm_id, "FL_X", "1")


def test_proxies_of_the_environment_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    with HostileServer(vm_answer()) as server, client_of(server) as client:
        assert client.vm().id == "0"


def test_transport_can_be_handed_in() -> None:
    stream = httpx.ByteStream(b'{"VM":{"ID":7}}')
    transport = httpx.MockTransport(lambda _: httpx.Response(200, stream=stream))
    with onegate.OneGate("http://onegate", TOKEN, "7", transport=transport) as client:
        assert client.vm().id == "7"
