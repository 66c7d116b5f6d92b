"""What the coordinator calls: the model before round 1, and its score on the test set."""

from __future__ import annotations

from collections.abc import Mapping

from onefed.apps.image_classification import data, model
from onefed.apps.image_classification.settings import Settings


def initial_arrays(run_config: Mapping[str, object]) -> dict[str, model.FloatArray]:
    """The model before round 1; ``seed`` decides it."""
    return model.initial_arrays(Settings.read(run_config).seed)


def evaluate(arrays: model.Arrays, run_config: Mapping[str, object]) -> dict[str, float]:
    """``loss`` and ``accuracy`` on the ``num-examples`` test images, which no node trains on."""
    _, test_set = data.digits()
    loss, accuracy = model.evaluate(arrays, test_set.x, test_set.y)
    return {"loss": loss, "accuracy": accuracy, "num-examples": len(test_set)}
