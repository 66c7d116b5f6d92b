"""A run, from "nodes are there" to its last round: submitted, watched, submitted again.

What was done so far is on disk before the next thing is done, so whoever watches may be killed and
started again at any moment: it finds its run.
"""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from onefed import failpoints
from onefed.checkpoint import files
from onefed.errors import InUseError
from onefed.flower import adapter, bundle, task_record
from onefed.flower.instructions import Instructions
from onefed.flower.run_log import RunLog
from onefed.telemetry import events

SUBMISSIONS_MAX = 5
"""When the ServerApp of so many submissions died and no round was committed, the run has failed; a
committed round and a new boot count anew."""

RESUBMIT_DELAY_S = 1.0
RESUBMIT_DELAY_MAX_S = 8.0
"""Before a submission after one that committed no round, doubling; none after one that did."""

UNSEEN_LIMIT_S = 5.0
"""Flower says that a run was taken, and nobody recorded its ServerApp: whoever took it has died
in between. Recording it takes some ten milliseconds, and at most ``nursery.FORK_LIMIT_S``."""

LOG_END_S = 5.0
"""The rest of the log of a run that has finished is waited for so long."""

ENDED = frozenset({"completed", "failed", "stopped"})
"""Nothing is left to do, until the machine boots again and with it the wish to go on."""

WAIT_REPORT_S = 60.0
"""How often a run that waits for its first nodes is reported as stalled: machines boot in less."""

APP_EXCEPTION = "ServerApp failed with exception: "
"""Begins Flower's details when the app itself raised: submitting it again would not help."""


@dataclass
class State:
    """What has been done so far; on disk after every change."""

    run: str
    """Identity of the run, made once."""
    submissions: list[int] = field(default_factory=list)
    """Flower's run ids, the newest last."""
    attempts: int = 0
    """Submissions since a round was committed, or since the run last began to go on."""
    committed: int = 0
    """The last committed round when the newest submission was made."""
    managed: bool = True
    """Whether the app of the newest submission is ours to tell: it heeds a stop request itself,
    and writes its own events."""
    log_begins_at: int = 0
    """Bytes in the log when the newest submission was made: what follows is its own."""
    app: str = ""
    """Path of the bundle that was submitted; empty: the one that the machine was made with."""
    asked: dict[str, Any] = field(default_factory=dict)
    """Keys of the run_config that came with that submission."""
    before: str = ""
    """Identity of the run before it, whose recovery store has to make room."""
    status: str = "waiting"
    """``waiting``, ``running``, ``completed``, ``failed`` or ``stopped``."""


