"""An app's measure in a process of its own: real processes, and measures of every kind."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from onefed.arrays import BFLOAT16, Arrays
from onefed.flower.judging import Judge, JudgingError

APP = """
import os, sys, time
print("imported")

def mean(model, run_config):
    print("judging")
    values = model["w"]
    values += 1  # its own copy
    return {"loss": float(values.mean()), "accuracy": run_config["share"], "num-examples": 7}

def shapes(model, run_config):
    kinds = {name: (str(array.dtype), array.shape) for name, array in model.items()}
    known = {"w": ("float32", (2, 3)), "n": ("int64", ()), "empty": ("float64", (0, 4))}
    half = kinds.pop("b")
    return {"accuracy": float(kinds == known), "loss": float(half[1] == (2,))}

def raises(model, run_config):
    raise RuntimeError("no test set\\n" + "x" * 100_000)

def ends(model, run_config):
    os._exit(3)

def hangs(model, run_config):
    time.sleep(600)

def nothing(model, run_config):
    return None
"""

MODEL: Arrays = {"w": np.arange(6, dtype=np.float32).reshape(2, 3)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "measures.py").write_text(APP, encoding="utf-8")
    return tmp_path


def judge_of(folder: Path, function: str, limit_s: float = 60.0) -> Judge:
    return Judge(folder, f"measures:{function}", {"share": 0.5}, limit_s=limit_s)


def test_models_are_judged_one_after_the_other_and_stay_as_they_are(folder: Path) -> None:
    judge = judge_of(folder, "mean")
    try:
        first = judge.score(MODEL)
        second = judge.score({"w": MODEL["w"] * 2})
    finally:
        judge.close()

    assert (first.loss, first.accuracy, first.num_examples) == (3.5, 0.5, 7)
    assert second.loss == 6.0
    assert MODEL["w"].max() == 5.0


def test_arrays_of_every_kind_arrive_as_they_are(folder: Path) -> None:
    model: Arrays = {
        **MODEL,
        "n": np.array(3),
        "empty": np.zeros((0, 4)),
        "b": np.zeros(2, BFLOAT16),
    }
    judge = judge_of(folder, "shapes")
    try:
        score = judge.score(model)
    finally:
        judge.close()

    assert (score.accuracy, score.loss) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        ("raises", "no test set"),
        ("ends", "exit code 3"),
        ("nothing", "must return|failed"),
        ("is_not_there", "is_not_there"),
    ],
)
def test_a_measure_that_fails_is_an_error_of_the_app(
    folder: Path, function: str, reason: str
) -> None:
    judge = judge_of(folder, function)
    try:
        for _ in range(2):  # and is one again
            with pytest.raises(JudgingError, match=reason):
                judge.score(MODEL)
    finally:
        judge.close()


def test_a_measure_that_hangs_is_ended(folder: Path) -> None:
    judge = judge_of(folder, "hangs", limit_s=1.0)
    try:
        with pytest.raises(JudgingError, match="too long"):
            judge.score(MODEL)
    finally:
        judge.close()


def test_whoever_waits_for_a_score_is_let_go_when_the_node_ends(folder: Path) -> None:
    judge = judge_of(folder, "hangs")
    errors: list[BaseException] = []

    def wait() -> None:
        try:
            judge.score(MODEL)
        except JudgingError as error:
            errors.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    while judge.pid is None:
        assert waiting.is_alive()
    judge.close()
    waiting.join(60)

    assert not waiting.is_alive()
    assert len(errors) == 1
    with pytest.raises(JudgingError, match="the node ends"):
        judge.score(MODEL)
