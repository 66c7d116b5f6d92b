"""Eight attacks of f colluding clients that know everything: the model, the rule, the others.

They train on their own data, see what every honest client is going to send, and send what harms
most while it looks like an update.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from flwr.app import Message, RecordDict
from numpy.typing import NDArray

from onefed.apps.image_classification import client_app, data, model, randomness
from onefed.flower import payload, virtual
from onefed.flower.virtual import Node

Arrays: TypeAlias = dict[str, NDArray[Any]]

LITTLE = 1.5
"""Standard deviations of "a little is enough" (Baruch, Baruch, Goldberg 2019, arXiv 1902.06156)."""
INNER = 0.5
"""Of inner product manipulation (Xie, Koyejo, Gupta 2019, arXiv 1903.03936): -INNER times the
mean of the honest steps."""
NOISE = 10.0
"""Standard deviation of the Gaussian attack; weights are around 0.1."""
EPOCHS, BATCH, RATE = 5, 32, 0.3
"""Of the built-in app, for those who train on flipped labels."""


@dataclass(frozen=True)
class Knowledge:
    """What a colluder has in a round."""

    start: Arrays
    """The global model."""
    own: Arrays
    """What an honest client in its place would send."""
    honest: list[Arrays]
    """What the honest clients send, in client order."""
    clients: int
    partition: int
    round_number: int
    seed: int


def _step(knows: Knowledge, scale: float, model_: Arrays) -> Arrays:
    """Start plus ``scale`` times the step to ``model_``."""
    return {key: knows.start[key] + scale * (model_[key] - knows.start[key]) for key in model_}


def _mean(models: list[Arrays]) -> Arrays:
    return {key: np.mean([each[key] for each in models], axis=0) for key in models[0]}


def sign_flip(knows: Knowledge) -> Arrays:
    """Ten times the own step, backwards."""
    return _step(knows, -10.0, knows.own)


def same_value(knows: Knowledge) -> Arrays:
    """All parameters 1."""
    return {key: np.ones_like(array) for key, array in knows.own.items()}


def a_little_is_enough(knows: Knowledge) -> Arrays:
    """The mean of the honest less ``LITTLE`` standard deviations: inside of their spread."""
    mean = _mean(knows.honest)
    return {
        key: mean[key] - LITTLE * np.std([each[key] for each in knows.honest], axis=0)
        for key in mean
    }


def inner_product(knows: Knowledge) -> Arrays:
    """Against the mean step of the honest."""
    return _step(knows, -INNER, _mean(knows.honest))


def scaled_replacement(knows: Knowledge) -> Arrays:
    """A model of flipped labels, scaled by the number of clients to stand after a mean
    (Bagdasaryan et al. 2020, arXiv 1807.00459)."""
    return _step(knows, float(knows.clients), label_flip(knows))


def label_flip(knows: Knowledge) -> Arrays:
    """Honest work on labels 9 - y."""
    pool, _ = data.digits()
    share = pool.take(
        data.partition(pool.y, knows.partition, knows.clients, "iid", 0.5, knows.seed)
    )
    examples, _ = data.split(share)
    generator = randomness.generator(
        randomness.Stream.EXAMPLE_ORDER, knows.seed, knows.round_number, knows.partition
    )
    trained, _ = model.train(
        knows.start,
        examples.x,
        9 - examples.y,
        epochs=EPOCHS,
        batch_size=BATCH,
        learning_rate=RATE,
        proximal_mu=0.0,
        generator=generator,
    )
    return dict(trained)


def gaussian(knows: Knowledge) -> Arrays:
    """Noise."""
    generator = np.random.default_rng([knows.round_number, knows.partition])
    return {key: generator.normal(0, NOISE, array.shape) for key, array in knows.own.items()}


def mimic(knows: Knowledge) -> Arrays:
    """A copy of the first honest client, whose data so count for more
    (Karimireddy, He, Jaggi 2022, arXiv 2006.09365)."""
    return dict(knows.honest[0])


ATTACKS: Mapping[str, Callable[[Knowledge], Arrays]] = {
    "sign flip x10": sign_flip,
    "same value": same_value,
    f"a little is enough, z = {LITTLE}": a_little_is_enough,
    f"inner product, -{INNER}": inner_product,
    "scaled replacement": scaled_replacement,
    "label flip": label_flip,
    "Gaussian": gaussian,
    "mimic": mimic,
}


def federation(
    clients: int, hostile: int, attack: Callable[[Knowledge], Arrays] | None
) -> dict[str, Node]:
    """The built-in app on all clients; the last ``hostile`` of them follow ``attack``, if any."""
    memory = _Memory(clients)
    nodes: dict[str, Node] = {}
    for index in range(clients):
        honest = memory.honest(index)
        is_hostile = attack is not None and index >= clients - hostile
        nodes[str(index)] = (
            _attacker(memory, attack, index, clients - hostile)
            if attack is not None and is_hostile
            else honest
        )
    return nodes


class _Memory:
    """Honest replies of the round, so that knowing them costs no second training."""

    def __init__(self, clients: int) -> None:
        self.clients = clients
        self._nodes = [
            virtual.node(client_app.app, partition_id=index, num_partitions=clients)
            for index in range(clients)
        ]
        self._known: dict[int, RecordDict] = {}
        self._round = 0

    def reply(self, index: int, message: Message) -> Message:
        """What client ``index`` answers if it is honest."""
        number = int(message.content["config"]["server-round"])
        if number != self._round:
            self._round = number
            self._known.clear()
        if index not in self._known:
            answered = self._nodes[index](message)
            assert isinstance(answered, Message)
            self._known[index] = answered.content
        known = self._known[index]
        return Message(RecordDict(dict(known.items())), reply_to=message)

    def honest(self, index: int) -> Node:
        return lambda message: self.reply(index, message)


def _attacker(
    memory: _Memory, attack: Callable[[Knowledge], Arrays], index: int, honest: int
) -> Node:
    def behave(message: Message) -> Message:
        reply = memory.reply(index, message)
        start = payload.to_arrays(message.content["arrays"])
        sent = attack(
            Knowledge(
                start=start,
                own=payload.to_arrays(reply.content["arrays"]),
                honest=[
                    payload.to_arrays(memory.reply(other, message).content["arrays"])
                    for other in range(honest)
                ],
                clients=memory.clients,
                partition=index,
                round_number=int(message.content["config"]["server-round"]),
                seed=int(message.content["config"]["seed"]),
            )
        )
        typed = {key: np.asarray(sent[key], start[key].dtype) for key in start}
        reply.content["arrays"] = payload.to_record(typed)
        return reply

    return behave
