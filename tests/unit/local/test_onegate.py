"""The local OneGate gives the answers of the real one, which are kept in tests/captures."""

from __future__ import annotations

import ast
import io
import json
import logging
import pathlib
import re
import threading
import tokenize
import urllib.parse
from typing import TYPE_CHECKING, Any, NamedTuple

import httpx
import pytest

from onefed import errors
from onefed.local import onegate, service

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

CAPTURES = pathlib.Path(__file__).parents[2] / "captures"
FORM = {"Content-Type": "application/x-www-form-urlencoded"}


class Answer(NamedTuple):
    """What is compared: the content type is None where the capture did not keep it."""

    status: int
    content_type: str | None
    body: bytes


def captured(name: str) -> list[tuple[str, Answer]]:
    """Read a capture: titles (empty where there are none) and answers."""
    text = (CAPTURES / name).read_bytes().decode().replace("\r\n", "\n")
    pattern = re.compile(
        r"(?:### (?P<title>.*)\n)?HTTP/1\.1 (?P<status>\d+).*\n(?P<headers>(?:.+\n)*)\n"
        r"(?P<body>(?:(?!### |HTTP/1\.1 ).*\n?)*)"
    )
    answers = []
    for found in pattern.finditer(text):
        content_type = re.search(r"(?m)^Content-Type: (.*)$", found["headers"])
        assert content_type is not None
        body = found["body"].strip("\n").encode()
        answers.append((found["title"] or "", Answer(int(found["status"]), content_type[1], body)))
    return answers


def only_answer(name: str) -> Answer:
    [(_, answer)] = captured(name)
    return answer


class Door:
    """The local server as one virtual machine meets it, byte for byte."""

    def __init__(self, endpoint: str, vm: service.VmRecord) -> None:
        self._client = httpx.Client(base_url=endpoint, trust_env=False)
        self._headers = {"X-ONEGATE-TOKEN": vm.token, "X-ONEGATE-VMID": vm.vm_id}

    def __enter__(self) -> Door:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def ask(
        self,
        method: str,
        path: str,
        body: str | bytes = b"",
        headers: Mapping[str, str | bytes | None] | None = None,
    ) -> Answer:
        """Send a request; a header that is None is left out."""
        merged: dict[str, Any] = {**self._headers, **FORM, **(headers or {})}
        answer = self._client.request(
            method,
            path,
            content=body,
            headers={key: value for key, value in merged.items() if value is not None},
        )
        assert answer.headers["x-content-type-options"] == "nosniff"
        return Answer(answer.status_code, answer.headers.get("content-type"), answer.content)


USER_TEMPLATE: service.UserTemplate = {
    "HYPERVISOR": "dummy",
    "ONEAPP_FL_ROUNDS": "5",
    "ONEAPP_FL_STRATEGY": "FedAvg",
    "USER_INPUTS": {"ONEAPP_FL_ROUNDS": "O|number|Rounds| |3"},
}


def deploying_model() -> service.ServiceModel:
    """Return the service of the captures as its superlink came up: ids begin with 6 and 0."""
    model = service.ServiceModel("6", "fed-1")
    model.add_role("superlink", 1)
    model.add_role("supernode", 2)
    model.set_service_state(service.ServiceState.DEPLOYING)
    model.set_role_state("superlink", service.RoleState.DEPLOYING)
    model.add_vm("superlink", "superlink_0_(service_6)", "192.168.150.100", {}, USER_TEMPLATE)
    return model


def running_model() -> service.ServiceModel:
    """Return the service of the captures once all of it ran."""
    model = deploying_model()
    template = {
        "HYPERVISOR": "dummy",
        "ONEAPP_FL_PARTITION": "auto",
        "ONEAPP_FL_ROUNDS": "5",
        "ONEAPP_FL_STRATEGY": "FedAvg",
        "ONEAPP_SUPERLINK": "192.168.150.100:9092",
    }
    for index in (0, 1):
        name = f"supernode_{index}_(service_6)"
        model.add_vm("supernode", name, f"192.168.150.{101 + index}", {}, template)
    model.set_service_state(service.ServiceState.RUNNING)
    model.set_role_state("superlink", service.RoleState.RUNNING)
    model.set_role_state("supernode", service.RoleState.RUNNING)
    return model


