"""The coordinator's own program: registers nodes, submits the run, watches it to its end.

It is started beside the SuperLink and kept alive by whatever keeps the SuperLink alive.
What it has done so far is on disk, so it can be killed and started again at any moment: it finds
its run, and submits it again with resume when its ServerApp has died.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from onefed.checkpoint import files
from onefed.errors import OnefedError
from onefed.flower import adapter, bundle, clients, report
from onefed.opennebula import onegate
from onefed.telemetry import events
from onefed.telemetry.log import EventLog
from onefed.tls import node_keys

POLL_S = 0.5
"""One round of looking: new keys, nodes that came or went, the state of the run."""

SUBMISSIONS_MAX = 5
"""A run is submitted again this often after its ServerApp died; then it has failed."""

ENDED = frozenset({"completed", "failed", "stopped"})
"""Nothing is left to do, until the machine boots again and with it the wish to go on."""

APP_EXCEPTION = "failed with exception"
"""In Flower's details when the app itself raised: submitting it again would not help."""


@dataclass(frozen=True)
class Instructions:
    """What ``configure`` wrote down for the supervisor (step SL-06)."""

    superlink: str
    ca_certificate: Path | None
    onegate_endpoint: str | None
    vm_id: str
    token_file: Path
    bundle: Path
    use_case: str
    run_config: Mapping[str, Any]
    keys_set: frozenset[str]
    """Those keys of ``run_config`` that somebody set; the others are our defaults."""
    min_available_clients: int
    state_file: Path
    stop_request: Path
    run_log: Path

    @classmethod
    def read(cls, path: Path) -> Instructions:
        """From the JSON that step SL-06 writes."""
        document = json.loads(path.read_text(encoding="utf-8"))
        ca_certificate = document["ca_certificate"]
        return cls(
            superlink=document["superlink"],
            ca_certificate=None if ca_certificate is None else Path(ca_certificate),
            onegate_endpoint=document["onegate_endpoint"],
            vm_id=document["vm_id"],
            token_file=Path(document["token_file"]),
            bundle=Path(document["bundle"]),
            use_case=document["use_case"],
            run_config=document["run_config"],
            keys_set=frozenset(document["keys_set"]),
            min_available_clients=document["min_available_clients"],
            state_file=Path(document["state_file"]),
            stop_request=Path(document["stop_request"]),
            run_log=Path(document["run_log"]),
        )


@dataclass
class State:
    """What has been done so far; on disk after every change."""

    run: str
    """Identity of the run, made once."""
    submissions: list[int] = field(default_factory=list)
    """Flower's run ids, the newest last."""
    status: str = "waiting"
    """``waiting``, ``running``, ``completed``, ``failed`` or ``stopped``."""


