"""A federation without processes: nodes are calls of a ClientApp."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity
from numpy.typing import NDArray

Config = Mapping[str, bool | int | float | str]


class VirtualClients(Grid):
    """Flower's grid with ``count`` nodes that answer at once, in order of their ids."""

    def __init__(
        self,
        client_app: ClientApp,
        count: int,
        run_config: Config | None = None,
        node_config: Config | None = None,
    ) -> None:
        self._client_app = client_app
        self.contexts = {
            node_id: Context(
                run_id=1,
                node_id=node_id,
                node_config=dict(
                    {"partition-id": index, "num-partitions": count}
                    if node_config is None
                    else node_config
                ),
                state=RecordDict(),
                run_config=dict(run_config or {}),
            )
            for index, node_id in enumerate(range(10, 10 + count))
        }
        self.sent: list[Message] = []

    def get_node_ids(self) -> Iterable[int]:
        return list(self.contexts)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        del timeout
        arriving = list(messages)
        self.sent += arriving
        return [
            self._client_app(message, self.contexts[message.metadata.dst_node_id])
            for message in arriving
        ]

    def ask(
        self, kind: str, arrays: Mapping[str, NDArray[Any]], config: Mapping[str, Any]
    ) -> list[RecordDict]:
        """Send one ``train`` or ``evaluate`` message to every node."""
        content = RecordDict(
            {
                "arrays": ArrayRecord({name: Array(array) for name, array in arrays.items()}),
                "config": ConfigRecord(dict(config)),
            }
        )
        messages = [Message(content, node_id, kind) for node_id in self.contexts]
        return [reply.content for reply in self.send_and_receive(messages)]

    def federate(
        self, arrays: Mapping[str, NDArray[Any]], rounds: int, **config: object
    ) -> dict[str, NDArray[Any]]:
        """Rounds of federated averaging, in the plainest way there is."""
        model = dict(arrays)
        for server_round in range(1, rounds + 1):
            replies = self.ask("train", model, {"server-round": server_round, **config})
            weights = [float(reply["metrics"]["num-examples"]) for reply in replies]
            model = {
                name: np.average(
                    [reply["arrays"][name].numpy() for reply in replies], axis=0, weights=weights
                ).astype(array.dtype)
                for name, array in model.items()
            }
        return model

    def set_run(self, run: object) -> None:
        raise NotImplementedError

    @property
    def run(self) -> Any:
        raise NotImplementedError

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        raise NotImplementedError

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        raise NotImplementedError

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        raise NotImplementedError


@pytest.fixture
def virtual_clients(monkeypatch: pytest.MonkeyPatch) -> Callable[..., VirtualClients]:
    """Makes VirtualClients, in a process that may create Flower messages."""
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)
    monkeypatch.delenv("ONEFED_DATA_DIR", raising=False)
    return VirtualClients