def door_of(model: service.ServiceModel, endpoint: str, vm_id: str) -> Door:
    return Door(endpoint, model.snapshot().vms[vm_id])


@pytest.fixture
def model() -> service.ServiceModel:
    return deploying_model()


@pytest.fixture
def endpoint(model: service.ServiceModel) -> Iterator[str]:
    with onegate.OneGateServer(model) as endpoint:
        yield endpoint


@pytest.fixture
def door(model: service.ServiceModel, endpoint: str) -> Iterator[Door]:
    with door_of(model, endpoint, "0") as opened:
        yield opened


def test_own_vm_is_shown_as_captured(door: Door) -> None:
    assert door.ask("GET", "/vm") == only_answer("onegate_get_vm.http")


def test_root_names_the_routes_at_the_host_of_the_request(door: Door) -> None:
    answer = door.ask("GET", "/", headers={"Host": "127.0.0.1:5030"})
    assert answer == only_answer("onegate_get_root.http")


def test_deploying_service_is_shown_as_captured(door: Door) -> None:
    assert door.ask("GET", "/service") == only_answer("onegate_get_service_deploying.http")


def test_running_service_is_shown_as_captured() -> None:
    model = running_model()
    with onegate.OneGateServer(model) as endpoint, door_of(model, endpoint, "1") as door:
        answer = door.ask("GET", "/service")
    assert answer == only_answer("onegate_get_service_running.http")


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("onegate_get_service_extended.http", "/service?extended=true"),
        ("onegate_get_service_extended_false.http", "/service?extended=false"),
        ("onegate_get_service_running_extended.http", "/service?extended="),
    ],
)
def test_extended_service_shows_every_context_as_captured(name: str, path: str) -> None:
    """What is shown at all is equal and in the same order; the rest only a hypervisor knows."""
    real = json.loads(only_answer(name).body)
    model = service.ServiceModel("6", "fed-1")
    model.set_service_state(service.ServiceState(real["SERVICE"]["state"]))
    for role in real["SERVICE"]["roles"]:
        model.add_role(role["name"], role["cardinality"])
        model.set_role_state(role["name"], service.RoleState(role["state"]))
        for vm in (node["vm_info"]["VM"] for node in role["nodes"]):
            context = dict(reversed(vm["TEMPLATE"]["CONTEXT"].items()))
            template = dict(reversed(vm["USER_TEMPLATE"].items()))
            model.add_vm(role["name"], vm["NAME"], vm["TEMPLATE"]["NIC"]["IP"], context, template)
    with onegate.OneGateServer(model) as endpoint, door_of(model, endpoint, "0") as door:
        shown = json.loads(door.ask("GET", path).body)
    assert json.dumps(shown) == json.dumps(restricted_to(real, shown))


def restricted_to(real: Any, shown: Any) -> Any:
    """Leave out of an object what the other does not have; lists have to be of one length."""
    if isinstance(real, dict):
        return {key: restricted_to(real[key], shown[key]) for key in real if key in shown}
    if isinstance(real, list):
        return [restricted_to(*pair) for pair in zip(real, shown, strict=True)]
    return real


def test_extended_without_a_value_is_not_extended(door: Door) -> None:
    assert door.ask("GET", "/service?extended") == door.ask("GET", "/service")


