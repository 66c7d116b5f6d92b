"""OneGate's HTTP interface to one service, on loopback unless told otherwise.

Routes, headers, answers and refusals are those of the real server, down to the bytes, so that
whatever talks to it here can talk to a cloud: plain texts go out as ``application/json``, a
server's failure says no more than ``Internal server error``, ids are strings in one place and
numbers in another.
What is published goes through the same two stages: OneGate puts values in quotes, oned parses
the result.

Captures of a real server decide; where they are silent, ``src/onegate/onegate-server.rb`` of
OpenNebula/one at 05d147c does. It differs from them here:

* ``?extended`` shows CONTEXT, NIC, VMID and USER_TEMPLATE of each virtual machine, in the real
  order, and leaves out what only a hypervisor knows: disks, hosts, monitoring, history, rights.
* Virtual machines are always running (``STATE`` and ``LCM_STATE`` are 3) and owned by oneadmin.
* A vector attribute is always refused, and blanks after ``=`` are dropped. So it was captured,
  although the source should accept the one and keep the other.
* Of an attribute that comes twice in one body the last is kept; the source makes it a list.
* A request without a token or VMID is refused before its form is read, not after.
* VMID has to be the exact id; the source also takes ``0x`` for 0.
* A restricted attribute with a blank before its ``=``, or in the middle of a line, is refused;
  the source lets it through.
* ``POST /vms/<id>/action`` asks a hook; with none, every action fails. The list of actions that
  the source forbids (``reboot``) is not kept.
* A body of more than ``BODY_BYTES_MAX`` is refused (413).
* HEAD, ``/vnet/<id>``, multipart forms and templates in XML are not supported.
"""

from __future__ import annotations

import html
import json
import re
import socket
import threading
import urllib.parse
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

import fastapi
import fastapi.concurrency
import uvicorn

from onefed import errors
from onefed.local import service

BODY_BYTES_MAX = 262_144
"""The longest value that the client sends has 64 KiB, each byte of it becoming three at worst."""
BODY_BYTES_READ_MAX = 8 << 20
"""Up to here a refused body is read and forgotten, so that its sender hears why."""
STOP_TIMEOUT_S = 5.0
"""Stopping takes 0.2 s, and one more while a connection is open."""

LOOPBACK = "127.0.0.1"

CONTENT_TYPE = "application/json;charset=utf-8"
RESTRICTED_ATTRIBUTES = frozenset({"SCHED_REQUIREMENTS", "SERVICE_ID", "ROLE_NAME"})

ScaleHook = Callable[[str, int], bool]
"""Asked to bring a role to a cardinality; False when it cannot be done."""
ActionHook = Callable[[str, str], bool]
"""Asked to perform an action (``poweroff``, ``terminate``...) on the virtual machine of an id;
False when it cannot be done."""


class OneGateServer:
    """Serves one service, at a port of the system's choice, in a thread of its own."""

    def __init__(
        self,
        model: service.ServiceModel,
        *,
        scale: ScaleHook | None = None,
        act: ActionHook | None = None,
        address: str = LOOPBACK,
    ) -> None:
        """Hooks run in threads of a pool; without one its requests are refused."""
        self._address = address
        self._app = create_app(model, scale=scale, act=act)
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> str:
        """Begin to serve; give the endpoint."""
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> str:
        """Begin to serve; return the endpoint, as in ``http://127.0.0.1:40123``."""
        assert self._server is None, "started twice"
        # asyncio turns Nagle's algorithm off only where the protocol is named: 40 ms an answer.
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.bind((self._address, 0))
        listener.listen()  # from here on, clients can connect
        self._server = uvicorn.Server(
            uvicorn.Config(
                self._app,
                access_log=False,
                date_header=False,
                http="h11",
                lifespan="off",
                log_config=None,
                loop="asyncio",
                proxy_headers=False,
                server_header=False,
                timeout_graceful_shutdown=1,
                ws="none",
            )
        )
        self._thread = threading.Thread(
            target=self._server.run, args=([listener],), name="onegate", daemon=True
        )
        self._thread.start()
        host, port = listener.getsockname()
        return f"http://{host}:{port}"

    def stop(self) -> None:
        """Finish the requests at hand, close the port and wait for the thread."""
        if self._server is None or self._thread is None:
            return
        self._server.should_exit = True
        self._thread.join(STOP_TIMEOUT_S)
        self._server = self._thread = None


