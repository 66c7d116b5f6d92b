"""How a task goes to the process that runs it, and its answer back: lengths, then raw bytes.

One header of JSON text names the parts and their sizes; the parts follow as they are, so a model of
100 MB is written once and read once. Nothing is pickled, and every length has a bound.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, Protocol

from onefed.errors import OnefedError
from onefed.flower.adapter_fleet import Answer, AppReference, Task

HEADER_BYTES_MAX = 64 * 1024 * 1024
"""An id and a length are about 80 bytes: enough for the arrays of any model."""
TOTAL_BYTES_MAX = 64 * 1024**3

_LENGTH = struct.Struct("!Q")


class WireError(OnefedError):
    """What came is cut off, or was not made by this module."""


class Sink(Protocol):
    """Where bytes go: a socket."""

    def sendall(self, data: bytes, /) -> object:
        """Write all of them."""


@dataclass(frozen=True)
class Job:
    """A task, and the app itself where the process that runs it has not loaded it."""

    task: Task
    fab: bytes = b""


def write_app(sink: Sink, app: AppReference, fab: bytes) -> None:
    """Send an app, to be loaded."""
    _write(sink, {"app": [app.fab_id, app.fab_version, app.fab_hash]}, {"fab": fab})


def read_app(source: BinaryIO) -> tuple[AppReference, bytes]:
    head, parts = _read(source)
    return AppReference(*head["app"]), parts["fab"]


def write_job(sink: Sink, job: Job) -> None:
    """Send a task; ids of objects are hexadecimal, so no part can take another's name."""
    task = job.task
    head = {
        "app": [task.app.fab_id, task.app.fab_version, task.app.fab_hash],
        "task": task.task_id,
        "message": task.message_id,
    }
    _write(sink, head, {"fab": job.fab, "context": task.context, **task.objects})


def read_job(source: BinaryIO) -> Job:
    head, parts = _read(source)
    fab, context = parts.pop("fab"), parts.pop("context")
    app = AppReference(*head["app"])
    return Job(Task(app, head["task"], head["message"], context, parts), fab)


def write_answer(sink: Sink, answer: Answer) -> None:
    head = {"failed": answer.failed, "with_context": answer.context is not None}
    parts = {"message": answer.message, "tree": answer.tree, "context": answer.context or b""}
    _write(sink, head, {**parts, **answer.objects})


def read_answer(source: BinaryIO) -> Answer:
    head, parts = _read(source)
    message, tree, context = (parts.pop(name) for name in ("message", "tree", "context"))
    return Answer(message, tree, parts, context if head["with_context"] else None, head["failed"])


def _write(sink: Sink, head: dict[str, Any], parts: Mapping[str, bytes]) -> None:
    sizes = [[name, len(content)] for name, content in parts.items()]
    header = json.dumps({**head, "parts": sizes}).encode()
    if len(header) > HEADER_BYTES_MAX:
        raise WireError(f"{len(parts)} parts of a message are more than can be handed on.")
    sink.sendall(_LENGTH.pack(len(header)) + header)
    for content in parts.values():
        sink.sendall(content)


def _read(source: BinaryIO) -> tuple[dict[str, Any], dict[str, bytes]]:
    (length,) = _LENGTH.unpack(_exactly(source, _LENGTH.size))
    if length > HEADER_BYTES_MAX:
        raise WireError(f"A header of {length} bytes is longer than {HEADER_BYTES_MAX}.")
    try:
        head = json.loads(_exactly(source, length))
        sizes = [(str(name), int(size)) for name, size in head.pop("parts")]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise WireError(f"The header is not one of ours: {error}") from error
    if any(size < 0 for _, size in sizes) or sum(size for _, size in sizes) > TOTAL_BYTES_MAX:
        raise WireError("The header announces more bytes than can be handed on.")
    return head, {name: _exactly(source, size) for name, size in sizes}


def _exactly(source: BinaryIO, size: int) -> bytes:
    content = source.read(size)
    if len(content) != size:
        raise WireError(f"Cut off after {len(content)} of {size} bytes.")
    return content
