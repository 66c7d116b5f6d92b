"""Client of OneGate, the HTTP door through which a virtual machine sees its own service.

A virtual machine reads itself, its siblings and the shape of the service, and publishes
attributes of itself and of any sibling.
Whatever OneGate says comes from the service and not from one virtual machine:
every member may write every other one.

A call ends within its ``timeout_s``, reads at most ``ANSWER_BYTES_MAX``, follows no redirect,
uses no proxy, and raises nothing but ``OneGateError``.
The token is in no message, no ``repr`` and no log line.
"""

from __future__ import annotations

import contextlib
import dataclasses
import ipaddress
import json
import random
import re
import socket
import threading
import time
import types
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NoReturn

import httpx

from onefed import errors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ANSWER_BYTES_MAX = 1 << 20
"""``GET /service`` takes about 150 bytes a node, a virtual machine with a certificate 5 kB."""
VALUE_BYTES_MAX = 65_536
"""Longest value that is published. The longest of ours, a certificate in base64, has 3 kB."""
REASON_CHARACTERS_MAX = 200
"""How much of a refusal's text is kept."""
ATTEMPTS_MAX = 3
"""Attempts of one call, the first included."""
TIMEOUT_S = 10.0
"""Of one call, its further attempts included."""
BACKOFF_S = 0.25
"""Wait before the second attempt; doubled each time, then shortened by up to half at random."""

_ATTRIBUTE_NAME = re.compile(r"[A-Z][A-Z0-9_]*")
_NUMBER = re.compile(r"[0-9]{1,18}")
_UNSAFE_CHARACTERS = frozenset(',[]"\\')
"""OneGate answers 500 to these or stores something else (its quoting, not ours)."""


class OneGateError(errors.OnefedError):
    """OneGate refused a request, or its answer makes no sense."""

    def __init__(
        self, request: str, reason: str, *, status: int | None = None, hint: str | None = None
    ) -> None:
        answered = "" if status is None else f" answered {status}"
        super().__init__(f"OneGate, {request}{answered}: {reason}", hint=hint)
        self.path = request.partition(" ")[2]
        """Path of the request, as in ``/vm``; empty when none was made."""
        self.status = status
        """Status code of the answer; None when there was none."""
        self.reason = reason
        """OneGate's own words if it gave some, printable and cut."""


class NotAuthorizedError(OneGateError):
    """401: token and VMID do not belong together, or the virtual machine is gone."""


class OneGateUnreachableError(OneGateError):
    """No complete HTTP answer arrived: refused, reset, not HTTP, or later than the deadline."""


class UnsafeAttributeError(OneGateError):
    """A name or value that the platform would not store as it is. Nothing was sent."""


@dataclasses.dataclass(frozen=True)
class VirtualMachine:
    """One virtual machine as ``GET /vm`` and ``GET /vms/<id>`` show it."""

    id: str
    name: str
    attributes: Mapping[str, str]
    """USER_TEMPLATE without its nested entries. Written by any member of the service."""
    addresses: tuple[str, ...]
    """IP addresses in the order of the network interfaces, aliases last."""


@dataclasses.dataclass(frozen=True)
class RoleNode:
    """One virtual machine as ``GET /service`` lists it: no addresses, no attributes."""

    vm_id: str
    name: str


@dataclasses.dataclass(frozen=True)
class Role:
    """One role of a OneFlow service."""

    name: str
    cardinality: int
    """Nodes the role should have; ``nodes`` may be fewer while it deploys."""
    state: int
    """0 PENDING (or not told) to 10 COOLDOWN, 11 HOLD."""
    nodes: tuple[RoleNode, ...]
    """Oldest first."""


@dataclasses.dataclass(frozen=True)
class Service:
    """The OneFlow service that the virtual machine belongs to."""

    id: str
    name: str
    state: int
    """0 PENDING (or not told), 2 RUNNING, up to 15 HOLD."""
    roles: tuple[Role, ...]


