"""Which messages a node gave to its app: a line of JSON each, written before the app has it.

What a federation ends with is the same whether a round was trained once or twice. This file tells:
with the times of the events it shows that no announced round was trained again, and what each
death cost.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from onefed.flower.adapter_fleet import Instruction

_LOG = logging.getLogger(__name__)

FILE = "calls.jsonl"
"""In the folder of the node's key."""

OLDER = "calls.1.jsonl"
"""What was in it before it was full."""

BYTES_MAX = 1024 * 1024
"""Then it becomes ``OLDER``; a line has about 130, so the last 8,000 calls are there at least."""


class Calls:
    """Appends to the file of one node."""

    def __init__(self, folder: Path, now: Callable[[], datetime]) -> None:
        """``now`` gives aware times."""
        self._folder = folder
        self._now = now

    def note(self, instruction: Instruction) -> None:
        """Write down that this message is worked on; a disk that refuses stops no training."""
        line = {
            "at": self._now().isoformat(timespec="microseconds"),
            "run": str(instruction.run_id),
            "round": instruction.round_name,
            "type": instruction.message_type,
            "message": instruction.message_id[:12],
        }
        path = self._folder / FILE
        try:
            if path.exists() and path.stat().st_size > BYTES_MAX:
                path.replace(self._folder / OLDER)
            with path.open("a", encoding="ascii") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            _LOG.warning("%s cannot be written: %s", path, error.strerror)
