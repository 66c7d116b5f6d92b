"""Tasks and answers between two processes: what goes in comes out, and nothing else gets in."""

from __future__ import annotations

import io
import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onefed.flower.adapter_fleet import Answer, AppReference, Task
from onefed.flower.node import wire

APP = AppReference("somebody/app", "1.0.0", "f" * 64)
OBJECTS = st.dictionaries(
    st.text("0123456789abcdef", min_size=64, max_size=64), st.binary(max_size=300), max_size=5
)


class Pipe(io.BytesIO):
    """Bytes that were written, to be read."""

    def sendall(self, data: bytes, /) -> None:
        self.write(data)


def written(*arguments: object, by: object) -> Pipe:
    pipe = Pipe()
    by(pipe, *arguments)  # type: ignore[operator]
    pipe.seek(0)
    return pipe


@given(OBJECTS, st.binary(max_size=100), st.binary(max_size=100))
def test_a_job_comes_out_as_it_went_in(
    objects: dict[str, bytes], context: bytes, fab: bytes
) -> None:
    job = wire.Job(Task(APP, 3, "a" * 64, context, objects), fab)
    assert wire.read_job(written(job, by=wire.write_job)) == job


@given(OBJECTS, st.none() | st.binary(max_size=100), st.booleans())
def test_an_answer_comes_out_as_it_went_in(
    objects: dict[str, bytes], context: bytes | None, failed: bool
) -> None:
    answer = Answer(b"message", b"tree", objects, context, failed)
    assert wire.read_answer(written(answer, by=wire.write_answer)) == answer


def test_an_app_comes_out_as_it_went_in() -> None:
    assert wire.read_app(written(APP, b"zip", by=wire.write_app)) == (APP, b"zip")


def test_every_cut_is_noticed() -> None:
    """A process may die at any byte."""
    whole = written(Answer(b"m", b"t", {"0" * 64: b"abc"}, b"c"), by=wire.write_answer).getvalue()
    for length in range(len(whole)):
        with pytest.raises(wire.WireError):
            wire.read_answer(Pipe(whole[:length]))


def header(**head: object) -> bytes:
    text = json.dumps(head).encode()
    return struct.pack("!Q", len(text)) + text


@pytest.mark.parametrize(
    "content",
    [
        struct.pack("!Q", 2**63),
        struct.pack("!Q", 4) + b"\xff\xff\xff\xff",
        struct.pack("!Q", 2) + b"[]",
        header(parts=[["a", -1]]),
        header(parts=[["a", 2**62]]),
        header(parts=[["a"]]),
        header(parts=5),
        header(),
    ],
)
def test_what_is_not_ours_is_refused_before_anything_is_allocated(content: bytes) -> None:
    with pytest.raises(wire.WireError):
        wire.read_answer(Pipe(content))
