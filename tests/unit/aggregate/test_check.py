"""One bad update costs its client the round, never the run."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onefed.aggregate import WEIGHT_MAX, Update, check, client_order
from onefed.aggregate.check import MAGNITUDE_MAX

TEMPLATE = {"w": np.zeros((2, 3), np.float32), "b": np.zeros((), np.float64)}


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
        (good("bad", b=np.array(2 * MAGNITUDE_MAX)), "'b' holds .* an absurd value"),
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
    update = good("0", weight=WEIGHT_MAX, b=np.array(-MAGNITUDE_MAX))
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
