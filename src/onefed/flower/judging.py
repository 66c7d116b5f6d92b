"""Models are judged by the app's own measure in a process of its own, so it delays nobody.

``python -m onefed.flower.judging`` reads a line of JSON (where the app lies, its function, the
run's configuration, the names and types of the model's arrays), then models: eight bytes of length
and the arrays' bytes, one after the other. For each it prints a line of JSON. It ends with its
input.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import numpy as np

from onefed import arrays
from onefed.arrays import Arrays
from onefed.errors import ExitCode, OnefedError
from onefed.flower import app_functions
from onefed.flower.app_functions import Score

LENGTH = struct.Struct("<Q")
ANSWER_BYTES_MAX = 1 << 16
LIMIT_S = 600.0
"""For one model, the import of the app included."""
NICENESS = 10
"""What is only looked at gives way to the rounds."""


class JudgingError(OnefedError):
    """The app's measure gave nothing."""

    exit_code = ExitCode.APP


class Judge:
    """The process, started with the first model. One model at a time."""

    def __init__(
        self,
        folder: Path,
        reference: str,
        run_config: Mapping[str, Any],
        *,
        limit_s: float = LIMIT_S,
    ) -> None:
        """Make it.

        Args:
            folder: with the modules of the installed app.
            reference: ``module:function`` of the measure.
            limit_s: for one model.
        """
        self._folder = folder
        self._reference = reference
        self._run_config = run_config
        self._limit_s = limit_s
        self._process: subprocess.Popen[bytes] | None = None
        self._turn = threading.Lock()
        self._is_closed = False

    @property
    def pid(self) -> int | None:
        """Of the process, once there is one."""
        return None if self._process is None else self._process.pid

    def score(self, model: Arrays) -> Score:
        """How good a model is; blocks, for ``limit_s`` at most.

        Raises:
            JudgingError: the measure raised, ended, or took too long.
        """
        with self._turn:
            if self._process is None or self._process.poll() is not None:
                self._process = self._start(model)
            try:
                if self._is_closed:  # meanwhile
                    raise OSError("the node ends")
                return self._ask(self._process, model)
            except (OSError, ValueError, TypeError) as error:
                self._end()
                raise JudgingError(
                    f"{self._reference} of the app gave no score: {error}.",
                    hint="The log of its program has what it printed.",
                ) from error

    def close(self) -> None:
        """End the process, whatever it does; ``score`` raises, in another thread, too."""
        self._is_closed = True
        if self._process is not None:
            self._process.kill()
        with self._turn:
            self._end()

    def _start(self, model: Arrays) -> subprocess.Popen[bytes]:
        if self._is_closed:
            raise JudgingError(f"{self._reference} of the app is not asked: the node ends.")
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "onefed.flower.judging"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        told = {
            "folder": str(self._folder),
            "reference": self._reference,
            "run_config": dict(self._run_config),
            "arrays": [
                [name, arrays.dtype_name(each.dtype), each.shape] for name, each in model.items()
            ],
        }
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # what it ended with is told with the answer
            process.stdin.write(json.dumps(told).encode() + b"\n")
        return process

    def _ask(self, process: subprocess.Popen[bytes], model: Arrays) -> Score:
        assert process.stdin is not None
        assert process.stdout is not None
        deadline_s = time.monotonic() + self._limit_s
        process.stdin.write(LENGTH.pack(arrays.nbytes(model)))
        for each in model.values():
            process.stdin.write(arrays.raw_bytes(each))
        process.stdin.flush()
        line = _read_line(process.stdout, deadline_s)
        if not line:
            raise OSError(f"its process ended with exit code {process.wait()}")
        answer = json.loads(line)
        if "error" in answer:
            raise ValueError(answer["error"])
        return Score(**answer)

    def _end(self) -> None:
        process = self._process
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


def _read_line(stream: IO[bytes], deadline_s: float) -> bytes:
    """A line, empty at the end; OSError where it takes too long, or is too long."""
    found = b""
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        while not found.endswith(b"\n"):
            if not selector.select(max(0.0, deadline_s - time.monotonic())):
                raise OSError("it took too long")
            part = os.read(stream.fileno(), ANSWER_BYTES_MAX)
            found += part
            if not part:
                return b""
            if len(found) > ANSWER_BYTES_MAX:
                raise OSError("its answer is too long")
    return found


def main() -> int:
    """Judge until there are no more models."""
    with contextlib.suppress(OSError):  # a hardened unit lets nobody change that
        os.nice(NICENESS)
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what the app prints goes to the log
    told = json.loads(sys.stdin.buffer.readline())
    sys.path.insert(0, told["folder"])
    judge = None
    while head := sys.stdin.buffer.read(LENGTH.size):
        content = sys.stdin.buffer.read(LENGTH.unpack(head)[0])
        try:
            judge = judge or app_functions.judge_of(told["reference"], told["run_config"])
            answer = asdict(judge(_model(content, told["arrays"])))
        except Exception as error:  # noqa: BLE001 - an app may raise anything
            text = error.message if isinstance(error, OnefedError) else repr(error)
            answer = {"error": text[: ANSWER_BYTES_MAX // 8]}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    return 0


def _model(content: bytes, described: list[Any]) -> Arrays:
    found: Arrays = {}
    offset = 0
    for name, dtype_name, shape in described:
        dtype = arrays.dtype_of(dtype_name)
        count = int(np.prod(shape, dtype=np.int64))
        found[name] = np.frombuffer(content, dtype, count, offset).reshape(shape)
        offset += count * dtype.itemsize
    return found


if __name__ == "__main__":
    sys.exit(main())
