"""One OneFlow service in memory: its roles, its virtual machines, and what they publish.

It keeps what oned and OneFlow keep on a cloud and decides nothing: the local OneFlow moves
the states, the local OneGate lets the virtual machines in.
Any thread may call any method; what they return never changes afterwards.
"""

from __future__ import annotations

import base64
import dataclasses
import enum
import hmac
import ipaddress
import re
import secrets
import threading
import types
from collections.abc import Mapping
from typing import TypeVar

from onefed import errors

TOKEN_BYTES = 32
"""Entropy of a token. The real one is an AES block in base64, as opaque on the wire."""

_BETWEEN_VALUES = re.compile(
    r"(?P<hash>#)|(?P<equals_nothing>=[ \t]*\n)|(?P<equals>=[ \t]*)|(?P<delimiter>[,\]])"
    r"|(?P<name>[0-9A-Za-z_]+)"
)
_QUOTED = re.compile(r'"[^"]*(?:(?<=\\)"[^"]*)*"')
"""A quote after a backslash goes on, if another quote follows."""
_BARE = re.compile(r"[^=# \t\n,\[\]]+")

_Value = TypeVar("_Value")

UserTemplate = Mapping[str, str | Mapping[str, str]]
"""USER_TEMPLATE of a virtual machine: attributes, and vectors of attributes such as USER_INPUTS."""


class ServiceState(enum.IntEnum):
    """States of a OneFlow service, by number as OneFlow gives them."""

    PENDING = 0
    DEPLOYING = 1
    RUNNING = 2
    UNDEPLOYING = 3
    WARNING = 4
    DONE = 5
    FAILED_UNDEPLOYING = 6
    FAILED_DEPLOYING = 7
    SCALING = 8
    FAILED_SCALING = 9
    COOLDOWN = 10
    DEPLOYING_NETS = 11
    UNDEPLOYING_NETS = 12
    FAILED_DEPLOYING_NETS = 13
    FAILED_UNDEPLOYING_NETS = 14
    HOLD = 15


class RoleState(enum.IntEnum):
    """States of a role: those of a service up to 10, then HOLD."""

    PENDING = 0
    DEPLOYING = 1
    RUNNING = 2
    UNDEPLOYING = 3
    WARNING = 4
    DONE = 5
    FAILED_UNDEPLOYING = 6
    FAILED_DEPLOYING = 7
    SCALING = 8
    FAILED_SCALING = 9
    COOLDOWN = 10
    HOLD = 11


class TemplateSyntaxError(errors.OnefedError):
    """Text that oned refuses as a user template."""


@dataclasses.dataclass(frozen=True)
class VmRecord:
    """One virtual machine."""

    vm_id: str
    name: str
    role: str
    ip: str
    """IPv4, of its only network card."""
    token: str = dataclasses.field(repr=False)
    """What it shows to OneGate; good together with its own id only."""
    context: Mapping[str, str]
    """CONTEXT, sorted by name. Each member of the service can read it."""
    user_template: UserTemplate
    """USER_TEMPLATE, sorted by name. Each member of the service can write it."""

    @property
    def mac(self) -> str:
        """Return the address of its network card, made of the IPv4 address as oned makes it."""
        return ":".join(
            f"{byte:02x}" for byte in b"\x02\x00" + ipaddress.IPv4Address(self.ip).packed
        )


@dataclasses.dataclass(frozen=True)
class RoleRecord:
    """One role."""

    name: str
    cardinality: int
    """Virtual machines it should have."""
    state: RoleState
    vm_ids: tuple[str, ...]
    """Those it has, oldest first."""


@dataclasses.dataclass(frozen=True)
class ServiceRecord:
    """The whole service at one moment."""

    service_id: str
    name: str
    state: ServiceState
    roles: tuple[RoleRecord, ...]
    """In the order they were added."""
    vms: Mapping[str, VmRecord]
    """Every virtual machine by its id."""