def test_refusals_are_as_captured(door: Door) -> None:
    token, vm_id = "X-ONEGATE-TOKEN", "X-ONEGATE-VMID"
    requests: dict[str, tuple[str, str, str, dict[str, str | None]]] = {
        "no headers: GET /vm": ("GET", "/vm", "", {token: None, vm_id: None}),
        "no vmid": ("GET", "/vm", "", {vm_id: None}),
        "bad token (not base64 ciphertext)": ("GET", "/vm", "", {token: "bad"}),
        "token of another vmid (999 missing)": ("GET", "/vm", "", {vm_id: "999"}),
        "unknown path": ("GET", "/nothing", "", {}),
        "GET other vm in not my service: /vms/999": ("GET", "/vms/999", "", {}),
        "PUT restricted attr SERVICE_ID": ("PUT", "/vm", "SERVICE_ID=9", {}),
        "PUT /service/role missing role": ("PUT", "/service/role/nosuch", '{"cardinality":3}', {}),
        "PUT /service/role while DEPLOYING": (
            *("PUT", "/service/role/supernode", '{"cardinality":3}', {}),
        ),
        "PUT /service/role bad json": ("PUT", "/service/role/supernode", "cardinality=3", {}),
        "DELETE /vm": ("DELETE", "/vm", "", {}),
        "GET /vrouter": ("GET", "/vrouter", "", {}),
        "action reboot POST /vms/0/action bad": (
            *("POST", "/vms/0/action", '{"action":{"perform":"bad"}}', {}),
        ),
    }
    real = captured("onegate_errors.http")
    assert [title for title, _ in real] == list(requests)
    for title, answer in real:
        assert (title, door.ask(*requests[title])) == (title, answer)


def test_puts_leave_what_the_captures_show(model: service.ServiceModel, door: Door) -> None:
    """The bodies of the capture were not kept; these are what its titles and results say."""
    requests: dict[str, tuple[Any, ...]] = {
        "multi-attribute raw body (real newline)": (
            *("PUT", "/vm", "FL_ROUND=3\nFL_LOSS=0.25\nFL_STATE=training now"),
        ),
        "lower-case key": ("PUT", "/vm", "fl_lower=1"),
        "key with dash": ("PUT", "/vm", "FL-DASH=1"),
        "key with dot": ("PUT", "/vm", "FL.DOT=1"),
        "key starting with digit": ("PUT", "/vm", "1FL=1"),
        "spaces around =": ("PUT", "/vm", "FL_SP = 7"),
        "literal backslash-n as separator": ("PUT", "/vm", "FL_A=1\\nFL_B=2"),
        "no '='": ("PUT", "/vm", "FL_NONE"),
        "empty body": ("PUT", "/vm", ""),
        "JSON body": ("PUT", "/vm", '{"FL_JSON":"1"}'),
        "vector attr": ("PUT", "/vm", "FL_VEC=[A=1,B=2]"),
        "text/plain content type": (
            *("PUT", "/vm", "FL_TP=50% off", {"Content-Type": "text/plain"}),
        ),
        "form data= with type=1": ("PUT", "/vm", "data=FL_FORM%3D50%25%20a&type=1"),
        "GET /vm after": ("GET", "/vm"),
        "erase (type=2)": ("PUT", "/vm", "data=FL_LOSS&type=2"),
        "erase missing attribute": ("PUT", "/vm", "data=FL_MISSING&type=2"),
        "erase restricted SERVICE_ID": ("PUT", "/vm", "data=SERVICE_ID&type=2"),
        "erase via query string": ("PUT", "/vm?data=FL_A&type=2"),
        "PUT /vms/0": ("PUT", "/vms/0", "FL_BYID=1"),
    }
    model.update_attributes("0", {"B": 'c"'})  # what the round trip before the capture had left
    for title, answer in captured("onegate_put_vm.http"):
        assert (title, door.ask(*requests[title])) == (title, answer)


def round_trips() -> Iterator[tuple[str, str, int, str, str, str | None]]:
    """Read the table of values: name, form of the body, status, answer, value sent and read."""
    for line in (CAPTURES / "onegate_put_roundtrip.txt").read_text("utf-8").splitlines():
        _, columns = line.split(maxsplit=1)
        tokens = tokenize.generate_tokens(io.StringIO(columns).readline)
        yield tuple(ast.literal_eval(t.string) for t in tokens if t.string.strip())


