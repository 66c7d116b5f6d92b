"""One phase of a round: a message to each client, and what came back in time.

Flower delivers at most once and answers errors of its own in the name of node 1, so a reply is
matched by the message that it answers (docs/flower.md). Four things follow:

* A node that left and came back inside the phase has lost its message. Flower notes when a node
  was activated; where that is later than our message, the client gets another one. The first reply
  to any of them counts.
* A client that Flower reports as gone may still come back. It is waited for while there is not
  enough without it, and nobody stands by who could take its place.
* A SuperLink that dies while it answers a look has given out replies that never came. Who has not
  answered ``DOUBT_S`` after such a look gets another message.
* A reply whose bytes Flower cannot read raises out of its grid and takes along all others of the
  same look: the SuperLink has given them out, and does not say which. So all clients of that look
  are asked again and looked at one by one; and the one who did it is for the rest of the run.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import httpx
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from onefed.flower import adapter_grid, clients
from onefed.flower.clients import Client

_LOG = logging.getLogger(__name__)

POLL_FIRST_S = 0.05
POLL_MAX_S = 0.5
"""Each poll costs the SuperLink 7-10 ms of CPU (docs/flower.md), so it backs off."""
POLL_GROWTH = 1.3

NODES_POLL_S = 1.0
"""How often the nodes are looked at, for those that came back."""

DOUBT_S = 2.0
"""After a look whose answer was lost, those that are still at work have so long to show it."""

STALL_REPORT_S = 10.0
"""How often a wait for clients that are not connected is reported."""

LOOK_BYTES_MAX = 64 * 2**20
"""Of the replies that one look may bring into memory; one reply may have more."""

MESSAGES_MAX = 5
"""To one client in one phase; a node that comes and goes more often gives up its round."""

REASON_LENGTH_MAX = 300
"""Characters of what a client says about its own failure."""

ERROR_NAMES: Mapping[int, str] = {
    0: "unknown",
    1: "app_not_loaded",
    2: "app_raised",
    3: "message_unavailable",
    4: "reply_unavailable",
    5: "node_unavailable",
    6: "mod_precondition",
    7: "invalid_bundle",
    8: "app_crashed",
    adapter_grid.UNREADABLE: "malformed_reply",
}
"""Flower's error codes (flwr 1.41.0, common/constant.py, ErrorCode), and one of ours."""

GONE = frozenset({5})
"""Of a node that the SuperLink does not see any more."""


@dataclass(frozen=True)
class Reply:
    """What a client sent back, unchecked."""

    client: Client
    content: RecordDict
    seconds: float
    """From sending to receiving."""


@dataclass(frozen=True)
class Failure:
    """A client that gave no usable reply in this phase."""

    client: Client
    error_type: str
    reason: str
    seconds: float | None = None
    """How long it was waited for, when it was given up."""


@dataclass(frozen=True)
class Patience:
    """How long a phase waits. What has come is known to the caller only, so it is asked."""

    enough: Callable[[], bool]
    """Whether the phase could end now: who is gone is not waited for any more."""
    limit_s: Callable[[], float]
    """From the sending, while there is not enough."""
    limit_enough_s: Callable[[], float]
    """The same, once there is enough."""
    stalled: Callable[[float, int, int], None] = lambda _waited_s, _connected, _missing: None
    """Told every ``STALL_REPORT_S`` of a wait for clients that are not connected: seconds so far,
    clients that are connected, and clients of this phase that are not."""