class Supervisor:
    """One coordinator's supervisor. ``step`` is called again and again until it says it is over."""

    def __init__(
        self,
        instructions: Instructions,
        *,
        control: adapter.Control,
        gate: onegate.OneGate | None,
        emit: Callable[[events.Event], None],
    ) -> None:
        self._told = instructions
        self._control = control
        self._gate = gate
        self._emit = emit
        self._state = _read_state(instructions.state_file)
        self._registered: set[str] = set()
        """Ids of the machines whose key is registered."""
        self._managed = True
        """Whether the run heeds a stop request by itself, as our ServerApp does."""
        self._addresses: dict[int, str] = {}
        """Node id -> address of its machine, of the nodes that we registered."""
        self._online: frozenset[int] = frozenset()
        """Ids of the nodes that were connected at the last look."""

    def step(self) -> bool:
        """Look once at everything; True when the run has ended and nothing is left to do."""
        if self._gate is not None:
            self._register_new_keys(self._gate)
        self._watch_nodes()
        if self._state.status == "running":
            self._watch_run()
        elif self._told.stop_request.exists():
            self._finish("stopped", "stopped before it was submitted")
        elif len(self._online) >= self._told.min_available_clients:
            self._submit()
        return self._state.status in ENDED

    def _register_new_keys(self, gate: onegate.OneGate) -> None:
        """Register the key of every supernode of our own service, and tell it so."""
        for role in gate.service().roles:
            if role.name != "supernode":
                continue
            for index, node in enumerate(role.nodes):
                if node.vm_id not in self._registered:
                    self._register(gate, node.vm_id, f"{role.name}/{index}")

    def _register(self, gate: onegate.OneGate, vm_id: str, name: str) -> None:
        """Register the key that a machine published, if it has published one."""
        machine = gate.vm_by_id(vm_id)
        attributes = machine.attributes
        published = attributes.get("FL_NODE_KEY")
        if published is None:
            return
        public_key = node_keys.decode_published(published, source=f"the key of {name}")
        fingerprint = node_keys.fingerprint(public_key)
        partition = attributes.get("FL_PARTITION", "")
        client = partition if partition.isdigit() else fingerprint[:16]
        try:
            node_id = self._control.register_node(
                node_keys.public_key_bytes(public_key), clients.node_name(client)
            )
        except adapter.KeyKnownError:
            node_id = None  # registered by the supervisor before this one
        gate.publish_to(vm_id, "FL_NODE_REGISTERED", fingerprint)
        self._registered.add(vm_id)
        if node_id is not None:
            self._addresses[node_id] = next(iter(machine.addresses), "unknown")
            number = int(partition) if partition.isdigit() else None
            self._emit(events.NodeRegistered(vm=name, node_id=str(node_id), partition=number))

    def _watch_nodes(self) -> None:
        online = frozenset(
            node.node_id for node in self._control.nodes() if node.status == adapter.NODE_ONLINE
        )
        for node_id in sorted(online - self._online):
            self._emit(events.ClientJoin(str(node_id), self._addresses.get(node_id, "unknown")))
        for node_id in sorted(self._online - online):
            self._emit(events.ClientLeave(str(node_id), "disconnected"))
        self._online = online

    def _submit(self) -> None:
        app = self._app()
        if app is None:
            return
        # Flower takes only keys that the app's own config names, and an app that runs its own
        # ServerApp keeps its defaults unless somebody set something else.
        wanted = {**self._told.run_config, "run": self._state.run}
        known = {
            key: value
            for key, value in wanted.items()
            if key in app.run_config and (app.managed or key in self._told.keys_set)
        }
        run_id = self._control.start_run(app.fab, known)
        self._managed = app.managed
        self._state.submissions.append(run_id)
        self._state.status = "running"
        self._save()
        attempt = len(self._state.submissions)
        self._emit(events.RunSubmitted(self._state.run, str(run_id), attempt))
        threading.Thread(
            target=self._copy_log, args=(run_id, not app.managed), name="run-log", daemon=True
        ).start()

    def _app(self) -> bundle.Bundle | None:
        """The app to run; None when the tenant submits one later."""
        if self._told.bundle.exists():
            return bundle.unpack(self._told.bundle.read_bytes())
        if self._told.use_case == "none":
            return None
        return bundle.build(bundle.built_in(self._told.use_case))

    def _watch_run(self) -> None:
        try:
            status = self._control.run_status(self._state.submissions[-1])
        except adapter.UnknownRunError:
            self._resubmit("the SuperLink lost it with its database")
            return
        if not status.finished:
            if self._told.stop_request.exists() and not self._managed:
                self._control.stop_run(self._state.submissions[-1])
            return
        if status.sub_status == "completed":
            stopped = self._told.stop_request.exists()
            self._finish("stopped" if stopped else "completed", status.details)
        elif status.sub_status == "stopped" or self._told.stop_request.exists():
            self._finish("stopped", status.details)
        elif APP_EXCEPTION in status.details or len(self._state.submissions) >= SUBMISSIONS_MAX:
            self._finish("failed", status.details)
        else:
            self._resubmit(f"its ServerApp died ({status.details})")

    def _resubmit(self, reason: str) -> None:
        self._emit(events.Notice("WARNING", f"The run is submitted again: {reason}."))
        self._state.status = "waiting"
        self._save()

    def _finish(self, status: str, details: str) -> None:
        self._state.status = status
        self._save()
        self._emit(events.RunStatus(status, details))

    def _save(self) -> None:
        document = json.dumps(asdict(self._state)).encode()
        files.write_bytes(self._told.state_file, document)

    def _copy_log(self, run_id: int, tell: bool) -> None:
        """Append what the ServerApp prints to its log, and tell it as events where nothing else
        speaks for the app; ends with the run."""
        with (
            contextlib.suppress(OnefedError, OSError),
            self._told.run_log.open("a", encoding="utf-8") as log,
        ):
            reporter = report.Reporter(time.monotonic)
            for line in _lines(self._control.log_output(run_id)):
                log.write(f"{line}\n")
                log.flush()
                if tell:
                    for event in reporter.read(line):
                        self._emit(event)


def main(arguments: list[str]) -> int:
    """``python -m onefed.flower.supervisor INSTRUCTIONS``: supervise until the run has ended."""
    told = Instructions.read(Path(arguments[0]))
    log = EventLog(Path(os.environ["ONEFED_EVENTS"]), "superlink", lambda: datetime.now(UTC))
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    control = adapter.Control(told.superlink, told.ca_certificate)
    gate = None
    if told.onegate_endpoint is not None:
        token = told.token_file.read_text(encoding="ascii").strip()
        gate = onegate.OneGate(told.onegate_endpoint, token, told.vm_id)
    supervisor = Supervisor(told, control=control, gate=gate, emit=log.emit)
    over = False
    while not stopping.is_set():
        try:
            over = over or supervisor.step()
        except (adapter.SuperLinkError, onegate.OneGateError) as error:
            _say(f"{error}")  # the servers may be starting; the next look is half a second away
        except OnefedError as error:
            log.emit(events.Notice("ERROR", str(error)))
            log.emit(events.RunStatus("failed", error.message))
            over = True
        stopping.wait(POLL_S)
    control.close()
    return 0


def _read_state(path: Path) -> State:
    try:
        state = State(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return State(run=uuid.uuid4().hex)
    if state.status in ENDED:
        state.status = "waiting"
    return state


def _lines(pieces: Iterator[str]) -> Iterator[str]:
    """Whole lines out of pieces of text."""
    rest = ""
    for piece in pieces:
        *whole, rest = (rest + piece).split("\n")
        yield from whole
    if rest:
        yield rest


def _say(text: str) -> None:
    sys.stderr.write(f"{datetime.now(UTC).isoformat(timespec='seconds')} {text}\n")


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
