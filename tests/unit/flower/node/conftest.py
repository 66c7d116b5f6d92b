"""A real SuperLink, a run on it, our node program in front of it, and a test as the ServerApp."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
)

LIMIT_S = 40.0
"""What does not happen within this does not happen."""

CLIENT = """
import os, random, signal, sys, threading, time
import numpy as np
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

print("imported by", os.getpid())
app = ClientApp()


def say(message, **facts):
    return Message(RecordDict({"facts": ConfigRecord(facts)}), reply_to=message)


@app.train()
def train(message, context):
    record = context.state.setdefault("count", ConfigRecord({"n": 0}))
    record["n"] += 1
    return say(
        message,
        count=record["n"], pid=os.getpid(), parent=os.getppid(),
        drawn=float(np.random.random()), also=random.random(),
        node_id=str(context.node_id), partition=context.node_config["partition-id"],
        epochs=context.run_config["local-epochs"], group=message.metadata.group_id,
    )


@app.train("raising")
def raising(message, context):
    context.state.setdefault("count", ConfigRecord({"n": 0}))["n"] += 100
    raise ValueError("no luck")


@app.train("exiting")
def exiting(message, context):
    os._exit(3)


@app.train("leaving")
def leaving(message, context):
    sys.exit(4)


@app.train("killed")
def killed(message, context):
    os.kill(os.getpid(), signal.SIGKILL)


@app.train("chatty")
def chatty(message, context):
    for number in range(100_000):
        print("line", number)
    return say(message, done=True)


@app.train("working")
def working(message, context):
    print("works as", os.getpid(), flush=True)
    signal.pause()
"""

BROKEN_CLIENT = "import a_module_that_is_not_there\n"

EXITING_CLIENT = "import os\nos._exit(7)\n"

THREADED_CLIENT = (
    CLIENT
    + """
threading.Thread(target=threading.Event().wait, daemon=True).start()
"""
)


@pytest.fixture(scope="session")
def apps() -> SimpleNamespace:
    """Client modules."""
    return SimpleNamespace(
        CLIENT=CLIENT, BROKEN=BROKEN_CLIENT, EXITING=EXITING_CLIENT, THREADED=THREADED_CLIENT
    )


def until(condition: Callable[[], Any]) -> Any:
    """Wait for something that another process brings about."""
    ends_at = time.monotonic() + LIMIT_S
    while time.monotonic() < ends_at:
        if found := condition():
            return found
        threading.Event().wait(0.02)
    raise AssertionError(f"not within {LIMIT_S:.0f} s")


class World:
    """A SuperLink with one run, as a ServerApp sees it, and nodes that a test starts."""

    def __init__(self, server: Any, folder: Path, fab: bytes) -> None:
        from onefed.flower import adapter

        self.server = server
        self.folder = folder
        self.until = until
        control = adapter.Control(server.address, None)
        self.run_id = control.start_run(fab, {})
        control.close()
        server.run_starts(self.run_id)
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self, *arguments: str, name: str = "node", **environ: str) -> SimpleNamespace:
        """Start a node, and wait until the SuperLink has it."""
        log = self.folder / f"{name}.log"
        command = [
            *(sys.executable, "-P", "-m", "onefed.flower.node"),
            *("--superlink", self.server.address, "--insecure"),
            *("--identity", str(self.folder / name), "--port", "0"),
            *("--node-config", "partition-id=1 num-partitions=2", *arguments),
        ]
        environ = environ | {
            "PATH": "/usr/bin:/bin",
            "HOME": str(self.folder),
            "FLWR_HOME": str(self.folder / "flwr"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "ONEFED_STATE_DIR": str(self.folder),
            "ONEFED_EVENTS": str(self.folder / "events.jsonl"),
            "PYTHONUNBUFFERED": "1",
        }
        with log.open("ab") as output:
            process = subprocess.Popen(
                command, env=environ, stdout=output, stderr=output, start_new_session=True
            )
        self._processes.append(process)
        before = log.read_text().count("Joined")
        until(lambda: log.read_text().count("Joined") > before or process.poll() is not None)
        joined = [line for line in log.read_text().splitlines() if "Joined" in line]
        assert joined, log.read_text()
        node_id = int(re.findall(r"\d{10,}", joined[-1])[-1])
        return SimpleNamespace(process=process, node_id=node_id, log=log)

    def ask(self, node_id: int, kind: str = "train", *, group: str = "1") -> str:
        """Send a message; returns its id."""
        content = RecordDict({"config": ConfigRecord({"server-round": 1})})
        message = Message(content, node_id, kind, group_id=group)
        message.metadata.__dict__["_run_id"] = self.run_id
        message.metadata.__dict__["_message_id"] = message.object_id
        tree, objects = get_object_tree(message), get_all_nested_objects(message)
        state = self.server.state
        session = state.start_session(self.run_id)
        message_id = message.metadata.message_id
        bare = Message(RecordDict(), metadata=message.metadata)
        stored, _ = state.store_message_and_object_tree(bare, tree, session)
        assert stored
        for name, part in objects.items():
            state.store_object(self.run_id, session, name, part.deflate())
        return message_id

    def answer(self, message_id: str) -> Message:
        """The reply to a message, as soon as it is there as a whole."""
        from onefed.flower import packing

        state = self.server.state
        [reply] = until(lambda: state.get_message_res({message_id}, run_id=self.run_id))
        tree = until(lambda: self._tree(reply.metadata.message_id))
        contents = {
            part.object_id: until(lambda part=part: state.object_store.get(part.object_id))
            for part in iterate_object_tree(tree)
        }
        return packing.inflate(reply.metadata.message_id, contents)

    def facts(self, node_id: int, **told: str) -> dict[str, Any]:
        """What the app says of itself."""
        return dict(self.answer(self.ask(node_id, **told)).content["facts"])

    def status(self, node_id: int) -> str:
        [info] = self.server.state.get_node_info(node_ids=[node_id])
        return str(info.status)

    def processes(self) -> list[int]:
        """Every process of the nodes."""
        import psutil

        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get("ONEFED_STATE_DIR") == str(self.folder):
                    found.append(process.pid)
        return found

    def end(self) -> None:
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        until(lambda: not self.processes())

    def _tree(self, message_id: str) -> Any:
        from flwr.supercore.object_store import NoObjectInStoreError

        with contextlib.suppress(NoObjectInStoreError):
            return self.server.state.object_store.get_object_tree(message_id)
        return None


@pytest.fixture
def world_with(
    superlink_server: Any, tmp_path: Path, app_folder: Callable[..., Path]
) -> Iterator[Callable[[str], World]]:
    """Makes the world of one client module; nothing of it outlives the test."""
    from onefed.flower import bundle

    made = []

    def make(client: str) -> World:
        fab = bundle.build(bundle.load(app_folder(files={"client.py": client}))).fab
        made.append(World(superlink_server, tmp_path, fab))
        return made[-1]

    yield make
    for world in made:
        world.end()
