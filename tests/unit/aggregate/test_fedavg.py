"""FedAvg against an oracle in exact fractions, and the laws of its arithmetic."""

from __future__ import annotations

import tracemalloc
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from onefed import aggregate
from onefed.aggregate import WEIGHT_MAX, Update, fedavg
from onefed.arrays import Arrays, digest

QUICK = settings(max_examples=80, deadline=None)

WEIGHTS = st.integers(1, WEIGHT_MAX)
INTEGERS = ["bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]
FLOATS = ["float16", "float32", "float64"]

TILE = 2**16
"""More elements than any stage works on at a time."""


def of(weight: int, values: Any, dtype: str, client: str = "0") -> Update:
    return Update(client, weight, {"w": np.array(values, dtype)})


def mean(*updates: Update) -> np.ndarray[Any, Any]:
    rule = aggregate.rule("FedAvg")
    model: Arrays = {key: np.zeros_like(array) for key, array in updates[0].arrays.items()}
    state, after = rule.step(rule.init(model), model, updates, 1)
    assert state == {}
    return after["w"]


def exact_mean(updates: list[Update], index: int) -> Fraction:
    total = sum(Fraction(u.weight) * Fraction(u.arrays["w"][index].item()) for u in updates)
    return Fraction(total, sum(update.weight for update in updates))


def rounded(value: Fraction, dtype: str) -> Any:
    """The float nearest to ``value``, ties to the even one."""
    near = np.array(float(value), dtype)
    around = [np.nextafter(near, np.array(-np.inf, dtype)), near]
    around.append(np.nextafter(near, np.array(np.inf, dtype)))
    bits = f"u{near.itemsize}"
    return min(around, key=lambda f: (abs(Fraction(float(f)) - value), f.view(bits) & 1))


@st.composite
def updates_of(draw: st.DrawFn, dtypes: list[str], elements: Any = None) -> list[Update]:
    dtype = draw(st.sampled_from(dtypes))
    values = elements
    if values is None:
        limits = {"allow_nan": False, "allow_infinity": False} if dtype in FLOATS else {}
        if dtype == "float64":
            limits |= {"min_value": -(2.0**480), "max_value": 2.0**480}
        values = st_numpy.from_dtype(np.dtype(dtype), **limits)
    arrays = st_numpy.arrays(dtype, 4, elements=values)
    replies = draw(st.lists(st.tuples(WEIGHTS, arrays), min_size=1, max_size=6))
    return [Update(str(n), weight, {"w": a}) for n, (weight, a) in enumerate(replies)]


def test_mean_is_weighted_by_examples() -> None:
    assert mean(of(1, [0.0, 4.0], "float32"), of(3, [4.0, 0.0], "float32", "1")).tolist() == [3, 1]


def test_result_has_keys_order_shapes_and_dtypes_of_the_model() -> None:
    model = {"z": np.zeros((2, 0), np.float16), "a": np.array(7), "m": np.zeros((2, 2), bool)}
    update = Update("0", 5, dict(sorted(model.items())))
    _, after = fedavg.FedAvg().step({}, model, [update], 1)
    assert list(after) == ["z", "a", "m"]
    assert digest(after) == digest(model)


@QUICK
@given(st.data(), updates_of(FLOATS + INTEGERS))
def test_arrival_order_does_not_show_in_the_bits(
    data: st.DataObject, updates: list[Update]
) -> None:
    shuffled = data.draw(st.permutations(updates))
    assert mean(*shuffled).tobytes() == mean(*updates).tobytes()


def test_order_would_show_in_float64_sums_without_the_order_of_clients() -> None:
    rng = np.random.default_rng(7)
    updates = [of(n + 1, rng.standard_normal(1000), "float64", str(n)) for n in range(12)]
    products = [update.weight * update.arrays["w"] for update in updates]
    assert sum(products).tobytes() != sum(reversed(products)).tobytes()
    in_order = sum(products[1:], products[0]) / sum(update.weight for update in updates)
    assert mean(*reversed(updates)).tobytes() == in_order.tobytes()


@QUICK
@given(updates_of(FLOATS))
def test_floats_are_the_exact_mean_up_to_float64_sums_and_one_rounding(
    updates: list[Update],
) -> None:
    result = mean(*updates)
    weight_sum = sum(update.weight for update in updates)
    for index in range(result.size):
        magnitudes = [abs(Fraction(u.arrays["w"][index].item())) * u.weight for u in updates]
        of_the_sum = (len(updates) + 2) * Fraction(1, 2**53) * sum(magnitudes) / weight_sum
        one_rounding = Fraction(float(np.spacing(np.abs(result[index]) / 2)))
        underflow = Fraction(1, 2**1073)
        error = abs(Fraction(result[index].item()) - exact_mean(updates, index))
        assert error <= of_the_sum + one_rounding + underflow


DYADIC = st.integers(-(2**15), 2**15).map(lambda n: n / 2**10)
"""Values whose weighted sums float64 holds exactly."""


@QUICK
@given(updates_of(["float32"], DYADIC), st.lists(st.integers(1, 10_000), min_size=6, max_size=6))
def test_float32_is_correctly_rounded_where_the_sum_is_exact(
    updates: list[Update], weights: list[int]
) -> None:
    light = [Update(u.client, w, u.arrays) for u, w in zip(updates, weights, strict=False)]
    result = mean(*light)
    expected = [rounded(exact_mean(light, index), "float32") for index in range(result.size)]
    assert result.tolist() == expected


@QUICK
@given(updates_of(INTEGERS))
def test_integers_are_the_exact_mean_rounded_half_to_even(updates: list[Update]) -> None:
    expected = [round(exact_mean(updates, index)) for index in range(4)]
    assert mean(*updates).tolist() == expected


@pytest.mark.parametrize("dtype", ["int64", "uint64", "int8", "uint8"])
@pytest.mark.parametrize("end", ["min", "max"])
def test_integers_at_the_end_of_their_range_stay_there(dtype: str, end: str) -> None:
    value = getattr(np.iinfo(dtype), end)
    assert mean(of(WEIGHT_MAX, value, dtype), of(WEIGHT_MAX, value, dtype, "1")) == value


def test_bool_is_the_majority_by_weight_and_a_tie_is_false() -> None:
    majority = mean(of(2, [True, False], "bool"), of(1, [False, True], "bool", "1"))
    tie = mean(of(2, [True, False], "bool"), of(2, [False, True], "bool", "1"))
    assert majority.tolist() == [True, False]
    assert tie.tolist() == [False, False]


@QUICK
@given(
    st_numpy.arrays(
        "float32", 4, elements=st.floats(width=32, allow_nan=False, allow_infinity=False)
    ),
    st.lists(st.integers(1, 2**25), min_size=1, max_size=8),
)
def test_mean_of_equals_is_equal(array: np.ndarray[Any, Any], weights: list[int]) -> None:
    equals = [Update(str(n), weight, {"w": array}) for n, weight in enumerate(weights)]
    assert mean(*equals).tobytes() == (array + 0).tobytes()


def test_a_mean_of_negative_zeros_is_zero() -> None:
    """So that a client more, or the streaming form, cannot show in a sign."""
    assert not np.signbit(mean(of(1, [-0.0], "float32"), of(2, [-0.0], "float32", "1")))


@pytest.mark.parametrize("dtype", ["float32", "int32", "int64"])
def test_tiles_do_not_show(dtype: str) -> None:
    size = 2 * TILE + 3
    rng = np.random.default_rng(7)
    values = [(rng.standard_normal(size) * 2**20).astype(dtype) for _ in range(3)]
    whole = mean(*(of(n + 1, value, dtype, str(n)) for n, value in enumerate(values)))
    edges = [0, TILE - 1, TILE, size - 1]
    alone = mean(*(of(n + 1, value[edges], dtype, str(n)) for n, value in enumerate(values)))
    assert whole[edges].tobytes() == alone.tobytes()


def test_layout_does_not_show_and_arguments_are_unchanged() -> None:
    rng = np.random.default_rng(7)
    matrices = [rng.standard_normal((5, 3)).astype(np.float32) for _ in range(2)]
    plain = [Update(str(n), 3, {"w": matrix.copy()}) for n, matrix in enumerate(matrices)]
    fortran = [Update(str(n), 3, {"w": np.asfortranarray(m)}) for n, m in enumerate(matrices)]
    for update in (*plain, *fortran):
        update.arrays["w"].flags.writeable = False
    assert mean(*plain).tobytes() == mean(*fortran).tobytes()


def test_memory_is_the_result_and_little_more() -> None:
    size = 2**20
    updates = [of(1, np.ones(size, np.float32), "float32", str(n)) for n in range(4)]
    model = {"w": np.zeros(size, np.float32)}
    fedavg.weighted_mean(updates, model)
    tracemalloc.start()
    try:
        fedavg.weighted_mean(updates, model)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 1.5 * 4 * size
