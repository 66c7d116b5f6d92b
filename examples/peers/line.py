"""Four nodes fit a line together, without a coordinator; one fails and comes back.

    python examples/peers/line.py

All of them live in this one process, which makes the program short; with
``onefed.node.grpc_transport.GrpcTransport`` instead of the network in memory each may be a process
on another machine, as with ``onefed peer up``.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from onefed import aggregate
from onefed.node import Node, World
from onefed.node.checkpoints import rejoin
from onefed.node.memory_transport import MemoryNetwork
from onefed.node.training import Task, Trained

ROUNDS = 6
NAMES = ["node-0", "node-1", "node-2", "node-3"]
SLOPE, OFFSET = 3.0, -1.0
"""Of the line that the data lie on; each node sees a quarter of it."""


class Line:
    """An app: gradient descent on a node's own points."""

    def __init__(self, number: int) -> None:
        self.x = np.linspace(number, number + 1, 50) / len(NAMES)
        self.y = SLOPE * self.x + OFFSET

    def initial_model(self) -> dict[str, np.ndarray]:
        return {"slope": np.zeros(1), "offset": np.zeros(1)}

    def train(self, task: Task, cancelled: threading.Event) -> Trained:
        slope, offset = task.model["slope"].copy(), task.model["offset"].copy()
        for _ in range(500 * (task.epochs or 1)):
            error = slope * self.x + offset - self.y
            slope -= 0.5 * (error * self.x).mean()
            offset -= 0.5 * error.mean()
        return Trained({"slope": slope, "offset": offset}, len(self.x), private=None)

    def close(self) -> None:
        pass


def make(name: str, folder: Path, network: MemoryNetwork) -> Node:
    """A node on its own folder, for the first time or again."""
    world = World(
        make_transport=lambda *_: network.transport(name),
        clock=time.monotonic,
        now=lambda: datetime.now(UTC),
        jitter=random.Random().random,
        emit=lambda _: None,  # what happens, as events: a log or a screen may take them
    )
    return Node(
        Line(NAMES.index(name)),
        folder / name,
        name=name,
        address=f"{name}:1",
        experiment="line",
        rule=aggregate.rule("FedAvg"),
        world=world,
    )


async def reach(nodes: list[Node], round_number: int) -> None:
    """Wait until all of them have a round."""
    while any(node.state.round_number < round_number for node in nodes):  # noqa: ASYNC110
        await asyncio.sleep(0.01)


async def main(folder: Path) -> list[Node]:
    """Train; the nodes as they were at the end."""
    network = MemoryNetwork()
    nodes = {name: make(name, folder, network) for name in NAMES}
    for node in nodes.values():
        await node.start()
    for node in nodes.values():
        for other in nodes.values():
            node.connect(other.member)  # oneself, too: that changes nothing
    for node in nodes.values():
        node.settings.general.REMOTE_CHECKPOINT_INTERVAL = 2
        await node.set_start_learning(rounds=ROUNDS, epochs=1)

    await reach(list(nodes.values()), 2)
    failed = nodes["node-0"].state
    await nodes["node-0"].stop()
    print(f"{failed.name} is gone after round {failed.round_number}; the others go on")

    back = nodes["node-0"] = make("node-0", folder, network)
    await back.start()
    for node in nodes.values():
        back.connect(node.member)
        node.connect(back.member)
    restored = await rejoin(failed, back.learner, back.communication_protocol)
    print(f"{failed.name} is back, {'from a checkpoint' if restored else 'afresh'}")

    await reach(list(nodes.values()), ROUNDS)
    model = await back.model()
    print(f"y = {model['slope'][0]:.2f} x + {model['offset'][0]:.2f}, at all nodes:")
    for node in nodes.values():
        state = node.state
        print(f"  {state.name}: {state.state}, round {state.round_number}, {state.model_sha256}")
        await node.stop()
    return list(nodes.values())


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        asyncio.run(main(Path(place)))
