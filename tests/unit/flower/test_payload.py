"""What a message carries, and what a hostile client may put into one."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as numpy_st

from onefed import aggregate, arrays
from onefed.aggregate import WEIGHT_MAX, Update
from onefed.flower import payload
from onefed.flower.app_functions import Score
from onefed.flower.exchange import REASON_LENGTH_MAX, Failure, Reply

Replies = Callable[..., Reply]

MODEL = {"w": np.arange(4, dtype=np.float32), "b": np.array(0.5)}
GOOD = MetricRecord({"num-examples": 3})


def npy(array: np.ndarray[Any, Any]) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def array_of(data: bytes, *, stype: str = "numpy.ndarray") -> Array:
    """An array as it arrives: what it says of itself need not be true."""
    return Array(dtype="float32", shape=(4,), stype=stype, data=data)


def model_with(w: Array | np.ndarray[Any, Any]) -> ArrayRecord:
    return ArrayRecord({"w": w if isinstance(w, Array) else Array(w), "b": Array(MODEL["b"])})


def npy_header(text: str) -> bytes:
    header = text.encode().ljust(118) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header


def zip_of(data: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("w.npy", data)
    return file.getvalue()


def read_score(replies: list[Reply]) -> tuple[Score | None, list[Failure]]:
    """What the loop does with evaluate replies, one after the other."""
    judged = [payload.read_vote(reply) for reply in replies]
    votes = [each for each in judged if isinstance(each, payload.Vote)]
    return payload.score(votes), [each for each in judged if isinstance(each, Failure)]


class TestMessages:
    @pytest.mark.parametrize(
        ("make", "kind"),
        [(payload.train_message, "train"), (payload.evaluate_message, "evaluate")],
    )
    def test_a_message_is_what_any_client_app_of_flower_expects(
        self, make: Callable[..., Message], kind: str
    ) -> None:
        message = make(7, payload.to_record(MODEL), round_number=3, seed=2**63 - 1)

        assert (message.metadata.dst_node_id, message.metadata.message_type) == (7, kind)
        assert message.metadata.group_id == "3"
        assert list(message.content) == ["arrays", "config"]
        assert message.content["config"] == ConfigRecord({"server-round": 3, "seed": 2**63 - 1})
        assert arrays.digest(payload.to_arrays(message.content["arrays"])) == arrays.digest(MODEL)


class TestRecords:
    @pytest.mark.parametrize("dtype", arrays.DTYPES)
    @settings(deadline=None, max_examples=30)
    @given(data=st.data())
    def test_a_model_keeps_its_bits_on_the_way_out_and_back(
        self, dtype: str, data: st.DataObject
    ) -> None:
        shapes = numpy_st.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
        model = {
            name: data.draw(numpy_st.arrays(arrays.dtype_of(dtype), shapes))
            for name in ("b/a", "a", "")
        }

        back = payload.to_arrays(payload.to_record(model))

        assert list(back) == list(model)
        assert arrays.digest(back) == arrays.digest(model)

    def test_memory_layout_does_not_show(self) -> None:
        square = np.arange(16, dtype=np.float32).reshape(4, 4)
        layouts = [square, np.asfortranarray(square), np.repeat(square, 2, axis=1)[:, ::2]]

        digests = {
            arrays.digest(payload.to_arrays(payload.to_record({"w": layout}))) for layout in layouts
        }

        assert digests == {arrays.digest({"w": square})}

    def test_an_app_may_give_lists_and_numbers_for_arrays(self) -> None:
        model = payload.to_arrays({"w": [1.0, 2.0], "b": 3})  # type: ignore[dict-item]

        assert {name: array.tolist() for name, array in model.items()} == {"w": [1.0, 2.0], "b": 3}


MALFORMED_REPLIES: dict[str, dict[str, Any]] = {
    "nothing": {},
    "no-arrays": {"metrics": GOOD},
    "two-array-records": {"a": model_with(MODEL["w"]), "b": model_with(MODEL["w"]), "m": GOOD},
    "no-metrics": {"arrays": model_with(MODEL["w"])},
    "empty-metrics": {"arrays": model_with(MODEL["w"]), "metrics": MetricRecord()},
    "two-metric-records": {"arrays": model_with(MODEL["w"]), "m": GOOD, "n": GOOD},
    "weight-in-a-list": {
        "arrays": model_with(MODEL["w"]),
        "metrics": MetricRecord({"num-examples": [3]}),
    },
    "weight-under-another-name": {
        "arrays": model_with(MODEL["w"]),
        "metrics": MetricRecord({"num_examples": 3}),
    },
    **{
        f"weight-{claimed}": {
            "arrays": model_with(MODEL["w"]),
            "metrics": MetricRecord({"num-examples": claimed}),
        }
        for claimed in (0, -1, 10**18, 2.5, 1e300, float("nan"), float("inf"))
    },
    "config-for-arrays": {"arrays": ConfigRecord({"w": "x"}), "metrics": GOOD},
    "no-bytes": {"arrays": model_with(array_of(b"")), "metrics": GOOD},
    "nonsense-bytes": {"arrays": model_with(array_of(b"\x00" * 99)), "metrics": GOOD},
    "another-serialisation": {
        "arrays": model_with(array_of(npy(MODEL["w"]), stype="torch.Tensor")),
        "metrics": GOOD,
    },
    "pickled-objects": {
        "arrays": model_with(
            array_of(npy_header("{'descr': '|O', 'fortran_order': False, 'shape': (4,)}"))
        ),
        "metrics": GOOD,
    },
    "more-elements-than-bytes": {
        "arrays": model_with(
            array_of(npy_header("{'descr': '<f4', 'fortran_order': False, 'shape': (10**15,)}"))
        ),
        "metrics": GOOD,
    },
    "huge-shape": {
        "arrays": model_with(
            array_of(npy_header(f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({2**62},)}}"))
        ),
        "metrics": GOOD,
    },
    "header-that-is-code": {
        "arrays": model_with(array_of(npy_header("__import__('os').abort()"))),
        "metrics": GOOD,
    },
    "zip-archive": {"arrays": model_with(array_of(zip_of(npy(MODEL["w"])))), "metrics": GOOD},
    "empty-model": {"arrays": ArrayRecord(), "metrics": GOOD},
    "extra-array": {
        "arrays": ArrayRecord({**model_with(MODEL["w"]), "extra": Array(MODEL["w"])}),
        "metrics": GOOD,
    },
    "other-key": {"arrays": ArrayRecord({"v" * 10**6: Array(MODEL["w"])}), "metrics": GOOD},
    "other-dtype": {"arrays": model_with(MODEL["w"].astype(np.float64)), "metrics": GOOD},
    "other-shape": {"arrays": model_with(MODEL["w"].reshape(2, 2)), "metrics": GOOD},
    "zero-dimensions": {"arrays": model_with(np.array(1, np.float32)), "metrics": GOOD},
    "bytes-swapped": {"arrays": model_with(MODEL["w"].astype(">f4")), "metrics": GOOD},
    "text": {"arrays": model_with(np.array(["x"] * 4)), "metrics": GOOD},
    "structured": {"arrays": model_with(np.zeros(4, [("a", "f4")])), "metrics": GOOD},
    "dates": {"arrays": model_with(np.zeros(4, "M8[s]")), "metrics": GOOD},
    "nan": {"arrays": model_with(np.full(4, np.nan, np.float32)), "metrics": GOOD},
    "infinity": {"arrays": model_with(np.full(4, -np.inf, np.float32)), "metrics": GOOD},
}


class TestReadUpdate:
    def test_a_good_reply_is_an_update_of_its_client(self, reply_of: Replies) -> None:
        update = payload.read_update(reply_of("5", arrays=payload.to_record(MODEL), metrics=GOOD))

        assert isinstance(update, Update)
        assert (update.client, update.weight) == ("5", 3)
        assert arrays.digest(update.arrays) == arrays.digest(MODEL)

    @pytest.mark.parametrize("claimed", [1, 3.0, WEIGHT_MAX])
    def test_whole_numbers_are_weights_even_as_floats(
        self, reply_of: Replies, claimed: float
    ) -> None:
        metrics = MetricRecord({"num-examples": claimed, "train_loss": 0.5})

        update = payload.read_update(reply_of(arrays=payload.to_record(MODEL), metrics=metrics))

        assert isinstance(update, Update)
        assert (update.weight, type(update.weight)) == (claimed, int)

    def test_names_of_records_are_the_clients_own(self, reply_of: Replies) -> None:
        reply = reply_of(parameters=payload.to_record(MODEL), m=GOOD, c=ConfigRecord({"x": 1}))

        assert isinstance(payload.read_update(reply), Update)

    @pytest.mark.parametrize("name", MALFORMED_REPLIES)
    def test_a_malformed_reply_costs_its_client_the_round_and_nothing_else(
        self, reply_of: Replies, name: str
    ) -> None:
        read = payload.read_update(reply_of("9", **MALFORMED_REPLIES[name]))

        if isinstance(read, Failure):
            key, reason = read.client.key, read.reason
        else:
            checked = aggregate.check([read], MODEL)
            assert checked.accepted == ()
            [rejected] = checked.rejected
            key, reason = rejected.client, rejected.reason
        assert key == "9"
        assert 0 < len(reason) <= REASON_LENGTH_MAX
        assert reason.isprintable()

    @pytest.mark.parametrize("name", MALFORMED_REPLIES)
    def test_progress_can_be_told_of_any_reply(self, reply_of: Replies, name: str) -> None:
        claimed = payload.weight(reply_of("9", **MALFORMED_REPLIES[name]))

        assert claimed is None or type(claimed) is int

    @settings(deadline=None)  # a busy machine is no failure
    @given(data=st.binary(max_size=400))
    def test_no_bytes_of_an_array_raise(self, data: bytes) -> None:
        record = model_with(array_of(b"\x93NUMPY\x01\x00" + data))
        hostile = Reply(
            SimpleNamespace(key="0"),  # type: ignore[arg-type]
            SimpleNamespace(array_records={"arrays": record}, metric_records={"metrics": GOOD}),  # type: ignore[arg-type]
            0.0,
        )

        assert isinstance(payload.read_update(hostile), Update | Failure)


class TestReadScore:
    def test_the_score_is_the_mean_weighted_by_examples(self, reply_of: Replies) -> None:
        score, failures = read_score(
            [
                reply_of("0", m=MetricRecord({"num-examples": 1, "loss": 4.0, "accuracy": 0.0})),
                reply_of("1", m=MetricRecord({"num-examples": 3, "loss": 0.0, "accuracy": 1.0})),
            ]
        )

        assert score == Score(loss=1.0, accuracy=0.75, num_examples=4)
        assert failures == []

    @pytest.mark.parametrize("loss_name", payload.LOSS_KEYS)
    @pytest.mark.parametrize("accuracy_name", payload.ACCURACY_KEYS)
    def test_the_names_that_apps_use_are_known(
        self, reply_of: Replies, loss_name: str, accuracy_name: str
    ) -> None:
        metrics = MetricRecord({"num-examples": 2, loss_name: 0.5, accuracy_name: 1, "f1": 0.1})

        score, _ = read_score([reply_of(metrics=metrics)])

        assert score == Score(loss=0.5, accuracy=1.0, num_examples=2)

    def test_an_app_may_measure_nothing(self, reply_of: Replies) -> None:
        score, failures = read_score([reply_of(metrics=MetricRecord({"num-examples": 2}))])

        assert score == Score(loss=None, accuracy=None, num_examples=2)
        assert failures == []

    def test_nobody_evaluated(self) -> None:
        assert read_score([]) == (None, [])

    @pytest.mark.parametrize(
        "lie",
        [
            {"loss": float("nan")},
            {"loss": float("inf"), "accuracy": float("-inf")},
            {"loss": 1.7e308},
            {"loss": 10**400},
            {"loss": [1.0, 2.0]},
            {"eval_loss": 0.0, "eval_acc": 1.0},
            {},
        ],
    )
    def test_one_client_neither_hides_nor_moves_what_the_others_measured(
        self, reply_of: Replies, lie: dict[str, Any]
    ) -> None:
        honest = MetricRecord({"num-examples": 5, "loss": 0.25, "accuracy": 0.5})

        score, _ = read_score(
            [
                reply_of("0", m=MetricRecord({"num-examples": 10, **lie})),
                reply_of("1", m=honest),
                reply_of("2", m=honest),
            ]
        )

        assert score is not None
        assert (score.loss, score.accuracy) == (0.25, 0.5)

    @pytest.mark.parametrize("claimed", [0, -5, WEIGHT_MAX + 1, 1.7e308, float("nan"), 0.5])
    def test_an_absurd_weight_counts_for_nothing_and_is_named(
        self, reply_of: Replies, claimed: float
    ) -> None:
        score, failures = read_score(
            [
                reply_of("0", m=MetricRecord({"num-examples": claimed, "loss": 9.0})),
                reply_of("1", m=MetricRecord({"num-examples": 1, "loss": 1.0})),
            ]
        )

        assert score == Score(loss=1.0, accuracy=None, num_examples=1)
        assert [(failure.client.key, failure.error_type) for failure in failures] == [
            ("0", "malformed_reply")
        ]

    @pytest.mark.parametrize("name", MALFORMED_REPLIES)
    def test_no_reply_raises(self, reply_of: Replies, name: str) -> None:
        read_score([reply_of("9", **MALFORMED_REPLIES[name])])
