"""Numbers change their type exactly where that is possible, else they are rounded once."""

from __future__ import annotations

import io
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from onefed import arrays

QUICK = settings(max_examples=300, deadline=None)

BFLOAT16_BITS = np.arange(0x7F81, dtype=np.uint16)
"""All that are not negative, in ascending order; the last is infinity."""


def value(bits: int) -> Fraction:
    """What a bfloat16 stands for; infinity as the number that would come after the largest."""
    exponent, fraction = bits >> 7, bits & 0x7F
    if exponent == 0:
        return Fraction(fraction, 2**133)
    return Fraction(128 + fraction) * Fraction(2) ** (exponent - 134)


def nearest(number: float) -> int:
    """The bits of the bfloat16 next to a number that is not negative, by exact comparison."""
    exact = Fraction(number)
    low, high = 0, 0x7F80
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if value(middle) <= exact else (low, middle)
    if exact >= value(high):
        return high
    below, above = exact - value(low), value(high) - exact
    return low if below < above or (below == above and low % 2 == 0) else high


def rounded(number: float) -> int:
    out = np.empty((), arrays.BFLOAT16)
    arrays.narrowed(np.array(number), out)
    return int(out["bfloat16"])


@QUICK
@given(st.floats(min_value=0, allow_infinity=False) | st.floats(min_value=0, width=32))
@example(2.0**-134)
@example(np.nextafter(2.0**-134, 1))
@example(3.3961775292304601e38)  # half way between the largest and infinity
@example(float(value(0x3F80) + value(0x3F81)) / 2)
@example(np.nextafter(float(value(0x3F80) + value(0x3F81)) / 2, 0))
@example(np.nextafter(float(value(0x3F81) + value(0x3F82)) / 2, 2))
def test_bfloat16_is_rounded_once_to_nearest_even(number: float) -> None:
    expected = 0x7F80 if np.isinf(number) else nearest(number)
    assert rounded(number) == expected
    assert rounded(-number) == expected | 0x8000


@QUICK
@given(st.integers(0, 0x7F7E), st.sampled_from([-1, 0, 1]))
def test_half_way_between_two_bfloat16_and_one_step_beside_it(bits: int, step: int) -> None:
    half = float((value(bits) + value(bits + 1)) / 2)
    number = float(np.nextafter(half, half + step)) if step else half
    assert rounded(number) == nearest(number)


def test_widening_is_exact_and_narrowing_takes_it_back() -> None:
    for name in ("bfloat16", "float16"):
        bits = BFLOAT16_BITS if name == "bfloat16" else np.arange(0x7C01, dtype=np.uint16)
        array = bits.view(arrays.dtype_of(name))
        wide = arrays.widened(array)
        back = np.empty_like(array)
        arrays.narrowed(wide.astype(np.float64), back)
        assert wide.dtype == np.float32
        assert back.tobytes() == array.tobytes()
    assert [value(int(bits)) for bits in BFLOAT16_BITS[:300]] == [
        Fraction(float(number))
        for number in arrays.widened(BFLOAT16_BITS.view(arrays.BFLOAT16))[:300]
    ]


def test_nan_stays_nan() -> None:
    for name in arrays.FLOATS:
        out = np.zeros(2, arrays.dtype_of(name))
        arrays.narrowed(np.array([np.nan, -np.nan]), out)
        assert np.isnan(arrays.widened(out)).all()


@pytest.mark.parametrize("shape", [(), (0,), (2, 0), (2, 3)])
@pytest.mark.parametrize("name", arrays.FLOATS)
def test_shapes_stay(name: str, shape: tuple[int, ...]) -> None:
    out = np.zeros(shape, arrays.dtype_of(name))
    arrays.narrowed(np.ones(shape), out)
    assert (arrays.widened(out) == 1).all()
    assert arrays.widened(out).shape == shape


def test_the_tag_survives_npz_without_pickle() -> None:
    array = BFLOAT16_BITS.view(arrays.BFLOAT16)
    stream = io.BytesIO()
    np.savez(stream, arr_0=array)
    stream.seek(0)
    with np.load(stream, allow_pickle=False) as archive:
        read = archive["arr_0"]
    assert arrays.dtype_name(read.dtype) == "bfloat16"
    assert arrays.array_digest(read) == arrays.array_digest(array)


@pytest.mark.parametrize(
    "dtype", [np.dtype([("bfloat16", "u4")]), np.dtype([("bfloat16", "u2"), ("x", "u2")])]
)
def test_only_the_tag_itself_is_bfloat16(dtype: np.dtype[np.void]) -> None:
    assert arrays.dtype_name(dtype) != "bfloat16"
    assert not arrays.is_float(dtype)


def test_names_and_types_belong_together() -> None:
    for name in arrays.DTYPES:
        assert arrays.dtype_name(arrays.dtype_of(name)) == name
        assert arrays.is_float(arrays.dtype_of(name)) == ("float" in name)
        assert arrays.dtype_name(arrays.dtype_of(name).newbyteorder(">")) == name
