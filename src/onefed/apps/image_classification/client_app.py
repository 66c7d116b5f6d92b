"""What a node runs: train on its own examples, evaluate on those it held out.

Messages carry the ArrayRecord ``arrays`` and the ConfigRecord ``config``; a reply carries
``arrays`` (training only) and the MetricRecord ``metrics`` with ``num-examples``.
A setting is taken from ``config`` first, then from the run.
The same (seed, server-round, partition-id) give the same bits.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from onefed.apps.errors import SettingsError
from onefed.apps.image_classification import data, model, randomness
from onefed.apps.image_classification.randomness import Stream
from onefed.apps.image_classification.settings import Settings

PARTITIONS_DEFAULT = 2
"""num-partitions of a node that was told none."""

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the arrays on the node's examples."""
    settings = _settings(message, context)
    node = _Node.of(context)
    examples, _ = _examples(node, settings)
    arrays, loss = model.train(
        _arrays(message),
        examples.x,
        examples.y,
        epochs=settings.local_epochs,
        batch_size=settings.batch_size,
        learning_rate=settings.client_lr or settings.learning_rate,
        proximal_mu=settings.proximal_mu,
        generator=randomness.generator(
            Stream.EXAMPLE_ORDER, settings.seed, settings.server_round, node.partition_id
        ),
    )
    return Message(
        RecordDict(
            {
                "arrays": ArrayRecord({name: Array(array) for name, array in arrays.items()}),
                "metrics": MetricRecord({"num-examples": len(examples), "train_loss": loss}),
            }
        ),
        reply_to=message,
    )


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Evaluate the arrays on the examples that the node held out."""
    _, held_out = _examples(_Node.of(context), _settings(message, context))
    loss, accuracy = model.evaluate(_arrays(message), held_out.x, held_out.y)
    metrics = MetricRecord({"num-examples": len(held_out), "eval_loss": loss, "eval_acc": accuracy})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)


@dataclass(frozen=True)
class _Node:
    """Which part of the data is this node's."""

    partition_id: int
    num_partitions: int
    data_folder: Path | None
    """Own files; None, or an empty folder, means the built-in digits."""

    @classmethod
    def of(cls, context: Context) -> _Node:
        """Read ``partition-id``, ``num-partitions`` and ``data-dir`` of the node's configuration.

        A node without a partition-id takes its node id modulo num-partitions.
        ``data-dir`` defaults to the environment variable ONEFED_DATA_DIR, which the node's
        launcher sets.
        """
        given = context.node_config
        num_partitions = given.get("num-partitions", PARTITIONS_DEFAULT)
        if not isinstance(num_partitions, int) or num_partitions < 1:
            raise _node_error("num-partitions", num_partitions, "a whole number from 1 on")
        partition_id = given.get("partition-id", context.node_id % num_partitions)
        if not isinstance(partition_id, int) or not 0 <= partition_id < num_partitions:
            wanted = f"a whole number from 0 to {num_partitions - 1} (num-partitions - 1)"
            raise _node_error("partition-id", partition_id, wanted)
        folder = str(given.get("data-dir", os.environ.get("ONEFED_DATA_DIR", "")))
        return cls(partition_id, num_partitions, Path(folder) if folder else None)


def _node_error(key: str, value: object, wanted: str) -> SettingsError:
    return SettingsError(
        f"{key} must be {wanted}, not {value!r}.",
        hint="Correct the node's configuration (FL_NODE_CONFIG) and start the node again.",
    )


def _settings(message: Message, context: Context) -> Settings:
    return Settings.read(message.content.config_records.get("config", {}), context.run_config)


def _arrays(message: Message) -> dict[str, model.FloatArray]:
    record = message.content.array_records["arrays"]
    return {name: array.numpy() for name, array in record.items()}


def _examples(node: _Node, settings: Settings) -> tuple[data.Dataset, data.Dataset]:
    """What this node trains on and what it evaluates on."""
    own = data.read_folder(node.data_folder) if node.data_folder else None
    if own is None:
        pool, _ = data.digits()
        own = pool.take(
            data.partition(
                pool.y,
                node.partition_id,
                node.num_partitions,
                settings.partition,
                settings.dirichlet_alpha,
                settings.seed,
            )
        )
    return data.split(own)
