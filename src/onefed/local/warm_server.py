"""A process that has imported what the programs of a federation need, and forks them.

A program of Flower spends its first two seconds on imports; a federation of three nodes has ten, on
one machine. So the cloud starts one *warm* process. That forks the machines, and each machine, as
long as it has no threads, forks a warm process of its own, which forks the machine's programs:

    cloud -> warm -> machine -> warm -> program

The machines of nodes come from a second one, which the first has forked and which has imported what
the app imports: once, instead of once for each node.

``python -P -m onefed.local.warm_server DESCRIPTOR PARENT ROOM`` reads requests from a socket. It
dies with its parent, and what it has forked dies with it. Linux only.
"""

from __future__ import annotations

import functools
import json
import os
import select
import signal
import socket
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from onefed.appliance import guest
from onefed.flower import forking, libraries, programs
from onefed.local import warm

GUEST = "onefed.appliance.guest"


def main(arguments: Sequence[str]) -> int:
    """Import, then serve until the other end is closed; goes on as the program in what it forks."""
    control = socket.socket(fileno=int(arguments[0]))
    forking.die_with_parent(signal.SIGKILL, int(arguments[1]))
    programs.preload()
    return _become(*_serve(control))


def _serve(control: socket.socket) -> tuple[warm.Request, socket.socket | None]:
    """The life of a warm process; returns in each forked one, with what it is to be."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # its end is that of its parent
    forking.show_as(warm.SHOWN)
    forking.settle()
    server = os.getpid()
    children: dict[int, int] = {}
    poll = select.poll()
    poll.register(control, select.POLLIN)
    try:
        _say(control, hazards=forking.hazards())
        while True:
            for descriptor, _ in poll.poll():
                if descriptor != control.fileno():
                    poll.unregister(descriptor)
                    _bury(control, children.pop(descriptor), descriptor)
                    continue
                content, passed, _, _ = socket.recv_fds(control, warm.REQUEST_BYTES_MAX, 2)
                if not content:
                    os._exit(0)
                try:
                    pid = os.fork()
                except OSError as error:  # too many processes: those that live go on
                    _close(passed)
                    _say(control, refused=str(error))
                    continue
                if pid == 0:
                    forking.die_with_parent(signal.SIGKILL, server)
                    control.close()
                    _close(children)
                    return _take(content, passed)
                _close(passed)
                watched = os.pidfd_open(pid)
                children[watched] = pid
                poll.register(watched, select.POLLIN)
                _say(control, pid=pid)
    except OSError:
        os._exit(0)  # nobody listens any more


def _bury(control: socket.socket, pid: int, descriptor: int) -> None:
    os.close(descriptor)
    _, status = os.waitpid(pid, 0)
    _say(control, ended=pid, status=os.waitstatus_to_exitcode(status))


def _take(content: bytes, passed: Sequence[int]) -> tuple[warm.Request, socket.socket | None]:
    """In a forked process: be like one that was just started.

    Returns:
        What it is to be, and the other end's channel where that is a warm process.
    """
    log, *channels = passed
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    nowhere = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for descriptor, source in ((0, nowhere), (1, log), (2, log)):
        os.dup2(source, descriptor)
    os.close(nowhere)
    os.close(log)
    channel = socket.socket(fileno=channels[0]) if channels else None
    return warm.Request.of(content), channel


def _become(request: warm.Request, channel: socket.socket | None) -> int:
    os.chdir(request.folder)
    kept = {name: text for name, text in os.environ.items() if name.startswith("GRPC_")}
    os.environ.clear()  # but for what Flower's import has set
    os.environ.update({**kept, **request.environment})
    forking.show_as(request.argv)
    if channel is not None:
        libraries.load(request.libraries)
        return _become(*_serve(channel))
    programs.wake(os.environ)
    if GUEST in request.argv:
        return _machine(list(request.argv[request.argv.index(GUEST) + 1 :]))
    program = programs.find(request.argv)
    assert program is not None, "the other end knows what can be forked"
    return program()


def _machine(arguments: Sequence[str]) -> int:
    """Be a machine, with a warm process of its own."""
    ours, theirs = forking.pair()
    machine = os.getpid()
    pid = os.fork()
    if pid == 0:
        ours.close()
        forking.die_with_parent(signal.SIGKILL, machine)
        return _become(*_serve(theirs))
    theirs.close()
    own = warm.Warm(ours, functools.partial(warm.kill, pid))
    return guest.main(arguments, spawn=own.spawn_program)


def _close(descriptors: Iterable[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def _say(control: socket.socket, **facts: Any) -> None:
    control.send(json.dumps(facts).encode())


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
