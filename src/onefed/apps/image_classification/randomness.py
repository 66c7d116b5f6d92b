"""Where randomness comes from: one stream per purpose, each a function of the numbers given."""

from __future__ import annotations

import enum

import numpy as np


class Stream(enum.IntEnum):
    """What random numbers are for; equal numbers in two streams have nothing in common."""

    INITIAL_ARRAYS = 1
    TEST_SET = 2
    PARTITION = 3
    EXAMPLE_ORDER = 4


def generator(stream: Stream, *numbers: int) -> np.random.Generator:
    """A fresh generator; all numbers at least 0."""
    return np.random.default_rng([stream, *numbers])
