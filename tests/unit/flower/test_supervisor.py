"""The coordinator's program, between a real OneGate and Flower's own SuperLink."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from onefed.checkpoint import files
from onefed.flower import adapter, bundle, mailbox, registration, run_log, run_watch, task_record
from onefed.flower.instructions import Instructions
from onefed.flower.supervisor import CALM_POLL_S, Supervisor
from onefed.local import onegate as local_onegate
from onefed.local import service
from onefed.opennebula import onegate
from onefed.telemetry import events, log
from onefed.tls import enrolment, material, node_keys

RUN_CONFIG = {"strategy": "FedAvg", "num-server-rounds": 4, "seed": 3, "local-epochs": 2}
DIED = "No heartbeat received from the run"


class Coordinator:
    """The machine of a SuperLink, its service, and what its supervisor is told."""

    def __init__(self, folder: Path, server: Any, endpoint: str, model: Any, clock: Any) -> None:
        self.folder = folder
        self.server = server
        self.events: list[events.Event] = []
        self.clock = clock
        self.model = model
        self._endpoint = endpoint
        self._controls: list[adapter.Control] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        self.committed: Callable[[], int] | None = None
        """The last committed round, instead of that of the recovery store."""
        self._machine = model.add_vm("superlink", "superlink_0", "192.168.150.100", {})
        self.told = Instructions(
            superlink=server.address,
            ca_certificate=None,
            onegate_endpoint=endpoint,
            vm_id=self._machine.vm_id,
            token_file=folder / "token.txt",
            bundle=folder / "app.fab",
            use_case="none",
            run_config=RUN_CONFIG,
            keys_set=frozenset({"num-server-rounds"}),
            min_available_clients=1,
            state_file=folder / "supervisor-state.json",
            stop_request=folder / "stop-requested",
            run_log=folder / "serverapp.log",
        )
        self.told.token_file.write_text(self._machine.token)

    def boot(self, control: adapter.Control | None = None) -> Supervisor:
        """A supervisor as it is after a start of its program, nothing in memory."""
        return Supervisor(
            self.told,
            control=control or self.control(),
            gate=onegate.OneGate(self._endpoint, self._machine.token, self._machine.vm_id),
            emit=self.events.append,
            now=lambda: datetime.now(UTC),
            clock=self.clock,
            committed=self.committed,
        )

    def ask(self, watching: Supervisor, kind: str, **what: Any) -> Any:
        """Ask a running supervisor for something; it looks whenever we wait."""
        return mailbox.ask(
            self.told.requests, kind, what, clock=lambda: 0.0, sleep=lambda _: watching.step()
        )

    def new_key(self, name: str) -> bytes:
        """Public part of a node's key, OpenSSH text."""
        return node_keys.ensure(self.folder / name).public_key

    def add_machine(self, role: str = "supernode", **published: str) -> str:
        """A machine of our service that has published these attributes; its id."""
        number = len(self.model.snapshot().vms)
        address = f"192.168.150.{100 + number}"
        vm_id: str = self.model.add_vm(role, f"{role}_{number}", address, {}, published).vm_id
        return vm_id

    def add_node(self, partition: str | None = None) -> tuple[str, str]:
        """A machine that has published its key; its id and the fingerprint of the key."""
        key = node_keys.ensure(self.folder / f"node-{len(self.model.snapshot().vms)}")
        published = {"FL_NODE_KEY": node_keys.encode_for_publication(key.public_key)}
        if partition is not None:
            published["FL_PARTITION"] = partition
        return self.add_machine(**published), key.fingerprint

    def registered(self, vm_id: str) -> str | None:
        return self.model.attributes(vm_id).get("FL_NODE_REGISTERED")

    def node_names(self) -> list[str]:
        return sorted(node.name for node in self.nodes())

    def nodes(self) -> tuple[adapter.NodeStatus, ...]:
        return self.control().nodes()

    def control(self) -> adapter.Control:
        self._controls.append(adapter.Control(self.server.address, None))
        return self._controls[-1]

    def wait_for_logs(self) -> None:
        """Until whoever reads the log of a run has come to its end."""
        for thread in threading.enumerate():
            if thread.name == "run-log":
                thread.join()

    def close(self) -> None:
        """End what runs, whoever reads its log, the connections and the machines."""
        for process in self._processes:
            process.kill()
            process.wait()
        self.server.end_runs()
        self.wait_for_logs()
        for control in self._controls:
            control.close()
        for vm_id in self.model.snapshot().vms:
            self.model.remove_vm(vm_id)

    def connect_all(self) -> None:
        for node in self.nodes():
            if node.status != adapter.NODE_ONLINE:
                self.server.connect(node.node_id)

    def runs(self) -> list[Any]:
        """Flower's runs, oldest first."""
        return list(self.server.state.get_run_info(order_by="pending_at"))

    def of(self, kind: type[events.Event]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    def outcomes(self) -> list[events.RunStatus]:
        """What was told of the run, but what it waits for."""
        return [each for each in self.of(events.RunStatus) if each.status != "waiting"]

    def waits(self) -> list[str]:
        """What a run that had not begun waited for, in order."""
        told = self.of(events.RunStatus)
        return [each.details or "" for each in told if each.status == "waiting"]

    def state(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.told.state_file.read_text())
        return document

    def running(self) -> Supervisor:
        """A supervisor whose run was submitted and has begun."""
        self.add_node("0")
        watching = self.boot()
        watching.step()
        self.connect_all()
        watching.step()
        self.server.run_starts(self.runs()[-1].run_id)
        return watching

    def server_app_starts(self, run_id: int | None = None) -> subprocess.Popen[bytes]:
        """A process that the executor wrote down as the ServerApp of the newest run."""
        process = subprocess.Popen(["sleep", "1000"])
        self._processes.append(process)
        record = task_record.TaskRecord.of(run_id or self.runs()[-1].run_id, process.pid)
        task_record.write(self.told.task_record, record)
        return process

    def run_dies(self, details: str = DIED) -> None:
        self.server.run_ends(self.runs()[-1].run_id, "failed", details)


@pytest.fixture(scope="module")
def cloud() -> Iterator[tuple[str, service.ServiceModel]]:
    """OneGate's endpoint and the service behind it."""
    model = service.ServiceModel("6", "fed-1")
    for role in ("superlink", "supernode", "other"):
        model.add_role(role, 1)
    with local_onegate.OneGateServer(model) as endpoint:
        yield endpoint, model


@pytest.fixture
def coordinator(
    tmp_path: Path, superlink_server: Any, cloud: tuple[str, service.ServiceModel], clock: Any
) -> Iterator[Coordinator]:
    made = Coordinator(tmp_path, superlink_server, *cloud, clock)
    yield made
    made.close()


@pytest.fixture
def with_app(coordinator: Coordinator, app_folder: Callable[..., Path]) -> Coordinator:
    """A coordinator that was given a managed app."""
    built = bundle.build(bundle.load(app_folder()))
    coordinator.told.bundle.write_bytes(built.fab)
    return coordinator


@pytest.fixture
def with_own_server_app(coordinator: Coordinator, app_folder: Callable[..., Path]) -> Coordinator:
    folder = app_folder(managed=None, config={"num-server-rounds": 2, "seed": 1})
    coordinator.told.bundle.write_bytes(bundle.build(bundle.load(folder)).fab)
    return coordinator


class TestRegistration:
    def test_a_published_key_is_registered_once_and_its_node_is_told(
        self, coordinator: Coordinator
    ) -> None:
        vm_id, fingerprint = coordinator.add_node("0")
        watching = coordinator.boot()

        for _ in range(3):
            assert not watching.step()

        assert coordinator.registered(vm_id) == fingerprint
        [node] = coordinator.nodes()
        assert node.name == "client:0"
        assert coordinator.of(events.NodeRegistered) == [
            events.NodeRegistered("supernode/0", str(node.node_id), 0)
        ]

    def test_a_node_without_a_partition_is_known_by_its_key(self, coordinator: Coordinator) -> None:
        _, fingerprint = coordinator.add_node()

        coordinator.boot().step()

        assert coordinator.node_names() == [f"client:{fingerprint[:16]}"]
        assert coordinator.of(events.NodeRegistered)[0].partition is None

    def test_a_machine_that_has_published_nothing_yet_is_registered_when_it_has(
        self, coordinator: Coordinator
    ) -> None:
        vm_id = coordinator.add_machine()
        watching = coordinator.boot()
        watching.step()
        assert coordinator.node_names() == []
        key = node_keys.ensure(coordinator.folder / "later")
        published = {"FL_NODE_KEY": node_keys.encode_for_publication(key.public_key)}
        coordinator.model.update_attributes(vm_id, published)

        watching.step()

        assert coordinator.registered(vm_id) == key.fingerprint

    def test_after_a_restart_the_same_nodes_are_told_again_and_registered_no_second_time(
        self, coordinator: Coordinator
    ) -> None:
        vm_id, fingerprint = coordinator.add_node("0")
        coordinator.boot().step()
        coordinator.model.erase_attribute(vm_id, "FL_NODE_REGISTERED")

        coordinator.boot().step()

        assert coordinator.registered(vm_id) == fingerprint
        assert len(coordinator.nodes()) == 1
        assert len(coordinator.of(events.NodeRegistered)) == 1

    def test_machines_of_other_roles_are_not_registered(self, coordinator: Coordinator) -> None:
        key = node_keys.ensure(coordinator.folder / "other")
        published = node_keys.encode_for_publication(key.public_key)
        coordinator.add_machine("other", FL_NODE_KEY=published)

        coordinator.boot().step()

        assert coordinator.nodes() == ()

    @pytest.mark.parametrize(
        "published",
        [
            "",
            "AAAA",
            "not base64 at all!",
            "bm90IGEga2V5",
            "\N{SNOWMAN}",
            "x" * 100_000,
            "LS0tLS1CRUdJTiBPUEVOU1NIIFBSSVZBVEUgS0VZLS0tLS0=",
            "c3NoLXJzYSBBQUFBQjNOemFDMXljMkVBQUFBREFRQUJBQUFBUVFD",
        ],
        ids=range(8),
    )
    def test_what_one_machine_published_wrongly_keeps_no_other_out(
        self, coordinator: Coordinator, published: str
    ) -> None:
        hostile = coordinator.add_machine(FL_NODE_KEY=published)
        vm_id, fingerprint = coordinator.add_node("1")
        watching = coordinator.boot()

        for _ in range(3):
            watching.step()

        assert coordinator.registered(vm_id) == fingerprint
        assert coordinator.registered(hostile) is None
        [warning] = coordinator.of(events.Notice)
        assert warning.level == "WARNING"
        assert "supernode/0" in warning.message
        assert len(warning.message) < 1000

    def test_a_machine_that_corrects_its_key_is_registered(self, coordinator: Coordinator) -> None:
        vm_id = coordinator.add_machine(FL_NODE_KEY="nonsense")
        watching = coordinator.boot()
        watching.step()
        key = node_keys.ensure(coordinator.folder / "corrected")
        published = {"FL_NODE_KEY": node_keys.encode_for_publication(key.public_key)}
        coordinator.model.update_attributes(vm_id, published)

        watching.step()

        assert coordinator.registered(vm_id) == key.fingerprint

    @pytest.mark.parametrize(
        "partition", ["", "-1", "1.0", "\N{SUPERSCRIPT TWO}", "9" * 5000, "0 1", "0x1", "client:0"]
    )
    def test_a_partition_that_is_no_number_is_none(
        self, coordinator: Coordinator, partition: str
    ) -> None:
        vm_id, fingerprint = coordinator.add_node(partition)

        coordinator.boot().step()

        assert coordinator.registered(vm_id) == fingerprint
        assert coordinator.node_names() == [f"client:{fingerprint[:16]}"]

    def test_nodes_that_claim_one_partition_are_both_registered(
        self, coordinator: Coordinator
    ) -> None:
        machines = [coordinator.add_node("0"), coordinator.add_node("0")]

        coordinator.boot().step()

        assert [coordinator.registered(vm_id) for vm_id, _ in machines] == [f for _, f in machines]
        assert coordinator.node_names() == ["client:0", "client:0"]

    def test_servers_that_do_not_answer_are_nobodys_fault(self, coordinator: Coordinator) -> None:
        coordinator.add_node("0")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            closed = adapter.Control(f"127.0.0.1:{probe.getsockname()[1]}", None)
        watching = coordinator.boot(closed)

        with pytest.raises(adapter.SuperLinkError):
            watching.step()

        assert coordinator.events == []
        closed.close()


class TestNodes:
    def test_nodes_that_come_and_go_are_told_with_their_addresses(
        self, coordinator: Coordinator
    ) -> None:
        coordinator.add_node("0")
        watching = coordinator.boot()
        watching.step()
        [node] = coordinator.nodes()

        coordinator.server.connect(node.node_id)
        watching.step()
        watching.step()
        coordinator.server.disconnect(node.node_id)
        watching.step()

        joined, left = events.ClientJoin, events.ClientLeave
        told = [each for each in coordinator.events if isinstance(each, joined | left)]
        assert told == [
            joined(str(node.node_id), "192.168.150.101"),
            left(str(node.node_id), "disconnected"),
        ]

    def test_a_node_that_left_while_nobody_looked_is_told_by_the_next_supervisor(
        self, coordinator: Coordinator
    ) -> None:
        """Else whoever reads the events counts it as connected for ever."""
        coordinator.add_node("0")
        coordinator.boot().step()
        coordinator.connect_all()
        coordinator.boot().step()
        [node] = coordinator.nodes()
        coordinator.server.disconnect(node.node_id)
        watching = coordinator.boot()
        watching.step()
        watching.step()
        assert len(coordinator.of(events.ClientJoin)) == 1
        assert len(coordinator.of(events.ClientLeave)) == 1

    def test_a_large_fleet_is_looked_at_less_often(
        self, coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Listing costs the SuperLink CPU for each node, twice a second."""
        monkeypatch.setattr(registration, "NODES_A_LOOK", 1)
        coordinator.add_node("0")
        watching = coordinator.boot()
        watching.step()
        coordinator.connect_all()
        watching.step()
        assert len(coordinator.of(events.ClientJoin)) == 1
        [node] = coordinator.nodes()
        coordinator.server.disconnect(node.node_id)
        watching.step()
        assert coordinator.of(events.ClientLeave) == []
        watching.step()
        assert len(coordinator.of(events.ClientLeave)) == 1

    def test_addresses_are_known_after_a_restart_too(self, coordinator: Coordinator) -> None:
        coordinator.add_node("0")
        coordinator.boot().step()
        coordinator.connect_all()

        coordinator.boot().step()

        assert coordinator.of(events.ClientJoin)[-1].client_address == "192.168.150.101"

    def test_a_node_that_somebody_else_registered_is_told_without_an_address(
        self, coordinator: Coordinator
    ) -> None:
        key = node_keys.ensure(coordinator.folder / "foreign")
        public_key = node_keys.public_key_bytes(key.public_key)
        coordinator.control().register_node(public_key, "somebody")
        coordinator.connect_all()

        coordinator.boot().step()

        assert coordinator.of(events.ClientJoin)[0].client_address == "unknown"


class TestSubmission:
    def test_a_run_is_submitted_once_enough_nodes_are_connected(
        self, with_app: Coordinator
    ) -> None:
        with_app.told = replace(with_app.told, min_available_clients=2)
        for partition in ("0", "1"):
            with_app.add_node(partition)
        watching = with_app.boot()
        watching.step()
        with_app.server.connect(with_app.nodes()[0].node_id)
        watching.step()
        assert with_app.runs() == []

        with_app.connect_all()
        for _ in range(3):
            assert not watching.step()

        [run] = with_app.runs()
        state = with_app.state()
        assert (state["status"], state["submissions"]) == ("running", [run.run_id])
        assert with_app.of(events.RunSubmitted) == [
            events.RunSubmitted(state["run"], str(run.run_id), 1)
        ]

    def test_a_managed_app_is_told_every_setting_that_it_knows(self, with_app: Coordinator) -> None:
        with_app.running()

        [run] = with_app.runs()
        assert dict(run.override_config) == {**RUN_CONFIG, "run": with_app.state()["run"]}

    def test_an_app_with_its_own_server_app_is_told_only_what_somebody_set(
        self, with_own_server_app: Coordinator
    ) -> None:
        with_own_server_app.running()

        [run] = with_own_server_app.runs()
        assert dict(run.override_config) == {"num-server-rounds": 4}

    def test_without_an_app_it_waits_for_one(self, coordinator: Coordinator) -> None:
        coordinator.add_node("0")
        watching = coordinator.boot()
        watching.step()
        coordinator.connect_all()

        assert not watching.step()

        assert coordinator.runs() == []
        assert coordinator.waits() == [
            "no app was submitted yet, 0 of 1 nodes connected",
            "no app was submitted yet",
        ]

    def test_what_it_waits_for_is_told_once_and_again_when_it_takes_long(
        self, with_app: Coordinator
    ) -> None:
        with_app.told = replace(with_app.told, min_available_clients=3)
        with_app.add_node("0")
        watching = with_app.boot()
        watching.step()
        with_app.connect_all()
        watching.step()
        watching.step()
        assert with_app.waits() == ["0 of 3 nodes connected", "1 of 3 nodes connected"]
        assert with_app.of(events.TrainingStalled) == []

        with_app.clock.sleep(run_watch.WAIT_REPORT_S)
        watching.step()
        watching.step()

        [stalled] = with_app.of(events.TrainingStalled)
        assert (stalled.connected_clients, stalled.required_clients) == (1, 3)

    def test_the_built_in_app_of_the_use_case_is_submitted_by_itself(
        self, coordinator: Coordinator
    ) -> None:
        coordinator.told = replace(coordinator.told, use_case="image-classification")
        coordinator.running()

        [run] = coordinator.runs()
        assert run.fab_id == "onefed/image-classification"

    @pytest.mark.parametrize("change", [{"use_case": "telepathy"}, {"use_case": "none"}])
    def test_an_app_that_cannot_be_used_is_an_error(
        self, coordinator: Coordinator, change: dict[str, str]
    ) -> None:
        coordinator.told = replace(coordinator.told, **change)  # type: ignore[arg-type]
        if change["use_case"] == "none":
            coordinator.told.bundle.write_bytes(b"nonsense")

        with pytest.raises(bundle.AppError):
            coordinator.running()

    def test_a_run_that_is_refused_has_failed_and_is_not_tried_for_ever(
        self, with_app: Coordinator
    ) -> None:
        with_app.told = replace(with_app.told, run_config={"seed": [1]})
        with_app.add_node("0")
        watching = with_app.boot()
        watching.step()
        with_app.connect_all()

        assert watching.step()

        [status] = with_app.outcomes()
        assert status.status == "failed"
        assert "cannot be sent" in status.details


class TestRun:
    def test_a_run_that_completes_ends_the_work(self, with_app: Coordinator) -> None:
        watching = with_app.running()
        assert not watching.step()

        with_app.server.run_ends(with_app.runs()[0].run_id, "completed")

        assert watching.step()
        assert with_app.outcomes() == [events.RunStatus("completed", "")]
        assert with_app.state()["status"] == "completed"

    def test_a_restart_finds_the_run_and_submits_no_second_one(self, with_app: Coordinator) -> None:
        with_app.running()

        with_app.committed = lambda: 4
        again = with_app.boot()
        assert not again.step()
        with_app.server.run_ends(with_app.runs()[0].run_id, "completed")

        assert again.step()
        assert len(with_app.runs()) == 1

    def test_a_run_that_completed_during_a_boot_that_wants_more_rounds_goes_on(
        self, with_app: Coordinator
    ) -> None:
        """The power went between the last round and its notice, and the context was changed."""
        with_app.running()
        with_app.server.run_ends(with_app.runs()[0].run_id, "completed")
        with_app.told = replace(
            with_app.told, run_config={**with_app.told.run_config, "num-server-rounds": 6}
        )
        with_app.committed = lambda: 4

        again = with_app.boot()
        for _ in range(2):
            assert not again.step()

        first, second = with_app.runs()
        assert second.override_config["num-server-rounds"] == 6
        assert second.override_config["run"] == first.override_config["run"]
        assert with_app.outcomes() == []

    def test_a_kill_right_after_the_submission_makes_no_second_run(
        self, with_app: Coordinator
    ) -> None:
        with_app.running()
        before = {**with_app.state(), "submissions": [], "attempts": 0, "status": "waiting"}
        with_app.told.state_file.write_text(json.dumps(before))

        assert not with_app.boot().step()

        [run] = with_app.runs()
        assert with_app.state()["submissions"] == [run.run_id]

    def test_a_kill_right_before_the_submission_changes_no_identity(
        self, with_app: Coordinator
    ) -> None:
        class Killed(BaseException):
            pass

        class DyingControl(adapter.Control):
            def start_run(self, fab: bytes, overrides: adapter.RunConfig) -> int:
                identities.append(str(overrides["run"]))
                raise Killed

        identities: list[str] = []
        with_app.add_node("0")
        with_app.boot().step()
        with_app.connect_all()
        dying = DyingControl(with_app.server.address, None)

        with pytest.raises(Killed):
            with_app.boot(dying).step()
        with_app.boot().step()

        assert with_app.runs()[0].override_config["run"] == identities[0]
        dying.close()

    def test_a_run_whose_server_app_died_is_submitted_again_as_the_same_run(
        self, with_app: Coordinator
    ) -> None:
        watching = with_app.running()
        identity = with_app.state()["run"]

        with_app.run_dies()
        for _ in range(2):
            assert not watching.step()

        first, second = with_app.runs()
        assert second.override_config["run"] == first.override_config["run"] == identity
        assert [event.attempt for event in with_app.of(events.RunSubmitted)] == [1, 2]
        [warning] = with_app.of(events.Notice)
        assert DIED in warning.message

    def test_a_run_whose_server_app_dies_again_and_again_has_failed(
        self, with_app: Coordinator
    ) -> None:
        watching = with_app.running()
        for _ in range(run_watch.SUBMISSIONS_MAX - 1):
            with_app.run_dies()
            watching.step()
            with_app.clock.sleep(run_watch.RESUBMIT_DELAY_MAX_S)
            watching.step()
            with_app.server.run_starts(with_app.runs()[-1].run_id)

        with_app.run_dies()

        assert watching.step()
        assert len(with_app.runs()) == run_watch.SUBMISSIONS_MAX
        [status] = with_app.outcomes()
        assert status.status == "failed"
        assert DIED in status.details
        assert "5 times without a new round" in status.details

    def test_an_app_that_raised_has_failed_at_once(self, with_app: Coordinator) -> None:
        watching = with_app.running()

        with_app.run_dies("ServerApp failed with exception: division by zero")

        assert watching.step()
        assert len(with_app.runs()) == 1
        assert "division by zero" in with_app.outcomes()[0].details

    def test_a_superlink_that_lost_its_database_gets_the_run_again(
        self, with_app: Coordinator
    ) -> None:
        with_app.running()
        identity = with_app.state()["run"]

        with_app.server.forget()
        again = with_app.boot()
        assert not again.step()
        with_app.connect_all()
        assert not again.step()

        [run] = with_app.runs()
        assert run.override_config["run"] == identity
        assert with_app.of(events.RunSubmitted)[-1].attempt == 2

    @pytest.mark.parametrize("ended", ["completed", "failed", "stopped"])
    def test_the_next_boot_goes_on_with_the_same_run(
        self, with_app: Coordinator, ended: str
    ) -> None:
        watching = with_app.running()
        with_app.server.run_ends(
            with_app.runs()[0].run_id, "failed", "ServerApp failed with exception: x"
        )
        assert watching.step()
        state = {**with_app.state(), "status": ended, "attempts": run_watch.SUBMISSIONS_MAX}
        with_app.told.state_file.write_text(json.dumps(state))

        booted = with_app.boot()
        assert not booted.step()
        with_app.server.run_starts(with_app.runs()[-1].run_id)
        with_app.run_dies()
        for _ in range(2):
            assert not booted.step()

        identities = {run.override_config["run"] for run in with_app.runs()}
        assert identities == {state["run"]}
        assert len(with_app.runs()) == 3


class TestDeadServerApp:
    """Flower learns of a dead ServerApp after a minute; the record of its process tells at once."""

    def test_a_dead_process_is_a_dead_run(self, with_app: Coordinator) -> None:
        watching = with_app.running()
        process = with_app.server_app_starts()
        for _ in range(2):
            assert not watching.step()
        assert len(with_app.runs()) == 1

        process.kill()
        process.wait()
        for _ in range(2):
            assert not watching.step()

        first, second = with_app.runs()
        assert first.status.sub_status == "stopped"
        assert second.status.status == "pending"
        assert second.override_config["run"] == first.override_config["run"]
        assert [event.attempt for event in with_app.of(events.RunSubmitted)] == [1, 2]

    def test_the_death_is_told_once_and_then_only_the_run_is_looked_at(
        self, with_app: Coordinator
    ) -> None:
        watching = with_app.running()
        assert not watching.server_app_died(), "nobody has recorded it"
        process = with_app.server_app_starts()
        assert not watching.server_app_died()
        process.kill()
        process.wait()

        assert watching.server_app_died()
        assert not watching.server_app_died()
        assert not watching.step(only_the_run=True)

        assert len(with_app.runs()) == 2
        assert not watching.server_app_died(), "the record is that of the one before"

    def test_one_that_only_waits_to_be_reaped_is_dead(self, with_app: Coordinator) -> None:
        watching = with_app.running()
        process = with_app.server_app_starts()
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)

        for _ in range(2):
            assert not watching.step()

        assert len(with_app.runs()) == 2

    def test_a_kill_between_giving_up_and_submitting_makes_one_new_run(
        self, with_app: Coordinator
    ) -> None:
        with_app.running()
        process = with_app.server_app_starts()
        process.kill()
        process.wait()
        given_up = {**with_app.state(), "status": "waiting"}
        with_app.told.state_file.write_text(json.dumps(given_up))

        assert not with_app.boot().step()

        assert [run.status.sub_status for run in with_app.runs()] == ["stopped", ""]

    def test_one_that_flower_has_given_up_is_ended_before_the_next(
        self, with_app: Coordinator
    ) -> None:
        """A SuperLink that was away for more than a minute says so; its ServerApp may live."""
        watching = with_app.running()
        process = with_app.server_app_starts()

        with_app.run_dies()
        with_app.clock.sleep(CALM_POLL_S)
        assert not watching.step()

        assert process.wait() == -signal.SIGKILL

    def test_while_one_lives_the_superlink_is_left_to_it_but_for_a_look_now_and_then(
        self, with_app: Coordinator
    ) -> None:
        watching = with_app.running()
        process = with_app.server_app_starts()
        with_app.clock.sleep(CALM_POLL_S)
        assert not watching.step()

        with_app.run_dies()
        assert not watching.step()
        assert process.poll() is None, "Flower was not asked"
        process.kill()
        process.wait()
        assert not watching.step(), "its death is seen at once"
        assert [event.attempt for event in with_app.of(events.RunSubmitted)] == [1, 2]

    def test_one_that_nobody_recorded_is_waited_for_a_while(self, with_app: Coordinator) -> None:
        watching = with_app.running()
        assert not watching.step()
        with_app.clock.sleep(run_watch.UNSEEN_LIMIT_S - 1)
        assert not watching.step()
        assert with_app.state()["status"] == "running"

        with_app.clock.sleep(1)
        assert not watching.step()

        assert [event.attempt for event in with_app.of(events.RunSubmitted)] == [1, 2]

    def test_the_record_of_another_run_says_nothing(self, with_app: Coordinator) -> None:
        watching = with_app.running()
        process = with_app.server_app_starts(run_id=1)
        process.kill()
        process.wait()

        assert not watching.step()

        assert with_app.state()["status"] == "running"

    def test_without_our_executor_flowers_word_is_waited_for(self, with_app: Coordinator) -> None:
        with_app.told = replace(with_app.told, supervised=False)
        watching = with_app.running()
        assert not watching.step()
        with_app.clock.sleep(run_watch.UNSEEN_LIMIT_S + 1)

        assert not watching.step()

        assert with_app.state()["status"] == "running"

    def test_a_dead_one_after_a_stop_ends_the_run(self, with_app: Coordinator) -> None:
        watching = with_app.running()
        process = with_app.server_app_starts()
        with_app.told.stop_request.touch()
        process.kill()
        process.wait()

        assert not watching.step()
        assert watching.step()

        assert with_app.outcomes()[0].status == "stopped"

    def test_the_first_new_try_is_at_once_and_fruitless_ones_wait_longer_and_longer(
        self, with_app: Coordinator
    ) -> None:
        watching = with_app.running()
        waited = []
        for _ in range(run_watch.SUBMISSIONS_MAX - 1):
            before = len(with_app.runs())
            with_app.run_dies()
            begun = with_app.clock()
            watching.step()
            while len(with_app.runs()) == before:
                with_app.clock.sleep(0.5)
                watching.step()
            waited.append(with_app.clock() - begun)
            with_app.server.run_starts(with_app.runs()[-1].run_id)

        assert waited == [0.0, 1.0, 2.0, 4.0]

    def test_committed_rounds_count_anew(self, with_app: Coordinator) -> None:
        rounds = iter(range(1, 100))
        with_app.committed = lambda: next(rounds)
        watching = with_app.running()
        for _ in range(2 * run_watch.SUBMISSIONS_MAX):
            with_app.run_dies()
            assert not watching.step()
            assert not watching.step()
            with_app.server.run_starts(with_app.runs()[-1].run_id)

        assert with_app.outcomes() == []


class TestStop:
    def test_a_stop_before_the_submission_submits_nothing(self, with_app: Coordinator) -> None:
        with_app.add_node("0")
        with_app.told.stop_request.touch()

        assert with_app.boot().step()

        assert with_app.runs() == []
        assert with_app.outcomes()[0].status == "stopped"

    def test_our_server_app_is_left_to_finish_its_round(self, with_app: Coordinator) -> None:
        watching = with_app.running()
        with_app.told.stop_request.touch()

        for _ in range(2):
            assert not watching.step()
        assert with_app.runs()[0].status.status == "running"
        with_app.server.run_ends(with_app.runs()[0].run_id, "completed")

        assert watching.step()
        assert with_app.outcomes()[0].status == "stopped"

    def test_a_run_that_nobody_executes_yet_is_stopped_at_once(self, with_app: Coordinator) -> None:
        with_app.add_node("0")
        watching = with_app.boot()
        watching.step()
        with_app.connect_all()
        watching.step()
        with_app.told.stop_request.touch()

        assert not watching.step()
        assert watching.step()

        assert with_app.outcomes()[0].status == "stopped"

    @pytest.mark.parametrize("restarted", [False, True])
    def test_an_app_with_its_own_server_app_is_stopped_by_flower(
        self, with_own_server_app: Coordinator, restarted: bool
    ) -> None:
        watching = with_own_server_app.running()
        with_own_server_app.told.stop_request.touch()
        if restarted:
            watching = with_own_server_app.boot()

        assert not watching.step()
        assert watching.step()

        [run] = with_own_server_app.runs()
        assert run.status.sub_status == "stopped"
        assert with_own_server_app.outcomes()[0].status == "stopped"

    def test_a_run_that_dies_after_a_stop_is_not_submitted_again(
        self, with_app: Coordinator
    ) -> None:
        watching = with_app.running()
        with_app.told.stop_request.touch()
        with_app.run_dies()

        assert watching.step()

        assert len(with_app.runs()) == 1
        assert with_app.outcomes()[0].status == "stopped"


class TestLog:
    FIRST, SECOND = "INFO :      [ROUND 1/2]\nno newline y", "et\nINFO :      [ROUND 2/2]\n"

    def test_what_an_own_server_app_prints_is_logged_and_told(
        self, with_own_server_app: Coordinator
    ) -> None:
        watching = with_own_server_app.running()
        run_id = with_own_server_app.runs()[0].run_id
        with_own_server_app.server.run_prints(run_id, self.FIRST)
        with_own_server_app.server.run_prints(run_id, self.SECOND)
        with_own_server_app.server.run_ends(run_id, "completed")

        assert watching.step()

        log_text = with_own_server_app.told.run_log.read_text(encoding="utf-8")
        assert log_text == self.FIRST + self.SECOND
        told = with_own_server_app.of(events.AppLog)
        assert [event.line for event in told] == ["[ROUND 1/2]", "no newline yet", "[ROUND 2/2]"]
        assert [event.round for event in with_own_server_app.of(events.RoundEnd)] == [1]
        assert with_own_server_app.events[-1] == events.RunStatus("completed", "")

    def test_a_restart_tells_only_what_was_not_told(self, with_own_server_app: Coordinator) -> None:
        coordinator = with_own_server_app
        coordinator.told.run_log.write_text("of an earlier run\n")
        coordinator.running()
        run_id = coordinator.runs()[0].run_id
        coordinator.server.run_prints(run_id, "[ROUND 1/2]\n")
        coordinator.server.run_ends(run_id, "completed")
        coordinator.wait_for_logs()
        assert len(coordinator.of(events.AppLog)) == 1
        coordinator.server.run_prints(run_id, "[ROUND 2/2]\n")

        assert coordinator.boot().step()

        text = coordinator.told.run_log.read_text(encoding="utf-8")
        assert text == "of an earlier run\n[ROUND 1/2]\n[ROUND 2/2]\n"
        lines = [event.line for event in coordinator.of(events.AppLog)]
        assert lines == ["[ROUND 1/2]", "[ROUND 2/2]"]
        assert [event.round for event in coordinator.of(events.RoundEnd)] == [1]

    def test_a_managed_app_tells_its_own_story(self, with_app: Coordinator) -> None:
        watching = with_app.running()
        run_id = with_app.runs()[0].run_id
        with_app.server.run_prints(run_id, self.FIRST + self.SECOND)
        with_app.server.run_ends(run_id, "completed")

        assert watching.step()

        assert with_app.told.run_log.read_text(encoding="utf-8") == self.FIRST + self.SECOND
        assert with_app.of(events.AppLog) == []

    def test_endless_lines_are_broken(self, with_own_server_app: Coordinator) -> None:
        watching = with_own_server_app.running()
        run_id = with_own_server_app.runs()[0].run_id
        for _ in range(3):
            with_own_server_app.server.run_prints(run_id, "x" * run_log.LINE_LENGTH_MAX)
        with_own_server_app.server.run_ends(run_id, "completed")

        assert watching.step()

        lines = with_own_server_app.told.run_log.read_text().splitlines()
        assert lines == ["x" * run_log.LINE_LENGTH_MAX] * 3


class TestState:
    def test_instructions_come_back_as_step_sl_06_writes_them(self, tmp_path: Path) -> None:
        document = {
            "format": 1,
            "superlink": "127.0.0.1:9092",
            "ca_certificate": "/etc/ca.crt",
            "onegate_endpoint": "http://169.254.16.9:5030",
            "vm_id": "0",
            "token_file": "/etc/token.txt",
            "bundle": "/var/app.fab",
            "use_case": "none",
            "run_config": {"seed": 1, "strategy": "FedAvg"},
            "keys_set": ["seed"],
            "min_available_clients": 2,
            "state_file": "/var/supervisor.json",
            "stop_request": "/var/stop",
            "run_log": "/var/serverapp.log",
            "node_keys": [],
            "enrolment_socket": "opt/flower/gateway/enrolment.sock",
            "supervised": True,
        }
        path = tmp_path / "supervisor.json"
        path.write_text(json.dumps(document))

        told = Instructions.read(path)

        for name, value in document.items():
            if name not in ("format", "keys_set", "node_keys"):
                read = getattr(told, name)
                assert (str(read) if isinstance(read, Path) else read) == value
        assert told.keys_set == {"seed"}
        assert told.node_keys == ()
        path.write_text(json.dumps({**document, "ca_certificate": None}))
        assert Instructions.read(path).ca_certificate is None

    @pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"status": "running"}'])
    def test_a_damaged_state_is_no_fresh_start(
        self, coordinator: Coordinator, content: str
    ) -> None:
        """Another identity would find the recovery store in use, by itself."""
        coordinator.told.state_file.write_text(content)

        with pytest.raises(files.DamagedError, match="is damaged"):
            coordinator.boot()

    def test_a_state_of_another_version_is_read_as_far_as_it_is_known(
        self, coordinator: Coordinator
    ) -> None:
        coordinator.told.state_file.write_text('{"run": "r", "colour": "blue"}')
        coordinator.told.stop_request.touch()

        assert coordinator.boot().step()

        assert coordinator.state()["run"] == "r"


def read_events(path: Path) -> list[str]:
    return [record.event.EVENT for record in log.read(path)] if path.exists() else []


def wait_until(done: Callable[[], bool], program: subprocess.Popen[bytes]) -> None:
    """Look again and again while the program runs; the test's time limit ends it."""
    while not done():
        with contextlib.suppress(subprocess.TimeoutExpired):
            program.wait(0.05)
        assert program.returncode is None


@pytest.mark.flower
class TestProgram:
    """``python -m onefed.flower.supervisor`` beside a real SuperLink with TLS and node keys."""

    @pytest.fixture
    def start_program(
        self, coordinator: Coordinator
    ) -> Iterator[Callable[[Mapping[str, Any]], subprocess.Popen[bytes]]]:
        started: list[subprocess.Popen[bytes]] = []

        def start(changes: Mapping[str, Any]) -> subprocess.Popen[bytes]:
            told = replace(coordinator.told, **changes)
            document = {name: getattr(told, name) for name in told.__dataclass_fields__}
            document["keys_set"] = sorted(told.keys_set)
            path = coordinator.folder / "instructions.json"
            path.write_text(json.dumps(document, default=str))
            environ = {
                "PATH": "/usr/bin:/bin",
                "ONEFED_EVENTS": str(coordinator.folder / "events.jsonl"),
                "ONEFED_STATE_DIR": str(coordinator.folder),
            }
            command = [sys.executable, "-m", "onefed.flower.supervisor", str(path)]
            started.append(subprocess.Popen(command, env=environ, stderr=subprocess.DEVNULL))
            return started[-1]

        yield start
        for process in started:
            process.kill()
            process.wait()

    def test_it_registers_a_node_over_tls_and_ends_at_sigterm(
        self,
        coordinator: Coordinator,
        tls_superlink: SimpleNamespace,
        start_program: Callable[[Mapping[str, Any]], subprocess.Popen[bytes]],
    ) -> None:
        vm_id, fingerprint = coordinator.add_node("0")

        program = start_program(
            {"superlink": tls_superlink.address, "ca_certificate": tls_superlink.ca_certificate}
        )
        wait_until(lambda: coordinator.registered(vm_id) is not None, program)
        control = adapter.Control(tls_superlink.address, tls_superlink.ca_certificate)
        assert [node.name for node in control.nodes()] == ["client:0"]
        control.close()
        program.send_signal(signal.SIGTERM)

        assert coordinator.registered(vm_id) == fingerprint
        assert program.wait() == 0

    def test_what_it_cannot_work_with_is_told_and_it_stays(
        self,
        coordinator: Coordinator,
        start_program: Callable[[Mapping[str, Any]], subprocess.Popen[bytes]],
    ) -> None:
        coordinator.told.state_file.write_text("nonsense")

        program = start_program({})
        events_file = coordinator.folder / "events.jsonl"
        wait_until(lambda: "run_status" in read_events(events_file), program)
        program.send_signal(signal.SIGTERM)

        assert program.wait() == 0
        assert read_events(events_file) == ["notice", "run_status"]

    def test_another_authority_is_not_trusted(
        self, tls_superlink: SimpleNamespace, tmp_path: Path
    ) -> None:
        foreign = material.ensure(tmp_path / "foreign", addresses=[], now=datetime.now(UTC))
        control = adapter.Control(tls_superlink.address, foreign.ca_certificate_path)

        with pytest.raises(adapter.SuperLinkError, match="CERTIFICATE_VERIFY_FAILED"):
            control.nodes()
        control.close()


class TestAccess:
    def status_of(self, coordinator: Coordinator, client: str) -> list[str]:
        return [each.status for each in coordinator.nodes() if each.name == f"client:{client}"]

    def test_a_revoked_node_stays_refused_whatever_is_started_anew(
        self, coordinator: Coordinator
    ) -> None:
        vm_id, fingerprint = coordinator.add_node("0")
        watching = coordinator.boot()
        watching.step()
        coordinator.connect_all()
        watching.step()
        [row] = coordinator.ask(watching, "nodes")["nodes"]
        assert (row["client"], row["state"], row["source"]) == ("0", "online", "service")
        assert row["fingerprint"] == fingerprint
        assert row["seen_at"]

        assert coordinator.ask(watching, "revoke", node="0")["fingerprint"] == fingerprint
        watching.step()
        assert self.status_of(coordinator, "0") in ([], ["unregistered"])
        [row] = coordinator.ask(watching, "nodes")["nodes"]
        assert row["state"] == "revoked"

        coordinator.server.forget()
        again = coordinator.boot()
        for _ in range(3):
            again.step()
        assert coordinator.node_names() == []
        assert coordinator.registered(vm_id) == "REFUSED"

    def test_a_revoked_machine_gets_in_with_a_new_key_when_the_operator_says_so(
        self, coordinator: Coordinator
    ) -> None:
        vm_id, _ = coordinator.add_node("0")
        watching = coordinator.boot()
        watching.step()
        coordinator.ask(watching, "revoke", node="0")
        key = coordinator.new_key("fresh")
        published = node_keys.encode_for_publication(key)
        coordinator.model.update_attributes(vm_id, {"FL_NODE_KEY": published})
        for _ in range(20):
            watching.step()
        assert coordinator.registered(vm_id) == "REFUSED"

        coordinator.ask(watching, "replace", node="0", public_key="")
        for _ in range(20):
            watching.step()
        assert coordinator.registered(vm_id) == node_keys.fingerprint(key)
        assert "registered" in self.status_of(coordinator, "0")

    def test_another_key_of_a_machine_that_is_connected_is_refused(
        self, coordinator: Coordinator
    ) -> None:
        """Any member of a service may write the attributes of another one's machine."""
        vm_id, fingerprint = coordinator.add_node("0")
        watching = coordinator.boot()
        watching.step()
        coordinator.connect_all()
        watching.step()
        published = node_keys.encode_for_publication(coordinator.new_key("intruder"))
        coordinator.model.update_attributes(vm_id, {"FL_NODE_KEY": published})
        for boot in (watching, coordinator.boot()):
            for _ in range(20):
                boot.step()
        assert self.status_of(coordinator, "0") == ["online"]
        assert coordinator.registered(vm_id) == fingerprint

    def test_a_machine_that_lost_its_disk_comes_back_with_another_key(
        self, coordinator: Coordinator
    ) -> None:
        vm_id, _ = coordinator.add_node("0")
        watching = coordinator.boot()
        watching.step()
        key = coordinator.new_key("fresh")
        published = node_keys.encode_for_publication(key)
        coordinator.model.update_attributes(vm_id, {"FL_NODE_KEY": published})
        for _ in range(20):
            watching.step()
        assert coordinator.registered(vm_id) == node_keys.fingerprint(key)
        assert sorted(self.status_of(coordinator, "0")) in (
            ["registered"],
            ["registered", "unregistered"],
        )
        told = [each.message for each in coordinator.of(events.Notice)]
        assert any("came with another key" in message for message in told)

    def test_listed_keys_are_registered_without_a_machine(self, coordinator: Coordinator) -> None:
        keys = [coordinator.new_key(f"site-{index}").decode() for index in range(2)]
        lines = (f"{keys[0]} partition-id=7 site-a", keys[1], "ecdsa-sha2-nistp384 AAAA")
        coordinator.told = replace(coordinator.told, node_keys=lines)
        coordinator.boot().step()
        unnamed = node_keys.fingerprint(keys[1].encode())[:16]
        assert coordinator.node_names() == sorted(["client:7", f"client:{unnamed}"])
        [notice] = coordinator.of(events.Notice)
        assert "FL_NODE_KEYS" in notice.message

    def test_a_token_lets_one_key_in_and_no_second_one(self, coordinator: Coordinator) -> None:
        socket_file = coordinator.folder / "enrolment.sock"
        coordinator.told = replace(coordinator.told, enrolment_socket=socket_file)
        watching = coordinator.boot()
        sha256 = enrolment.digest(enrolment.new_token())
        coordinator.ask(watching, "token", sha256=sha256, lifetime_s=60, client="4")
        key = coordinator.new_key("site").decode()
        assert coordinator.ask(watching, "enrol", sha256=sha256, public_key=key)["client"] == "4"
        watching.step()
        assert coordinator.node_names() == ["client:4"]
        other = coordinator.new_key("other").decode()
        with pytest.raises(mailbox.RequestError, match="another key"):
            coordinator.ask(watching, "enrol", sha256=sha256, public_key=other)

    def test_without_a_gateway_there_are_no_tokens(self, coordinator: Coordinator) -> None:
        with pytest.raises(mailbox.RequestError, match="no gateway"):
            coordinator.ask(coordinator.boot(), "token", sha256="0" * 64, lifetime_s=60, client="")

    def submit(
        self, coordinator: Coordinator, watching: Supervisor, fab: bytes, **asked: Any
    ) -> str:
        coordinator.told.requests.mkdir(mode=0o700, exist_ok=True)
        name = f"{'a' * 32}.fab"
        (coordinator.told.requests / name).write_bytes(fab)
        run: str = coordinator.ask(watching, "submit", file=name, run_config=asked)["run"]
        return run

    def test_an_app_is_submitted_to_a_federation_that_waits_and_another_after_it(
        self, coordinator: Coordinator, app_folder: Callable[..., Path]
    ) -> None:
        fab = bundle.build(bundle.load(app_folder())).fab
        coordinator.add_node("0")
        watching = coordinator.boot()
        watching.step()
        coordinator.connect_all()
        assert not watching.step()

        first = self.submit(coordinator, watching, fab, **{"num-server-rounds": 9})
        watching.step()
        [run] = coordinator.runs()
        assert run.override_config["run"] == first
        assert run.override_config["num-server-rounds"] == 9
        with pytest.raises(mailbox.RequestError, match="not ended"):
            self.submit(coordinator, watching, fab)
        coordinator.server.run_starts(run.run_id)
        coordinator.told.recovery.mkdir()
        coordinator.server.run_ends(run.run_id, "completed")
        assert watching.step()
        assert watching.step(), "an ended run stays ended"

        second = self.submit(coordinator, watching, fab)
        for _ in range(2):
            watching.step()
        assert [each.override_config["run"] for each in coordinator.runs()] == [first, second]
        assert (coordinator.told.runs / first / "recovery").is_dir()
        assert not coordinator.told.recovery.exists()
        listed = coordinator.ask(watching, "runs")
        assert listed["run"] == second
        assert len(listed["runs"]) == 2

    def test_a_submitted_app_survives_a_restart(
        self, coordinator: Coordinator, app_folder: Callable[..., Path]
    ) -> None:
        fab = bundle.build(bundle.load(app_folder())).fab
        run = self.submit(coordinator, coordinator.boot(), fab)
        coordinator.add_node("0")
        again = coordinator.boot()
        again.step()
        coordinator.connect_all()
        again.step()
        assert [each.override_config["run"] for each in coordinator.runs()] == [run]

    def test_a_run_is_stopped_by_request_and_nothing_else_is(self, with_app: Coordinator) -> None:
        watching = with_app.running()
        run = with_app.ask(watching, "stop")["run"]
        assert with_app.told.stop_request.exists()
        assert run == with_app.state()["run"]
        with_app.server.run_ends(with_app.runs()[-1].run_id, "completed")
        assert watching.step()
        assert with_app.outcomes()[-1].status == "stopped"
        with pytest.raises(mailbox.RequestError, match="No run"):
            with_app.ask(watching, "stop")

    @pytest.mark.parametrize(
        ("kind", "what"),
        [
            ("revoke", {"node": "nobody"}),
            ("revoke", {}),
            ("token", {"sha256": "x", "lifetime_s": 60, "client": ""}),
            ("submit", {"file": "../../etc/passwd", "run_config": {}}),
            ("submit", {"file": f"{'b' * 32}.fab", "run_config": {}}),
            ("unheard-of", {}),
        ],
    )
    def test_a_request_that_cannot_be_met_is_answered_and_changes_nothing(
        self, coordinator: Coordinator, kind: str, what: dict[str, Any]
    ) -> None:
        socket_file = coordinator.folder / "enrolment.sock"
        coordinator.told = replace(coordinator.told, enrolment_socket=socket_file)
        with pytest.raises(mailbox.RequestError):
            coordinator.ask(coordinator.boot(), kind, **what)
        assert not coordinator.told.roster.exists()
