"""Named tensors: the digest is a public contract, and nothing from outside can break a sentence."""

from __future__ import annotations

import hashlib
import math
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from onefed import arrays

QUICK = settings(max_examples=60, deadline=None)

MODELS = st.dictionaries(
    st.text(max_size=3),
    st.sampled_from(arrays.DTYPES).flatmap(
        lambda name: st_numpy.arrays(
            arrays.dtype_of(name), st_numpy.array_shapes(min_dims=0, min_side=0)
        )
    ),
    max_size=3,
)


def described(model: arrays.Arrays) -> object:
    """All that the identity of a model consists of, in another form than the encoding."""
    return {key: (str(a.dtype), a.shape, a.tobytes()) for key, a in model.items()}


def test_digest_is_the_documented_encoding() -> None:
    model = {
        "b": np.array([[1, 2, 3]], np.int16),
        "a": np.array(1.5, np.float32),
        "é": np.zeros((0, 2), bool),
    }

    def field(data: bytes) -> bytes:
        return struct.pack("<Q", len(data)) + data

    encoded = b"onefed model 1\n"
    encoded += field(b"a") + field(b"float32") + field(b"") + field(struct.pack("<f", 1.5))
    encoded += field(b"b") + field(b"int16") + field(struct.pack("<QQ", 1, 3))
    encoded += field(struct.pack("<hhh", 1, 2, 3))
    encoded += field("é".encode()) + field(b"bool") + field(struct.pack("<QQ", 0, 2)) + field(b"")

    assert arrays.digest(model) == hashlib.sha256(encoded).hexdigest()
    assert arrays.digest({}) == hashlib.sha256(b"onefed model 1\n").hexdigest()


def test_digest_never_changes() -> None:
    """A golden value: checkpoints of every version are compared with it."""
    model = {"weight": np.arange(6, dtype=np.float32).reshape(2, 3), "bias": np.array([0.5, -0.0])}
    assert (
        arrays.digest(model) == "ddfabad4377f3b1f4f16623f562041b47d5d7513186f88ee0130dbca1381ee57"
    )


@QUICK
@given(MODELS, MODELS)
def test_equal_digests_mean_equal_models(one: arrays.Arrays, other: arrays.Arrays) -> None:
    equal = described(one) == described(other)
    assert (arrays.digest(one) == arrays.digest(other)) == equal


@QUICK
@given(MODELS)
def test_digest_does_not_see_order_layout_or_byte_order(model: arrays.Arrays) -> None:
    other = {
        key: np.asarray(model[key], model[key].dtype.newbyteorder(">"), order="F")
        for key in reversed(model)
    }
    assert arrays.digest(other) == arrays.digest(model)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"a": np.zeros(2, np.float32)}, {"a": np.zeros(1, np.float64)}),
        ({"a": np.zeros(1, np.int64)}, {"a": np.zeros(1, np.float64)}),
        ({"a": np.zeros(1, np.uint16)}, {"a": np.zeros(1, arrays.BFLOAT16)}),
        ({"a": np.zeros((1, 2))}, {"a": np.zeros((2, 1))}),
        ({"a": np.zeros(())}, {"a": np.zeros(1)}),
        ({"a": np.zeros((0, 2))}, {"a": np.zeros((0, 3))}),
        ({"a": np.zeros(0)}, {}),
        ({"ab": np.zeros(0), "c": np.zeros(0)}, {"a": np.zeros(0), "bc": np.zeros(0)}),
        ({"a": np.zeros(1), "b": np.ones(1)}, {"a": np.ones(1), "b": np.zeros(1)}),
        ({"a": np.array([0.0])}, {"a": np.array([-0.0])}),
    ],
)
def test_what_looks_alike_in_bytes_has_another_digest(
    one: arrays.Arrays, other: arrays.Arrays
) -> None:
    assert arrays.digest(one) != arrays.digest(other)


@pytest.mark.parametrize(
    "array",
    [np.array([{}], object), np.array(["x"]), np.zeros(1, complex), np.zeros(1, "M8[s]")],
)
def test_unsupported_dtype_is_refused_by_name(array: np.ndarray[Any, Any]) -> None:
    with pytest.raises(arrays.ArraysError, match="'layer' has the dtype"):
        arrays.digest({"layer": array})


def test_name_that_is_not_text_is_refused() -> None:
    with pytest.raises(arrays.ArraysError, match="UTF-8"):
        arrays.digest({"\ud800": np.zeros(1)})


TEMPLATE = {"w": np.zeros((2, 3), np.float32), "b": np.zeros(3, np.float32)}


def test_mismatch_matches_by_name_and_ignores_layout() -> None:
    same = {"b": TEMPLATE["b"], "w": np.asfortranarray(TEMPLATE["w"])}
    assert arrays.mismatch(same, TEMPLATE) is None


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"w": np.zeros((3, 2), np.float32)}, "'w' has shape (3, 2), expected (2, 3)"),
        ({"w": np.zeros((2, 3))}, "'w' has dtype float64, expected float32"),
        ({"w": np.zeros((2, 3), ">f4")}, "'w' has dtype float32, bytes swapped, expected float32"),
        ({"w": np.empty((2, 3), object)}, "'w' has the unsupported dtype 'object'"),
        ({"w": [1, 2]}, "'w' is a list, not an array"),
        ({"w": np.zeros((2, 3), arrays.BFLOAT16)}, "'w' has dtype bfloat16, expected float32"),
        ({"w": np.zeros((2, 3), "V2")}, "'w' has the unsupported dtype '|V2'"),
        ({"c": np.zeros(1)}, "'c' is not part of the model"),
        ({"\x1b[2J\n": 0}, r"'\x1b[2J\n' is not part of the model"),
    ],
)
def test_mismatch_says_what_differs(changed: dict[str, Any], said: str) -> None:
    assert arrays.mismatch({**TEMPLATE, **changed}, TEMPLATE) == said


def test_mismatch_names_what_is_missing() -> None:
    assert arrays.mismatch({"w": TEMPLATE["w"]}, TEMPLATE) == "'b' is missing"


def test_mismatch_stays_short() -> None:
    hostile = {f"{n}{'x' * 10_000}": np.zeros(1) for n in range(1000)}
    said = arrays.mismatch(hostile, TEMPLATE)
    assert said is not None
    assert said.endswith("and 999 more")
    assert len(said) < 400


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_finite_sees_the_one_bad_element(dtype: str, bad: float) -> None:
    array = np.zeros((3, 4), dtype)
    assert arrays.is_finite({"a": array, "none": np.zeros(0, dtype), "n": np.array(-3)})
    array[1, 2] = bad
    assert not arrays.is_finite({"a": array.T})


def test_magnitude_is_that_of_the_largest_element() -> None:
    assert arrays.magnitude(np.array([-3, 2], np.int8)) == 3.0
    assert arrays.magnitude(np.array([np.iinfo(np.int64).min])) == 2.0**63
    assert arrays.magnitude(np.array([False, True])) == 1.0


def test_nbytes_counts_elements() -> None:
    assert arrays.nbytes(TEMPLATE) == 36
