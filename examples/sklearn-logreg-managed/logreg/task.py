"""The model, the data, how the model's parameters become arrays, and what onefed calls."""

import warnings

import numpy as np
from flwr.app import ArrayRecord
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import train_test_split


def create_model(run_config):
    """A model that starts where its parameters are, and takes a few steps from there."""
    model = LogisticRegression(warm_start=True, max_iter=run_config["local-epochs"])
    set_parameters(model, [np.zeros((10, 64)), np.zeros(10)])
    return model


def get_parameters(model):
    """The model's parameters as a list of arrays."""
    return [model.coef_, model.intercept_]


def set_parameters(model, parameters):
    """Set the model's parameters from a list of arrays."""
    model.coef_, model.intercept_ = parameters
    model.classes_ = np.arange(10)


def fit(model, x, y):
    """Train for the few steps of one round; that they do not converge is as it should be."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(x, y)


def load_digits_split():
    """scikit-learn's digits, a fifth kept from all nodes: x_train, x_test, y_train, y_test."""
    x, y = load_digits(return_X_y=True)
    return train_test_split(x / 16, y, test_size=0.2, random_state=42)


def load_data(node_config):
    """This node's share: x_train, x_test, y_train, y_test."""
    x, _, y, _ = load_digits_split()
    share = slice(node_config["partition-id"], None, node_config["num-partitions"])
    return train_test_split(x[share], y[share], test_size=0.2, random_state=42)


def initial_arrays(run_config):
    """[tool.onefed] initial-arrays: the model before round 1."""
    return ArrayRecord(get_parameters(create_model(run_config)))


def evaluate(arrays, run_config):
    """[tool.onefed] evaluate: how good a global model is, on data that no node trains on."""
    model = create_model(run_config)
    set_parameters(model, list(arrays.values()))
    _, x_test, _, y_test = load_digits_split()
    return {
        "loss": log_loss(y_test, model.predict_proba(x_test), labels=model.classes_),
        "accuracy": model.score(x_test, y_test),
        "num-examples": len(x_test),
    }
