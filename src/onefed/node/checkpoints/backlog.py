"""Checkpoints that wait for the disk: a bounded number of bytes, the newest of a kind always."""

from __future__ import annotations

from collections import deque

from onefed import arrays
from onefed.node.checkpoints.file import Checkpoint

BYTES_MAX = 256 * 2**20
"""Of models that wait. One of a kind may wait, however large it is."""


class Backlog:
    """First in, first out; what is left out is the oldest of a kind that has a newer one."""

    def __init__(self, bytes_max: int = BYTES_MAX) -> None:
        self._bytes_max = bytes_max
        self._waiting: deque[Checkpoint] = deque()
        self._bytes = 0

    def put(self, checkpoint: Checkpoint) -> list[Checkpoint]:
        """Let one wait; returns those that are not written, so that there is room for it."""
        self._waiting.append(checkpoint)
        self._bytes += _size_bytes(checkpoint)
        left_out = []
        while self._bytes > self._bytes_max and (old := self._replaced()) is not None:
            self._waiting = deque(each for each in self._waiting if each is not old)
            self._bytes -= _size_bytes(old)
            left_out.append(old)
        return left_out

    def take(self) -> Checkpoint | None:
        """The one that waits longest, to be written now."""
        if not self._waiting:
            return None
        checkpoint = self._waiting.popleft()
        self._bytes -= _size_bytes(checkpoint)
        return checkpoint

    def _replaced(self) -> Checkpoint | None:
        newest = {each.about.kind: each for each in self._waiting}
        return next((each for each in self._waiting if each is not newest[each.about.kind]), None)


def _size_bytes(checkpoint: Checkpoint) -> int:
    return arrays.nbytes(checkpoint.model) + len(checkpoint.private or b"")
