"""Never run, only type-checked: what users of the package may rely on keeps its types."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from onefed import aggregate, arrays
from onefed.checkpoint import RecoveryStore, Snapshot
from onefed.errors import ExitCode, OnefedError


def a_rule_takes_a_model_and_updates(
    model: arrays.Arrays, updates: Sequence[aggregate.Update]
) -> arrays.Arrays:
    rule: aggregate.Rule = aggregate.rule("FedAvg")
    state = rule.init(model)
    _, model = rule.step(state, model, updates, 1)
    return model


def an_update_is_made_of_plain_arrays(weights: NDArray[np.float32]) -> aggregate.Update:
    return aggregate.Update("0", 100, {"weights": weights})


def a_digest_is_text(model: Mapping[str, NDArray[np.float64]]) -> str:
    return arrays.digest(model)


def a_saved_round_comes_back(folder: Path) -> Snapshot | None:
    loaded = RecoveryStore(folder).load("run")
    return None if loaded is None else loaded.snapshot


def an_error_has_a_code_and_a_hint(error: OnefedError) -> tuple[ExitCode, str | None]:
    return error.exit_code, error.hint
