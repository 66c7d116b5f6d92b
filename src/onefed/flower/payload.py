"""What travels in a message: the global model and a config out, an update or metrics back.

The record names are those of Flower's own strategies (``arrays``, ``config``, weight key
``num-examples``), so any ClientApp written for them works unchanged.
"""

from __future__ import annotations

import functools
import io
import math
import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
)
from numpy.lib import format as npy
from numpy.typing import NDArray

from onefed.aggregate import WEIGHT_MAX, Update, client_order
from onefed.arrays import Arrays
from onefed.flower.app_functions import WEIGHT_KEY, Score
from onefed.flower.clients import Client
from onefed.flower.exchange import Failure, Reply, bounded

RecordT = TypeVar("RecordT", ArrayRecord, MetricRecord, ConfigRecord)

LOSS_KEYS = ("loss", "eval_loss", "eval-loss", "val_loss", "test_loss")
ACCURACY_KEYS = ("accuracy", "eval_acc", "eval-acc", "acc", "eval_accuracy", "test_accuracy")
"""Names under which apps report what we show; the one that most clients of a round sent is used."""
TOLD_BYTES_MAX = 1 << 16
"""Of metrics and configs in a reply; an honest app tells numbers by the dozen."""
METRIC_MAX = 1e100
"""Larger ones in absolute value, infinities and NaN count as not sent."""

NUMPY = "numpy.ndarray"
"""How Flower calls the serialization of ``numpy.save`` (flwr 1.41.0, common/constant.py, SType)."""
NPY_MAGIC = b"\x93NUMPY\x01\x00"
HEADER_BYTES_MAX = 10_240
"""Of an array, header included: numpy itself reads no longer ones."""

HEADERS_KEPT_MAX = 256
"""Headers that were read already, 2.5 MB of them at most."""


def train_message(
    node_id: int,
    record: ArrayRecord,
    *,
    round_number: int,
    seed: int,
    extra: Mapping[str, float] = MappingProxyType({}),
) -> Message:
    """Ask a node to train on the global model; ``extra`` is what the rule tells the clients."""
    return _message(node_id, MessageType.TRAIN, record, round_number, seed, extra)


def evaluate_message(node_id: int, record: ArrayRecord, *, round_number: int, seed: int) -> Message:
    """Ask a node to judge the global model on its own data."""
    return _message(node_id, MessageType.EVALUATE, record, round_number, seed, {})


def to_record(arrays: Mapping[str, NDArray[Any]]) -> ArrayRecord:
    """The global model as Flower carries it."""
    return ArrayRecord({name: Array(np.asarray(array)) for name, array in arrays.items()})


class Outgoing:
    """A model that many messages carry: one record while there is a message, none after that."""

    def __init__(self, model: Mapping[str, NDArray[Any]]) -> None:
        self._model = model
        self._made: weakref.ref[ArrayRecord] | None = None

    def record(self) -> ArrayRecord:
        """The record that the messages share; whoever keeps none of them keeps no copy."""
        record = None if self._made is None else self._made()
        if record is None:
            record = to_record(self._model)
            self._made = weakref.ref(record)
        return record


def to_arrays(model: Mapping[str, NDArray[Any]] | ArrayRecord) -> Arrays:
    """A model as a rule sees it, from what an app or a client gave."""
    if isinstance(model, ArrayRecord):
        return {name: _view(array) for name, array in model.items()}
    return {str(name): np.asarray(array) for name, array in model.items()}


def read_update(reply: Reply) -> Update | Failure:
    """The update in a train reply; a malformed reply is that client's failure, never ours."""
    try:
        records = _records(reply, ArrayRecord)
        if len(records) != 1:
            return _malformed(reply, f"{len(records)} array records instead of one")
        told = _told_bytes(reply)
        if told > TOLD_BYTES_MAX:
            reason = f"{told} bytes of metrics and configs; at most {TOLD_BYTES_MAX} are taken"
            return _malformed(reply, reason)
        examples = weight(reply)
        if examples is None:
            return _malformed(reply, f"no whole number under {WEIGHT_KEY!r} in its metrics")
        return Update(reply.client.key, examples, to_arrays(records[0]))
    except Exception as error:  # noqa: BLE001 - whatever hostile bytes make numpy raise
        return _malformed(reply, f"{type(error).__name__}: {error}")


