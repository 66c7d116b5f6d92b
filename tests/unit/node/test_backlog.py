"""Checkpoints that wait for a slow disk."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from onefed.node.checkpoints.backlog import Backlog
from onefed.node.checkpoints.file import About, Checkpoint, Kind

MODEL = {"w": np.zeros(25, np.float32)}
"""100 bytes."""

ABOUT = About(
    kind=Kind.LOCAL,
    experiment="e",
    node="n",
    round_number=0,
    saved_at="2026-11-26T00:00:00+00:00",
    train_set=("n",),
)


def checkpoint(kind: Kind, round_number: int) -> Checkpoint:
    return Checkpoint(replace(ABOUT, kind=kind, round_number=round_number), MODEL)


def test_while_there_is_room_all_are_written_in_their_order() -> None:
    backlog = Backlog(bytes_max=600)
    put = [checkpoint(kind, number) for number in (1, 2) for kind in (Kind.LOCAL, Kind.AGGREGATED)]
    assert [backlog.put(each) for each in put] == [[]] * 4
    assert [backlog.take() for _ in range(5)] == [*put, None]


def test_of_a_kind_the_older_ones_are_left_out_and_the_newest_stays() -> None:
    backlog = Backlog(bytes_max=250)
    finished = checkpoint(Kind.ROUND_FINISHED, 1)
    assert backlog.put(finished) == []
    local = [checkpoint(Kind.LOCAL, number) for number in range(4)]
    assert [backlog.put(each) for each in local] == [[], *([each] for each in local[:3])]
    assert [backlog.take() for _ in range(3)] == [finished, local[3], None]


@pytest.mark.parametrize("bytes_max", [0, 50])
def test_a_model_of_any_size_is_written(bytes_max: int) -> None:
    backlog = Backlog(bytes_max)
    large = checkpoint(Kind.LOCAL, 1)
    assert backlog.put(large) == []
    assert backlog.take() is large


@given(some.lists(some.one_of(some.none(), some.sampled_from(Kind))), some.integers(0, 900))
def test_it_holds_no_more_than_it_may_and_never_loses_the_newest(
    steps: list[Kind | None], bytes_max: int
) -> None:
    backlog, newest, waits = Backlog(bytes_max), {}, []
    for number, kind in enumerate(steps):
        if kind is None:
            taken = backlog.take()
            assert taken is (waits.pop(0) if waits else None)
            continue
        newest[kind] = checkpoint(kind, number)
        waits.append(newest[kind])
        for left_out in backlog.put(newest[kind]):
            assert left_out is not newest[left_out.about.kind]
            waits = [each for each in waits if each is not left_out]
        kinds = {each.about.kind for each in waits}
        assert 100 * len(waits) <= max(bytes_max, 100 * len(kinds))
