"""What a node does, told to OneGate as it changes: the elasticity of its OneFlow role reads it.

Asks the node's own ``GET /health`` every ``LOOK_S`` and publishes what is another than before, so
that rounds of any speed cost three requests a look at most. Best effort: what does not go through
is tried at the next look. The process that trains has no token, so somebody beside it speaks:
the one that keeps the machine, or under systemd a unit of its own (``units``), which runs
``python -P -m onefed.appliance.activity FACTS <one_env``.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from onefed import context
from onefed.appliance import drain, machine, surroundings
from onefed.errors import ExitCode
from onefed.opennebula import onegate

LOOK_S = 5.0
"""The platform's autoscaler looks every 90 s."""

GONE_S = 30.0
"""A node that says nothing for so long is disconnected; a restart takes less."""

ASK_TIMEOUT_S = 2.0
ANSWER_BYTES_MAX = 4096

GATE_TIMEOUT_S = 5.0
"""For each attribute."""

TRAINING = "2"
"""FL_CLIENT_STATUS, between ``drain.IDLE`` and ``drain.DISCONNECTED``."""

ROUND_DIGITS_MAX = 9


@dataclass(frozen=True)
class Activity:
    """What a node says of itself."""

    is_connected: bool
    is_working: bool
    message_count: int
    """Since it started; so what began and ended between two looks is seen."""
    round_name: str
    """Of its last message; whatever the ServerApp calls it."""


def ask(port: int) -> Activity | None:
    """What a node on loopback says; None: nothing, or nothing that makes sense."""
    with contextlib.closing(
        http.client.HTTPConnection("127.0.0.1", port, timeout=ASK_TIMEOUT_S)
    ) as connection:
        try:
            connection.request("GET", "/health")
            answer = connection.getresponse()
            said = json.loads(answer.read(ANSWER_BYTES_MAX))
            # A stock SuperNode says that it lives, and no more.
            return Activity(
                is_connected=said.get("connected", True) is True,
                is_working=said.get("working") is True,
                message_count=int(said.get("messages", 0)),
                round_name=str(said.get("round", "")),
            )
        except (OSError, http.client.HTTPException, ValueError, TypeError, AttributeError):
            return None


class Reporter:
    """Publishes what changed since it last looked."""

    def __init__(
        self,
        publish: Callable[[str, str], None],
        ask: Callable[[], Activity | None],
        clock: Callable[[], float],
    ) -> None:
        """
        Args:
            publish: name and value; raises OneGateError.
            clock: monotonic seconds.
        """
        self._publish = publish
        self._ask = ask
        self._clock = clock
        self._heard_s = clock()
        self._message_count: int | None = None
        self._held: dict[str, str] = {}
        """What OneGate took from here."""

    def look(self) -> None:
        """Ask the node once; publish what is news."""
        for name, value in self._attributes().items():
            if self._held.get(name) == value:
                continue
            try:
                self._publish(name, value)
            except onegate.OneGateError:
                return
            self._held[name] = value

    def _attributes(self) -> dict[str, str]:
        found, now_s = self._ask(), self._clock()
        if found is None or not found.is_connected:
            if now_s - self._heard_s < GONE_S:
                return {}
            return {"FL_TRAINING_ACTIVE": "NO", "FL_CLIENT_STATUS": drain.DISCONNECTED}
        self._heard_s = now_s
        before, self._message_count = self._message_count, found.message_count
        had_message = before is not None and found.message_count > before
        trains = found.is_working or had_message
        name = found.round_name
        is_number = name.isascii() and name.isdecimal() and len(name) <= ROUND_DIGITS_MAX
        return {
            **({"FL_ROUND_NUMBER": str(int(name))} if is_number else {}),
            "FL_TRAINING_ACTIVE": "YES" if trains else "NO",
            "FL_CLIENT_STATUS": TRAINING if trains else drain.IDLE,
        }


def begin(
    given: surroundings.Surroundings, facts: Mapping[str, str], warn: Callable[[str], None]
) -> Reporting | None:
    """Report what the node of a machine does; None where there is nobody to tell, or no node."""
    port = facts.get("runtime_port", "")
    gate = given.gate(warn, timeout_s=GATE_TIMEOUT_S)
    return Reporting(gate, int(port)) if gate is not None and port.isdecimal() else None


class Reporting:
    """A thread that reports until it is stopped."""

    def __init__(self, gate: onegate.OneGate, port: int) -> None:
        self._gate = gate
        self._stopping = threading.Event()
        self._reporter = Reporter(gate.publish, lambda: ask(port), time.monotonic)
        self._thread = threading.Thread(target=self._run, name="activity", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Nothing is published any more when this ends, unless OneGate hangs."""
        self._stopping.set()
        self._thread.join(GATE_TIMEOUT_S)

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._reporter.look()
            self._stopping.wait(LOOK_S)
        self._gate.close()


def main(arguments: Sequence[str], given: BinaryIO) -> int:
    """Report until killed; without OneGate there is nothing to report to."""
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m onefed.appliance.activity FACTS\n")
        return ExitCode.USAGE
    content = given.read(context.FILE_BYTES_MAX + 1)
    facts = machine.facts_in(Path(arguments[0]))
    reporting = begin(surroundings.given(content), facts, _warn)
    if reporting is not None:
        signal.pause()
    return ExitCode.OK


def _warn(message: str) -> None:
    sys.stderr.write(f"{message}\n")


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:], sys.stdin.buffer))
