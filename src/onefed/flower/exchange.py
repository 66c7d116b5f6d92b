"""One phase of a round: a message to each client, and what came back by the deadline.

Flower delivers at most once and answers errors of its own in the name of node 1, so a reply is
matched by the message that it answers (docs/flower.md).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import httpx
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from onefed.flower.clients import Client

_LOG = logging.getLogger(__name__)

POLL_FIRST_S = 0.05
POLL_MAX_S = 0.5
"""Each poll costs the SuperLink 7-10 ms of CPU (docs/flower.md), so it backs off."""
POLL_GROWTH = 1.3

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
}
"""Flower's error codes (flwr 1.41.0, common/constant.py, ErrorCode)."""


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


@dataclass(frozen=True)
class Collected:
    """The outcome of one phase; every client that was asked is in one of the two."""

    replies: tuple[Reply, ...]
    failures: tuple[Failure, ...]


def exchange(
    grid: Grid,
    messages: Mapping[Client, Message],
    *,
    timeout_s: float,
    clock: Callable[[], float],
    sleep: Callable[[float], None],
    on_reply: Callable[[Reply], None],
) -> Collected:
    """Send the messages and collect replies until all are in or the time is over.

    The first reply to a message counts. What lies there at the deadline is still taken.

    Args:
        clock: monotonic seconds.
        on_reply: told of every reply as it arrives, for progress.
    """
    started = clock()
    waiting: dict[str, Client] = {}
    failures: list[Failure] = []
    message_ids = list(grid.push_messages(list(messages.values())))
    # Flower answers with no ids at all when the messages are too large for one request.
    message_ids += [""] * (len(messages) - len(message_ids))
    for client, message_id in zip(messages, message_ids, strict=True):
        if message_id:
            waiting[message_id] = client
        else:
            failures.append(Failure(client, "not_sent", "the SuperLink did not take the message"))
    replies: list[Reply] = []
    pause_s = POLL_FIRST_S
    while waiting:
        waited_s = clock() - started
        arrived = _look(grid, list(waiting))
        for message in arrived:
            sender = waiting.pop(message.metadata.reply_to_message_id, None)
            if sender is None:
                continue  # answers something else: not of this phase
            if message.has_error():
                failures.append(_failure(sender, message.error.code, message.error.reason))
            elif not message.has_content():
                failures.append(Failure(sender, "malformed_reply", "neither content nor error"))
            else:
                reply = Reply(sender, message.content, clock() - started)
                replies.append(reply)
                on_reply(reply)
        if waited_s >= timeout_s:
            break
        if arrived:
            pause_s = POLL_FIRST_S
        if waiting:
            sleep(min(pause_s, timeout_s - waited_s))
            pause_s = min(pause_s * POLL_GROWTH, POLL_MAX_S)
    failures += [
        Failure(client, "timeout", f"no reply within {timeout_s:g} s")
        for client in waiting.values()
    ]
    return Collected(tuple(replies), tuple(failures))


def _look(grid: Grid, message_ids: list[str]) -> list[Message]:
    """The replies that are there by now.

    A reply whose bytes Flower cannot turn into a message raises out of its grid, and takes the
    others of the same look along: the SuperLink has given them out.
    Asked again, it answers each of them with an error, so nobody is waited for in vain.
    """
    try:
        return list(grid.pull_messages(message_ids))
    except (httpx.HTTPError, OSError):
        raise  # the SuperLink is gone; Flower has tried again for long enough
    except Exception:  # noqa: BLE001 - whatever hostile bytes make Flower raise
        _LOG.exception("A reply cannot be read; those of the same look are lost with it.")
        return []


def bounded(reason: str) -> str:
    """What a client says about itself, on one line and cut."""
    return " ".join(reason[: 2 * REASON_LENGTH_MAX].split())[:REASON_LENGTH_MAX]


def _failure(client: Client, code: int, reason: str | None) -> Failure:
    name = ERROR_NAMES.get(code, f"code_{code}")
    return Failure(client, name, bounded(reason or "no reason given"))
