"""What travels in a message: the global model and a config out, an update or metrics back.

The record names are those of Flower's own strategies (``arrays``, ``config``, weight key
``num-examples``), so any ClientApp written for them works unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MessageType, RecordDict
from numpy.typing import NDArray

from onefed.aggregate import WEIGHT_MAX, Update
from onefed.arrays import Arrays
from onefed.flower.exchange import Failure, Reply, bounded

WEIGHT_KEY = "num-examples"

LOSS_KEYS = ("loss", "eval_loss", "eval-loss", "val_loss", "test_loss")
ACCURACY_KEYS = ("accuracy", "eval_acc", "eval-acc", "acc", "eval_accuracy", "test_accuracy")
"""Names under which apps report what we show; the one that most clients of a round sent is used."""
METRIC_MAX = 1e100
"""Larger ones in absolute value, infinities and NaN count as not sent."""


@dataclass(frozen=True)
class Score:
    """How good a model is, as far as that was measured."""

    loss: float | None
    accuracy: float | None
    num_examples: int


def train_message(node_id: int, record: ArrayRecord, *, round_number: int, seed: int) -> Message:
    """Ask a node to train on the global model."""
    return _message(node_id, MessageType.TRAIN, record, round_number, seed)


def evaluate_message(node_id: int, record: ArrayRecord, *, round_number: int, seed: int) -> Message:
    """Ask a node to judge the global model on its own data."""
    return _message(node_id, MessageType.EVALUATE, record, round_number, seed)


def to_record(arrays: Mapping[str, NDArray[Any]]) -> ArrayRecord:
    """The global model as Flower carries it."""
    return ArrayRecord({name: Array(np.asarray(array)) for name, array in arrays.items()})


def to_arrays(model: Mapping[str, NDArray[Any]] | ArrayRecord) -> Arrays:
    """A model as a rule sees it, from what an app or a client gave."""
    if isinstance(model, ArrayRecord):
        return {name: array.numpy() for name, array in model.items()}
    return {str(name): np.asarray(array) for name, array in model.items()}


def read_update(reply: Reply) -> Update | Failure:
    """The update in a train reply; a malformed reply is that client's failure, never ours."""
    try:
        records = list(reply.content.array_records.values())
        if len(records) != 1:
            return _malformed(reply, f"{len(records)} array records instead of one")
        examples = weight(reply)
        if examples is None:
            return _malformed(reply, f"no whole number under {WEIGHT_KEY!r} in its metrics")
        return Update(reply.client.key, examples, to_arrays(records[0]))
    except Exception as error:  # noqa: BLE001 - whatever hostile bytes make numpy raise
        return _malformed(reply, f"{type(error).__name__}: {error}")


def read_score(replies: Sequence[Reply]) -> tuple[Score | None, list[Failure]]:
    """The mean of the clients' own evaluations, weighted by their examples.

    Args:
        replies: in client order, in which the numbers are added up.

    Returns:
        None where no reply can be used; and the replies that cannot.
    """
    usable: list[tuple[int, Mapping[str, Any]]] = []
    failures = []
    for reply in replies:
        examples = weight(reply)
        if examples is None or not 1 <= examples <= WEIGHT_MAX:
            reason = f"no {WEIGHT_KEY!r} from 1 to {WEIGHT_MAX} in its metrics"
            failures.append(_malformed(reply, reason))
        else:
            usable.append((examples, next(iter(reply.content.metric_records.values()))))
    if not usable:
        return None, failures
    return (
        Score(
            loss=_mean(usable, LOSS_KEYS),
            accuracy=_mean(usable, ACCURACY_KEYS),
            num_examples=sum(examples for examples, _ in usable),
        ),
        failures,
    )


def weight(reply: Reply) -> int | None:
    """How many examples a client says it used; None when it does not say so as a whole number."""
    metrics = list(reply.content.metric_records.values())
    claimed = metrics[0].get(WEIGHT_KEY) if len(metrics) == 1 else None
    if isinstance(claimed, float) and claimed.is_integer():
        return int(claimed)
    return claimed if type(claimed) is int else None


def _message(
    node_id: int, message_type: str, record: ArrayRecord, round_number: int, seed: int
) -> Message:
    config = ConfigRecord({"server-round": round_number, "seed": seed})
    content = RecordDict({"arrays": record, "config": config})
    return Message(content, node_id, message_type, group_id=str(round_number))


def _mean(usable: Sequence[tuple[int, Mapping[str, Any]]], names: Sequence[str]) -> float | None:
    """Over the clients that sent a number; what one of them leaves out hides no other's."""
    sent = {
        name: [(examples, metrics[name]) for examples, metrics in usable if _sent(metrics, name)]
        for name in names
    }
    most = max(sent.values(), key=len)
    if not most:
        return None
    return float(sum(n * value for n, value in most) / sum(n for n, _ in most))


def _sent(metrics: Mapping[str, Any], name: str) -> bool:
    value = metrics.get(name)
    return isinstance(value, int | float) and -METRIC_MAX <= value <= METRIC_MAX


def _malformed(reply: Reply, reason: str) -> Failure:
    return Failure(reply.client, "malformed_reply", bounded(reason))
