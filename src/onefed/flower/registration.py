"""Which nodes may connect, and which of them are connected.

Three ways lead into the roster: a key that a machine of our own service published, the operator's
list, and an enrolment token. What the roster admits is registered with Flower; what it refuses is
taken out of Flower's database, whenever it is found there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from onefed.errors import OnefedError
from onefed.flower import adapter, clients
from onefed.flower.roster import Member, RefusedKeyError, Roster
from onefed.opennebula import onegate
from onefed.telemetry import events
from onefed.tls import node_keys

LOST_DISK_LOOKS = 10
"""A machine whose node is away is asked for its key at every tenth look, OneGate being shared."""

NODES_A_LOOK = 100
"""A SuperLink spends 0.1 ms of CPU on each node that it lists: with so many more nodes they are
looked at every second time, every third, and so on."""

REFUSED = "REFUSED"
"""In ``FL_NODE_REGISTERED`` of a machine whose key the operator has revoked."""

_PARTITION_OF_A_LISTED_KEY = re.compile(r"partition-id=([0-9]{1,9})")


class Registrar:
    """Registers nodes and tells who comes and goes. ``look`` is called again and again."""

    def __init__(
        self,
        *,
        control: adapter.Control,
        gate: onegate.OneGate | None,
        roster: Roster,
        listed: Sequence[str],
        emit: Callable[[events.Event], None],
    ) -> None:
        """
        Args:
            listed: the operator's public keys, a line each (``FL_NODE_KEYS``).
        """
        self._control = control
        self._gate = gate
        self._roster = roster
        self._emit = emit
        self._registered: set[str] = set()
        """Ids of the machines whose key is registered."""
        self._in_flower: set[str] = set()
        """Fingerprints of keys that we know to be registered with Flower."""
        self._refused: dict[str, str] = {}
        """Id of a machine -> why its key was refused when that was last told."""
        self._pending: dict[str, bytes] = {}
        """Id of a machine -> the key that it published and that was refused."""
        self._addresses: dict[str, str] = {}
        """Name of a node -> address of its machine, of the nodes that we registered."""
        self._nodes: dict[str, adapter.NodeStatus] = {}
        """By fingerprint, as of the last look."""
        self._online: frozenset[int] = frozenset()
        self._has_watched = False
        self._looks = 0
        self._admit_listed(listed)

    @property
    def online(self) -> frozenset[int]:
        """Ids of the nodes that were connected at the last look."""
        return self._online

    def node(self, fingerprint: str) -> adapter.NodeStatus | None:
        """The node of a key, as Flower knew it at the last look."""
        return self._nodes.get(fingerprint)

    def pending_of(self, member: Member) -> bytes | None:
        """The key that a member's machine publishes now, where it was not admitted."""
        return self._pending.get(member.vm_id) if member.vm_id else None

    def look(self) -> None:
        """Look once at the service and at the nodes."""
        self._looks += 1
        if self._looks == 1:
            # Who is connected decides whose new key is taken, also after a start of this program.
            self._nodes = _by_key(self._control.nodes())
        if self._gate is not None:
            self._register_new_keys(self._gate)
        self._register_admitted()
        if self._looks % (1 + len(self._nodes) // NODES_A_LOOK) == 0:
            self._watch_nodes()

    def _admit_listed(self, lines: Sequence[str]) -> None:
        for line in lines:
            found = _PARTITION_OF_A_LISTED_KEY.search(line)
            try:
                key = node_keys.normal(line.encode(), source="a key of FL_NODE_KEYS")
                self._roster.admit(key, source="operator", partition=found[1] if found else "")
            except OnefedError as error:
                self._emit(events.Notice("WARNING", f"A key of FL_NODE_KEYS: {error.message}."))

    def _register_new_keys(self, gate: onegate.OneGate) -> None:
        """Register the key of every supernode of our own service, and tell it so.

        A machine that is connected is not asked again: its key stays what it is.
        """
        for role in gate.service().roles:
            if role.name != "supernode":
                continue
            for index, node in enumerate(role.nodes):
                if node.vm_id not in self._registered or self._may_have_lost_its_disk(node.vm_id):
                    self._try_to_register(gate, node.vm_id, f"{role.name}/{index}")

    def _may_have_lost_its_disk(self, vm_id: str) -> bool:
        member = self._roster.admitted_of(vm_id)
        away = member is None or not self._is_online(member)
        return away and self._looks % LOST_DISK_LOOKS == 0

    def _is_online(self, member: Member) -> bool:
        node = self._nodes.get(member.fingerprint)
        return node is not None and node.status == adapter.NODE_ONLINE

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
                if isinstance(error, RefusedKeyError) and error.for_good:
                    gate.publish_to(vm_id, "FL_NODE_REGISTERED", REFUSED)

    def _register(self, gate: onegate.OneGate, vm_id: str, name: str) -> None:
        """Register the key that a machine published, if it has published one."""
        machine = gate.vm_by_id(vm_id)
        published = machine.attributes.get("FL_NODE_KEY")
        if published is None:
            return
        public_key = node_keys.decode_published(published, source=f"the key of {name}")
        fingerprint = node_keys.fingerprint(public_key)
        told = machine.attributes.get("FL_NODE_REGISTERED") == fingerprint
        if told and vm_id in self._registered and fingerprint in self._in_flower:
            return
        member = self._admit(public_key, vm_id, name, machine.attributes.get("FL_PARTITION", ""))
        self._pending.pop(vm_id, None)
        node_id = self._register_member(member)
        gate.publish_to(vm_id, "FL_NODE_REGISTERED", fingerprint)
        self._registered.add(vm_id)
        self._refused.pop(vm_id, None)
        node_name = clients.node_name(member.client)
        self._addresses[node_name] = next(iter(machine.addresses), "unknown")
        if node_id is not None:
            partition = _partition(member.client)
            self._emit(events.NodeRegistered(vm=name, node_id=str(node_id), partition=partition))

    def _admit(self, public_key: bytes, vm_id: str, name: str, partition: str) -> Member:
        """The roster's word. A machine whose node is away may come with another key: its disk was
        lost. While the node is there, another key is somebody else's."""
        earlier = self._roster.admitted_of(vm_id)
        fingerprint = node_keys.fingerprint(public_key)
        try:
            if earlier is None or earlier.fingerprint == fingerprint:
                number = _partition(partition)
                return self._roster.admit(
                    public_key,
                    source="service",
                    partition="" if number is None else str(number),
                    vm_id=vm_id,
                )
            if self._is_online(earlier):
                raise RefusedKeyError(
                    "its machine publishes another key than the one that is connected",
                    hint=f"If that is right: onefed nodes replace {earlier.client}",
                )
            member = self._roster.replace(earlier, public_key)
        except RefusedKeyError:
            self._pending[vm_id] = public_key
            raise
        self._emit(
            events.Notice(
                "WARNING",
                f"{name} came with another key, and its old one is refused from now on: "
                "its disk was lost, or somebody wrote into its attributes.",
            )
        )
        return member

    def _register_admitted(self) -> None:
        """Members that no machine of the service stands for are registered here."""
        for member in self._roster.members():
            if member.standing != "admitted" or member.fingerprint in self._in_flower:
                continue
            if member.source == "service" and member.vm_id not in self._registered:
                continue  # its machine has yet to come
            node_id = self._register_member(member)
            if node_id is not None:
                partition = _partition(member.client)
                self._emit(
                    events.NodeRegistered(
                        vm=f"node {member.client}", node_id=str(node_id), partition=partition
                    )
                )

    def _register_member(self, member: Member) -> int | None:
        """Tell Flower; None when it knew."""
        node_name = clients.node_name(member.client)
        key = node_keys.public_key_bytes(member.public_key.encode())
        try:
            node_id = self._control.register_node(key, node_name)
        except adapter.KeyKnownError:
            node_id = None  # registered by the supervisor before this one
        self._in_flower.add(member.fingerprint)
        return node_id

    def _watch_nodes(self) -> None:
        nodes = self._control.nodes()
        self._nodes = _by_key(nodes)
        for fingerprint, node in self._nodes.items():
            self._refuse_if_told_to(fingerprint, node)
        names = {node.node_id: node.name for node in nodes if node.status == adapter.NODE_ONLINE}
        online = frozenset(names)
        for node_id in sorted(online - self._online):
            address = self._addresses.get(names[node_id], "unknown")
            self._emit(events.ClientJoin(str(node_id), address))
        # Whoever left while no supervisor looked is told once by the next one.
        unseen = [] if self._has_watched else nodes
        gone = {each.node_id for each in unseen if each.status == adapter.NODE_OFFLINE}
        for node_id in sorted((self._online - online) | gone):
            self._emit(events.ClientLeave(str(node_id), "disconnected"))
        self._online, self._has_watched = online, True

    def _refuse_if_told_to(self, fingerprint: str, node: adapter.NodeStatus) -> None:
        member = self._roster.get(fingerprint)
        if member is None or member.standing == "admitted":
            return
        if node.status != adapter.NODE_UNREGISTERED:
            self._control.unregister_node(node.node_id)
            shown = f"Node {member.client} ({fingerprint[:16]})"
            self._emit(events.Notice("WARNING", f"{shown} is refused: it was {member.standing}."))


def _by_key(nodes: Sequence[adapter.NodeStatus]) -> dict[str, adapter.NodeStatus]:
    """Nodes by the fingerprint of their key."""
    return {node_keys.fingerprint_of_pem(n.public_key): n for n in nodes if n.public_key}


def _partition(text: str) -> int | None:
    """A partition id as a node publishes it, or None; any member of the service may write it."""
    return int(text) if re.fullmatch(r"[0-9]{1,9}", text) else None