def create_app(
    model: service.ServiceModel, *, scale: ScaleHook | None = None, act: ActionHook | None = None
) -> fastapi.FastAPI:
    """Build the application that answers as OneGate does."""
    app = fastapi.FastAPI(openapi_url=None, redirect_slashes=False)

    @app.exception_handler(_Refusal)
    async def refusal(_request: fastapi.Request, refused: _Refusal) -> fastapi.Response:
        answer = _answer(refused.text, refused.status, refused.content_type)
        if refused.status == 413:
            answer.headers["Connection"] = "close"  # the rest of the body may still be under way
        return answer

    @app.exception_handler(404)
    @app.exception_handler(405)
    async def other(_request: fastapi.Request, _error: Exception) -> fastapi.Response:
        return _answer("OneGate server doesn't support this feature", 400)

    @app.exception_handler(500)
    async def failure(_request: fastapi.Request, _error: Exception) -> fastapi.Response:
        return _answer("Internal server error", 500)

    @app.get("/")
    async def root(request: fastapi.Request) -> fastapi.Response:
        _caller(model, request)
        base = f"{request.url.scheme}://{request.headers.get('host', '')}"
        return _json({"vm_info": f"{base}/vm", "service_info": f"{base}/service"})

    @app.get("/vm")
    async def vm(request: fastapi.Request) -> fastapi.Response:
        return _json(_vm(_caller(model, request)))

    @app.get("/vms/{wanted}")
    async def vm_by_id(request: fastapi.Request, wanted: str) -> fastapi.Response:
        return _json(_vm(_sibling(model, request, wanted)))

    @app.get("/service")
    async def whole_service(request: fastapi.Request) -> fastapi.Response:
        _caller(model, request)
        extended = "extended" in _form(request.url.query)
        return _json(_service(model.snapshot(), extended=extended))

    @app.get("/vrouter")
    async def vrouter(request: fastapi.Request) -> fastapi.Response:
        _caller(model, request)
        return _answer("Empty or invalid VROUTER_ID", 400)

    @app.put("/vm")
    async def put_vm(request: fastapi.Request) -> fastapi.Response:
        target = _caller(model, request)
        await _update(model, target, request)
        return _answer("")

    @app.put("/vms/{wanted}")
    async def put_vm_by_id(request: fastapi.Request, wanted: str) -> fastapi.Response:
        target = _sibling(model, request, wanted)
        await _update(model, target, request)
        return _answer("")

    @app.put("/service/role/{role}")
    async def put_role(request: fastapi.Request, role: str) -> fastapi.Response:
        _caller(model, request)
        asked = _parsed_json(await _body(request), status=500)
        cardinality = _cardinality(asked)
        snapshot = model.snapshot()
        known = role in {known.name for known in snapshot.roles}
        if cardinality is None or scale is None or not known:
            done = False
        else:
            done = await fastapi.concurrency.run_in_threadpool(scale, role, cardinality)
        if not done:
            where = f"service {snapshot.service_id} role {role}"
            raise _Refusal(400, f"Error performing action on {where}")
        return _answer("")

    @app.post("/vms/{wanted}/action")
    async def action(request: fastapi.Request, wanted: str) -> fastapi.Response:
        target = _sibling(model, request, wanted)
        asked = _parsed_json(await _body(request), status=400)
        if not isinstance(asked, dict) or "action" not in asked:
            raise _Refusal(400, "Error parsing JSON: Wrong resource type")
        perform = asked["action"].get("perform") if isinstance(asked["action"], dict) else None
        if act is None or not isinstance(perform, str):
            _fail()
        if not await fastapi.concurrency.run_in_threadpool(act, target.vm_id, perform):
            _fail()
        return fastapi.Response(status_code=204, headers={"X-Content-Type-Options": "nosniff"})

    return app


