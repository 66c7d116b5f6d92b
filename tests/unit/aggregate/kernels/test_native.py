"""Compiled or not, whatever the instruction set, the threads and the tiles: the same bits."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from onefed.aggregate.kernels import reference, steps
from onefed.aggregate.kernels.selection import Kernels
from onefed.arrays import dtype_of

QUICK = settings(max_examples=25, deadline=None)
Columns = list[NDArray[Any]]
Make = Callable[..., Columns]

DTYPES = st.sampled_from(["float32", "float64", "float32", "float64", "float16", "bfloat16"])
CLIENTS = st.sampled_from([1, 2, 3, 4, 5, 7, 8, 9, 12, 13, 20, 33])
SIZES = st.sampled_from([0, 1, 3, 4, 7, 8, 31, 33, 127, 128, 129, 255, 513, 2047, 2049, 5000])
SEEDS = st.integers(0, 2**32 - 1)


def same(columns: Columns, dtype: str, *kernels: Callable[[Columns, NDArray[Any]], None]) -> None:
    """Run all of them on the same columns, and demand the same bits and untouched inputs."""
    before = [column.tobytes() for column in columns]
    results = []
    for kernel in kernels:
        out = np.empty(columns[0].size, dtype_of(dtype))
        kernel(columns, out)
        results.append(out.tobytes())
    assert results[1:] == results[:-1]
    assert [column.tobytes() for column in columns] == before


@QUICK
@given(DTYPES, CLIENTS, SIZES, SEEDS)
def test_weighted_mean(
    native: Kernels, columns_of: Make, dtype: str, clients: int, size: int, seed: int
) -> None:
    weights = np.random.default_rng(seed).integers(1, 2**29, clients).tolist()
    same(
        columns_of(dtype, clients, size, seed),
        dtype,
        lambda columns, out: native.weighted_mean(columns, weights, out),
        lambda columns, out: reference.weighted_mean(columns, weights, out),
        lambda columns, out: folded(native, columns, weights, out),
    )


def folded(kernels: Kernels, columns: Columns, weights: list[int], out: NDArray[Any]) -> None:
    total = np.zeros(out.size)
    for column, weight in zip(columns, weights, strict=True):
        kernels.fold([total], [column], weight)
    kernels.divide(total, sum(weights), out)


def test_many_arrays_are_folded_as_one_piece_of_work(native: Kernels, columns_of: Make) -> None:
    sizes = [300_000, 5, 1, 120_000, 0]
    dtypes = ["float32", "float64", "float16", "bfloat16", "float32"]
    columns = [columns_of(d, 1, size, 29)[0] for d, size in zip(dtypes, sizes, strict=True)]
    results = []
    for kernels in (native, reference):
        totals = [np.full(size, 0.1) for size in sizes]
        kernels.fold(totals, columns, 7)
        kernels.fold(totals[::-1], columns[::-1], 2**29 - 1)
        results.append([total.tobytes() for total in totals])
    assert results[0] == results[1]


@QUICK
@given(st.data(), DTYPES, CLIENTS, SIZES, SEEDS)
def test_sorted_mean(
    native: Kernels,
    columns_of: Make,
    data: st.DataObject,
    dtype: str,
    clients: int,
    size: int,
    seed: int,
) -> None:
    low = data.draw(st.integers(0, clients - 1))
    high = data.draw(st.integers(low + 1, clients))
    same(
        columns_of(dtype, clients, size, seed),
        dtype,
        lambda columns, out: native.sorted_mean(columns, low, high, out),
        lambda columns, out: reference.sorted_mean(columns, low, high, out),
    )


@QUICK
@given(st.data(), DTYPES, CLIENTS, SIZES, SEEDS)
def test_middle_mean(
    native: Kernels,
    columns_of: Make,
    data: st.DataObject,
    dtype: str,
    clients: int,
    size: int,
    seed: int,
) -> None:
    keep = data.draw(st.integers(1, clients))
    same(
        columns_of(dtype, clients, size, seed, power=data.draw(st.sampled_from([1, 100]))),
        dtype,
        lambda columns, out: native.middle_mean(columns, keep, out),
        lambda columns, out: reference.middle_mean(columns, keep, out),
    )


@QUICK
@given(DTYPES, CLIENTS, SIZES, SEEDS)
def test_gram(
    native: Kernels, columns_of: Make, dtype: str, clients: int, size: int, seed: int
) -> None:
    columns = columns_of(dtype, clients, size, seed, power=10)
    centre = columns_of(dtype, 1, size, seed + 1, power=10)[0]
    got = native.gram(columns, centre)
    assert got.tobytes() == reference.gram(columns, centre).tobytes()
    assert got.shape == (clients, clients)
    assert got.tobytes() == got.T.tobytes()


NUMBERS = st.builds(
    steps.Numbers,
    rate=st.sampled_from([0.1, 1.0, 3.7]),
    beta_1=st.sampled_from([0.0, 0.3, 0.9]),
    beta_2=st.sampled_from([0.0, 0.5, 0.99]),
    tau=st.sampled_from([1e-9, 1e-3, 2.0]),
)


@QUICK
@given(st.sampled_from(steps.KINDS), NUMBERS, DTYPES, SIZES, SEEDS, st.booleans())
def test_steps_of_server_optimizers(
    native: Kernels,
    columns_of: Make,
    kind: str,
    numbers: steps.Numbers,
    dtype: str,
    size: int,
    seed: int,
    spread: bool,
) -> None:
    """Memories of many layouts, one of them a single element that is seen everywhere."""
    old, mean = columns_of(dtype, 2, size, seed, power=10)
    wide = "float64" if dtype == "float64" else "float32"
    memories = [np.abs(each) for each in columns_of(wide, 2, size, seed + 1, power=10)]
    before = [
        np.broadcast_to(np.array(0.5, wide), (size,)) if spread else np.repeat(each, 3)[::3]
        for each in memories[: steps.MEMORIES[kind]]
    ]
    results = []
    for kernels in (native, reference):
        model, after = mean.copy(), [np.empty(size, wide) for _ in before]
        finite = kernels.advance(kind, numbers, old, model, before, after)
        results.append([each.tobytes() for each in (model, *after)] if finite else None)
    assert results[0] == results[1]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", steps.KINDS)
def test_a_step_says_when_it_leaves_the_type(native: Kernels, kind: str, dtype: str) -> None:
    """One element of the last tile is too large, of the model or of the memory."""
    size = steps.TILE_ELEMENTS + 5
    largest = np.finfo(dtype).max
    for rate, value in ((4.0, largest / 2), (1.0, np.inf)):
        old, model = np.zeros((2, size), dtype)
        model[-1] = value
        before = [np.full(size, 1e-3, dtype) for _ in range(steps.MEMORIES[kind])]
        if kind != "momentum" and dtype == "float32" and value < np.inf:
            model[-1], old[-1] = largest, largest  # the step itself is tame
            before[-1][-1] = np.inf
        after = [np.empty_like(each) for each in before]
        for kernels in (native, reference):
            made = model.copy()
            numbers = steps.Numbers(rate, 0.9, 0.9, 1e-3)
            assert not kernels.advance(kind, numbers, old, made, before, after)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", steps.KINDS)
def test_steps_of_sizes_that_are_split(
    native: Kernels, columns_of: Make, kind: str, dtype: str
) -> None:
    size = 5 * steps.TILE_ELEMENTS + 77
    old, mean, *before = columns_of(dtype, 2 + steps.MEMORIES[kind], size, 23, power=10)
    before = [np.abs(each) for each in before]
    results = []
    for kernels in (native, reference):
        model, after = mean.copy(), [np.empty_like(each) for each in before]
        assert kernels.advance(kind, steps.Numbers(0.1, 0.9, 0.99, 1e-9), old, model, before, after)
        results.append([each.tobytes() for each in (model, *after)])
    assert results[0] == results[1]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_sizes_that_are_split_among_threads(native: Kernels, columns_of: Make, dtype: str) -> None:
    clients, size = 20, 2 * 65_536 + 130
    columns = columns_of(dtype, clients, size, 11, power=10)
    weights = list(range(1, clients + 1))
    pairs: list[tuple[Callable[..., None], Callable[..., None], tuple[Any, ...]]] = [
        (native.weighted_mean, reference.weighted_mean, (weights,)),
        (native.sorted_mean, reference.sorted_mean, (4, 16)),
        (native.middle_mean, reference.middle_mean, (6,)),
    ]
    for compiled, plain, arguments in pairs:
        one, other = np.empty((2, size), dtype)
        compiled(columns, *arguments, one)
        plain(columns, *arguments, other)
        assert one.tobytes() == other.tobytes(), compiled
    few = columns[:5]
    assert native.gram(few, columns[5]).tobytes() == reference.gram(few, columns[5]).tobytes()


@pytest.mark.parametrize("clients", [100, 1000])
def test_many_clients(native: Kernels, columns_of: Make, clients: int) -> None:
    columns = columns_of("float32", clients, 70, 13, power=10)
    cut = clients // 5
    for compiled, plain, arguments in (
        (native.sorted_mean, reference.sorted_mean, (cut, clients - cut)),
        (native.middle_mean, reference.middle_mean, (cut,)),
    ):
        one, other = np.empty((2, 70), np.float32)
        compiled(columns, *arguments, one)
        plain(columns, *arguments, other)
        assert one.tobytes() == other.tobytes(), compiled
    centre = columns[0].copy()
    assert native.gram(columns, centre).tobytes() == reference.gram(columns, centre).tobytes()


def test_a_number_of_threads_can_be_given_to_a_call(native: Kernels, columns_of: Make) -> None:
    columns = columns_of("float32", 20, 60_000, 17)
    results = set()
    for threads in (1, 2, 64):
        out = np.empty(60_000, np.float32)
        native.sorted_mean(columns, 4, 16, out, threads=threads)
        results.add(out.tobytes())
    assert len(results) == 1
    for threads in (0, 65):
        with pytest.raises(ValueError, match="threads"):
            native.gram(columns, columns[0], threads=threads)


def test_columns_may_start_anywhere_that_their_type_allows(
    native: Kernels, columns_of: Make
) -> None:
    """Tensors of one message lie in one buffer: aligned to their elements, not to cache lines."""
    columns = columns_of("float32", 6, 1000, 19)
    shifted = []
    for offset, column in enumerate(columns):
        buffer = np.zeros(column.size + 16, np.float32)
        buffer[offset : offset + column.size] = column
        shifted.append(buffer[offset : offset + column.size])
    results = []
    for given_columns, offset in ((columns, 0), (shifted, 3)):
        out = np.zeros(1016, np.float32)
        native.middle_mean(given_columns, 3, out[offset : offset + 1000])
        assert not out[:offset].any()
        assert not out[offset + 1000 :].any()
        results.append(out[offset : offset + 1000].tobytes())
        assert native.gram(given_columns, given_columns[0]).tobytes() == (
            reference.gram(columns, columns[0]).tobytes()
        )
    assert results[0] == results[1]


def test_the_extension_is_compiled_where_there_is_a_compiler() -> None:
    if shutil.which("gcc") is None:
        pytest.skip("no compiler")
    from onefed.aggregate.kernels import native

    assert native.instruction_sets()[0] == "baseline"
