"""The coordinator's own program: registers nodes, submits the run, watches it to its end.

It is started beside the SuperLink and kept alive by whatever keeps the SuperLink alive.
What it has done so far is on disk, so it can be killed and started again at any moment: it finds
its run, and submits it again with resume when its ServerApp has died.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
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
"""When the ServerApp of so many submissions died, the run has failed; a new boot counts anew."""

LOG_END_S = 5.0
"""The rest of the log of a run that has finished is waited for so long."""

LINE_LENGTH_MAX = 65_536
"""Longer lines that a ServerApp prints are broken."""

ENDED = frozenset({"completed", "failed", "stopped"})
"""Nothing is left to do, until the machine boots again and with it the wish to go on."""

FINGERPRINT_SHOWN = 16
"""Hex digits of a key's fingerprint that make the client key of a node without a partition."""

APP_EXCEPTION = "ServerApp failed with exception: "
"""Begins Flower's details when the app itself raised: submitting it again would not help."""


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
    attempts: int = 0
    """Submissions since the run last began to go on."""
    managed: bool = True
    """Whether the app of the newest submission is ours to tell: it heeds a stop request itself,
    and writes its own events."""
    log_begins_at: int = 0
    """Bytes in the log when the newest submission was made: what follows is its own."""
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
        self._refused: dict[str, str] = {}
        """Id of a machine -> why its key was refused when that was last told."""
        self._addresses: dict[str, str] = {}
        """Name of a node -> address of its machine, of the nodes that we registered."""
        self._online: frozenset[int] = frozenset()
        """Ids of the nodes that were connected at the last look."""
        self._log_reader: threading.Thread | None = None

    def step(self) -> bool:
        """Look once at everything; True when the run has ended and nothing is left to do."""
        if self._gate is not None:
            self._register_new_keys(self._gate)
        self._watch_nodes()
        if self._state.status == "running":
            self._watch_run()
        elif self._told.stop_request.exists():
            self._finish("stopped", "stopped while it was not submitted")
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
        self._save()  # another identity after a kill would find the recovery store in use
        try:
            run_id = self._control.unfinished_run(self._state.run)
            if run_id is None:  # else we were killed after the submission
                run_id = self._control.start_run(app.fab, known)
        except adapter.RunRefusedError as error:
            self._finish("failed", error.message)
            return
        self._state.submissions.append(run_id)
        self._state.attempts += 1
        self._state.managed = app.managed
        self._state.log_begins_at = _size(self._told.run_log)
        self._state.status = "running"
        self._save()
        attempt = len(self._state.submissions)
        self._emit(events.RunSubmitted(self._state.run, str(run_id), attempt))
        self._read_log(run_id)

    def _app(self) -> bundle.Bundle | None:
        """The app to run; None when the tenant submits one later."""
        if self._told.bundle.exists():
            return bundle.unpack(self._told.bundle.read_bytes())
        if self._told.use_case == "none":
            return None
        return bundle.build(bundle.built_in(self._told.use_case))

    def _watch_run(self) -> None:
        run_id, stopping = self._state.submissions[-1], self._told.stop_request.exists()
        try:
            status = self._control.run_status(run_id)
        except adapter.UnknownRunError:
            self._resubmit("the SuperLink lost it with its database")
            return
        reader = self._read_log(run_id)
        if not status.finished:
            if stopping and (not self._state.managed or status.status == "pending"):
                self._control.stop_run(run_id)  # there is nobody who would see the request
            return
        reader.join(LOG_END_S)  # what the run told comes before its end
        if status.sub_status == "completed":
            self._finish("stopped" if stopping else "completed", status.details)
        elif status.sub_status == "stopped" or stopping:
            self._finish("stopped", status.details)
        elif APP_EXCEPTION in status.details or self._state.attempts >= SUBMISSIONS_MAX:
            self._finish("failed", status.details.removeprefix(APP_EXCEPTION))
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

    def _read_log(self, run_id: int) -> threading.Thread:
        """Read a run's log in a thread, unless one does; it ends with the run or the connection."""
        if self._log_reader is None or not self._log_reader.is_alive():
            self._log_reader = threading.Thread(
                target=self._copy_log, args=(run_id,), name="run-log", daemon=True
            )
            self._log_reader.start()
        return self._log_reader

    def _copy_log(self, run_id: int) -> None:
        """Append what the ServerApp prints to its log, and tell it as events where nothing else
        speaks for the app. Flower gives the log from its beginning: what was copied before the
        connection or this program ended is not told again."""
        reporter = report.Reporter(time.monotonic)
        with contextlib.suppress(OnefedError, OSError):
            known = _line_count(self._told.run_log, self._state.log_begins_at)
            with self._told.run_log.open("a", encoding="utf-8") as log:
                for index, line in enumerate(_lines(self._control.log_output(run_id))):
                    told = reporter.read(line) if not self._state.managed else []
                    if index >= known:
                        log.write(f"{line}\n")
                        log.flush()
                        for event in told:
                            self._emit(event)