@pytest.mark.parametrize("form", ["raw", "raw_quoted", "form", "form_quoted"])
def test_values_survive_or_break_as_captured(
    form: str, model: service.ServiceModel, door: Door
) -> None:
    cases = [case for case in round_trips() if case[1] == form]
    assert len(cases) == 32
    for name, _, status, text, sent, read in cases:
        if name == "b64long":  # cut to 60 characters in the table
            sent += "A" * 3000 + "=="
        change = f'FL_X="{sent}"' if form.endswith("quoted") else f"FL_X={sent}"
        if form.startswith("form"):
            change = urllib.parse.urlencode({"data": change, "type": "1"})
        answer = door.ask("PUT", "/vm", change.encode())
        found = model.attributes("0").get("FL_X")
        if name == "b64long" and found is not None:
            found = found[:60]
        assert (name, answer.status, answer.body.decode(), found) == (name, status, text, read)
        if found is not None:
            model.erase_attribute("0", "FL_X")
    # A quoted value with "=" inside became another attribute, as it had on the real server.
    assert model.attributes("0").get("B") == ('c"' if form.endswith("quoted") else None)


def test_sibling_is_shown_and_written_as_captured() -> None:
    model = running_model()
    model.update_attributes("0", {"FL_READY": "NO", "READY": "NO", "SUPERLINK_READY": "YES"})
    model.update_attributes("0", {"B": 'c"', "FL_B": "2", "FL_BYID": "1", "FL_FORM": "50% a"})
    model.update_attributes("0", {"FL_LOWER": "1", "FL_ROUND": "3", "FL_SP": "7", "ONE_1FL": "1"})
    model.update_attributes("0", {"FL_STATE": "training now", "FL_TP": "50% off"})
    model.update_attributes("2", {"FL_PENDING_LOAD": "50", "READY": "YES"})
    with (
        onegate.OneGateServer(model) as endpoint,
        door_of(model, endpoint, "0") as superlink,
        door_of(model, endpoint, "1") as supernode,
    ):
        answers = [
            superlink.ask("GET", "/vms/2"),
            superlink.ask("PUT", "/vms/2", "FL_SET_BY=superlink"),
            superlink.ask("GET", "/vms/2"),
            supernode.ask("PUT", "/vms/0", "FL_B=2"),
        ]
        own = supernode.ask("GET", "/vms/0")
    assert answers == [answer for _, answer in captured("onegate_sibling.http")]
    assert own == only_answer("onegate_get_vms_0_from_vm1.http")


UNAUTHORIZED = Answer(401, onegate.CONTENT_TYPE, b"Not authorized")
FAILED = Answer(500, onegate.CONTENT_TYPE, b"Internal server error")


def test_every_route_asks_for_the_token(door: Door) -> None:
    for path in ("/", "/vm", "/vms/0", "/service", "/vrouter"):
        assert door.ask("GET", path, headers={"X-ONEGATE-TOKEN": ""}) == UNAUTHORIZED


def test_token_is_good_with_its_own_vmid_only(
    model: service.ServiceModel, endpoint: str, door: Door
) -> None:
    other = model.add_vm("supernode", "supernode_0_(service_6)", "192.168.150.101", {})
    for vm_id in (
        other.vm_id,
        "../1",
        "00",
        "0x",
        "-1",
        "\N{ARABIC-INDIC DIGIT ZERO}".encode().decode("latin-1"),
        "",
    ):
        headers = {"X-ONEGATE-VMID": vm_id.encode("latin-1")}
        assert door.ask("GET", "/vm", headers=headers) == UNAUTHORIZED
    token = model.snapshot().vms["0"].token
    twice = [("X-ONEGATE-TOKEN", token), ("X-ONEGATE-VMID", "0"), ("X-ONEGATE-VMID", "1")]
    answer = httpx.get(f"{endpoint}/vm", headers=twice, trust_env=False)
    assert answer.status_code == 401