class OneGate:
    """OneGate as one virtual machine sees it. Every call opens and closes one connection."""

    def __init__(
        self,
        endpoint: str,
        token: str,
        vm_id: str,
        *,
        timeout_s: float = TIMEOUT_S,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
        rng: random.Random | None = None,
    ) -> None:
        """Refuse what cannot be an endpoint, a token or an id.

        ``endpoint`` is ONEGATE_ENDPOINT, ``token`` the content of the token file and ``vm_id``
        VMID. ``timeout_s`` covers a whole call with its further attempts; only the name lookup
        of an endpoint without a literal address is bounded by the system instead.
        ``transport``, ``sleep`` and ``rng`` are handed in by tests.
        """
        self._endpoint = _checked_endpoint(endpoint)
        self._vm_id = _checked_id(vm_id)
        self._token = token.strip()
        if not re.fullmatch(r"[!-~]+", self._token):
            raise OneGateError(
                "token",
                "the token is empty or holds characters that no token has",
                hint="Check that the context has TOKEN=YES and read the token file again.",
            )
        self._timeout_s = timeout_s
        self._sleep = sleep
        self._rng = rng or random.SystemRandom()
        self._client = httpx.Client(
            headers={
                "X-ONEGATE-TOKEN": self._token,
                "X-ONEGATE-VMID": self._vm_id,
                "Accept-Encoding": "identity",
            },
            follow_redirects=False,
            limits=httpx.Limits(max_keepalive_connections=0),
            transport=transport,
            trust_env=False,
        )

    def __enter__(self) -> OneGate:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"OneGate({self._endpoint!r}, vm_id={self._vm_id!r})"

    def close(self) -> None:
        """Let go of the client; no call is possible afterwards."""
        self._client.close()

    def vm(self) -> VirtualMachine:
        """Return this virtual machine."""
        return _virtual_machine(self._get("/vm"))

    def vm_by_id(self, vm_id: str) -> VirtualMachine:
        """Return a virtual machine of the same service."""
        return _virtual_machine(self._get(f"/vms/{_checked_id(vm_id)}"))

    def service(self) -> Service:
        """Return the service with its roles and nodes."""
        return _service(self._get("/service"))

    def publish(self, name: str, value: str) -> None:
        """Set one attribute of this virtual machine."""
        self._publish("/vm", name, value)

    def publish_to(self, vm_id: str, name: str, value: str) -> None:
        """Set one attribute of a virtual machine of the same service."""
        self._publish(f"/vms/{_checked_id(vm_id)}", name, value)

    def erase(self, name: str) -> None:
        """Remove one attribute of this virtual machine; 500 when it has none of that name.

        Sent once: a second attempt after a lost answer would find nothing and look like a failure.
        """
        form = {"data": _checked_name(name, "PUT /vm"), "type": "2"}
        self._call("PUT", "/vm", form, attempts_max=1)

    def _publish(self, path: str, name: str, value: str) -> None:
        request = f"PUT {path}"
        _checked_name(name, request)
        _check_value(name, value, request)
        # An empty value has to be quoted, or a lone quote is stored. All others must not be:
        # a quoted value with "=" inside is cut there, and the rest becomes another attribute.
        quoted = value or '""'
        self._call("PUT", path, {"data": f"{name}={quoted}", "type": "1"})

    def _get(self, path: str) -> _Answer:
        body = self._call("GET", path)
        try:
            return _Answer(f"GET {path}", json.loads(body))
        except (ValueError, RecursionError):
            raise OneGateError(f"GET {path}", "the answer is not JSON", status=200) from None

    def _call(
        self,
        method: str,
        path: str,
        form: Mapping[str, str] | None = None,
        *,
        attempts_max: int = ATTEMPTS_MAX,
    ) -> bytes:
        """Try again after a failed connection or a 5xx, as long as the deadline allows it."""
        ends_at_s = time.monotonic() + self._timeout_s
        for attempt in range(1, attempts_max + 1):
            try:
                return self._attempt(method, path, form, ends_at_s)
            except OneGateError as error:
                transient = isinstance(error, OneGateUnreachableError) or (error.status or 0) >= 500
                wait_s = BACKOFF_S * 2 ** (attempt - 1) * self._rng.uniform(0.5, 1.0)
                late = time.monotonic() + wait_s >= ends_at_s
                if not transient or late or attempt == attempts_max:
                    raise
                self._sleep(wait_s)
        raise AssertionError("the last attempt returns or raises")

    def _attempt(
        self, method: str, path: str, form: Mapping[str, str] | None, ends_at_s: float
    ) -> bytes:
        request = f"{method} {path}"
        late = f"no complete answer within {self._timeout_s:g} s"
        with _Deadline(max(ends_at_s - time.monotonic(), 0.001)) as deadline:
            try:
                status, body = self._exchange(method, path, form, deadline)
            except httpx.TimeoutException:
                self._unreachable(request, late)
            except httpx.HTTPError as error:
                why = late if deadline.passed else f"{type(error).__name__}: {error}"
                self._unreachable(request, why)
            if deadline.passed:
                self._unreachable(request, late)
        if not 200 <= status < 300:
            self._refuse(request, body.decode(errors="replace"), status)
        return body

    def _exchange(
        self, method: str, path: str, form: Mapping[str, str] | None, deadline: _Deadline
    ) -> tuple[int, bytes]:
        """Send one request and return status and body of what answers it."""
        body = bytearray()
        with self._client.stream(
            method,
            f"{self._endpoint}{path}",
            data=form,
            timeout=deadline.remaining_s,
            extensions={"trace": deadline.trace},
        ) as answer:
            for part in answer.iter_raw():
                body += part
                if len(body) > ANSWER_BYTES_MAX:
                    reason = f"the answer has more than {ANSWER_BYTES_MAX} bytes"
                    self._refuse(f"{method} {path}", reason)
        return answer.status_code, bytes(body)

    def _unreachable(self, request: str, reason: str) -> NoReturn:
        raise OneGateUnreachableError(
            request,
            self._printable(reason),
            hint=f"Check that {self._endpoint} can be reached from this virtual machine.",
        ) from None

    def _refuse(self, request: str, reason: str, status: int | None = None) -> NoReturn:
        reason = self._printable(reason)
        hint = None
        if status == 401:
            hint = "Check that token file and VMID are those of this virtual machine."
            raise NotAuthorizedError(request, reason, status=status, hint=hint)
        if status is not None and 300 <= status < 400:
            reason = "a redirect, which is never followed"
            hint = f"Check that {self._endpoint} is OneGate itself."
        elif status is not None and status >= 500:
            hint = "OneGate does not say why; see onegate.log on the front-end."
        raise OneGateError(request, reason, status=status, hint=hint)

    def _printable(self, text: str) -> str:
        """Cut, without the token, should the other side repeat it, and without control codes."""
        text = text.replace(self._token, "<token>").strip()
        text = text if text.isprintable() else ascii(text)
        return text[:REASON_CHARACTERS_MAX] or "no reason given"


