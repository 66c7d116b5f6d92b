"""One bad update costs its client the round, never the run."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onefed import aggregate, arrays
from onefed.aggregate import WEIGHT_MAX, Update, check, client_order
from onefed.aggregate.check import MAGNITUDE_MAX_FLOAT64

TEMPLATE = {"w": np.zeros((2, 3), np.float32), "b": np.zeros((), np.float64)}


class Hostile:
    """An object of which every question raises."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(name)

    def __str__(self) -> str:
        raise RuntimeError("str")

    __repr__ = __hash__ = __eq__ = __len__ = __iter__ = __bool__ = __int__ = __str__  # type: ignore[assignment]


class Shy(np.ndarray[Any, Any]):
    """An array whose own methods raise, and which would hide a NaN from a check that asks it."""

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise RuntimeError("no")

    max = min = view = astype = reshape = __getitem__ = _refuse  # type: ignore[assignment]


class Name(str):
    """Text that compares and hashes as it pleases."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("eq")

    def __hash__(self) -> int:
        return 1


def good(client: str, weight: Any = 10, **changed: Any) -> Update:
    return Update(client, weight, {**{k: a.copy() for k, a in TEMPLATE.items()}, **changed})


def without(key: str) -> Update:
    return Update("bad", 10, {k: a for k, a in TEMPLATE.items() if k != key})


def filled(value: float) -> dict[str, Any]:
    w = np.zeros((2, 3), np.float32)
    w[1, 2] = value
    return {"w": w}


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (good("bad", **filled(math.nan)), "'w' holds NaN"),
        (good("bad", **filled(math.inf)), "'w' holds NaN, infinity"),
        (good("bad", **filled(-math.inf)), "'w' holds NaN, infinity"),
        (good("bad", b=np.array(2 * MAGNITUDE_MAX_FLOAT64)), "'b' holds .* an absurd value"),
        (good("bad", w=np.zeros((3, 2), np.float32)), "'w' has shape"),
        (good("bad", w=np.zeros(6, np.float32)), "'w' has shape"),
        (good("bad", b=np.zeros(1)), "'b' has shape"),
        (good("bad", w=np.zeros((2, 3))), "'w' has dtype float64"),
        (good("bad", w=np.zeros((2, 3), ">f4")), "bytes swapped"),
        (good("bad", w=np.empty((2, 3), object)), "unsupported dtype 'object'"),
        (good("bad", w=np.zeros((2, 3), "V4")), "unsupported dtype"),
        (good("bad", w=np.array([["x"] * 3] * 2)), "unsupported dtype"),
        (good("bad", w=[[0.0] * 3] * 2), "is a list"),
        (good("bad", w=None), "is a NoneType"),
        (good("bad", extra=np.zeros(1)), "'extra' is not part of the model"),
        (without("b"), "'b' is missing"),
        (Update("bad", 10, {}), "is missing"),
        (good("bad", weight=0), "weight is not between"),
        (good("bad", weight=-5), "weight is not between"),
        (good("bad", weight=10**18), "weight is not between"),
        (good("bad", weight=math.nan), "weight is a float"),
        (good("bad", weight=32.0), "weight is a float"),
        (good("bad", weight=True), "weight is a bool"),
        (good("bad", weight="10"), "weight is a str"),
        (good("bad", weight=np.int64(10)), "weight is a int64"),
        (good("bad", weight=Hostile()), "weight is a Hostile"),
        (good("bad", w=Hostile()), "cannot be read: RuntimeError|is a Hostile"),
        (Update("bad", 10, Hostile()), "cannot be read: RuntimeError"),  # type: ignore[arg-type]
        (Update("bad", 10, None), "cannot be read: AttributeError"),  # type: ignore[arg-type]
        (Update("bad", 10, [1.0]), "cannot be read: AttributeError"),  # type: ignore[arg-type]
        (Update("bad", 10, {**TEMPLATE, 1: TEMPLATE["w"]}), "named by a int"),  # type: ignore[dict-item]
        (Update("bad", 10, {**TEMPLATE, None: 1}), "named by a NoneType"),  # type: ignore[dict-item]
        (Update("bad", 10, {Name("w"): TEMPLATE["w"], "b": TEMPLATE["b"]}), "named by a Name"),
        (good("bad", **{"\ud800" * 99: np.zeros(1)}), "is not part of the model"),
        (good("bad", w=np.zeros((2, 3), np.float32).view(Shy) + np.float32(math.nan)), "holds NaN"),
        (
            good("bad", w=np.ma.MaskedArray(filled(math.nan)["w"], filled(1.0)["w"] == 1)),
            "'w' holds NaN",
        ),
    ],
)
def test_a_malformed_update_is_dropped_and_named(bad: Update, reason: str) -> None:
    first, last = good("1"), good("node")
    checked = check([bad, last, first], TEMPLATE)
    assert checked.accepted == (first, last)
    (rejected,) = checked.rejected
    assert rejected.client == "bad"
    assert re.search(reason, rejected.reason)
    assert len(rejected.reason) < 500


def test_a_client_that_sends_copies_loses_them_all() -> None:
    """Keeping one of them would let the order of arrival decide the bits."""
    alone = good("1")
    checked = check([good("0") for _ in range(100)] + [alone], TEMPLATE)
    assert checked.accepted == (alone,)
    assert [(r.client, r.reason) for r in checked.rejected] == [
        ("0", "sent 100 updates in one round")
    ]


def test_layout_and_order_are_no_fault() -> None:
    update = Update(
        "0", 1, {"b": np.zeros(()), "w": np.asfortranarray(np.ones((2, 3), np.float32))}
    )
    assert check([update], TEMPLATE).accepted == (update,)


def test_largest_weight_and_magnitude_are_accepted() -> None:
    update = good("0", weight=WEIGHT_MAX, b=np.array(-MAGNITUDE_MAX_FLOAT64))
    assert check([update], TEMPLATE).accepted == (update,)
    assert check([update], TEMPLATE, weight_max=WEIGHT_MAX - 1).accepted == ()


def test_accepted_and_rejected_come_in_client_order() -> None:
    updates = [good("b"), good("10"), good("2"), good("9", weight=0), good("11", weight=0)]
    checked = check(updates, TEMPLATE)
    assert [update.client for update in checked.accepted] == ["2", "10", "b"]
    assert [rejected.client for rejected in checked.rejected] == ["9", "11"]


def test_nothing_in_nothing_out() -> None:
    checked = check([], TEMPLATE)
    assert (checked.accepted, checked.rejected) == ((), ())


def test_client_order_counts() -> None:
    keys = ["a10", "a2", "10", "2", "02", "0", "", "½", "٣", "9" * 5000]
    expected = ["0", "02", "2", "10", "9" * 5000, "", "a10", "a2", "½", "٣"]
    assert sorted(keys, key=client_order) == expected


@given(st.text(max_size=4), st.text(max_size=4))
def test_client_order_tells_clients_apart(one: str, other: str) -> None:
    assert (client_order(one) == client_order(other)) == (one == other)


def test_a_subclass_reaches_a_rule_as_plain_memory() -> None:
    """Else the rule would meet its methods: a masked array leaves values out of a mean."""
    w = np.ones((2, 3), np.float32)
    update = good("0", w=np.ma.MaskedArray(w, mask=np.ones((2, 3), bool)))
    (accepted,) = check([update, good("1", w=w.view(Shy), weight=0)], TEMPLATE).accepted
    assert type(accepted.arrays["w"]) is np.ndarray
    assert np.shares_memory(accepted.arrays["w"], w)
    (accepted,) = check([good("1", w=w.view(Shy))], TEMPLATE).accepted
    _, after = aggregate.rule("FedMedian").step({}, TEMPLATE, [accepted], 1)
    assert after["w"].tolist() == w.tolist()


def test_bfloat16_is_checked_as_the_floats_are() -> None:
    template = {"w": np.zeros(2, arrays.BFLOAT16)}

    def update(*halves: int, dtype: Any = arrays.BFLOAT16) -> Update:
        return Update("0", 1, {"w": np.array(halves, np.uint16).view(dtype)})

    fine = update(0x3F80, 0xC000)
    assert check([fine], template).accepted == (fine,)
    for bad, reason in (
        (update(0x3F80, 0x7F80), "holds NaN, infinity"),
        (update(0x7FC0, 0), "holds NaN"),
        (update(1, 2, dtype=np.uint16), "has dtype uint16, expected bfloat16"),
        (update(1, 2, dtype=np.float16), "has dtype float16, expected bfloat16"),
    ):
        (rejected,) = check([bad], template).rejected
        assert reason in rejected.reason


HOSTILE_KEYS = st.one_of(
    st.sampled_from(["w", "b", Name("w"), "\ud800", "w" * 10**5]),
    st.integers(),
    st.none(),
    st.binary(max_size=3),
    st.text(max_size=3),
)
HOSTILE_ARRAYS = st.one_of(
    st.sampled_from(
        [np.float32, ">f4", "f8", "i4", "O", "V4", "S3", "U2", "M8[s]", "c8", "g", "?"]
    ).map(lambda dtype: np.zeros((2, 3), dtype)),
    st.sampled_from([math.nan, math.inf, -math.inf, 3e38, 0.0]).map(
        lambda value: np.full((2, 3), value, np.float32)
    ),
    st.just(np.zeros((2, 3), np.float32)).map(lambda array: array.view(Shy)),
    st.just(np.zeros((2, 3), np.dtype([("bfloat16", "u2"), ("more", "u2")]))),
    st.sampled_from([None, 7, "text", [[0.0] * 3] * 2, object(), np.float32(1), np.ndarray]),
    st.builds(Hostile),
)
HOSTILE_WEIGHTS = st.one_of(
    st.integers(-(10**20), 10**20),
    st.sampled_from([True, math.nan, math.inf, 1.0, "1", None, np.int64(5), [1]]),
    st.builds(Hostile),
)
HOSTILE_MODELS = st.one_of(
    st.lists(st.tuples(HOSTILE_KEYS, HOSTILE_ARRAYS), max_size=3).map(
        lambda pairs: {**dict(pairs)}
    ),
    st.lists(st.tuples(HOSTILE_KEYS, HOSTILE_ARRAYS), max_size=2).map(
        lambda pairs: {**TEMPLATE, **dict(pairs)}
    ),
    st.sampled_from([None, [], 7, "w"]),
    st.builds(Hostile),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(HOSTILE_WEIGHTS, HOSTILE_MODELS), min_size=1, max_size=3), st.data())
def test_nothing_that_a_client_sends_ends_a_round(
    replies: list[tuple[Any, Any]], data: st.DataObject
) -> None:
    """Whatever passes is fit for every rule; whatever does not is named; the honest stay."""
    hostile = [Update(f"h{index}", *reply) for index, reply in enumerate(replies)]
    honest = [good(str(index)) for index in range(7)]
    checked = check(data.draw(st.permutations([*honest, *hostile])), TEMPLATE)
    assert checked.accepted[:7] == tuple(honest)
    assert len(checked.accepted) + len(checked.rejected) == len(honest) + len(hostile)
    assert all(len(rejected.reason) < 500 for rejected in checked.rejected)
    for name in ("FedAvg", "FedMedian", "Krum", "Bulyan"):
        parameters = {"num_malicious": 1} if name in ("Krum", "Bulyan") else {}
        _, after = aggregate.rule(name, **parameters).step({}, TEMPLATE, checked.accepted, 1)
        assert arrays.is_finite(after)