def test_token_of_a_removed_vm_is_worth_nothing(model: service.ServiceModel, door: Door) -> None:
    model.remove_vm("0")
    assert door.ask("GET", "/vm") == UNAUTHORIZED


def test_all_else_is_not_supported(endpoint: str, door: Door) -> None:
    for path in ("/vm/", "/VM", "/docs", "/openapi.json", "/vms", "//vm", "/%00", "/vms/0/"):
        for method in ("GET", "PUT", "POST", "PATCH", "OPTIONS", "TRACE"):
            answer = door.ask(method, f"{endpoint}{path}")
            assert answer.body == b"OneGate server doesn't support this feature", (method, path)
            assert answer.status == 400


@pytest.mark.parametrize(
    "body",
    [
        "SERVICE_ID = 9",
        "service_id=9",
        'FL_X="1" SERVICE_ID="9"',
        "FL_X=1\nROLE_NAME=superlink",
        "data=SCHED_REQUIREMENTS%3D1&type=1",
        "data=role_name&type=2",
    ],
)
def test_restricted_attributes_cannot_be_smuggled(
    body: str, model: service.ServiceModel, door: Door
) -> None:
    before = model.snapshot().vms["0"]
    assert door.ask("PUT", "/vm", body).status == 403
    assert model.snapshot().vms["0"] == before


@pytest.mark.parametrize(
    "body",
    [b"FL_X=\xff", b"data=FL_X%3D%FF&type=1", b"data=FL_X%3D%00&type=1", b"FL_X=a\x07b", b"# x"],
)
def test_what_is_no_text_fails(body: bytes, door: Door) -> None:
    assert door.ask("PUT", "/vm", body) == FAILED


def test_unknown_type_changes_nothing(model: service.ServiceModel, door: Door) -> None:
    before = model.snapshot().vms["0"]
    assert door.ask("PUT", "/vm", "data=FL_X%3D1&type=3").status == 200
    assert model.snapshot().vms["0"] == before


def test_comment_lines_are_skipped(model: service.ServiceModel, door: Door) -> None:
    assert door.ask("PUT", "/vm", "# of no use\nFL_X=1\n#\n").status == 200
    assert model.attributes("0")["FL_X"] == "1"


def test_long_body_is_refused_and_the_server_goes_on(
    model: service.ServiceModel, door: Door
) -> None:
    body = b"FL_X=" + b"x" * 5_000_000
    assert door.ask("PUT", "/vm", body).status == 413
    assert "FL_X" not in model.attributes("0")
    assert door.ask("GET", "/vm").status == 200


def test_long_body_is_not_read_to_its_end(model: service.ServiceModel, endpoint: str) -> None:
    sent_bytes = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent_bytes
        while sent_bytes < 1 << 30:
            sent_bytes += 1 << 20
            yield b"x" * (1 << 20)

    headers = {"X-ONEGATE-TOKEN": model.snapshot().vms["0"].token, "X-ONEGATE-VMID": "0"}
    try:
        answer = httpx.put(f"{endpoint}/vm", content=endless(), headers=headers, trust_env=False)
    except httpx.TransportError:
        pass  # the connection was cut before the answer was read
    else:
        assert answer.status_code == 413
    assert sent_bytes < 64 << 20


def test_writers_at_once_lose_nothing(model: service.ServiceModel, endpoint: str) -> None:
    def write(writer: int) -> None:
        with door_of(model, endpoint, "0") as door:
            for number in range(10):
                assert door.ask("PUT", "/vm", f"FL_{writer}_{number}=1").status == 200

    writers = [threading.Thread(target=write, args=(index,)) for index in range(4)]
    for thread in writers:
        thread.start()
    for thread in writers:
        thread.join()
    published = [name for name in model.attributes("0") if re.fullmatch(r"FL_\d_\d", name)]
    assert len(published) == 40


