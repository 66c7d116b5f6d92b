"""Pieces cover the work once, and pools survive a fork."""

from __future__ import annotations

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onefed.aggregate.kernels import pool


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**9), st.integers(1, 1000), st.integers(1, 64))
def test_pieces_cover_every_coordinate_once(size: int, columns: int, threads: int) -> None:
    pieces = pool.pieces(size, columns, threads)
    assert pieces[0].start == 0
    assert pieces[-1].stop == size
    assert [piece.stop for piece in pieces[:-1]] == [piece.start for piece in pieces[1:]]
    assert all(piece.start % pool.ALIGNED == 0 for piece in pieces)
    assert len(pieces) <= threads * pool.PIECES_PER_THREAD


def test_a_small_array_among_others_stays_whole() -> None:
    """One of sixteen layers: to hand out its parts would cost more than they are worth."""
    assert pool.pieces(333_333, 5, 2, among=10_000_000) == [slice(0, 333_333)]
    assert len(pool.pieces(5_000_000, 5, 2, among=10_000_000)) == 4


def test_small_work_stays_in_one_piece() -> None:
    assert pool.pieces(10_000, 20, 8) == [slice(0, 10_000)]
    assert len(pool.pieces(10_000_000, 20, 2)) == 8


def test_results_come_in_order() -> None:
    assert list(pool.each(lambda n: n * n, range(100), 3)) == [n * n for n in range(100)]


def test_an_error_of_a_piece_is_raised_at_its_place() -> None:
    results = pool.each(lambda n: 6 // n, [3, 2, 0], 2)
    assert [next(results), next(results)] == [2, 3]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_the_child_of_a_fork_has_threads_of_its_own() -> None:
    """An app may fork after the first round; the parent's threads are not in the child."""
    assert list(pool.each(abs, [-1, -2], 2)) == [1, 2]
    child = os.fork()
    if child == 0:
        # No exception may reach pytest in the child.
        worked = False
        try:
            worked = list(pool.each(abs, [-3, -4], 2)) == [3, 4]
        finally:
            os._exit(0 if worked else 1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
