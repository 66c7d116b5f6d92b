"""The network: 64 brightness values, 32 hidden units (ReLU), 10 classes (softmax).

Plain numpy in float32, one fixed order of operations: the same arguments give the same bits,
whatever the number of threads.
All functions are pure: they change none of the arrays that they are given.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from onefed.apps.image_classification import randomness
from onefed.apps.image_classification.randomness import Stream

FEATURES = 64
HIDDEN = 32
CLASSES = 10

FloatArray: TypeAlias = NDArray[np.floating]
Arrays: TypeAlias = Mapping[str, FloatArray]


def initial_arrays(seed: int) -> dict[str, FloatArray]:
    """The model before round 1: weights of shape (inputs, outputs) and biases, float32.

    Weights are normal with variance 2 / inputs (He et al. 2015, section 2.2), biases are zero.
    """
    generator = randomness.generator(Stream.INITIAL_ARRAYS, seed)

    def weight(inputs: int, outputs: int) -> FloatArray:
        values = generator.normal(0.0, np.sqrt(2.0 / inputs), (inputs, outputs))
        return values.astype(np.float32)

    return {
        "hidden.weight": weight(FEATURES, HIDDEN),
        "hidden.bias": np.zeros(HIDDEN, np.float32),
        "output.weight": weight(HIDDEN, CLASSES),
        "output.bias": np.zeros(CLASSES, np.float32),
    }


def train(
    arrays: Arrays,
    x: FloatArray,
    y: NDArray[np.integer],
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    proximal_mu: float,
    generator: np.random.Generator,
) -> tuple[dict[str, FloatArray], float]:
    """Minibatch gradient descent on the loss + mu/2 ||w - w_global||^2 (FedProx, Li et al. 2020).

    The proximal term is applied implicitly, by its proximal operator after each step of the loss:
    to first order in the step length that is the gradient step, and unlike it it is stable for
    every mu.
    Returns the trained arrays and the mean loss over the last epoch, the term not included.
    """
    weights = {name: array.copy() for name, array in arrays.items()}
    pull = learning_rate * proximal_mu / (1.0 + learning_rate * proximal_mu)
    batch_count = math.ceil(len(y) / batch_size)
    loss_sum = 0.0
    for _ in range(epochs):
        loss_sum = 0.0
        # Equal batches: a remainder of one example would take a full step on its noise.
        for batch in np.array_split(generator.permutation(len(y)), batch_count):
            loss, gradients = loss_and_gradients(weights, x[batch], y[batch])
            for name, gradient in gradients.items():
                weights[name] -= learning_rate * gradient
                weights[name] -= pull * (weights[name] - arrays[name])
            loss_sum += loss * len(batch)
    return weights, loss_sum / len(y)


def evaluate(arrays: Arrays, x: FloatArray, y: NDArray[np.integer]) -> tuple[float, float]:
    """Mean cross-entropy loss (natural logarithm) and accuracy, from 0 to 1."""
    _, log_probabilities = _forward(arrays, x)
    accuracy = np.mean(log_probabilities.argmax(axis=1) == y)
    return _cross_entropy(log_probabilities, y), float(accuracy)


def loss_and_gradients(
    arrays: Arrays, x: FloatArray, y: NDArray[np.integer]
) -> tuple[float, dict[str, FloatArray]]:
    """Mean cross-entropy loss and its gradient by array, in the dtype of the arrays."""
    hidden, log_probabilities = _forward(arrays, x)
    output_slope = np.exp(log_probabilities)
    output_slope[np.arange(len(y)), y] -= 1
    output_slope /= len(y)
    hidden_slope = _product(output_slope, arrays["output.weight"].T) * (hidden > 0)
    return _cross_entropy(log_probabilities, y), {
        "hidden.weight": _product(x.T, hidden_slope),
        "hidden.bias": hidden_slope.sum(axis=0),
        "output.weight": _product(hidden.T, output_slope),
        "output.bias": output_slope.sum(axis=0),
    }


def _forward(arrays: Arrays, x: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Activations of the hidden units and logarithms of the class probabilities."""
    hidden = np.maximum(_product(x, arrays["hidden.weight"]) + arrays["hidden.bias"], 0)
    logits = _product(hidden, arrays["output.weight"]) + arrays["output.bias"]
    logits -= logits.max(axis=1, keepdims=True)  # the largest is 0: exp cannot overflow
    return hidden, logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def _cross_entropy(log_probabilities: FloatArray, y: NDArray[np.integer]) -> float:
    return -float(np.mean(log_probabilities[np.arange(len(y)), y]))


def _product(left: FloatArray, right: FloatArray) -> FloatArray:
    """Matrix product without BLAS, whose threads and kernels for each processor show in the bits.

    At these sizes about five times slower than ``left @ right``: 10 ms in a training call, not 6.
    """
    product: FloatArray = np.einsum("ik,kj->ij", left, right)
    return product