class _Refusal(Exception):  # noqa: N818 - an answer on its way, not a failure of ours
    """The answer to a request that is not served."""

    def __init__(self, status: int, text: str, content_type: str = CONTENT_TYPE) -> None:
        super().__init__(text)
        self.status = status
        self.text = text
        self.content_type = content_type


def _fail() -> NoReturn:
    raise _Refusal(500, "Internal server error")


def _answer(text: str, status: int = 200, content_type: str = CONTENT_TYPE) -> fastapi.Response:
    headers = {"Content-Type": content_type, "X-Content-Type-Options": "nosniff"}
    return fastapi.Response(text, status, headers)


def _json(content: Any) -> fastapi.Response:
    return _answer(json.dumps(content, ensure_ascii=False, separators=(",", ":")))


def _caller(model: service.ServiceModel, request: fastapi.Request) -> service.VmRecord:
    """Return who asks; a header that comes twice counts as none."""
    tokens = request.headers.getlist("X-ONEGATE-TOKEN")
    vm_ids = request.headers.getlist("X-ONEGATE-VMID")
    vm = model.authenticate(*vm_ids, *tokens) if len(tokens) == len(vm_ids) == 1 else None
    if vm is None:
        raise _Refusal(401, "Not authorized")
    return vm


def _sibling(
    model: service.ServiceModel, request: fastapi.Request, wanted: str
) -> service.VmRecord:
    """Return the virtual machine a path names, by the digits it begins with or else by 0."""
    _caller(model, request)
    vm_id = str(_leading_number(wanted))
    snapshot = model.snapshot()
    if vm_id not in snapshot.vms:
        raise _Refusal(400, f"Service {snapshot.service_id} does not contain VM {vm_id}.")
    return snapshot.vms[vm_id]


def _vm(vm: service.VmRecord) -> dict[str, Any]:
    return {
        "VM": {
            "NAME": vm.name,
            "ID": vm.vm_id,
            "STATE": "3",
            "LCM_STATE": "3",
            "USER_TEMPLATE": _plain(vm.user_template),
            "TEMPLATE": {"NIC": [_nic(vm)], "NIC_ALIAS": []},
        }
    }


def _nic(vm: service.VmRecord) -> dict[str, str]:
    return {"IP": vm.ip, "MAC": vm.mac, "NAME": "_NIC0", "NETWORK": "private"}


def _service(snapshot: service.ServiceRecord, *, extended: bool) -> dict[str, Any]:
    roles = []
    for role in snapshot.roles:
        nodes = [
            {
                "deploy_id": int(vm_id),
                "running": None,
                "vm_info": _vm_info(snapshot.vms[vm_id], extended),
            }
            for vm_id in role.vm_ids
        ]
        roles.append(
            {
                "name": role.name,
                "cardinality": role.cardinality,
                "state": int(role.state),
                "nodes": nodes,
            }
        )
    return {
        "SERVICE": {
            "name": snapshot.name,
            "id": snapshot.service_id,
            "state": int(snapshot.state),
            "roles": roles,
        }
    }


def _vm_info(vm: service.VmRecord, extended: bool) -> dict[str, Any]:
    info: dict[str, Any] = {
        "ID": vm.vm_id,
        "UID": "0",
        "GID": "0",
        "UNAME": "oneadmin",
        "GNAME": "oneadmin",
        "NAME": vm.name,
    }
    if extended:
        info |= {
            "STATE": "3",
            "LCM_STATE": "3",
            "TEMPLATE": {"CONTEXT": dict(vm.context), "NIC": _nic(vm), "VMID": vm.vm_id},
            "USER_TEMPLATE": _plain(vm.user_template),
        }
    return {"VM": info}


def _leading_number(text: str) -> int:
    """Read a number as Ruby does: the digits it begins with, or else 0."""
    digits = re.match(r"[0-9]{1,18}", text)
    return int(digits.group()) if digits else 0


def _plain(template: service.UserTemplate) -> dict[str, Any]:
    return {k: v if isinstance(v, str) else dict(v) for k, v in template.items()}


