"""The processes of a peer group on this machine: one for each node, or one for all of them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from onefed.checkpoint import files
from onefed.local.peer_spec import PeerGroup, PeerSpec

STOP_LIMIT_S = 20.0
"""A node that has the last model writes it down and judges it before it ends."""

ENVIRONMENT = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "VIRTUAL_ENV", "ONEFED_DATA_DIR")
"""What a node gets of ours."""


class Programs(Protocol):
    """What the parent of a group does with its nodes."""

    async def start(self, name: str) -> None:
        """Start a node, for the first time or again."""
        ...

    async def kill(self, name: str) -> None:
        """End a node at once: nothing is said, nothing is saved."""
        ...

    async def go(self, name: str, round_number: int) -> None:
        """Let a node train a round that is held."""
        ...

    def exit_code(self, name: str) -> int | None:
        """Of the process of a node; None while it lives."""
        ...

    async def stop(self) -> None:
        """End all processes, in good order or at last by force."""
        ...


def programs(group: PeerGroup, spec: PeerSpec, environ: Mapping[str, str]) -> Programs:
    """Those that a group asks for."""
    if spec.protocol == "memory":
        return OneProcess(group, environ)
    return Processes(group, spec, environ)


class Processes:
    """A process for each node."""

    def __init__(self, group: PeerGroup, spec: PeerSpec, environ: Mapping[str, str]) -> None:
        self.running: dict[str, asyncio.subprocess.Process] = {}
        """By node, ended ones included."""
        self._group = group
        self._spec = spec
        self._environ = environ

    async def start(self, name: str) -> None:
        files.make_folder(self._group.node(name), mode=0o700)
        arguments = ["--group", str(self._group.folder), "--node", name]
        arguments += ["--address", self._spec.addresses[name]]
        self.running[name] = await _start(
            "onefed.local.peer_process",
            arguments,
            self._group.log(name),
            _environment(self._environ, self._group.node(name)),
        )

    async def kill(self, name: str) -> None:
        process = self.running[name]
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGKILL)
        await process.wait()

    async def go(self, name: str, round_number: int) -> None:
        await _tell(self.running[name], f"go {round_number}")

    def exit_code(self, name: str) -> int | None:
        return self.running[name].returncode

    async def stop(self) -> None:
        await _stop(*self.running.values())


class OneProcess:
    """All nodes in one process, which talk without a network."""

    def __init__(self, group: PeerGroup, environ: Mapping[str, str]) -> None:
        self._group = group
        self._environ = environ
        self._process: asyncio.subprocess.Process | None = None

    async def start(self, name: str) -> None:
        files.make_folder(self._group.node(name), mode=0o700)
        if self._process is None:
            self._process = await _start(
                "onefed.local.peer_memory",
                ["--group", str(self._group.folder)],
                self._group.folder / "group.log",
                _environment(self._environ, self._group.folder),
            )
        await _tell(self._process, f"start {name}")

    async def kill(self, name: str) -> None:
        assert self._process is not None
        await _tell(self._process, f"kill {name}")

    async def go(self, name: str, round_number: int) -> None:
        assert self._process is not None
        await _tell(self._process, f"go {round_number}")

    def exit_code(self, name: str) -> int | None:
        return None if self._process is None else self._process.returncode

    async def stop(self) -> None:
        if self._process is not None:
            await _stop(self._process)


async def _start(
    module: str, arguments: list[str], log: Path, environment: Mapping[str, str]
) -> asyncio.subprocess.Process:
    with log.open("ab") as stream:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", module, *arguments),
            env=environment,
            stdin=asyncio.subprocess.PIPE,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )


async def _tell(process: asyncio.subprocess.Process, line: str) -> None:
    assert process.stdin is not None
    with contextlib.suppress(OSError):
        process.stdin.write(f"{line}\n".encode())
        await process.stdin.drain()


async def _stop(*processes: asyncio.subprocess.Process) -> None:
    for process in processes:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
    for process in processes:
        try:
            async with asyncio.timeout(STOP_LIMIT_S):
                await process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()


def _environment(environ: Mapping[str, str], folder: Path) -> dict[str, str]:
    ours = {key: environ[key] for key in ENVIRONMENT if key in environ}
    # One thread each: sums keep their order, and the nodes share this machine.
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return {**ours, **threads, "FLWR_HOME": str(folder / "flower"), "PYTHONUNBUFFERED": "1"}
