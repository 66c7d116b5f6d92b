"""Requests to a supervisor, as files: no port to open, and only its own user may write them.

A request is ``ID.request.json`` in the folder ``state/requests`` (0700) of the SuperLink's machine,
an object with a ``kind`` and what that kind needs. The supervisor looks twice a second, does it,
and writes ``ID.answer.json``: ``{"done": {...}}``, or ``{"error": message, "hint": hint,
"exit_code": code}``. Whoever asked removes both.
"""

from __future__ import annotations

import contextlib
import re
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from onefed.checkpoint import files
from onefed.errors import ExitCode, OnefedError, StorageError

ANSWER_LIMIT_S = 60.0
"""A SuperLink may be starting again meanwhile."""

LOOK_S = 0.1

REQUESTS_MAX = 32
"""In one look of a supervisor."""

_REQUEST = re.compile(r"([0-9a-f]{32})\.request\.json")

Handler = Callable[[Mapping[str, Any]], Mapping[str, Any]]


class UnansweredError(OnefedError):
    """The supervisor did not answer."""


class RequestError(OnefedError):
    """The supervisor did not do what it was asked to."""


def ask(
    folder: Path,
    kind: str,
    what: Mapping[str, Any],
    *,
    clock: Callable[[], float],
    sleep: Callable[[float], None],
) -> Mapping[str, Any]:
    """Ask the supervisor for something, and wait for its answer.

    Raises:
        RequestError: it refused, with its words and exit code.
        UnansweredError: it did not answer in time; the request is taken back.
    """
    name = uuid.uuid4().hex
    request, answer = folder / f"{name}.request.json", folder / f"{name}.answer.json"
    files.make_folder(folder, mode=0o700)
    try:
        files.write_json(request, {"kind": kind, **what}, mode=0o600)
        ends_at = clock() + ANSWER_LIMIT_S
        while not answer.exists():
            if clock() > ends_at:
                raise UnansweredError(
                    f"The supervisor did not answer in {ANSWER_LIMIT_S:.0f} s.",
                    hint="Its log says why: onefed logs superlink",
                )
            sleep(LOOK_S)
        document = files.read_json(answer)
    finally:
        for file in (request, answer):
            with contextlib.suppress(StorageError):
                files.remove(file)
    if not isinstance(document, dict):
        raise files.DamagedError(answer, "it is not an answer")
    if "error" in document:
        error = RequestError(str(document["error"]), hint=document.get("hint"))
        with contextlib.suppress(ValueError):
            error.exit_code = ExitCode(document.get("exit_code", ExitCode.FAILED))
        raise error
    done = document.get("done")
    return done if isinstance(done, dict) else {}


def serve(folder: Path, handlers: Mapping[str, Handler]) -> int:
    """Do what was asked for since the last look; returns how many requests there were.

    What a handler raises that is not ours goes on: the request stays, and is done by the next look.
    """
    if not folder.is_dir():
        return 0
    found = sorted(filter(None, map(_REQUEST.fullmatch, files.names_in(folder))), key=str)
    for match in found[:REQUESTS_MAX]:
        request = folder / match[0]
        try:
            document = files.read_json(request)
            if not isinstance(document, dict) or document.get("kind") not in handlers:
                raise RequestError("The supervisor does not know this request.")
            answer: dict[str, Any] = {"done": handlers[document["kind"]](document)}
        except OnefedError as error:
            answer = {"error": error.message, "hint": error.hint, "exit_code": error.exit_code}
        files.write_json(folder / f"{match[1]}.answer.json", answer, mode=0o600)
        files.remove(request)
    return len(found)
