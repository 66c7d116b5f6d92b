"""Which nodes may connect, and which of them are connected.

The keys that the machines of our own service published are registered, and each machine is told.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from onefed.errors import OnefedError
from onefed.flower import adapter, clients
from onefed.opennebula import onegate
from onefed.telemetry import events
from onefed.tls import node_keys

FINGERPRINT_SHOWN = 16
"""Hex digits of a key's fingerprint that make the client key of a node without a partition."""


class Registrar:
    """Registers nodes and tells who comes and goes. ``look`` is called again and again."""

    def __init__(
        self,
        *,
        control: adapter.Control,
        gate: onegate.OneGate | None,
        emit: Callable[[events.Event], None],
    ) -> None:
        self._control = control
        self._gate = gate
        self._emit = emit
        self._registered: set[str] = set()
        """Ids of the machines whose key is registered."""
        self._refused: dict[str, str] = {}
        """Id of a machine -> why its key was refused when that was last told."""
        self._addresses: dict[str, str] = {}
        """Name of a node -> address of its machine, of the nodes that we registered."""
        self._online: frozenset[int] = frozenset()

    @property
    def online(self) -> frozenset[int]:
        """Ids of the nodes that were connected at the last look."""
        return self._online

    def look(self) -> None:
        """Look once at the service and at the nodes."""
        if self._gate is not None:
            self._register_new_keys(self._gate)
        self._watch_nodes()

    def _register_new_keys(self, gate: onegate.OneGate) -> None:
        """Register the key of every supernode of our own service, and tell it so."""
        for role in gate.service().roles:
            if role.name != "supernode":
                continue
            for index, node in enumerate(role.nodes):
                if node.vm_id not in self._registered:
                    self._try_to_register(gate, node.vm_id, f"{role.name}/{index}")

    def _try_to_register(self, gate: onegate.OneGate, vm_id: str, name: str) -> None:
        """Register one machine; what it published wrongly keeps no other machine out."""
        try:
            self._register(gate, vm_id, name)
        except OnefedError as error:
            servers = adapter.SuperLinkError | onegate.OneGateError
            if isinstance(error, servers) and error.status is None:
                raise  # nobody answered: it is not this machine's fault
            if self._refused.get(vm_id) != error.message:
                self._refused[vm_id] = error.message
                self._emit(events.Notice("WARNING", f"{name} cannot join: {error.message}"))

    def _register(self, gate: onegate.OneGate, vm_id: str, name: str) -> None:
        """Register the key that a machine published, if it has published one."""
        machine = gate.vm_by_id(vm_id)
        published = machine.attributes.get("FL_NODE_KEY")
        if published is None:
            return
        public_key = node_keys.decode_published(published, source=f"the key of {name}")
        fingerprint = node_keys.fingerprint(public_key)
        partition = _partition(machine.attributes.get("FL_PARTITION", ""))
        client = fingerprint[:FINGERPRINT_SHOWN] if partition is None else str(partition)
        node_name = clients.node_name(client)
        try:
            node_id = self._control.register_node(node_keys.public_key_bytes(public_key), node_name)
        except adapter.KeyKnownError:
            node_id = None  # registered by the supervisor before this one
        gate.publish_to(vm_id, "FL_NODE_REGISTERED", fingerprint)
        self._registered.add(vm_id)
        self._addresses[node_name] = next(iter(machine.addresses), "unknown")
        if node_id is not None:
            self._emit(events.NodeRegistered(vm=name, node_id=str(node_id), partition=partition))

    def _watch_nodes(self) -> None:
        names = {
            node.node_id: node.name
            for node in self._control.nodes()
            if node.status == adapter.NODE_ONLINE
        }
        online = frozenset(names)
        for node_id in sorted(online - self._online):
            address = self._addresses.get(names[node_id], "unknown")
            self._emit(events.ClientJoin(str(node_id), address))
        for node_id in sorted(self._online - online):
            self._emit(events.ClientLeave(str(node_id), "disconnected"))
        self._online = online


def _partition(text: str) -> int | None:
    """A partition id as a node publishes it, or None; any member of the service may write it."""
    return int(text) if re.fullmatch(r"[0-9]{1,9}", text) else None
