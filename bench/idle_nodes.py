"""Idle nodes at a real SuperLink behind its gateway: what they cost, and whether any is lost.

``python bench/idle_nodes.py`` connects 200 and then 300 nodes, each with a key and a connection of
its own, that ask and send heartbeats as our node does (``flower/node/polling.py``), and looks at
them as the supervisor does. After a quarter of a minute they are idle; then CPU seconds of the
SuperLink and of the gateway are counted, and the answers to polls are timed. CPU time is what
counts: seconds of an answer are noise on a shared machine. About four minutes.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx
import record
from flwr.proto.fleet_pb2 import ActivateNodeRequest, ActivateNodeResponse, PullMessagesRequest
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.node_pb2 import Node

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # campaigns lie beside src

from campaigns import refused

from onefed.flower import adapter, adapter_fleet, registration, supervisor
from onefed.flower.node import polling

SETTLE_S = polling.EAGER_FOR_S + 5
ANSWER_LIMIT_S = 30.0


@dataclass
class Seen:
    """What was seen of one fleet while it was idle."""

    nodes: int
    seconds: float = 0.0
    requests: int = 0
    poll_seconds: list[float] = field(default_factory=list)
    failed: int = 0
    offline: int = 0
    """Nodes that were not online at any look."""
    superlink_cpu_s: float = 0.0
    gateway_cpu_s: float = 0.0
    supervisor_looks: int = 0
    superlink_rss_mb: float = 0.0


class IdleNode:
    """A node that is owed nothing."""

    def __init__(self, coordinator: refused.Coordinator, key: refused.Key, fleet: int) -> None:
        self._url = f"https://{coordinator.fleet}/v1/fleet/"
        self._key = key
        self._fleet = fleet
        # A fixed seed: every run has the same pauses.
        self._random = random.Random(f"{key.public!r}")  # noqa: S311
        self.measuring: Seen | None = None

    async def live(self, client: httpx.AsyncClient) -> None:
        """Activate, then ask and send heartbeats for ever."""
        request = ActivateNodeRequest(
            public_key=self._key.public, heartbeat_interval=adapter_fleet.ONLINE_TIME_S
        )
        answer = await self._post(client, "activate-node", request)
        node = Node(node_id=ActivateNodeResponse.FromString(answer).node_id)
        await asyncio.gather(self._beat(client, node), self._ask(client, node))

    async def _beat(self, client: httpx.AsyncClient, node: Node) -> None:
        request = SendNodeHeartbeatRequest(
            node=node, heartbeat_interval=adapter_fleet.ONLINE_TIME_S
        )
        await asyncio.sleep(self._random.random() * polling.HEARTBEAT_S)
        while True:
            await self._post(client, "send-node-heartbeat", request)
            await asyncio.sleep(polling.HEARTBEAT_S)

    async def _ask(self, client: httpx.AsyncClient, node: Node) -> None:
        rhythm = polling.Polling(self._fleet, now_s=time.monotonic(), random=self._random.random)
        request = PullMessagesRequest(node=node)
        while True:
            started = time.monotonic()
            await self._post(client, "pull-messages", request)
            if self.measuring is not None:
                self.measuring.poll_seconds.append(time.monotonic() - started)
            await asyncio.sleep(rhythm.empty(time.monotonic()))

    async def _post(self, client: httpx.AsyncClient, name: str, request: Any) -> bytes:
        headers = {"content-type": "application/protobuf", **self._key.headers()}
        if self.measuring is not None:
            self.measuring.requests += 1
        try:
            answer = await client.post(
                self._url + name, content=request.SerializeToString(), headers=headers
            )
            answer.raise_for_status()
        except httpx.HTTPError:
            if self.measuring is None and name == "activate-node":
                raise
            if self.measuring is not None:
                self.measuring.failed += 1
            return b""
        return answer.content


async def measure(coordinator: refused.Coordinator, count: int, seconds: float) -> Seen:
    """Connect so many nodes, let them become idle, and look at them for so long."""
    control = adapter.Control(coordinator.behind, coordinator.ca_certificate)
    keys = [refused.Key() for _ in range(count)]
    for index, key in enumerate(keys):
        control.register_node(key.public, f"client:{index}")
    nodes = [IdleNode(coordinator, key, count) for key in keys]
    trust = coordinator.trust()
    seen = Seen(count)
    clients = [
        httpx.AsyncClient(verify=trust, timeout=ANSWER_LIMIT_S, trust_env=False) for _ in nodes
    ]
    async with asyncio.TaskGroup() as group:
        tasks = []
        for node, client in zip(nodes, clients, strict=True):
            tasks.append(group.create_task(node.live(client)))
            await asyncio.sleep(0.05)  # as machines do, they come one after the other
        await asyncio.sleep(SETTLE_S)
        for node in nodes:
            node.measuring = seen
        started, before = time.monotonic(), _cpu_seconds(coordinator)
        while time.monotonic() - started < seconds:
            there = await asyncio.to_thread(control.nodes)
            seen.supervisor_looks += 1
            offline = sum(node.status != adapter.NODE_ONLINE for node in there)
            seen.offline = max(seen.offline, offline)
            await asyncio.sleep(supervisor.POLL_S * (1 + count // registration.NODES_A_LOOK))
        seen.seconds = time.monotonic() - started
        after = _cpu_seconds(coordinator)
        for task in tasks:
            task.cancel()
    for client in clients:
        await client.aclose()
    control.close()
    seen.superlink_cpu_s, seen.gateway_cpu_s = (b - a for a, b in zip(before, after, strict=True))
    seen.superlink_rss_mb = coordinator.memory_bytes() / 2**20
    return seen


def _cpu_seconds(coordinator: refused.Coordinator) -> tuple[float, float]:
    """Of the SuperLink, and of the gateway with its workers."""
    superlink, gateway = coordinator.pids()
    workers = Path(f"/proc/{gateway}/task/{gateway}/children").read_text().split()
    return _of(superlink), sum(_of(int(pid)) for pid in [str(gateway), *workers])


def _of(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Measure, print the table, save the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, nargs="+", default=(200, 300))
    parser.add_argument("--seconds", type=float, default=90.0)
    options = parser.parse_args()
    rows = []
    print("| Nodes | requests/s | SuperLink, of a core | gateway | p50 | p99 | failed | offline |")
    print("|---|---|---|---|---|---|---|---|")
    for count in options.nodes:
        with tempfile.TemporaryDirectory() as folder:
            place = refused.Coordinator(Path(folder))
            with place.running() as coordinator:
                seen = asyncio.run(measure(coordinator, count, options.seconds))
        polls = seen.poll_seconds
        print(
            f"| {seen.nodes} | {seen.requests / seen.seconds:.1f} "
            f"| {100 * seen.superlink_cpu_s / seen.seconds:.1f} % "
            f"| {100 * seen.gateway_cpu_s / seen.seconds:.1f} % "
            f"| {1000 * statistics.median(polls):.0f} ms "
            f"| {1000 * statistics.quantiles(polls, n=100)[98]:.0f} ms "
            f"| {seen.failed} | {seen.offline} |",
            flush=True,
        )
        rows.append({**asdict(seen), "poll_seconds": sorted(round(each, 4) for each in polls)})
    record.save_raw("idle-nodes", {"fleets": rows})


if __name__ == "__main__":
    main()
