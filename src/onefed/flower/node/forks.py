"""Processes that fork a process per message, so that imports are paid once and isolation is kept.

The node forks a *nursery* before it has threads or connections: it has imported Flower and nothing
else. The nursery forks a *warm* process per app, which imports the app once. Either forks a child
per message: the warm one a child that has the app already, the nursery one that imports it itself.

    node -> nursery -> warm process -> child (one message)
                   \\-> child (one message, app imported anew)

They read one datagram after the other from a socket of the node, each with a descriptor:
``serve`` (fork a server for that socket), ``load`` (read an app from it and import it) and
``message`` (fork a child that reads a task from it and writes the answer).
Whoever is parent dies last: a process ends with its parent, a child with everything it started.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import signal
import socket
import sys
import time
import traceback
from typing import Any, NoReturn

from flwr.clientapp import ClientApp

from onefed import failpoints
from onefed.flower import adapter_fleet, forking, randomness
from onefed.flower.node import wire

SERVE, LOAD, MESSAGE = b"serve", b"load", b"message"

DATAGRAM_BYTES_MAX = 16_384
REASON_CHARS_MAX = 1000


def start_nursery(reach: failpoints.Reach = failpoints.nothing) -> socket.socket:
    """Fork the nursery; returns the node's end. The node has to be single-threaded until then.

    Args:
        reach: where a test holds a child.
    """
    ours, theirs = forking.pair()
    if os.fork() == 0:
        ours.close()
        os.setsid()  # a signal to the node's group is the node's to handle
        _Server(theirs, reach).run()
    theirs.close()
    return ours


class _Server:
    """What the nursery and a warm process do: one thread, one child at a time."""

    def __init__(self, control: socket.socket, reach: failpoints.Reach) -> None:
        self._control = control
        self._reach = reach
        self._app: ClientApp | None = None
        self._keys: randomness.Keys | None = None
        self._child = 0
        """Process, and group of it, that handles a message."""

    def run(self) -> NoReturn:
        """Serve until the node is gone."""
        self._begin()
        while True:
            command, descriptors, _, _ = socket.recv_fds(self._control, DATAGRAM_BYTES_MAX, 1)
            if not command or not descriptors:
                self._end()
            with socket.socket(fileno=descriptors[0]) as channel:
                self._reap()
                if command == SERVE:
                    self._fork_server(channel)
                elif command == LOAD:
                    self._load(channel)
                else:
                    self._fork_child(channel)

    def _begin(self) -> None:
        parent = os.getppid()
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, self._end)
        forking.die_with_parent(signal.SIGTERM, parent)
        forking.settle()

    def _end(self, *_: object) -> NoReturn:
        if self._child:
            forking.kill_group(self._child)
        os._exit(0)

    def _reap(self) -> None:
        """Of warm processes that have ended."""
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG) != (0, 0):
                pass

    def _fork_server(self, channel: socket.socket) -> None:
        pid = os.fork()
        if pid == 0:
            self._control.close()
            _Server(socket.socket(fileno=channel.detach()), self._reach).run()
        self._say(pid=pid)

    def _load(self, channel: socket.socket) -> None:
        began_s = time.monotonic()
        randomness.refresh()
        self._keys = randomness.Keys.now()
        try:
            with channel.makefile("rb") as source:
                app, fab = wire.read_app(source)
            self._app = adapter_fleet.load(app, fab)
        except BaseException as error:  # noqa: BLE001 - an import may raise SystemExit, too
            reason = f"{type(error).__name__}: {error}"
            self._say(loaded=False, reason=reason[:REASON_CHARS_MAX])
            return
        forking.settle()
        seconds = time.monotonic() - began_s
        self._say(loaded=True, seconds=seconds, hazards=forking.hazards())

    def _fork_child(self, channel: socket.socket) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        server = os.getpid()
        pid = os.fork()
        if pid == 0:
            forking.die_with_parent(signal.SIGKILL, server)
            self._control.close()
            _handle(channel, self._app, self._keys, self._reach)
        self._child = pid
        self._say(pid=pid)
        _, status = os.waitpid(pid, 0)
        forking.kill_group(pid)  # whatever the app has started and left behind
        self._child = 0
        self._say(ended=pid, status=os.waitstatus_to_exitcode(status))

    def _say(self, **facts: Any) -> None:
        try:
            self._control.send(json.dumps(facts).encode())
        except OSError:
            self._end()


def _handle(
    channel: socket.socket,
    app: ClientApp | None,
    keys: randomness.Keys | None,
    reach: failpoints.Reach,
) -> NoReturn:
    """The life of a child: one message."""
    exit_code = 1
    try:
        os.setpgid(0, 0)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        randomness.refresh(keys)
        with channel.makefile("rb") as source:
            job = wire.read_job(source)
        reach("working", job.task.task_id)

        def find_app() -> ClientApp:
            return app if app is not None else adapter_fleet.load(job.task.app, job.fab)

        wire.write_answer(channel, adapter_fleet.execute(job.task, find_app))
        channel.close()
        exit_code = 0
    except SystemExit as error:
        exit_code = error.code if isinstance(error.code, int) else 1
    except BaseException:  # noqa: BLE001 - nothing may climb into the loop of the server
        traceback.print_exc()
    finally:
        try:
            atexit._run_exitfuncs()  # what the app has registered; multiprocessing does the same
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(exit_code)
