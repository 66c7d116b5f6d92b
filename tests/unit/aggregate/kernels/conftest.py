"""Columns full of nasty values, and every variant of the kernels."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from onefed.aggregate.kernels.selection import Kernels
from onefed.arrays import BFLOAT16

COMPILED = importlib.util.find_spec("onefed.aggregate.kernels._native") is not None

Columns = list[NDArray[Any]]


def variants() -> list[Any]:
    if not COMPILED:
        return [pytest.param(None, id="native", marks=pytest.mark.skip("not compiled"))]
    from onefed.aggregate.kernels import native

    return [
        pytest.param((name, threads), id=f"{name}-{threads}")
        for name in native.instruction_sets()
        for threads in (1, 2, 5)
    ]


@pytest.fixture(scope="session", params=variants())
def native(request: pytest.FixtureRequest) -> Kernels:
    """The compiled kernels with one instruction set and number of threads."""
    from onefed.aggregate.kernels.native import Native

    return Native(*request.param)


@pytest.fixture(scope="session")
def columns_of() -> Callable[..., Columns]:
    """Make columns: dtype, clients, size, seed, and the largest power of two in them."""

    def make(dtype: str, clients: int, size: int, seed: int, power: int = 60) -> Columns:
        rng = np.random.default_rng(seed)
        values = rng.standard_normal((clients, size))
        values *= 2.0 ** rng.integers(-power, power, (1, size))  # every coordinate has its scale
        odd = rng.random((clients, size))
        values[odd < 0.05] = 0.0
        values[(odd >= 0.05) & (odd < 0.1)] = -0.0
        values[(odd >= 0.1) & (odd < 0.15)] = 2.0**-149
        if size:
            ties = rng.random((clients, size)) < 0.2
            values = np.where(ties, values[rng.integers(clients)], values)
        if dtype == "bfloat16":
            upper = values.astype(np.float32).view(np.uint32) >> 16
            return [row.astype(np.uint16).view(BFLOAT16) for row in upper]
        with np.errstate(over="ignore"):
            narrow = values.astype(dtype)
        narrow[~np.isfinite(narrow)] = 1.0
        return [row.copy() for row in narrow]

    return make