def main(arguments: list[str]) -> int:
    """``python -m onefed.flower.supervisor INSTRUCTIONS``: supervise until SIGTERM.

    When the run has ended it stays, doing nothing: whoever keeps it alive would start it again.
    """
    told = Instructions.read(Path(arguments[0]))
    log = EventLog(Path(os.environ["ONEFED_EVENTS"]), "superlink", lambda: datetime.now(UTC))
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    try:
        control = adapter.Control(told.superlink, told.ca_certificate)
        gate = None
        if told.onegate_endpoint is not None:
            token = told.token_file.read_text(encoding="ascii").strip()
            gate = onegate.OneGate(told.onegate_endpoint, token, told.vm_id)
        supervisor = Supervisor(told, control=control, gate=gate, emit=log.emit)
        _supervise(supervisor, stopping)
        control.close()
    except OnefedError as error:
        log.emit(events.Notice("ERROR", str(error)))
        log.emit(events.RunStatus("failed", error.message))
    stopping.wait()
    return 0


def _supervise(supervisor: Supervisor, stopping: threading.Event) -> None:
    """Look again and again, until the run has ended or we are stopped."""
    said = ""
    while not stopping.is_set():
        try:
            if supervisor.step():
                return
            said = ""
        except (adapter.SuperLinkError, onegate.OneGateError) as error:
            # The servers may be starting; the next look is half a second away.
            if error.message != said:
                said = error.message
                _say(said)
        stopping.wait(POLL_S)


def _read_state(path: Path) -> State:
    try:
        document = files.read_json(path) if path.exists() else {"run": uuid.uuid4().hex}
        if not isinstance(document, dict):
            raise TypeError("it is not an object")
        known = {entry.name for entry in fields(State)}
        state = State(**{key: value for key, value in document.items() if key in known})
    except TypeError as error:
        raise files.DamagedError(path, f"it is not the state of a supervisor, {error}") from error
    if state.status in ENDED:
        state.status, state.attempts = "waiting", 0
    return state


def _partition(text: str) -> int | None:
    """A partition id as a node publishes it, or None; any member of the service may write it."""
    return int(text) if re.fullmatch(r"[0-9]{1,9}", text) else None


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _line_count(path: Path, begin: int) -> int:
    """Lines of a file after its first ``begin`` bytes."""
    if not path.exists():
        return 0
    with path.open("rb") as file:
        file.seek(begin)
        return sum(1 for _ in file)


def _lines(pieces: Iterable[str]) -> Iterator[str]:
    """Lines out of pieces of text, the same ones however the text was cut into pieces."""
    rest = ""
    for piece in pieces:
        *whole, rest = (rest + piece).split("\n")
        for line in whole:
            yield from _broken(line)
        *begun, rest = _broken(rest)
        yield from begun
    if rest:
        yield rest


def _broken(line: str) -> list[str]:
    starts = range(0, max(len(line), 1), LINE_LENGTH_MAX)
    return [line[start : start + LINE_LENGTH_MAX] for start in starts]


def _say(text: str) -> None:
    sys.stderr.write(f"{datetime.now(UTC).isoformat(timespec='seconds')} {text}\n")


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
