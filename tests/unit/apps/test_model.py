"""The network: true gradients, a true proximal term, the same bits every time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from onefed.apps.image_classification import model

EXAMPLES = 50


@pytest.fixture
def x() -> NDArray[np.float32]:
    return np.random.default_rng(1).random((EXAMPLES, model.FEATURES), dtype=np.float32)


@pytest.fixture
def y() -> NDArray[np.int64]:
    return np.random.default_rng(2).integers(0, model.CLASSES, EXAMPLES)


def train(
    x: NDArray[Any], y: NDArray[Any], *, seed: int = 0, **changes: Any
) -> tuple[dict[str, Any], float]:
    settings: dict[str, Any] = {
        "epochs": 2,
        "batch_size": 16,
        "learning_rate": 0.1,
        "proximal_mu": 0.0,
        "generator": np.random.default_rng(seed),
    }
    return model.train(model.initial_arrays(0), x, y, **settings | changes)


def distance(arrays: dict[str, Any]) -> float:
    """How far training went from the first model."""
    start = model.initial_arrays(0)
    return float(sum(((arrays[name] - start[name]) ** 2).sum() for name in start)) ** 0.5


def test_initial_arrays_are_float32_of_a_stable_form() -> None:
    arrays = model.initial_arrays(0)

    assert {name: array.shape for name, array in arrays.items()} == {
        "hidden.weight": (64, 32),
        "hidden.bias": (32,),
        "output.weight": (32, 10),
        "output.bias": (10,),
    }
    assert {array.dtype for array in arrays.values()} == {np.dtype(np.float32)}


def test_seed_decides_the_initial_arrays() -> None:
    first, again, other = (model.initial_arrays(seed) for seed in (7, 7, 8))

    assert all(first[name].tobytes() == again[name].tobytes() for name in first)
    assert first["hidden.weight"].tobytes() != other["hidden.weight"].tobytes()


def test_gradient_agrees_with_finite_differences(
    x: NDArray[np.float32], y: NDArray[np.int64]
) -> None:
    """In float64, at 20 random coordinates of each array."""
    arrays = {name: array.astype(np.float64) for name, array in model.initial_arrays(3).items()}
    _, gradients = model.loss_and_gradients(arrays, x.astype(np.float64), y)
    generator = np.random.default_rng(0)

    for name, gradient in gradients.items():
        for place in generator.choice(gradient.size, min(20, gradient.size), replace=False):
            losses = []
            for step in (1e-6, -1e-6):
                moved = arrays[name].copy()
                moved.flat[place] += step
                losses.append(model.loss_and_gradients(arrays | {name: moved}, x, y)[0])
            slope = (losses[0] - losses[1]) / 2e-6
            assert gradient.flat[place] == pytest.approx(slope, abs=1e-7), (name, place)


def test_loss_is_that_of_a_guess_when_all_classes_score_the_same(
    x: NDArray[np.float32], y: NDArray[np.int64]
) -> None:
    zeros = {name: np.zeros_like(array) for name, array in model.initial_arrays(0).items()}

    loss, accuracy = model.evaluate(zeros, x, y)

    assert loss == pytest.approx(np.log(10), rel=1e-6)
    assert accuracy == np.mean(y == 0)


def test_huge_scores_do_not_overflow(x: NDArray[np.float32], y: NDArray[np.int64]) -> None:
    huge = {name: array * np.float32(1e6) for name, array in model.initial_arrays(0).items()}

    assert np.isfinite(model.evaluate(huge, x, y)[0])


def test_training_lowers_the_loss_and_keeps_its_input(
    x: NDArray[np.float32], y: NDArray[np.int64]
) -> None:
    start = model.initial_arrays(0)
    before, _ = model.evaluate(start, x, y)

    trained, loss = train(x, y, epochs=50)

    assert model.evaluate(trained, x, y)[0] < loss < before
    assert distance(start) == 0.0
    assert {array.dtype for array in trained.values()} == {np.dtype(np.float32)}


def test_one_step_is_gradient_descent_pulled_back_by_the_proximal_term(
    x: NDArray[np.float32], y: NDArray[np.int64]
) -> None:
    """From the global model one step of length s ends at w - s g / (1 + s mu)."""
    start = model.initial_arrays(0)
    _, gradients = model.loss_and_gradients(start, x, y)

    for mu in (0.0, 0.5, 10.0):
        trained, _ = train(x, y, epochs=1, batch_size=EXAMPLES, proximal_mu=mu)
        for name, gradient in gradients.items():
            expected = start[name] - 0.1 * gradient / (1 + 0.1 * mu)
            np.testing.assert_allclose(trained[name], expected, rtol=1e-4, atol=1e-6)


def test_proximal_training_is_descent_on_the_loss_plus_the_term(
    x: NDArray[np.float32], y: NDArray[np.int64]
) -> None:
    """In short steps the implicit term does what the gradient of mu/2 ||w - w_global||^2 does."""
    step, mu, steps = 1e-3, 20.0, 100
    start = model.initial_arrays(0)
    explicit = {name: array.copy() for name, array in start.items()}
    for _ in range(steps):
        _, gradients = model.loss_and_gradients(explicit, x, y)
        for name, gradient in gradients.items():
            explicit[name] -= step * (gradient + mu * (explicit[name] - start[name]))

    def train_with(mu: float) -> dict[str, Any]:
        changes = {"epochs": steps, "batch_size": EXAMPLES, "learning_rate": step}
        return train(x, y, proximal_mu=mu, **changes)[0]

    assert distance(train_with(mu)) == pytest.approx(distance(explicit), rel=step * mu)
    assert distance(train_with(0.0)) > 2 * distance(explicit)


def test_larger_mu_keeps_the_weights_nearer(x: NDArray[np.float32], y: NDArray[np.int64]) -> None:
    distances = [
        distance(train(x, y, epochs=20, proximal_mu=mu)[0]) for mu in (0.0, 0.1, 1.0, 10.0, 1e6)
    ]

    assert distances == sorted(distances, reverse=True)
    assert 0.0 < distances[-1] < 1e-5 < 0.1 < distances[0]


def test_same_generator_gives_the_same_bits_and_another_gives_others(
    x: NDArray[np.float32], y: NDArray[np.int64]
) -> None:
    first, again, other = (train(x, y, seed=seed)[0] for seed in (1, 1, 2))

    for name in first:
        assert first[name].tobytes() == again[name].tobytes()
        assert first[name].tobytes() != other[name].tobytes()


def test_number_of_threads_does_not_show_in_the_bits() -> None:
    """Batches as large as these are where BLAS would divide the work among threads."""
    generator = np.random.default_rng(3)
    x = generator.random((1000, model.FEATURES), dtype=np.float32)
    y = generator.integers(0, model.CLASSES, 1000)
    results = []
    for threads in (1, 2):
        with threadpool_limits(threads):
            results.append(train(x, y, batch_size=500)[0])

    assert all(results[0][name].tobytes() == results[1][name].tobytes() for name in results[0])


@pytest.mark.parametrize("count", [1, 16, 17])
def test_every_example_is_used_once_in_an_epoch(count: int) -> None:
    """A batch size that does not divide the number of examples gives batches of equal size."""
    x = np.eye(model.FEATURES, dtype=np.float32)[:count]
    y = np.zeros(count, np.int64)

    trained, _ = train(x, y, epochs=1)

    moved = np.any(trained["hidden.weight"] != model.initial_arrays(0)["hidden.weight"], axis=1)
    assert np.flatnonzero(moved).tolist() == list(range(count))
