"""Machines of the role peer, from their context to their end, in one service of a real OneGate."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import psutil
import pytest
from tests.integration.conftest import LIMIT_S, ONEFED

from onefed.appliance import keeper, peer_state, peers
from onefed.appliance.paths import Paths
from onefed.local.onegate import OneGateServer
from onefed.local.peer_spec import free_addresses
from onefed.local.service import ServiceModel
from onefed.telemetry import events, lines
from onefed.telemetry.log import Follower

pytestmark = [pytest.mark.peer, pytest.mark.timeout(600)]

ROUNDS = 1_000_000
"""It does not come to an end by itself."""


class Machine:
    """One machine: its files, and the commands of its life cycle."""

    def __init__(self, root: Path, model: ServiceModel, endpoint: str, port: str) -> None:
        self.root = root
        self._follower = Follower(Paths(root).logs / "events.jsonl")
        self._rounds: dict[int, events.PeerRound] = {}
        self.vm = model.add_vm("peer", f"peer_{root.name}", "127.0.0.1", {}, {})
        context = {
            "ONEGATE_ENDPOINT": endpoint,
            "VMID": self.vm.vm_id,
            "TOKENTXT": self.vm.token,
            "FL_PEER_PORT": port,
            "FL_NUM_ROUNDS": str(ROUNDS),
            "FL_RUN_CONFIG": "local-epochs=1",
            "FL_LOG_FORMAT": "json",
        }
        file = Paths(root).context
        file.parent.mkdir(parents=True)
        file.write_text("".join(f"{name}='{value}'\n" for name, value in context.items()))

    def begin(self, command: str, *more: str) -> subprocess.Popen[str]:
        argv = [ONEFED, "appliance", command, "--role", "peer", "--root", self.root, *more]
        return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def kill(self) -> None:
        """The power fails: nothing is said, nothing is saved."""
        found = keeper.find(Paths(self.root).keeper)
        assert found is not None
        for process in (psutil.Process(found.pid), *psutil.Process(found.pid).children(True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        until(lambda: keeper.find(Paths(self.root).keeper) is None)

    def run(self, command: str, *more: str) -> tuple[int, str]:
        process = self.begin(command, *more)
        said = process.communicate(timeout=LIMIT_S)[0]
        return process.returncode, said

    @property
    def rounds(self) -> dict[int, events.PeerRound]:
        """What its node has told of each round."""
        for record in self._follower.poll():
            if isinstance(record.event, events.PeerRound):
                self._rounds[record.event.round] = record.event
        return self._rounds

    @property
    def voters(self) -> tuple[str, ...]:
        """Of its group, as its node has written them down within the last second or so."""
        (own,) = Paths(self.root).peer_node("any").parent.iterdir()
        return peer_state.look(Paths(self.root), own.name, datetime.now(UTC)).voters


@pytest.fixture
def service() -> Iterator[tuple[ServiceModel, str]]:
    model = ServiceModel("6", "peers-1")
    model.add_role("peer", 3)
    with OneGateServer(model) as endpoint:
        yield model, endpoint


@pytest.fixture
def machines(service: tuple[ServiceModel, str], tmp_path: Path) -> Iterator[Sequence[Machine]]:
    ports = [address.rpartition(":")[2] for address in free_addresses(4)]
    made = [Machine(tmp_path / str(i), *service, port) for i, port in enumerate(ports)]
    yield made
    for each in made:
        if (found := keeper.find(Paths(each.root).keeper)) is not None:
            keeper.stop(found)


def until(condition: Callable[[], bool]) -> None:
    """Wait for what the machines do by themselves."""
    ends_at_s = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < ends_at_s, "it did not come"
        time.sleep(0.1)


def test_machines_of_a_service_train_agree_reboot_leave_and_join(
    service: tuple[ServiceModel, str], machines: Sequence[Machine]
) -> None:
    *machines, fourth = machines
    boots = [each.begin("bootstrap", "--runtime", "process") for each in machines]
    said = [boot.communicate(timeout=LIMIT_S)[0] for boot in boots]
    assert [boot.returncode for boot in boots] == [0, 0, 0], said
    told = [service[0].attributes(each.vm.vm_id) for each in machines]
    assert len({each[peers.ROSTER] for each in told}) == 1
    assert [each["FL_READY"] for each in told] == ["YES"] * 3

    until(lambda: all(each.rounds.keys() >= {1, 2, 3} for each in machines))
    for number in (1, 2, 3):
        found = [each.rounds[number] for each in machines]
        assert len({each.model_sha256 for each in found}) == 1, "one model"
    names = [each[peers.CONTACT_NAME] for each in told]
    assert found[0].contributors.split(",") == names

    leaving, staying, rebooted = machines
    rebooted.kill()
    before = max(rebooted.rounds)
    assert rebooted.run("bootstrap", "--runtime", "process")[0] == 0
    again = service[0].attributes(rebooted.vm.vm_id)
    assert again[peers.CONTACT_CERTIFICATE] == told[2][peers.CONTACT_CERTIFICATE], "the same key"
    until(lambda: max(rebooted.rounds) > before)

    assert leaving.run("drain") == (0, "drained and stopped\n"), "no warning: a round committed it"
    assert service[0].attributes(leaving.vm.vm_id)["FL_READY"] == "NO"
    until(lambda: set(staying.voters) == {names[1], names[2]})
    common = max(staying.rounds.keys() & rebooted.rounds.keys())
    assert common > before
    assert staying.rounds[common].model_sha256 == rebooted.rounds[common].model_sha256

    assert fourth.run("bootstrap", "--runtime", "process")[0] == 0
    own = service[0].attributes(fourth.vm.vm_id)[peers.CONTACT_NAME]
    until(lambda: any(own in each.contributors for each in staying.rounds.values()))
    assert set(staying.voters) <= {names[1], names[2], own}, "it has joined the group that there is"

    said = (Paths(staying.root).logs / "peer.log").read_text().splitlines()
    heard = [record for line in said if (record := lines.parse(line))]
    assert any(isinstance(each.event, events.PeerRound) for each in heard), "for collectors"