class RunWatch:
    """The run of one coordinator. ``look`` is called again and again until it says it is over."""

    def __init__(
        self,
        instructions: Instructions,
        *,
        control: adapter.Control,
        emit: Callable[[events.Event], None],
        committed: Callable[[], int],
        clock: Callable[[], float],
        reach: failpoints.Reach = failpoints.nothing,
    ) -> None:
        """
        Args:
            committed: the last round in the recovery store, 0 while there is none.
            clock: monotonic seconds.
            reach: where a test holds the process.
        """
        self._reach = reach
        self._told = instructions
        self._committed = committed
        self._clock = clock
        self._not_before = clock()
        """When the next submission may be made."""
        self._unseen_since: float | None = None
        """Since when the ServerApp of the newest submission should be there and is not."""
        self._waits_for = ""
        """What was last told of what the first submission waits for."""
        self._wait_began = self._wait_told = clock()
        self._death_told = 0
        """The submission whose death ``server_app_died`` has told."""
        self._control = control
        self._emit = emit
        self._state = read_state(instructions.state_file)
        self._inherited = self._state.submissions[-1] if self._state.status == "running" else 0
        """The submission that ran when the process before this one ended; the machine may have been
        told since that there are more rounds."""
        self._log = RunLog(instructions.run_log, control, emit)

    def look(self, nodes_online: int) -> bool:
        """Look once at the run; True when it has ended and nothing is left to do."""
        if self._state.status in ENDED:
            return True
        if self._state.status == "running":
            self._watch()
        if self._state.status == "waiting":  # also since this moment
            if self._told.stop_request.exists():
                self._finish("stopped", "stopped while it was not submitted")
            elif self._may_submit(nodes_online) and self._has_app():
                self._submit()
            elif not self._state.submissions:
                self._tell_wait(nodes_online)
        return self._state.status in ENDED

    def server_app_died(self) -> bool:
        """Whether the ServerApp of the newest submission has died; said once of each."""
        if self._state.status != "running":
            return False
        run_id = self._state.submissions[-1]
        record = task_record.read(self._told.task_record)
        if record is None or record.run_id != run_id or run_id == self._death_told:
            return False
        died = not record.lives()
        self._death_told = run_id if died else 0
        return died

    @property
    def is_under_way(self) -> bool:
        """Whether the ServerApp of the newest submission lives; asks only the kernel."""
        if self._state.status != "running":
            return False
        record = task_record.read(self._told.task_record)
        return (
            record is not None and record.run_id == self._state.submissions[-1] and record.lives()
        )

    def submit(self, fab: bytes, asked: Mapping[str, Any]) -> str:
        """Take an app to run next; returns the identity of its run.

        Raises:
            InUseError: another app runs, or waits for its nodes.
        """
        earlier = self._state
        if earlier.status not in ENDED and not self.is_idle:
            raise InUseError(
                "This federation has a run that has not ended.",
                hint="Wait for its end, or stop it: onefed runs stop",
            )
        run = uuid.uuid4().hex
        app = self._told.runs / run / "app.fab"
        files.make_folder(app.parent, mode=0o700)
        files.write_bytes(app, fab)
        wanted = dict(asked)
        if earlier.submissions and self._told.run_config.get("checkpoint-path"):
            # The operator's checkpoints of the runs before stay where they are.
            wanted["checkpoint-path"] = f"{self._told.run_config['checkpoint-path']}/{run[:8]}"
        self._state = State(
            run=run,
            app=str(app),
            asked=wanted,
            before=earlier.run if earlier.submissions else "",
        )
        self._told.stop_request.unlink(missing_ok=True)
        self._save()
        return run

    @property
    def run(self) -> str:
        """Identity of the run."""
        return self._state.run

    @property
    def status(self) -> str:
        """``waiting``, ``running``, ``completed``, ``failed`` or ``stopped``."""
        return self._state.status

    @property
    def is_idle(self) -> bool:
        """Whether it waits for an app."""
        return self._state.status == "waiting" and not self._has_app()

    def _has_app(self) -> bool:
        return bool(self._state.app) or self._told.bundle.exists() or self._told.use_case != "none"

    def _make_room(self) -> None:
        """Put the recovery store of the run before aside; what trains next begins with none."""
        before = self._state.before
        aside = self._told.runs / before / "recovery"
        if before and self._told.recovery.exists() and not aside.exists():
            files.make_folder(aside.parent, mode=0o700)
            self._told.recovery.rename(aside)
            files.sync_folder(aside.parent)

    def _may_submit(self, nodes_online: int) -> bool:
        """A run that goes on needs no nodes: its ServerApp waits for them, and says so."""
        enough = nodes_online >= self._told.min_available_clients or bool(self._state.submissions)
        return enough and self._clock() >= self._not_before

    def _tell_wait(self, nodes_online: int) -> None:
        """Say what a run that has not begun waits for, whenever that is something else."""
        required = self._told.min_available_clients
        missing = [] if self._has_app() else ["no app was submitted yet"]
        if nodes_online < required:
            missing.append(f"{nodes_online} of {required} nodes connected")
        waits_for = ", ".join(missing)
        if waits_for != self._waits_for:
            self._waits_for = waits_for
            self._emit(events.RunStatus("waiting", waits_for))
        now = self._clock()
        if not self._has_app():
            self._wait_began = self._wait_told = now  # a federation without an app is no stall
        elif now - self._wait_told >= WAIT_REPORT_S:
            self._wait_told = now
            waited_s = now - self._wait_began
            self._emit(events.TrainingStalled(1, waited_s, nodes_online, required))

    def _submit(self) -> None:
        app = self._app()
        self._make_room()
        # Flower takes only keys that the app's own config names, and an app that runs its own
        # ServerApp keeps its defaults unless somebody set something else.
        asked = self._state.asked
        wanted = {**self._told.run_config, **asked, "run": self._state.run}
        set_ = self._told.keys_set | asked.keys()
        known = {
            key: value
            for key, value in wanted.items()
            if key in app.run_config and (app.managed or key in set_)
        }
        self._save()  # another identity after a kill would find the recovery store in use
        attempt = len(self._state.submissions) + 1
        self._reach("submitting", attempt)
        try:
            run_id = self._control.unfinished_run(self._state.run)
            if run_id is not None and run_id in self._state.submissions:
                self._control.stop_run(run_id)  # given up: its ServerApp is gone
                run_id = None
            if run_id is None:  # else we were killed after the submission
                run_id = self._control.start_run(app.fab, known)
        except adapter.RunRefusedError as error:
            self._finish("failed", error.message)
            return
        self._reach("submitted", attempt)
        self._state.submissions.append(run_id)
        committed = self._committed()
        self._state.attempts = 1 if committed > self._state.committed else self._state.attempts + 1
        self._state.committed = committed
        self._state.managed = app.managed
        self._state.log_begins_at = self._log.size()
        self._state.status = "running"
        self._save()
        self._emit(events.RunSubmitted(self._state.run, str(run_id), attempt))
        self._read_log(run_id)

    def _app(self) -> bundle.Bundle:
        """The app to run, which there is."""
        if self._state.app:
            return bundle.unpack(Path(self._state.app).read_bytes())
        if self._told.bundle.exists():
            return bundle.unpack(self._told.bundle.read_bytes())
        return bundle.build(bundle.built_in(self._told.use_case))

    def _watch(self) -> None:
        run_id, stopping = self._state.submissions[-1], self._told.stop_request.exists()
        record = task_record.read(self._told.task_record)
        seen = record is not None and record.run_id == run_id
        # Before Flower is asked: what it says is then no older than the death.
        alive = record is not None and seen and record.lives()
        try:
            status = self._control.run_status(run_id)
        except adapter.UnknownRunError:
            self._resubmit("the SuperLink lost it with its database", record)
            return
        reader = self._read_log(run_id)
        if not status.finished:
            if stopping and (not self._state.managed or status.status == "pending"):
                self._control.stop_run(run_id)  # there is nobody who would see the request
            elif self._is_dead(status, seen=seen, alive=alive):
                if stopping:
                    self._control.stop_run(run_id)
                else:
                    self._resubmit("its ServerApp died", record)
            return
        reader.join(LOG_END_S)  # what the run told comes before its end
        if status.sub_status == "completed" and not stopping and self._wants_more(run_id):
            self._resubmit("there are more rounds now", record)
        elif status.sub_status == "completed":
            self._finish("stopped" if stopping else "completed", status.details)
        elif status.sub_status == "stopped" or stopping:
            self._finish("stopped", status.details)
        elif APP_EXCEPTION in status.details:
            self._finish("failed", status.details.removeprefix(APP_EXCEPTION))
        else:
            self._resubmit(f"its ServerApp died ({status.details})", record)

    def _wants_more(self, run_id: int) -> bool:
        """Whether a submission of an earlier boot did all that it was told, and there is more."""
        if run_id != self._inherited or not self._state.managed:
            return False
        told = {**self._told.run_config, **self._state.asked}
        return self._committed() < int(told.get("num-server-rounds", 0))

    def _is_dead(self, status: adapter.RunStatus, *, seen: bool, alive: bool) -> bool:
        """Whether nobody works on a run of which Flower says that somebody does.

        Without an executor of ours (``FL_ISOLATION=subprocess``) there is no record, and Flower's
        own minute has to do.
        """
        if alive or status.status == "pending" or not self._told.supervised:
            self._unseen_since = None
            return False
        if seen:
            return True
        if self._unseen_since is None:
            self._unseen_since = self._clock()
        return self._clock() - self._unseen_since >= UNSEEN_LIMIT_S

    def _resubmit(self, reason: str, record: task_record.TaskRecord | None) -> None:
        """Give the newest submission up, and make another one after a pause, if there is sense."""
        if record is not None:
            record.kill()  # it may live, cut off from a SuperLink that has given it up
        self._unseen_since = None
        fruitless = 0 if self._committed() > self._state.committed else self._state.attempts
        if fruitless >= SUBMISSIONS_MAX:
            self._finish("failed", f"{reason}, {fruitless} times without a new round")
            return
        delay_s = RESUBMIT_DELAY_S * 2.0 ** (fruitless - 2) if fruitless > 1 else 0.0
        self._not_before = self._clock() + min(delay_s, RESUBMIT_DELAY_MAX_S)
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
        state = self._state
        return self._log.read(run_id, begins_at=state.log_begins_at, told=state.managed)


def read_state(path: Path) -> State:
    """What is on disk, or the state of a new run. What had ended goes on with a new boot.

    Raises:
        DamagedError: another identity would find the recovery store in use.
    """
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