class _Deadline:
    """Cuts the connection of a request when its time is up.

    The timeouts of httpx bound one read each; an answer that drips would last for ever.
    """

    def __init__(self, remaining_s: float) -> None:
        self.remaining_s = remaining_s
        self.passed = False
        self._socket: socket.socket | None = None
        self._lock = threading.Lock()
        self._timer = threading.Timer(remaining_s, self._cut)
        self._timer.daemon = True

    def __enter__(self) -> _Deadline:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()

    def trace(self, event: str, info: Mapping[str, Any]) -> None:
        """Learn the socket; httpcore calls this as the request goes on."""
        if event in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
            with self._lock:
                self._socket = info["return_value"].get_extra_info("socket")
            if self.passed:
                self._cut()

    def _cut(self) -> None:
        with self._lock:
            self.passed = True
            if self._socket is not None:
                with contextlib.suppress(OSError):  # closed in the same moment
                    self._socket.shutdown(socket.SHUT_RDWR)  # wakes the reader


class _Answer:
    """A piece of decoded JSON that knows which request it answers and where it stood."""

    def __init__(self, request: str, value: Any, place: str = "the answer") -> None:
        self._request = request
        self._value = value
        self._place = place

    @property
    def absent(self) -> bool:
        return self._value is None

    def _wrong(self, expected: str) -> NoReturn:
        raise OneGateError(self._request, f"{self._place} is not {expected}", status=200)

    def _entries(self) -> dict[str, Any]:
        if self._value in (None, "", []):  # an absent or empty XML element
            return {}
        if not isinstance(self._value, dict):
            self._wrong("an object")
        return self._value

    def __getitem__(self, key: str) -> _Answer:
        """Return the entry of that key, empty where it is absent."""
        return _Answer(self._request, self._entries().get(key), f"{self._place}, {key},")

    def __iter__(self) -> Iterator[_Answer]:
        """Iterate over a list; XML that was turned to JSON has a bare object for a list of one."""
        items = self._value or []
        for item in items if isinstance(items, list) else [items]:
            yield _Answer(self._request, item, self._place)

    def text(self) -> str:
        if not isinstance(self._value, str | None):
            self._wrong("a string")
        return self._value or ""

    def id(self, default: str | None = None) -> str:
        """Return an id as text; the real servers write some as numbers and some as strings."""
        text = default if self._value is None and default is not None else str(self._value)
        if isinstance(self._value, bool) or not _NUMBER.fullmatch(text):
            self._wrong("an id or a number")
        return text

    def integer(self, default: int) -> int:
        return int(self.id(str(default)))

    def strings(self) -> Mapping[str, str]:
        """Return those entries that are text."""
        entries = self._entries().items()
        return types.MappingProxyType({k: v for k, v in entries if isinstance(v, str)})


