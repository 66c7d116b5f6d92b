"""A coordinator and its nodes, deployed as OneFlow does with ``straight`` and the ready gate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from onefed.appliance import drain, stages
from onefed.appliance.description import Runtime
from onefed.appliance.paths import Paths
from onefed.checkpoint import RecoveryStore, Snapshot
from onefed.context import Role
from onefed.errors import StorageError
from onefed.local.cloud import variables_of
from onefed.local.onegate import OneGateServer
from onefed.local.service import ServiceModel

from . import cgroups, engine, network
from .machine import Machine, wait_for

READY_LIMIT_S = 120.0
TRAINED_LIMIT_S = 180.0
IDLE_LIMIT_S = 30.0


class Federation:
    """One service: its OneGate on the bridge, and its machines."""

    def __init__(
        self, folder: Path, runtime: Runtime, numbers: Iterator[int], baked: Path | None = None
    ) -> None:
        """
        Args:
            numbers: gives addresses to machines; no two on the bridge have the same.
            baked: what ``engine.bake`` made, where the runtime is Docker.
        """
        cgroups.forget()
        self.name = folder.name
        self._baked = baked
        self.model = ServiceModel("1", folder.name)
        self.machines: list[Machine] = []
        self._gate = OneGateServer(self.model, address=network.ADDRESS)
        self._endpoint = self._gate.start()
        self._folder = folder
        self._runtime = runtime
        self._numbers = numbers
        for role in Role:
            self.model.add_role(role, 1 if role is Role.SUPERLINK else 2)

    @property
    def coordinator(self) -> Machine:
        return self.machines[0]

    @property
    def nodes(self) -> list[Machine]:
        return self.machines[1:]

    def deploy(self, variables: Mapping[str, str], nodes: int = 2) -> None:
        """Every machine is READY when this ends."""
        self.start(Role.SUPERLINK, [variables])
        self.start(Role.SUPERNODE, [variables] * nodes)

    def start(
        self, role: Role, contexts: Sequence[Mapping[str, str]], carry: Sequence[str] = ()
    ) -> None:
        """A machine for each context, on at the same moment; all are READY when this ends.

        Args:
            carry: version of Flower that each image has, with Docker.
        """
        versions = carry or [engine.VERSION] * len(contexts)
        made = [
            self.create(role, variables, carries)
            for variables, carries in zip(contexts, versions, strict=True)
        ]
        for machine in made:
            machine.power_on()
        for machine in made:
            self.wait_until_ready(machine)

    def create(
        self, role: Role, variables: Mapping[str, str], carries: str = engine.VERSION
    ) -> Machine:
        """A machine that is off, with what OpenNebula puts into every context and ``variables``."""
        number = next(self._numbers)
        address = network.address(number)
        name = f"{role}-{number}"
        record = self.model.add_vm(
            role,
            name,
            address,
            {
                **variables_of(role, variables),
                "DISK_ID": "1",
                "ETH0_DNS": network.ADDRESS,
                "ETH0_EXTERNAL": "",
                "ETH0_GATEWAY": network.ADDRESS,
                "ETH0_IP": address,
                "ETH0_IP6": "",
                "ETH0_MASK": "255.255.255.0",
                "ETH0_NETWORK": "10.77.0.0",
                "NETWORK": "YES",
                "ONEGATE_ENDPOINT": self._endpoint,
                "REPORT_READY": "YES",
                "SSH_PUBLIC_KEY": "",
                "TARGET": "sdb",
                "TOKEN": "YES",
            },
        )
        machine = Machine(
            *(name, role, record, self._folder / name, self._runtime, self._baked), carries=carries
        )
        machine.build()
        machine.tell(record.context)
        self.machines.append(machine)
        return machine

    def attributes(self, machine: Machine) -> Mapping[str, str]:
        """What a machine has published."""
        return self.model.attributes(machine.record.vm_id)

    def wait_until_ready(self, machine: Machine) -> None:
        """As the gate of OneFlow; fails with the machine's own words when it cannot become so."""

        def look() -> bool:
            held = self.attributes(machine)
            assert "FL_ERROR" not in held, f"{machine.name}: {held['FL_ERROR']}\n{told(machine)}"
            assert machine.process is not None
            assert machine.process.poll() is None, f"{machine.name} is off\n{told(machine)}"
            return held.get("READY") == "YES"

        try:
            wait_for(look, READY_LIMIT_S, f"{machine.name} READY")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{told(machine)}") from None

    def wait_until_idle(self, node: Machine) -> None:
        """It trained, and has said since that it trains no more."""

        def look() -> bool:
            held = self.attributes(node)
            # One after the other, the status last; but an idle one is there from the boot on.
            return (
                "FL_ROUND_NUMBER" in held
                and held.get("FL_TRAINING_ACTIVE") == "NO"
                and held["FL_CLIENT_STATUS"] == drain.IDLE
            )

        wait_for(look, IDLE_LIMIT_S, f"{node.name} idle")

    def power_on_again(self, machine: Machine) -> None:
        """A machine that was off; READY, of its earlier life, is forgotten first."""
        self.model.update_attributes(machine.record.vm_id, {"READY": "NO"})
        machine.power_on()
        self.wait_until_ready(machine)

    def wait_until_trained(self, rounds: int | None = None) -> Snapshot:
        """The last committed round, once it is the last of the run; of one with so many rounds."""

        log = stages.events(self.coordinator.paths)

        def look() -> Snapshot | None:
            assert '"status":"failed"' not in log.read_text(), "the run failed"
            found = last_saved(self.coordinator.paths)
            whole = found is not None and found.round_number == (rounds or found.rounds_total)
            return found if whole else None

        try:
            return wait_for(look, TRAINED_LIMIT_S, "the last round")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{told(self.coordinator)}") from None

    def cut_power(self) -> None:
        """All off, without a word; what is off already stays so."""
        for machine in self.machines:
            if machine.process is not None:
                machine.cut_power()

    def close(self) -> None:
        """All off: how a machine leaves is for a test to look at, and takes its time."""
        self.cut_power()
        self._gate.stop()


def last_saved(coordinator: Paths) -> Snapshot | None:
    """The last committed round on a coordinator's disk, with its model."""
    store = RecoveryStore(coordinator.recovery)
    try:
        newest = store.peek()
        loaded = None if newest is None else store.load(newest.run)
    except StorageError:
        return None
    return None if loaded is None else loaded.snapshot


def told(machine: Machine) -> str:
    """The end of every log of a machine, for the message of a test that failed."""
    found = []
    for log in (*sorted(machine.paths.logs.glob("*")), machine.folder / "console.log"):
        if log.is_file():
            tail = log.read_text(errors="replace").splitlines()[-25:]
            found += [f"== {log.name}", *tail]
    return "\n".join(found)
