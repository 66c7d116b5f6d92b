"""One plain line of text per event, for terminals and logs that people read.

Values come from other machines: whatever could move a cursor, change a colour or turn the
direction of writing is made visible, and one event stays one line.
"""

from __future__ import annotations

import re
from typing import assert_never

from onefed.telemetry import events as ev

TEXT_CHARACTERS_MAX = 4096
"""A longer line is cut and says so."""

_HIDDEN = re.compile(
    "[\x00-\x1f\x7f-\x9f"  # C0, DEL, C1
    "\xad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff"  # invisible, or turns the direction
    "\ud800-\udfff]"  # half a character, which no UTF-8 stream takes
)


def visible(text: str) -> str:
    """The text in one line and without control characters: ``\\x1b`` instead of an escape."""
    return _HIDDEN.sub(_escape, cut(text, TEXT_CHARACTERS_MAX))


def cut(text: str, characters_max: int) -> str:
    """The text, or its beginning and how long it was."""
    if len(text) <= characters_max:
        return text
    return f"{text[:characters_max]}... [cut, {len(text)} characters]"


def sentence(event: ev.Event | ev.Unknown, *, rounds_total: int | None = None) -> str:
    """The event in plain language. ``rounds_total``, where known, gives "round 3 of 5"."""
    return visible(_sentence(event, f" of {rounds_total}" if rounds_total else ""))


def _sentence(event: ev.Event | ev.Unknown, of: str) -> str:
    match event:
        case ev.TrainingStart():
            return f"training starts: {_count(event.num_rounds, 'round')}, {event.strategy}"
        case ev.RoundStart():
            selected = _count(event.num_clients_selected, "client")
            return f"round {event.round}{of} starts with {selected}"
        case ev.RoundEnd():
            return _listing(
                f"round {event.round}{of}",
                _metrics(event.aggregated_loss, event.aggregated_accuracy),
                _count(event.num_clients_responded, "client"),
                _seconds(event.round_duration_seconds),
            )
        case ev.TrainingEnd():
            return _listing(
                f"training ends after {_count(event.total_rounds, 'round')}",
                _metrics(event.final_loss, event.final_accuracy),
                _seconds(event.total_duration_seconds),
            )
        case ev.ClientJoin():
            return f"node {event.node_id} connected from {event.client_address}"
        case ev.ClientLeave():
            return f"node {event.node_id} left: {event.reason}"
        case ev.CheckpointSaved():
            return f"checkpoint of round {event.round}: {event.path} ({_size(event.size_bytes)})"
        case ev.EvaluationResult():
            return _listing(
                f"evaluation after round {event.round}{of}",
                _metrics(event.loss, event.accuracy),
                _count(event.num_examples, "example"),
            )
        case ev.ClientFailure():
            who = f"node {event.node_id}" if event.client is None else f"client {event.client}"
            why = f"{event.error_type}{_because(event.reason)}"
            return f"{who} failed in round {event.round}: {why}"
        case ev.TrainingStalled():
            return (
                f"round {event.round}{of} waits since {_seconds(event.waiting_since_seconds)}: "
                f"{event.connected_clients} of {_count(event.required_clients, 'client')} connected"
            )
        case ev.GpuDetected():
            return f"GPU: {event.gpu_name}, {event.gpu_memory_mb} MB, driver {event.driver_version}"
        case ev.GpuUnavailable():
            return f"no usable GPU: training on {event.fallback_device}"
        case ev.FederationStart():
            return (
                f"federation {event.name}: {_count(event.nodes, 'node')}, "
                f"{_count(event.rounds, 'round')} of {event.strategy}, app {event.app}, "
                f"seed {event.seed}"
            )
        case ev.FederationEnd():
            return _listing(
                f"federation {event.status} after round {event.rounds_done} of "
                f"{event.rounds_total}",
                _metrics(event.loss, event.accuracy),
                _count(event.restarts, "restart"),
                _count(event.failures, "client failure"),
                _seconds(event.seconds),
            )
        case ev.BootStep():
            return (
                f"{event.vm}: step {event.step} {event.name} {event.status}"
                f"{_because(event.reason)}{_after(event.seconds)}"
            )
        case ev.VmState():
            return f"{event.vm} ({event.role}) is {event.state}{_because(event.reason)}"
        case ev.ServiceRestart():
            return (
                f"{event.vm}: {event.service} ended ({_exit(event.exit_code)}), "
                f"start {event.attempt} in {_seconds(event.delay_seconds)}"
            )
        case ev.ProcessKilled():
            return (
                f"kill {event.number} of {event.total}: {event.victim} killed in round "
                f"{event.round}{of}"
            )
        case ev.ProcessRecovered():
            return (
                f"kill {event.number}: round {event.round}{of} is done "
                f"{_seconds(event.seconds)} after {event.victim} was killed"
            )
        case ev.NodeRegistered():
            partition = "" if event.partition is None else f", partition {event.partition}"
            return f"{event.vm} is registered as node {event.node_id}{partition}"
        case ev.RunSubmitted():
            return f"run {event.run} submitted, attempt {event.attempt}"
        case ev.RunResumed():
            return f"run {event.run} goes on with round {event.round}{of}"
        case ev.RunStatus():
            return f"run is {event.status}{_because(event.details)}"
        case ev.ClientReply():
            return (
                f"round {event.round}{of}: client {event.client} answered {event.phase} with "
                f"{_count(event.num_examples, 'example')}{_after(event.seconds)}"
            )
        case ev.RoundRepeated():
            return (
                f"round {event.round}{of} is repeated: {event.reason} ({event.responded} of "
                f"{_count(event.required, 'reply', 'replies')})"
            )
        case ev.PeerRound():
            return _listing(
                f"round {event.round}{of} is agreed on",
                f"updates of {event.contributors}",
                f"model {event.model_sha256[:12]}",
                _seconds(event.round_duration_seconds),
            )
        case ev.PeerNotice():
            return f"{event.kind.replace('_', ' ')}: {event.detail}"
        case ev.RecoverySaved():
            return f"round {event.round}{of} is safe ({_size(event.size_bytes)})"
        case ev.AppLog():
            return event.line
        case ev.Notice():
            return _one_line(event.message)
        case ev.Unknown():
            return f"{event.event}: {dict(event.data)}"
        case _:
            assert_never(event)


def _listing(subject: str, *facts: str) -> str:
    return f"{subject}: {', '.join(fact for fact in facts if fact)}"


def _metrics(loss: float | None, accuracy: float | None) -> str:
    named = (("accuracy", accuracy), ("loss", loss))
    return ", ".join(f"{name} {value:.3f}" for name, value in named if value is not None)


def _count(count: int, noun: str, plural: str | None = None) -> str:
    return f"{count} {noun if count == 1 else plural or noun + 's'}"


def _seconds(seconds: float | None) -> str:
    return "unknown time" if seconds is None else f"{seconds:.1f} s"


def _after(seconds: float | None) -> str:
    return "" if seconds is None else f", {seconds:.1f} s"


def _because(reason: str | None) -> str:
    return f": {_one_line(reason)}" if reason else ""


def _one_line(text: str) -> str:
    """Our own messages may have several lines; an event is one wherever it is shown."""
    return " ".join(text.splitlines())


def _exit(code: int | None) -> str:
    if code is None:
        return "exit code unknown"
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def _size(size_bytes: int) -> str:
    for unit, unit_bytes in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size_bytes >= unit_bytes:
            return f"{size_bytes / unit_bytes:.1f} {unit}"
    return f"{size_bytes} bytes"


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