def exchange(
    grid: Grid,
    asked: Sequence[Client],
    message_to: Callable[[Client], Message],
    *,
    patience: Patience,
    reply_bytes: int,
    clock: Callable[[], float],
    sleep: Callable[[float], None],
    suspects: set[str] | None = None,
    interruptions: Callable[[], int] = lambda: 0,
    sent: Callable[[], None] = lambda: None,
) -> Iterator[Reply | Failure]:
    """Send a message to each client and give its outcome as it comes, one of each client.

    No reply is kept: whoever lets go of one before asking for the next has one in memory, where
    replies are large. What lies there at the deadline is still taken.

    Args:
        message_to: makes the message, again for a client that needs another one.
        reply_bytes: about what a reply has, for the number of them that one look asks for.
        clock: monotonic seconds.
        suspects: keys of clients whose replies are looked at one by one from the beginning; who
            sends a reply that cannot be read is added.
        interruptions: how often the grid has lost its SuperLink so far, and has asked again.
        sent: told once, when every client has its first message.
    """
    look_ids_max = max(1, LOOK_BYTES_MAX // max(1, reply_bytes))
    suspects = set() if suspects is None else suspects
    phase = _Phase(
        grid, message_to, patience, look_ids_max, clock, sleep, suspects, interruptions, sent
    )
    return phase.run(asked)


@dataclass
class _Asked:
    """A client that has no outcome yet."""

    client: Client
    """With the node id and the activation of its newest message."""
    messages: list[str] = field(default_factory=list)
    """Ids of those that it was sent, the newest last."""
    alone: bool = False
    """Its replies are looked at one by one."""
    gone: Failure | None = None
    """What Flower said when it was not connected any more."""
    doubted_s: float | None = None
    """Since when its reply may be lost."""


@dataclass
class _Phase:
    grid: Grid
    message_to: Callable[[Client], Message]
    patience: Patience
    look_ids_max: int
    clock: Callable[[], float]
    sleep: Callable[[float], None]
    suspects: set[str]
    interruptions: Callable[[], int]
    sent: Callable[[], None]
    everyone: frozenset[str] = frozenset()
    """Keys of the clients of this phase."""
    asked: dict[str, _Asked] = field(default_factory=dict)
    """By client key."""
    waiting: dict[str, _Asked] = field(default_factory=dict)
    """By id of a message that may still be answered."""

    def run(self, everyone: Sequence[Client]) -> Iterator[Reply | Failure]:
        started = nodes_seen_s = told_s = self.clock()
        self.asked = {
            client.key: _Asked(client, alone=client.key in self.suspects) for client in everyone
        }
        self.everyone = frozenset(self.asked)
        yield from self._send(list(self.asked.values()))
        self.sent()
        pause_s = POLL_FIRST_S
        while self.asked:
            waited_s = self.clock() - started
            before = len(self.asked)
            yield from self._sweep(started)
            enough = self.patience.enough()
            limit_s = self.patience.limit_enough_s() if enough else self.patience.limit_s()
            if waited_s >= limit_s or (enough and not self.waiting):
                break
            if self.asked and self.clock() - nodes_seen_s >= NODES_POLL_S:
                nodes_seen_s = self.clock()
                connected = clients.connected(self.grid)
                again = [*self._returned(connected), *self._doubtful()]
                yield from self._send(list({each.client.key: each for each in again}.values()))
                if not self.waiting and self._replaceable(connected):
                    break
                away = [each for each in self.asked.values() if each.gone]
                if away and not enough and self.clock() - told_s >= STALL_REPORT_S:
                    told_s = self.clock()
                    self.patience.stalled(told_s - started, len(connected), len(away))
            if len(self.asked) < before:
                pause_s = POLL_FIRST_S
            if self.asked:
                self.sleep(min(pause_s, limit_s - waited_s))
                pause_s = min(pause_s * POLL_GROWTH, POLL_MAX_S)
        yield from self._give_up(self.clock() - started)

    def _send(self, those: Sequence[_Asked]) -> Iterator[Failure]:
        if not those:
            return
        ids = list(self.grid.push_messages([self.message_to(each.client) for each in those]))
        # Flower answers with no ids at all when the messages are too large for one request.
        ids += [""] * (len(those) - len(ids))
        for each, message_id in zip(those, ids, strict=True):
            if message_id:
                each.messages.append(message_id)
                each.gone = each.doubted_s = None
                self.waiting[message_id] = each
            else:
                yield self._close(each, "not_sent", "the SuperLink did not take the message")

    def _sweep(self, started: float) -> Iterator[Reply | Failure]:
        """Look once for the reply to every message, in bounded portions."""
        alone = [message_id for message_id, each in self.waiting.items() if each.alone]
        together = [message_id for message_id, each in self.waiting.items() if not each.alone]
        step = self.look_ids_max
        portions = [
            *([message_id] for message_id in alone),
            *(together[start : start + step] for start in range(0, len(together), step)),
        ]
        for portion in portions:
            wanted = [message_id for message_id in portion if message_id in self.waiting]
            if not wanted:
                continue
            interruptions = self.interruptions()
            try:
                arrived: Iterable[Message] = self.grid.pull_messages(wanted)
            except (httpx.HTTPError, OSError):
                raise  # the SuperLink is gone; Flower has tried again for long enough
            except Exception as error:  # noqa: BLE001 - whatever hostile bytes make Flower raise
                _LOG.exception("A reply cannot be read.")
                yield from self._unreadable(wanted, error)
                continue
            if self.interruptions() != interruptions:
                for message_id in wanted:
                    self.waiting[message_id].doubted_s = self.clock()
            for message in arrived:
                outcome = self._outcome(message, started)
                if outcome is not None:
                    yield outcome
                del outcome, message  # before the next is made
            del arrived

    def _unreadable(self, wanted: list[str], error: Exception) -> Iterator[Failure]:
        """A reply to one of these messages cannot be read, and all that had come are lost."""
        if len(wanted) == 1:
            each = self.waiting[wanted[0]]
            self.suspects.add(each.client.key)
            reason = f"Flower cannot read it: {type(error).__name__}: {error}"
            yield self._close(each, "malformed_reply", bounded(reason))
            return
        # In order, and each once: two messages to one client may be among them.
        lost = dict.fromkeys(self.waiting[message_id].client.key for message_id in wanted)
        for each in (again := [self.asked[key] for key in lost]):
            each.alone = True
        yield from self._send([each for each in again if len(each.messages) < MESSAGES_MAX])

    def _outcome(self, message: Message, started: float) -> Reply | Failure | None:
        """What a message means for its client, if anything."""
        message_id = message.metadata.reply_to_message_id
        each = self.waiting.get(message_id)
        if each is None:
            return None  # answers something else: not of this phase, or not the first
        if not message.has_error():
            if not message.has_content():
                return self._close(each, "malformed_reply", "neither content nor error")
            self._forget(each)
            return Reply(each.client, message.content, self.clock() - started)
        del self.waiting[message_id]
        if message_id != each.messages[-1]:
            return None  # it was asked again since
        code = message.error.code
        failure = Failure(
            each.client,
            ERROR_NAMES.get(code, f"code_{code}"),
            bounded(message.error.reason or "no reason given"),
        )
        if code in GONE and not self.patience.enough():
            each.gone = failure
            return None
        self._forget(each)
        return failure

    def _returned(self, connected: Iterable[Client]) -> list[_Asked]:
        """Clients whose node was activated after it was sent its message; to be asked again."""
        found = []
        for client in connected:
            each = self.asked.get(client.key)
            if each is None or len(each.messages) >= MESSAGES_MAX:
                continue
            if each.gone or client.activated_at != each.client.activated_at:
                each.client = client
                found.append(each)
        return found

    def _doubtful(self) -> list[_Asked]:
        """Clients whose reply seems to be lost; to be asked again."""
        return [
            each
            for each in self.asked.values()
            if each.doubted_s is not None
            and self.clock() - each.doubted_s >= DOUBT_S
            and len(each.messages) < MESSAGES_MAX
        ]

    def _replaceable(self, connected: Sequence[Client]) -> bool:
        """Whether for each client that is gone another one stands by: better begin anew."""
        gone = sum(each.gone is not None for each in self.asked.values())
        return 0 < gone <= len({client.key for client in connected} - self.everyone)

    def _give_up(self, waited_s: float) -> Iterator[Failure]:
        for each in list(self.asked.values()):
            self._forget(each)
            yield each.gone or Failure(
                each.client, "timeout", f"no reply within {waited_s:.4g} s", waited_s
            )

    def _close(self, each: _Asked, error_type: str, reason: str) -> Failure:
        self._forget(each)
        return Failure(each.client, error_type, reason)

    def _forget(self, each: _Asked) -> None:
        del self.asked[each.client.key]
        for message_id in each.messages:
            self.waiting.pop(message_id, None)


def bounded(reason: str) -> str:
    """What a client says about itself, on one line and cut."""
    return " ".join(reason[: 2 * REASON_LENGTH_MAX].split())[:REASON_LENGTH_MAX]