class ServiceModel:
    """A service that begins PENDING, without roles."""

    def __init__(self, service_id: str, name: str) -> None:
        self._lock = threading.Lock()
        self._service_id = service_id
        self._name = name
        self._state = ServiceState.PENDING
        self._roles: dict[str, RoleRecord] = {}
        self._vms: dict[str, VmRecord] = {}
        self._next_vm_id = 0

    def add_role(self, name: str, cardinality: int) -> None:
        """Add a PENDING role without virtual machines."""
        with self._lock:
            if name in self._roles:
                raise errors.InUseError(
                    f"Service {self._service_id} already has a role {name}.",
                    hint="Give each role of a service its own name.",
                )
            self._roles[name] = RoleRecord(name, cardinality, RoleState.PENDING, ())

    def add_vm(
        self,
        role: str,
        name: str,
        ip: str,
        context: Mapping[str, str],
        user_template: UserTemplate | None = None,
    ) -> VmRecord:
        """Add a virtual machine to a role, with the next id and a new token.

        VMID is added to the context, ROLE_NAME and SERVICE_ID to the user template.
        """
        with self._lock:
            old = self._role(role)
            vm_id = str(self._next_vm_id)
            owner = {"ROLE_NAME": role, "SERVICE_ID": self._service_id}
            vm = VmRecord(
                vm_id=vm_id,
                name=name,
                role=role,
                ip=str(ipaddress.IPv4Address(ip)),
                token=base64.b64encode(secrets.token_bytes(TOKEN_BYTES)).decode(),
                context=_sorted({**context, "VMID": vm_id}),
                user_template=_sorted({**(user_template or {}), **owner}),
            )
            self._next_vm_id += 1
            self._vms[vm_id] = vm
            self._roles[role] = dataclasses.replace(old, vm_ids=(*old.vm_ids, vm_id))
            return vm

    def remove_vm(self, vm_id: str) -> None:
        """Forget a virtual machine; its token is worth nothing from now on."""
        with self._lock:
            vm = self._vms.pop(self._vm(vm_id).vm_id)
            old = self._roles[vm.role]
            left = tuple(other for other in old.vm_ids if other != vm_id)
            self._roles[vm.role] = dataclasses.replace(old, vm_ids=left)

    def set_role_state(self, role: str, state: RoleState) -> None:
        """Move a role to a state."""
        with self._lock:
            self._roles[role] = dataclasses.replace(self._role(role), state=state)

    def set_cardinality(self, role: str, cardinality: int) -> None:
        """Say how many virtual machines a role should have."""
        with self._lock:
            self._roles[role] = dataclasses.replace(self._role(role), cardinality=cardinality)

    def set_service_state(self, state: ServiceState) -> None:
        """Move the service to a state."""
        with self._lock:
            self._state = state

    def attributes(self, vm_id: str) -> Mapping[str, str]:
        """Return what a virtual machine has published: its user template without the vectors."""
        with self._lock:
            entries = self._vm(vm_id).user_template.items()
        return types.MappingProxyType({k: v for k, v in entries if isinstance(v, str)})

    def snapshot(self) -> ServiceRecord:
        """Return the service as it is now."""
        with self._lock:
            return ServiceRecord(
                service_id=self._service_id,
                name=self._name,
                state=self._state,
                roles=tuple(self._roles.values()),
                vms=types.MappingProxyType(dict(self._vms)),
            )

    def authenticate(self, vm_id: str, token: str) -> VmRecord | None:
        """Return the virtual machine of that id if the token is its own."""
        with self._lock:
            vm = self._vms.get(vm_id)
        if vm is None or not hmac.compare_digest(vm.token.encode(), token.encode()):
            return None
        return vm

    def update_attributes(self, vm_id: str, attributes: Mapping[str, str]) -> None:
        """Set attributes of a virtual machine and leave its others."""
        with self._lock:
            vm = self._vm(vm_id)
            changed = _sorted({**vm.user_template, **attributes})
            self._vms[vm_id] = dataclasses.replace(vm, user_template=changed)

    def erase_attribute(self, vm_id: str, name: str) -> None:
        """Remove one attribute of a virtual machine."""
        with self._lock:
            vm = self._vm(vm_id)
            if name not in vm.user_template:
                raise errors.NotFoundError(f"Virtual machine {vm_id} has no attribute {name!a}.")
            left = {key: value for key, value in vm.user_template.items() if key != name}
            self._vms[vm_id] = dataclasses.replace(vm, user_template=_sorted(left))

    def _role(self, name: str) -> RoleRecord:
        if name not in self._roles:
            raise errors.NotFoundError(
                f"Service {self._service_id} has no role {name!a}.",
                hint=f"It has: {', '.join(self._roles) or 'none'}.",
            )
        return self._roles[name]

    def _vm(self, vm_id: str) -> VmRecord:
        if vm_id not in self._vms:
            raise errors.NotFoundError(
                f"Service {self._service_id} has no virtual machine {vm_id!a}.",
                hint="It may have been removed.",
            )
        return self._vms[vm_id]


def parse_user_template(text: str) -> dict[str, str]:
    """Read a user template as oned's scanner and grammar do, their accidents included.

    Names are put in upper case, and ONE_ goes before a digit.
    Between attributes a character that no rule knows is skipped; this is why ``FL-A=1`` is two
    names in a row and refused.
    A value is either quoted or runs to the next blank or delimiter, whichever is longer; this is
    why ``"a"\\b`` keeps its quotes.
    Of a name that comes twice the last one is kept, where oned keeps a list.
    Vectors are refused, as they were in the captures.

    Source: ``src/parsers/template_parser.l`` and ``template_syntax.y``, OpenNebula/one at 05d147c.
    """
    attributes: dict[str, str] = {}
    name: str | None = None
    last_line_at = text.rfind("\n")
    position = 0
    while token := _BETWEEN_VALUES.search(text, position):
        position = token.end()
        kind = token.lastgroup
        if kind == "hash":  # a comment, but for a line that does not end
            position = text.index("\n", position) if position <= last_line_at else position
            continue
        if kind == "name" and name is None:
            name = _stored_name(token.group())
            continue
        if kind == "equals_nothing" and name is not None:
            attributes[name] = ""
        elif kind == "equals" and name is not None:
            value, position = _scan_value(text, position)
            attributes[name] = value
        else:
            raise TemplateSyntaxError(f"Parse error at character {token.start()}.")
        name = None
    if name is not None:
        raise TemplateSyntaxError(f"Parse error: {name} has no value.")
    return attributes


def _scan_value(text: str, position: int) -> tuple[str, int]:
    quoted = _QUOTED.match(text, position)
    bare = _BARE.match(text, position)
    if quoted is not None and (bare is None or quoted.end() >= bare.end()):
        return quoted.group()[1:-1].replace('\\"', '"'), quoted.end()
    if bare is None:
        raise TemplateSyntaxError(f"Parse error at character {position}.")
    return bare.group().replace('\\"', '"'), bare.end()


def _stored_name(name: str) -> str:
    return f"ONE_{name.upper()}" if name[0].isdigit() or name.startswith("XML") else name.upper()


def _sorted(entries: Mapping[str, _Value]) -> Mapping[str, _Value]:
    return types.MappingProxyType(dict(sorted(entries.items())))
