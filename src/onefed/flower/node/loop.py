"""The life of a node: ask for a message, let the app answer it, send the reply, ask again.

One message at a time, as Flower's own SuperNode. The bytes of a message are never opened here: what
they hold is for the process of the app, which may be killed by it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from onefed.flower import adapter_fleet, packing
from onefed.flower.adapter_fleet import (
    Answer,
    AppReference,
    Fleet,
    FleetError,
    Instruction,
    RunOverError,
    Task,
    UnknownNodeError,
    UnreachableError,
)
from onefed.flower.node.membership import Membership
from onefed.flower.node.polling import Polling, idle_pause_s
from onefed.flower.node.workers import Crash, Workers

_LOG = logging.getLogger(__name__)

TRANSFERS = 2
"""Parts of a message that travel at a time; Flower's own number."""

PART_FIRST_S = 0.02
PART_MAX_S = 1.0
"""Pauses while the sender of a message still sends its parts: it is given out before they are
there. Flower's SuperNode waits 1 s."""
PART_GROWTH = 1.5

KEPT_BYTES_MAX = 256 * 1024 * 1024
"""Parts of the last message are kept up to this size: the same model comes to be evaluated and to
be trained on, and need not travel twice."""

RUNS_MAX = 16
SERIES_MAX = 64
"""Runs and states of apps that a node remembers; the oldest are forgotten."""

LOOK_S = 1.0
"""While an app works, the node asks this often whether its run still wants a reply; in a large
fleet as often as it would ask for messages. A run that was submitted again waits for so long."""

JOIN_FIRST_S = 1.0
JOIN_MAX_S = 5.0
JOIN_LIMIT_S = 120.0
"""A SuperLink that refuses a node for longer has another reason than its last death."""

PUSHES_MAX = 3
"""Of one reply: a SuperLink that was restarted in between forgets what was sent."""


FETCH_S = 2.0
"""A SuperLink gives out no reply of a node that is offline, not even one that it has: a node stays
for so long after its last reply. Our ServerApp looks every half second."""


class Wake:
    """Lets a signal, or another thread, end any wait of the node."""

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        self.is_stopping = False

    def stop(self, *_: object) -> None:
        """Safe in a signal handler."""
        self.is_stopping = True
        os.write(self._writer, b"x")

    def fileno(self) -> int:
        return self._reader

    def wait(self, seconds: float) -> bool:
        """Sleep, unless the node is stopping; returns whether it is."""
        if not self.is_stopping:
            select.select([self._reader], [], [], seconds)
        return self.is_stopping

    def sleep(self, seconds: float) -> None:
        """Sleep, whatever happens."""
        select.select([], [], [], max(0.0, seconds))


@dataclass(frozen=True)
class Limits:
    """How long a node puts up with what."""

    lost_tries_max: int | None
    """Tries in a row without an answer of the SuperLink; None: no limit (FL_MAX_RETRIES)."""
    lost_s_max: float | None
    """Seconds without an answer; None: no limit (FL_MAX_WAIT_TIME)."""
    drain_s: float
    """An app that works when the node is stopped may go on for so long."""


@dataclass(frozen=True)
class _Question:
    """What a message asks, whatever its own id is."""

    run_id: int
    message_type: str
    round_name: str
    content_id: str

    @classmethod
    def of(cls, instruction: Instruction, objects: Mapping[str, bytes]) -> _Question:
        return cls(
            instruction.run_id,
            instruction.message_type,
            instruction.round_name,
            packing.content_id(instruction.message_id, objects),
        )