def test_scale_asks_the_hook(model: service.ServiceModel) -> None:
    asked: list[tuple[str, int]] = []

    def scale(role: str, cardinality: int) -> bool:
        asked.append((role, cardinality))
        return cardinality < 5

    server = onegate.OneGateServer(model, scale=scale)
    with server as endpoint, door_of(model, endpoint, "0") as door:
        path = "/service/role/supernode"
        bodies = ('{"cardinality":3}', '{"cardinality":"4"}', '{"cardinality":5}', "{}", "3")
        statuses = [door.ask("PUT", path, body).status for body in bodies]
    assert statuses == [200, 200, 400, 400, 500]
    assert asked == [("supernode", 3), ("supernode", 4), ("supernode", 5)]


def test_action_asks_the_hook(model: service.ServiceModel) -> None:
    asked: list[tuple[str, str]] = []

    def act(vm_id: str, perform: str) -> bool:
        asked.append((vm_id, perform))
        return perform == "poweroff"

    server = onegate.OneGateServer(model, act=act)
    with server as endpoint, door_of(model, endpoint, "0") as door:
        path = "/vms/0/action"
        bodies = ('{"action":{"perform":"poweroff"}}', '{"action":{"perform":"x"}}', "{}", "x")
        statuses = [door.ask("POST", path, body).status for body in bodies]
    assert statuses == [204, 500, 400, 400]
    assert asked == [("0", "poweroff"), ("0", "x")]


def test_broken_hook_is_a_failure_of_the_server(model: service.ServiceModel) -> None:
    def scale(_role: str, _cardinality: int) -> bool:
        raise RuntimeError("a mistake of ours")

    server = onegate.OneGateServer(model, scale=scale)
    with server as endpoint, door_of(model, endpoint, "0") as door:
        assert door.ask("PUT", "/service/role/supernode", '{"cardinality":3}') == FAILED
        with door_of(model, endpoint, "0") as other:  # the first was closed
            assert other.ask("GET", "/vm").status == 200


def test_tokens_are_in_no_log_and_no_repr(
    model: service.ServiceModel, caplog: pytest.LogCaptureFixture
) -> None:
    vm = model.snapshot().vms["0"]
    caplog.set_level(logging.DEBUG)
    headers = {"X-ONEGATE-TOKEN": vm.token, "X-ONEGATE-VMID": "1"}
    with onegate.OneGateServer(model) as endpoint:
        answer = httpx.get(f"{endpoint}/vm", headers=headers, trust_env=False)
    assert answer.status_code == 401
    assert vm.token not in caplog.text + repr(vm) + repr(model.snapshot())


def test_stopped_server_answers_no_more(model: service.ServiceModel) -> None:
    server = onegate.OneGateServer(model)
    for _ in range(2):  # it can be started again
        with server as endpoint:
            assert httpx.get(f"{endpoint}/vm", trust_env=False).status_code == 401
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{endpoint}/vm", trust_env=False)


def test_model_names_what_is_not_there(model: service.ServiceModel) -> None:
    with pytest.raises(errors.InUseError, match="already has a role superlink"):
        model.add_role("superlink", 1)
    with pytest.raises(errors.NotFoundError, match=r"no role 'x'.\nIt has: superlink, supernode"):
        model.add_vm("x", "x_0", "127.0.0.1", {})
    with pytest.raises(errors.NotFoundError, match="no virtual machine '9'"):
        model.attributes("9")


def test_snapshot_does_not_change_afterwards(model: service.ServiceModel) -> None:
    before = model.snapshot()
    model.update_attributes("0", {"FL_X": "1"})
    model.set_cardinality("supernode", 7)
    vm = model.add_vm("supernode", "supernode_0_(service_6)", "127.0.0.1", {"A": "1"})
    assert vm.context == {"A": "1", "VMID": "1"}
    assert list(before.vms) == ["0"]
    assert "FL_X" not in before.vms["0"].user_template
    assert [role.cardinality for role in before.roles] == [1, 2]
    assert model.snapshot().roles[1].vm_ids == ("1",)
