"""Functions that a managed app names in ``[tool.onefed]``; Flower is not imported for them."""

from __future__ import annotations

import contextlib
import importlib
import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from onefed.arrays import Arrays
from onefed.errors import ExitCode, OnefedError

WEIGHT_KEY = "num-examples"
"""Under which apps say of how many examples a number is."""


class AppFunctionError(OnefedError):
    """A function that the app names in ``[tool.onefed]`` raised, or returned something else."""

    exit_code = ExitCode.APP


@dataclass(frozen=True)
class Score:
    """How good a model is, as far as that was measured."""

    loss: float | None
    accuracy: float | None
    num_examples: int


def load(reference: str) -> Callable[..., Any]:
    """The function that ``module:function`` names; the app's folder is on the path by now."""
    module, _, names = reference.partition(":")
    found: Callable[..., Any] = operator.attrgetter(names)(importlib.import_module(module))
    return found


def judge_of(reference: str, run_config: Mapping[str, Any]) -> Callable[[Arrays], Score]:
    """The app's own measure of a model, where no client is asked."""
    evaluate = load(reference)

    def judge(model: Arrays) -> Score:
        with calling(reference, "must return numbers by name, such as loss and accuracy"):
            # A copy: what the app does to it must not reach the model that is saved.
            own = {name: array.copy() for name, array in model.items()}
            metrics = evaluate(own, dict(run_config))
            return Score(
                loss=_number(metrics.get("loss")),
                accuracy=_number(metrics.get("accuracy")),
                num_examples=int(metrics.get(WEIGHT_KEY, 0)),
            )

    return judge


@contextlib.contextmanager
def calling(reference: str, duty: str) -> Iterator[None]:
    """Whatever a function of the app raises is said as an error of the app's."""
    try:
        yield
    except Exception as error:
        raise AppFunctionError(
            f"{reference} of the app failed: {type(error).__name__}: {error}",
            hint=f"The function {duty}; the log of its program has the traceback.",
        ) from error


def _number(value: float | None) -> float | None:
    return None if value is None else float(value)
