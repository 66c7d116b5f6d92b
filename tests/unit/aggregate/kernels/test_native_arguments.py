"""The functions in C check for themselves what the safety of memory rests on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

_native = pytest.importorskip("onefed.aggregate.kernels._native")


def floats(size: int = 8, fill: float = 1.0) -> Any:
    return np.full(size, fill, np.float32)


A, B = floats(), floats()
NETWORK = np.array([0, 1], np.int32)
WIDE = np.ones(8)
READ_ONLY = floats()
READ_ONLY.flags.writeable = False
UNALIGNED = np.zeros(33, np.uint8)[1:].view(np.float32)
SHARED = floats(12)
NAN, INFINITY = float("nan"), float("inf")

WRONG: list[tuple[str, tuple[Any, ...]]] = [
    ("weighted_mean", ()),
    ("weighted_mean", (0, (A, B), np.ones(2), 2.0)),
    ("weighted_mean", (0, (A, B), np.ones(2), 2.0, floats(), 1)),
    ("weighted_mean", (9, (A, B), np.ones(2), 2.0, floats())),
    ("weighted_mean", (-1, (A, B), np.ones(2), 2.0, floats())),
    ("weighted_mean", (2**80, (A, B), np.ones(2), 2.0, floats())),
    ("weighted_mean", ("avx2", (A, B), np.ones(2), 2.0, floats())),
    ("weighted_mean", (0, [A, B], np.ones(2), 2.0, floats())),
    ("weighted_mean", (0, (), np.ones(0), 2.0, floats())),
    ("weighted_mean", (0, A, np.ones(2), 2.0, floats())),
    ("weighted_mean", (0, (A, None), np.ones(2), 2.0, floats())),
    ("weighted_mean", (0, (A, floats(7)), np.ones(2), 2.0, floats())),
    ("weighted_mean", (0, (A, floats(9)), np.ones(2), 2.0, floats())),
    ("weighted_mean", (0, (A, WIDE), np.ones(2), 2.0, floats())),
    ("weighted_mean", (0, (A, floats(16)[::2]), np.ones(2), 2.0, floats())),
    ("weighted_mean", (0, (A, A.astype(">f4")), np.ones(2), 2.0, floats())),
    ("weighted_mean", (0, (A, A.view(np.int32)), np.ones(2), 2.0, floats())),
    ("weighted_mean", (0, (A, A.astype(np.float16)), np.ones(2), 2.0, floats())),
    ("weighted_mean", (0, (A, A.reshape(2, 4)), np.ones(2), 2.0, floats())),
    ("weighted_mean", (0, (A, UNALIGNED), np.ones(2), 2.0, floats())),
    ("weighted_mean", (0, (A, B), np.ones(3), 2.0, floats())),
    ("weighted_mean", (0, (A, B), np.ones(2, np.float32), 2.0, floats())),
    ("weighted_mean", (0, (A, B), np.ones(2), 0.0, floats())),
    ("weighted_mean", (0, (A, B), np.ones(2), NAN, floats())),
    ("weighted_mean", (0, (A, B), np.ones(2), INFINITY, floats())),
    ("weighted_mean", (0, (A, B), np.ones(2), "2", floats())),
    ("weighted_mean", (0, (A, B), np.ones(2), 2.0, READ_ONLY)),
    ("weighted_mean", (0, (A, B), np.ones(2), 2.0, B)),
    ("weighted_mean", (0, (A, SHARED[:8]), np.ones(2), 2.0, SHARED[4:])),
    ("weighted_mean", (0, (A, SHARED[4:]), np.ones(2), 2.0, SHARED[:8])),
    ("weighted_mean", (0, (A, B), np.ones(2), 2.0, bytes(32))),
    ("fold", (0, np.zeros(8), A, NAN)),
    ("fold", (0, np.zeros(7), A, 1.0)),
    ("fold", (0, floats(), A, 1.0)),
    ("fold", (0, WIDE, WIDE, 1.0)),
    ("fold", (0, WIDE, WIDE.view(np.float32)[:8], 1.0)),
    ("divide", (0, np.zeros(7), 1.0, floats())),
    ("divide", (0, np.zeros(8), -1.0, floats())),
    ("divide", (0, np.zeros(8), 1.0, READ_ONLY)),
    ("divide", (0, WIDE, 1.0, WIDE)),
    ("sorted_mean", (0, (A, B), NETWORK, 0, 3, floats())),
    ("sorted_mean", (0, (A, B), NETWORK, 1, 1, floats())),
    ("sorted_mean", (0, (A, B), NETWORK, -1, 1, floats())),
    ("sorted_mean", (0, (A, B), NETWORK, 0, 2**80, floats())),
    ("sorted_mean", (0, (A, B), NETWORK, None, 1, floats())),
    ("sorted_mean", (0, (A, B), np.array([0, 2], np.int32), 0, 2, floats())),
    ("sorted_mean", (0, (A, B), np.array([-1, 1], np.int32), 0, 2, floats())),
    ("sorted_mean", (0, (A, B), np.array([1, 0], np.int32), 0, 2, floats())),
    ("sorted_mean", (0, (A, B), np.array([1, 1], np.int32), 0, 2, floats())),
    ("sorted_mean", (0, (A, B), np.array([0, 1, 0], np.int32), 0, 2, floats())),
    ("sorted_mean", (0, (A, B), np.array([0, 1], np.int64), 0, 2, floats())),
    ("middle_mean", (0, (A, B), NETWORK, 0, floats())),
    ("middle_mean", (0, (A, B), NETWORK, 3, floats())),
    ("middle_mean", (0, (A, B), NETWORK, 2, A)),
    ("gram", (0, (A, B), floats(), np.zeros(3))),
    ("gram", (0, (A, B), floats(7), np.zeros(4))),
    ("gram", (0, (A, B), floats(), np.zeros(4, np.float32))),
    ("gram", (0, (A, B), floats(), np.zeros((2, 2)))),
    ("gram", (0, (WIDE, np.ones(8)), np.ones(8), WIDE[:4])),
    ("gram", (0, (np.ones(8), np.ones(8)), WIDE, WIDE[:4])),
    ("gram", (0, (floats(65_537),), floats(65_537), np.zeros(1))),
    ("advance", (0, 4, np.ones(4), A, floats(), (floats(), floats()))),
    ("advance", (0, -1, np.ones(4), A, floats(), (floats(), floats()))),
    ("advance", (9, 2, np.ones(4), A, floats(), (floats(), floats()))),
    ("advance", (0, 2, np.ones(3), A, floats(), (floats(), floats()))),
    ("advance", (0, 2, floats(4), A, floats(), (floats(), floats()))),
    ("advance", (0, 2, np.ones(4), A, floats(), (floats(),))),
    ("advance", (0, 0, np.ones(4), A, floats(), (floats(), floats()))),
    ("advance", (0, 1, np.ones(4), A, floats(), floats())),
    ("advance", (0, 2, np.ones(4), A, floats(), (floats(), np.ones(8)))),
    ("advance", (0, 2, np.ones(4), A, floats(), (floats(), floats(9)))),
    ("advance", (0, 2, np.ones(4), A, floats(7), (floats(), floats()))),
    ("advance", (0, 2, np.ones(4), A, floats(), (floats(), READ_ONLY))),
    ("advance", (0, 2, np.ones(4), A, READ_ONLY, (floats(), floats()))),
    ("advance", (0, 2, np.ones(4), A, A, (floats(), floats()))),
    ("advance", (0, 2, np.ones(4), A, floats(), (B, B))),
    ("advance", (0, 1, np.ones(4), A, floats(), (A,))),
    ("advance", (0, 1, WIDE[:4], A, floats(), (WIDE.view(np.float32)[:8],))),
]


@pytest.mark.parametrize(
    ("function", "arguments"), WRONG, ids=[f"{f}-{i}" for i, (f, _) in enumerate(WRONG)]
)
def test_a_wrong_call_is_refused_and_touches_nothing(
    function: str, arguments: tuple[Any, ...]
) -> None:
    before = [a.tobytes() for a in arguments if isinstance(a, np.ndarray)]
    with pytest.raises(ValueError, match=r"."):
        getattr(_native, function)(*arguments)
    assert [a.tobytes() for a in arguments if isinstance(a, np.ndarray)] == before


def test_buffers_are_given_back_after_a_call_and_after_a_refusal() -> None:
    """A buffer that is still held could not be resized."""
    held = bytearray(32)
    for out in (floats(), floats(7)):
        try:
            _native.weighted_mean(0, (memoryview(held).cast("f"),), np.ones(1), 1.0, out)
        except ValueError:
            assert out.size == 7
        else:
            assert not out.any()
    held.append(0)
    assert len(held) == 33
