"""Twenty-odd ways to send a bad reply, each made of an honest one.

Most cost their client the round. Three are no fault: arrays in another order or memory layout mean
the same, and a hundred copies of a reply are one reply.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from numpy.typing import NDArray

from onefed.flower import packing
from onefed.flower.virtual import Node

Arrays: TypeAlias = Mapping[str, NDArray[Any]]
Spoil: TypeAlias = Callable[["Bad", Message, Message], "Message | Sequence[Message] | None"]

COPIES = 100
TEXT_CHARS = 2**20


@dataclass(frozen=True)
class Kind:
    """One way."""

    name: str
    spoil: Spoil
    costs: bool = True
    """Whether its client loses the round. If not, the model must be as if it were honest."""


class Bad:
    """A client that trains honestly and then sends something else."""

    def __init__(self, honest: Node, spoil: Spoil) -> None:
        self.before: Message | None = None
        """The message before this one."""
        self._honest = honest
        self._spoil = spoil

    def __call__(self, message: Message) -> Message | Sequence[Message] | None:
        reply = self._honest(message)
        assert isinstance(reply, Message), "the honest one answers"
        sent = self._spoil(self, message, reply)
        self.before = message
        return sent


def packed(node: Node) -> Node:
    """The same node; its replies come as bytes in one object. What cannot be read is an error."""

    def travelled(reply: Message) -> Message:
        one = packing.pack(reply)
        if not isinstance(one, packing.Packed):
            return reply  # it is an error
        return packing.inflate("reply", {"reply": one.deflate()})

    def behave(message: Message) -> Message | Sequence[Message] | None:
        came = node(message)
        if came is None or isinstance(came, Message):
            return came and travelled(came)
        return [travelled(each) for each in came]

    return behave


def _arrays(change: Callable[[dict[str, NDArray[Any]]], Arrays]) -> Spoil:
    def spoil(_bad: Bad, _message: Message, reply: Message) -> Message:
        model = {key: array.numpy() for key, array in reply.content["arrays"].items()}
        record = {key: Array(np.asarray(value)) for key, value in change(model).items()}
        reply.content["arrays"] = ArrayRecord(record)
        return reply

    return spoil


def _each(change: Callable[[NDArray[Any]], NDArray[Any]]) -> Spoil:
    return _arrays(lambda model: {key: change(array) for key, array in model.items()})


def _bytes(data: bytes) -> Spoil:
    def spoil(_bad: Bad, _message: Message, reply: Message) -> Message:
        record = reply.content["arrays"]
        for key, array in record.items():
            record[key] = Array(array.dtype, array.shape, array.stype, data)
        return reply

    return spoil


def _examples(claimed: float) -> Spoil:
    def spoil(_bad: Bad, _message: Message, reply: Message) -> Message:
        reply.content["metrics"]["num-examples"] = claimed
        return reply

    return spoil


def _no_metrics(_bad: Bad, _message: Message, reply: Message) -> Message:
    reply.content["metrics"] = MetricRecord()
    return reply


def _long_text(_bad: Bad, _message: Message, reply: Message) -> Message:
    reply.content["config"] = ConfigRecord({"story": "x" * TEXT_CHARS})
    return reply


def _copies(_bad: Bad, _message: Message, reply: Message) -> list[Message]:
    return [reply] * COPIES


def _late(_bad: Bad, _message: Message, _reply: Message) -> None:
    return None


def _another_round(bad: Bad, _message: Message, reply: Message) -> Message | None:
    """Answers the message of the round before with the model of this one."""
    return None if bad.before is None else Message(reply.content, reply_to=bad.before)


def _nothing(_bad: Bad, message: Message, _reply: Message) -> Message:
    return Message(RecordDict(), reply_to=message)


def _raises(_bad: Bad, _message: Message, _reply: Message) -> Message:
    raise RuntimeError("the app is broken")


def _set(array: NDArray[Any], value: float) -> NDArray[Any]:
    changed = array.copy()
    changed.reshape(-1)[0] = value
    return changed


_HEADER = b"{'descr': '|O', 'fortran_order': False, 'shape': (2,), }"
OBJECTS = (
    b"\x93NUMPY\x01\x00"
    + (118).to_bytes(2, "little")
    + _HEADER.ljust(117)
    + b"\n"
    + b"\x80\x04]\x94(K\x01K\x02e."
)
"""A file of numpy whose elements are objects: reading it would run what is in it."""

KINDS: tuple[Kind, ...] = (
    Kind("NaN", _each(lambda array: _set(array, np.nan))),
    Kind("infinity", _each(lambda array: _set(array, np.inf))),
    Kind("absurd values (1e30)", _each(lambda array: np.full_like(array, 1e30))),
    Kind("wrong shape", _each(lambda array: array[..., :-1])),
    Kind("wrong dtype", _each(lambda array: array.astype(np.float64))),
    Kind("wrong key", _arrays(lambda model: {f"x.{key}": model[key] for key in model})),
    Kind("other order", _arrays(lambda model: dict(reversed(model.items()))), costs=False),
    Kind("extra array", _arrays(lambda model: {**model, "extra": np.zeros(3, np.float32)})),
    Kind("array left out", _arrays(lambda model: {k: model[k] for k in list(model)[1:]})),
    Kind("no dimensions", _each(lambda array: np.float32(array.sum()))),
    Kind("object dtype", _bytes(OBJECTS)),
    Kind("bytes that are no array", _bytes(b"\x00" * 64)),
    Kind("Fortran order", _each(np.asfortranarray), costs=False),
    Kind("big-endian", _each(lambda array: array.astype(array.dtype.newbyteorder(">")))),
    Kind("10^18 examples", _examples(10**18)),
    Kind("negative examples", _examples(-5)),
    Kind("NaN examples", _examples(float("nan"))),
    Kind("empty metrics", _no_metrics),
    Kind("text of 1 MB", _long_text),
    Kind(f"{COPIES} copies", _copies, costs=False),
    Kind("no records", _nothing),
    Kind("late", _late),
    Kind("reply to another round", _another_round),
    Kind("error of the app", _raises),
)