class Node:
    """A node that has not joined yet."""

    def __init__(
        self,
        fleet: Fleet,
        membership: Membership,
        workers: Workers,
        *,
        node_config: Mapping[str, Any],
        fleet_size: int,
        limits: Limits,
        wake: Wake,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
        random: Callable[[], float],
        warn: Callable[[str], None],
        note: Callable[[Instruction], None] = lambda _: None,
        joined: Callable[[], None] = lambda: None,
    ) -> None:
        """
        Args:
            clock: monotonic seconds.
            wall_clock: seconds since 1970, against which messages expire.
            random: uniform in [0, 1).
            warn: told what a person should know.
            note: told what the app is given to do, before it has it.
            joined: told whenever the SuperLink has taken this node.
        """
        self._fleet = fleet
        self._membership = membership
        self._workers = workers
        self._node_config = node_config
        self._limits = limits
        self._wake = wake
        self._clock = clock
        self._wall_clock = wall_clock
        self._warn = warn
        self._note = note
        self._joined = joined
        self._random = random
        self._fleet_size = fleet_size
        self._polling = Polling(fleet_size, now_s=clock(), random=random)
        self._look_s = max(LOOK_S, idle_pause_s(fleet_size))
        self._lost_tries = 0
        self._lost_since_s: float | None = None
        self._may_have_missed = False
        """Whether a message may have been given out to this node, and never came."""
        self._task_count = 0
        self._runs: OrderedDict[int, tuple[adapter_fleet.Run, bytes]] = OrderedDict()
        """By run id: the run and its app."""
        self._contexts: OrderedDict[int, bytes] = OrderedDict()
        """By series id: the context of its newest run."""
        self._kept: dict[str, bytes] = {}
        """Parts of the last message."""
        self._answered: tuple[_Question, Answer] | None = None
        """What the app has answered last; the same question gets it again."""
        self._transfers = ThreadPoolExecutor(TRANSFERS, thread_name_prefix="transfer")
        self._replied_s: float | None = None
        """When the last reply was sent."""
        self.is_connected = False
        self.is_working = False
        """A message is being received, worked on or replied to."""
        self.message_count = 0
        self.round_name = ""
        """Of the last message."""

    def run(self) -> None:
        """Join, work until the node is stopped, leave.

        Raises:
            FleetError: the SuperLink does not take this node, or was lost for longer than allowed.
        """
        try:
            self._join()
            while not self._wake.is_stopping:
                self._wake.wait(self._turn())
            if self._replied_s is not None and self._lost_since_s is None:
                self._wake.sleep(self._replied_s + FETCH_S - self._clock())
        finally:
            self.is_connected = False
            self._membership.leave()
            self._transfers.shutdown(cancel_futures=True)

    def _turn(self) -> float:
        """Ask once, and do what is asked; returns the pause until the next time."""
        try:
            instruction = self._fleet.pull(self._membership.node_id)
        except UnreachableError as error:
            self._may_have_missed |= error.arrived
            return self._lost(error)
        except UnknownNodeError as error:
            _LOG.warning("%s It joins anew.", error.message)
            self._join()
            return 0.0
        except FleetError as error:
            return self._lost(error)
        if self._found_again():
            self._return(has_message=instruction is not None)
        if instruction is None:
            return self._polling.empty(self._clock())
        came_s = self._clock()
        self.message_count += 1
        self.round_name, self.is_working = instruction.round_name, True
        try:
            self._work(instruction)
        except RunOverError:
            _LOG.info("Run %s wants no more of it.", instruction.run_id)
        except FleetError as error:
            _LOG.error("Message %s: %s", instruction.message_id[:12], error.message)
            self._apologise(instruction, error)
        finally:
            self.is_working = False
        self._polling.messaged(instruction.message_type, came_s=came_s, now_s=self._clock())
        return self._polling.empty(self._clock())

    # --- the SuperLink ---------------------------------------------------------------------------

    def _join(self) -> None:
        """Join as soon as the SuperLink takes this node; returns early when stopping."""
        self.is_connected = False
        began_s, pause_s = self._clock(), JOIN_FIRST_S
        while not self._wake.is_stopping:
            try:
                self._membership.join()
            except UnreachableError as error:
                self._wake.wait(self._lost(error))
                began_s = self._clock()
            except FleetError as error:
                if self._clock() - began_s > JOIN_LIMIT_S:
                    raise
                _LOG.warning("%s Next try in %.0f s.", error.message, pause_s)
                self._wake.wait(pause_s)
                pause_s = min(2 * pause_s, JOIN_MAX_S)
            else:
                self._found_again()
                self.is_connected = True
                self._joined()
                _LOG.info("Joined as node %s.", self._membership.node_id)
                return

    def _lost(self, error: FleetError) -> float:
        """No answer; returns the pause until the next try, or raises when that was the last."""
        now_s = self._clock()
        self._lost_tries += 1
        if self._lost_since_s is None:
            self._lost_since_s = now_s
            _LOG.warning("%s Trying again.", error.message)
        limits = self._limits
        if limits.lost_tries_max is not None and self._lost_tries > limits.lost_tries_max:
            raise error
        if limits.lost_s_max is not None and now_s - self._lost_since_s > limits.lost_s_max:
            raise error
        return self._polling.lost()

    def _found_again(self) -> bool:
        """There was an answer; returns whether there had been none before."""
        if self._lost_since_s is None:
            return False
        _LOG.info("The SuperLink answers after %.1f s.", self._clock() - self._lost_since_s)
        self._lost_since_s, self._lost_tries = None, 0
        return True

    def _return(self, *, has_message: bool) -> None:
        """After a gap: be seen as present, and as one that came back where that is needed.

        A SuperLink gives a message out once. Where it died while it answered, the message is gone,
        and a ServerApp sends another one to a node that was activated since (``exchange``).
        """
        missed, self._may_have_missed = self._may_have_missed and not has_message, False
        if missed:
            _LOG.warning("A message may have been lost with the SuperLink: joining anew.")
            self._join()
        else:
            self._beat()

    def _beat(self) -> None:
        """After a gap the SuperLink may take this node for dead: it learns better at once."""
        try:
            self._fleet.heartbeat(self._membership.node_id)
        except FleetError as error:
            _LOG.debug("%s", error.message)

    def _insist(self, instruction: Instruction, action: Callable[[], Any]) -> Any:
        """Try until the SuperLink answers, as long as a reply would still be taken."""
        while True:
            try:
                return action()
            except UnreachableError as error:
                pause_s = self._lost(error)
                if self._wake.wait(pause_s) or self._wall_clock() > instruction.expires_at_s:
                    raise

    # --- one message -----------------------------------------------------------------------------

    def _work(self, instruction: Instruction) -> None:
        _LOG.info(
            "Run %s, round %s: %s message.",
            *(instruction.run_id, instruction.round_name or "-", instruction.message_type),
        )
        began_s = self._clock()
        try:
            run, fab = self._run(instruction)
            context = self._contexts[run.series_id]
        except ValueError as error:
            code = adapter_fleet.APP_RAISED
            self._reply(instruction, adapter_fleet.error_answer(instruction, code, str(error)), 0)
            return
        objects = self._receive(instruction)
        received_s = self._clock()
        question = _Question.of(instruction, objects)
        answer = self._known(instruction, question)
        if answer is None:
            app = AppReference(run.fab_id, run.fab_version, run.fab_hash)
            why = self._workers.use(app, fab)
            if why is not None:
                self._warn(f"Every message of {run.fab_id} is handled in a fresh process: {why}.")
            self._task_count += 1
            task = Task(app, self._task_count, instruction.message_id, context, objects)
            self._note(instruction)
            answer = self._execute(instruction, task)
            if answer is None:
                return
            if answer.context is not None:
                self._contexts[run.series_id] = answer.context
            is_small = sum(map(len, answer.objects.values())) <= KEPT_BYTES_MAX
            self._answered = (question, answer) if is_small and not answer.failed else None
        worked_s = self._clock()
        self._reply(instruction, answer, worked_s - received_s)
        _LOG.info(
            "Replied%s: received in %.3f s, app %.3f s, sent in %.3f s.",
            " with an error" if answer.failed else "",
            *(received_s - began_s, worked_s - received_s, self._clock() - worked_s),
        )

    def _known(self, instruction: Instruction, question: _Question) -> Answer | None:
        """The answer to the same question, where it was the last one.

        A ServerApp asks again where an answer may be lost, and it may not be: then nobody waits
        any more, and an app that keeps a state would be a step ahead of the others.
        """
        if self._answered is None or not instruction.repeats or self._answered[0] != question:
            return None
        _LOG.info("The answer of a moment ago, again.")
        return adapter_fleet.answer_again(instruction, self._answered[1])

    def _run(self, instruction: Instruction) -> tuple[adapter_fleet.Run, bytes]:
        """The run of a message and its app, asked for once.

        Raises:
            ValueError: the app cannot be read.
        """
        run_id, node_id = instruction.run_id, self._membership.node_id
        known = self._runs.get(run_id)
        if known is None:
            run = self._insist(instruction, lambda: self._fleet.run(node_id, run_id))
            fab = self._known_fab(run) or self._insist(
                instruction, lambda: self._fleet.fab(node_id, run)
            )
            context = adapter_fleet.new_context(run, fab, node_id, self._node_config)
            if run.series_id in self._contexts:
                context = adapter_fleet.keep_state(context, self._contexts[run.series_id])
            self._contexts[run.series_id] = context
            known = self._runs[run_id] = (run, fab)
        self._runs.move_to_end(run_id)
        self._contexts.move_to_end(known[0].series_id)
        _forget(self._runs, RUNS_MAX)
        _forget(self._contexts, SERIES_MAX)
        return known

    def _known_fab(self, run: adapter_fleet.Run) -> bytes | None:
        """The same app, of an earlier run: a run that is submitted again brings no other."""
        for known, fab in self._runs.values():
            if known.fab_hash == run.fab_hash:
                return fab
        return None

    def _receive(self, instruction: Instruction) -> dict[str, bytes]:
        """All parts of a message; those of the last one need not come again."""
        wanted = instruction.object_ids
        missing = [name for name in wanted if name not in self._kept]
        parts = {name: self._kept[name] for name in wanted if name in self._kept}
        pulled = self._transfers.map(lambda name: self._receive_part(instruction, name), missing)
        parts |= dict(zip(missing, pulled, strict=True))
        node_id = self._membership.node_id
        self._insist(instruction, lambda: self._fleet.confirm(node_id, instruction))
        is_small = sum(map(len, parts.values())) <= KEPT_BYTES_MAX
        self._kept = dict(parts) if is_small else {}
        return parts

    def _receive_part(self, instruction: Instruction, name: str) -> bytes:
        node_id, pause_s = self._membership.node_id, PART_FIRST_S
        while True:
            content = self._insist(
                instruction,
                lambda: self._fleet.pull_object(node_id, instruction.run_id, name),
            )
            if content is not None:
                return bytes(content)
            if self._wake.wait(pause_s) or self._wall_clock() > instruction.expires_at_s:
                raise UnreachableError("A part of a message did not come in time.")
            pause_s = min(pause_s * PART_GROWTH, PART_MAX_S)

    def _execute(self, instruction: Instruction, task: Task) -> Answer | None:
        """Let the app answer; None when nobody wants to know any more."""
        execution = self._workers.begin(task)
        stops_at_s: float | None = None
        while True:
            timeout_s = self._look_s
            if self._wake.is_stopping:
                now_s = self._clock()
                stops_at_s = stops_at_s or now_s + self._limits.drain_s
                timeout_s = stops_at_s - now_s
                if timeout_s <= 0:
                    execution.kill()
                    return adapter_fleet.error_answer(
                        instruction, adapter_fleet.NODE_UNAVAILABLE, "The node was stopped."
                    )
            # Once it is stopping, the signal's byte is there and would end every wait.
            result = execution.wait(None if self._wake.is_stopping else self._wake, timeout_s)
            if isinstance(result, Crash):
                _LOG.error("%s", result.reason)
                code = adapter_fleet.APP_CRASHED
                return adapter_fleet.error_answer(instruction, code, result.reason)
            if result is not None:
                return result
            if not self._wake.is_stopping and not self._is_wanted(instruction):
                _LOG.info("Run %s has ended: the message is dropped.", instruction.run_id)
                execution.kill()
                return None

    def _is_wanted(self, instruction: Instruction) -> bool:
        """Whether a reply would still be taken, as far as can be known."""
        if self._wall_clock() > instruction.expires_at_s:
            return False
        try:
            self._fleet.run(self._membership.node_id, instruction.run_id)
        except RunOverError:
            return False
        except FleetError:
            return True
        return True

    def _reply(self, instruction: Instruction, answer: Answer, seconds: float) -> None:
        for attempt in range(1, PUSHES_MAX + 1):
            try:
                self._insist(instruction, lambda: self._push(instruction, answer, seconds))
            except (RunOverError, UnreachableError):
                raise
            except FleetError as error:
                if attempt == PUSHES_MAX:
                    raise
                _LOG.warning("%s It is sent again.", error.message)
            else:
                return

    def _apologise(self, instruction: Instruction, error: FleetError) -> None:
        """One try to say that there will be no reply, so that nobody waits for it."""
        code = adapter_fleet.NODE_UNAVAILABLE
        answer = adapter_fleet.error_answer(instruction, code, error.message)
        with contextlib.suppress(FleetError):
            self._push(instruction, answer, 0)

    def _push(self, instruction: Instruction, answer: Answer, seconds: float) -> None:
        node_id = self._membership.node_id
        wanted, session = self._fleet.push(node_id, answer, seconds)

        def push_part(name: str) -> None:
            content = answer.objects[name]
            self._fleet.push_object(node_id, instruction.run_id, session, name, content)

        for _ in self._transfers.map(
            push_part, [name for name in answer.objects if name in wanted]
        ):
            pass


def _forget(memory: OrderedDict[int, Any], count_max: int) -> None:
    while len(memory) > count_max:
        memory.popitem(last=False)