async def _update(
    model: service.ServiceModel, target: service.VmRecord, request: fastapi.Request
) -> None:
    """Change the user template of a virtual machine as the body, or else the query, says.

    ``data`` holds the change and ``type`` what to do: 1 sets attributes, 2 removes one, and any
    other number does nothing. Without ``data`` the body itself is the change.
    """
    body = await _body(request)
    fields = _form(request.url.query)
    if _is_form(request):
        fields |= _form(body)
    data = quote_values(fields.get("data", body))
    kind = _leading_number(fields.get("type", "1"))
    if re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f]", data):
        _fail()
    _refuse_restricted(
        (line.split("=")[0].strip() for line in data.split("\n")),
        "modified" if kind == 1 else "deleted",
    )
    try:
        if kind == 1:
            attributes = service.parse_user_template(data)
            _refuse_restricted(attributes, "modified")
            model.update_attributes(target.vm_id, attributes)
        elif kind == 2:
            model.erase_attribute(target.vm_id, data)
    except errors.OnefedError:
        _fail()


def quote_values(text: str) -> str:
    r"""Put values in quotes as OneGate does before it hands a template to oned.

    ``A=x y`` becomes ``A="x y"``, and a backslash with an n becomes a new line.
    It looks at one character and its neighbour only, so a comma, a bracket, a backslash or a
    quote inside a value, or ``=`` inside a quoted one, leaves text that oned refuses or reads
    otherwise.

    Source: ``escape_attr``.
    """
    quoted: list[str] = []
    is_open = False
    for index, character in enumerate(text):
        before, after = text[index - 1], text[index + 1 : index + 2]
        if character == "=":
            opens = not is_open and after not in ("[", '"')
            quoted.append('="' if opens else "=")
            is_open = is_open or opens
        elif character in ",[]\\\n" and before != '"' and not (character in "[]" and before == "="):
            quoted.append(f'"{character}')
            is_open = is_open and character in ",["
        elif character not in " \t" or quoted[-1:] != ['="']:
            quoted.append(character)
    if is_open and quoted[-1][-1] not in ']"':
        quoted.append('"')
    return "".join(quoted).replace("\\n", "\n")


def _refuse_restricted(names: Iterable[str], done: str) -> None:
    for name in names:
        if name.upper() in RESTRICTED_ATTRIBUTES:
            raise _Refusal(403, f"Attribute ({name}) cannot be {done}")


def _cardinality(asked: Any) -> int | None:
    """Return the number asked for, written as a number or as text; None when it is neither."""
    if not isinstance(asked, dict):
        _fail()
    value: Any = asked.get("cardinality")
    if isinstance(value, bool) or not re.fullmatch(r"[0-9]{1,9}", str(value)):
        return None
    return int(value)


def _parsed_json(body: str, *, status: int) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise _Refusal(status, f"859: unexpected token at '{body}'") from None


def _is_form(request: fastapi.Request) -> bool:
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    return media_type == "application/x-www-form-urlencoded"


def _form(text: str) -> dict[str, str]:
    """Decode ``a=1&b=2`` as Rack does; a name without ``=`` counts as absent."""
    pairs = [pair.partition("=") for pair in text.split("&")]
    decoded = [(_decoded(name), equals, _decoded(value)) for name, equals, value in pairs]
    return {name: value for name, equals, value in decoded if equals}


def _decoded(text: str) -> str:
    if re.search(r"%(?![0-9A-Fa-f]{2})", text):
        # Once escaped by the parser of parameters, once by the page of errors.
        shown = html.escape(html.escape(text))
        reason = f"Invalid query parameters: invalid %-encoding ({shown})"
        raise _Refusal(400, reason, "text/html;charset=utf-8")
    try:
        return urllib.parse.unquote_plus(text, errors="strict")
    except UnicodeDecodeError:
        _fail()


async def _body(request: fastapi.Request) -> str:
    kept = bytearray()
    read_bytes = 0
    async for part in request.stream():
        read_bytes += len(part)
        if read_bytes <= BODY_BYTES_MAX:
            kept += part
        elif read_bytes > BODY_BYTES_READ_MAX:
            break
    if read_bytes > BODY_BYTES_MAX:
        raise _Refusal(413, "Request Entity Too Large")
    try:
        return kept.decode()
    except UnicodeDecodeError:
        _fail()