def _virtual_machine(answer: _Answer) -> VirtualMachine:
    vm = answer["VM"]
    interfaces = [nic for key in ("NIC", "NIC_ALIAS") for nic in vm["TEMPLATE"][key]]
    found = [
        nic[key].text() for nic in interfaces for key in ("IP", "IP6_GLOBAL", "IP6_ULA", "IP6")
    ]
    return VirtualMachine(
        id=vm["ID"].id(),
        name=vm["NAME"].text(),
        attributes=vm["USER_TEMPLATE"].strings(),
        addresses=tuple(dict.fromkeys(filter(_is_address, found))),
    )


def _service(answer: _Answer) -> Service:
    service = answer["SERVICE"]
    return Service(
        id=service["id"].id(),
        name=service["name"].text(),
        state=service["state"].integer(default=0),
        roles=tuple(_role(role) for role in service["roles"]),
    )


def _role(role: _Answer) -> Role:
    nodes = tuple(_role_node(node) for node in role["nodes"])
    return Role(
        name=role["name"].text(),
        cardinality=role["cardinality"].integer(default=len(nodes)),
        state=role["state"].integer(default=0),
        nodes=nodes,
    )


def _role_node(node: _Answer) -> RoleNode:
    vm = node["vm_info"]["VM"]
    vm_id = vm["ID"] if node["deploy_id"].absent else node["deploy_id"]
    return RoleNode(vm_id=vm_id.id(), name=vm["NAME"].text())


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _shown(text: str) -> str:
    return ascii(text[:REASON_CHARACTERS_MAX])


def _checked_endpoint(endpoint: str) -> str:
    try:
        url = httpx.URL(endpoint)
    except (httpx.InvalidURL, TypeError):
        url = httpx.URL()
    plain = not (url.userinfo or url.query or url.fragment)
    if url.scheme not in ("http", "https") or not url.host or not plain:
        shown = "a URL with a password" if "@" in endpoint else _shown(endpoint)
        raise OneGateError(
            "endpoint",
            f"{shown} is no plain http or https URL",
            hint="Check ONEGATE_ENDPOINT; the platform's own is http://169.254.16.9:5030.",
        )
    return str(url).rstrip("/")


def _checked_id(vm_id: str) -> str:
    if not _NUMBER.fullmatch(vm_id):
        raise OneGateError("VMID", f"{_shown(vm_id)} is no id of a virtual machine")
    return vm_id


def _checked_name(name: str, request: str) -> str:
    if not _ATTRIBUTE_NAME.fullmatch(name):
        raise UnsafeAttributeError(
            request,
            f"{_shown(name)} is no name of an attribute",
            hint="Use upper-case letters, digits and underscores, a letter first.",
        )
    return name


def _check_value(name: str, value: str, request: str) -> None:
    bad = next((c for c in value if c in _UNSAFE_CHARACTERS or not c.isprintable()), None)
    if bad is not None:
        raise UnsafeAttributeError(
            request,
            f"the value of {name} holds {bad!a}, which OneGate does not store as it is",
            hint="Send structured values in base64.",
        )
    if value != value.strip():
        raise UnsafeAttributeError(
            request,
            f"the value of {name} begins or ends with a space, which OneGate may drop",
            hint="Strip the value, or send it in base64.",
        )
    if len(value.encode()) > VALUE_BYTES_MAX:
        raise UnsafeAttributeError(
            request,
            f"the value of {name} has more than {VALUE_BYTES_MAX} bytes",
            hint="Publish where the data is, and not the data.",
        )