@dataclass(frozen=True)
class Vote:
    """What one client says about a model: the numbers that we show, and no more of its reply."""

    client: Client
    num_examples: int
    metrics: Mapping[str, float]
    """Of ``LOSS_KEYS`` and ``ACCURACY_KEYS``, those that it sent."""


def read_vote(reply: Reply) -> Vote | Failure:
    """The numbers in an evaluate reply; a malformed reply is that client's failure."""
    examples = weight(reply)
    if examples is None or not 1 <= examples <= WEIGHT_MAX:
        return _malformed(reply, f"no {WEIGHT_KEY!r} from 1 to {WEIGHT_MAX} in its metrics")
    [metrics] = _records(reply, MetricRecord)
    shown = {
        key: value
        for key in (*LOSS_KEYS, *ACCURACY_KEYS)
        if isinstance(value := metrics.get(key), int | float) and abs(value) <= METRIC_MAX
    }
    return Vote(reply.client, examples, shown)


def score(votes: Iterable[Vote]) -> Score | None:
    """The mean of the clients' evaluations, weighted by their examples; None without any.

    The numbers are added up in client order, whatever order they come in.
    """
    ordered = sorted(votes, key=lambda vote: client_order(vote.client.key))
    if not ordered:
        return None
    usable = [(vote.num_examples, vote.metrics) for vote in ordered]
    return Score(
        loss=_mean(usable, LOSS_KEYS),
        accuracy=_mean(usable, ACCURACY_KEYS),
        num_examples=sum(examples for examples, _ in usable),
    )


def weight(reply: Reply) -> int | None:
    """How many examples a client says it used; None when it does not say so as a whole number."""
    metrics = _records(reply, MetricRecord)
    claimed = metrics[0].get(WEIGHT_KEY) if len(metrics) == 1 else None
    if isinstance(claimed, float) and claimed.is_integer():
        return int(claimed)
    return claimed if type(claimed) is int else None


def _message(
    node_id: int,
    message_type: str,
    record: ArrayRecord,
    round_number: int,
    seed: int,
    extra: Mapping[str, float],
) -> Message:
    config = ConfigRecord({"server-round": round_number, "seed": seed, **extra})
    content = RecordDict({"arrays": record, "config": config})
    return Message(content, node_id, message_type, group_id=str(round_number))


def _mean(usable: Sequence[tuple[int, Mapping[str, float]]], names: Sequence[str]) -> float | None:
    """Over the clients that sent a number; what one of them leaves out hides no other's."""
    sent = {
        name: [(examples, metrics[name]) for examples, metrics in usable if name in metrics]
        for name in names
    }
    most = max(sent.values(), key=len)
    if not most:
        return None
    return float(sum(n * value for n, value in most) / sum(n for n, _ in most))


def _records(reply: Reply, kind: type[RecordT]) -> list[RecordT]:
    """The records of one kind.

    ``RecordDict.array_records`` and its siblings would tie the content into a cycle, and with it a
    whole model, until the garbage collector comes by.
    """
    return [record for record in reply.content.values() if isinstance(record, kind)]


def _told_bytes(reply: Reply) -> int:
    """About what the records hold that are no arrays: text and lists of any length."""
    metrics, configs = _records(reply, MetricRecord), _records(reply, ConfigRecord)
    return sum(each.count_bytes() for each in metrics) + sum(each.count_bytes() for each in configs)


def _view(array: Array) -> NDArray[Any]:
    """The elements where they lie in a reply, read-only; Flower's own reading copies them twice.

    Only of what ``numpy.save`` writes and no other; all else is left to Flower's reading, which
    refuses objects and whatever is no array.
    """
    if array.stype == NUMPY and array.data.startswith(NPY_MAGIC):
        start = len(NPY_MAGIC) + 2 + int.from_bytes(array.data[8:10], "little")
        shape, is_fortran, dtype = _header(array.data[: min(start, HEADER_BYTES_MAX)])
        count = math.prod(shape)
        if count and not dtype.hasobject and start + count * dtype.itemsize == len(array.data):
            elements = np.frombuffer(array.data, dtype, count, start)
            return elements.reshape(shape, order="F" if is_fortran else "C")
    return array.numpy()


@functools.lru_cache(maxsize=HEADERS_KEPT_MAX)
def _header(head: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, order and type; clients of one model send the same headers."""
    stream = io.BytesIO(head)
    npy.read_magic(stream)
    return npy.read_array_header_1_0(stream)


def _malformed(reply: Reply, reason: str) -> Failure:
    return Failure(reply.client, "malformed_reply", bounded(reason))
