"""What a user set, by every way there is, and what the machines are told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from onefed.context import ContextError
from onefed.errors import ExitCode, OnefedError
from onefed.local.request import Request, prepare

# flwr 1.41.0 asks its own pin of pathspec for a pattern style by its former name.
pytestmark = pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")


def test_a_laptop_wants_all_nodes_and_a_checkpoint(
    ask: Callable[..., Request], environ: dict[str, str], home: Path
) -> None:
    prepared = prepare(ask(nodes=4), environ)
    spec = prepared.spec
    assert spec.context == {
        "FL_NUM_ROUNDS": "5",
        "FL_MIN_FIT_CLIENTS": "4",
        "FL_MIN_EVALUATE_CLIENTS": "4",
        "FL_MIN_AVAILABLE_CLIENTS": "4",
        "FL_CHECKPOINT_ENABLED": "YES",
        "FL_STRATEGY": "FedAvg",
        "FL_SEED": "0",
        "FL_USE_CASE": "image-classification",
    }
    assert (spec.nodes, spec.rounds, spec.strategy, spec.seed) == (4, 5, "FedAvg", 0)
    assert (spec.app, spec.managed, spec.data) == ("small", True, None)
    assert prepared.notices == ()
    assert not home.exists()


def test_set_comes_before_the_file_and_the_file_before_the_environment(
    ask: Callable[..., Request], environ: dict[str, str], tmp_path: Path
) -> None:
    file = tmp_path / "context.sh"
    file.write_text("FL_SEED='2'\nFL_NUM_ROUNDS='2'\nFL_LOG_LEVEL='DEBUG'\n")
    spec = prepare(
        ask(context_file=file, assignments=["FL_SEED=1"]),
        {
            **environ,
            "FL_SEED": "3",
            "FL_NUM_ROUNDS": "3",
            "FL_LOG_LEVEL": "ERROR",
            "FL_MIN_FIT_CLIENTS": "1",
        },
    ).spec
    assert spec.context["FL_SEED"] == "1"
    assert spec.seed == 1
    assert spec.context["FL_NUM_ROUNDS"] == "2"
    assert spec.rounds == 2
    assert spec.context["FL_LOG_LEVEL"] == "DEBUG"
    assert spec.context["FL_MIN_FIT_CLIENTS"] == "1"
    assert spec.context["FL_MIN_AVAILABLE_CLIENTS"] == "2"


def test_options_of_their_own_mean_their_variables(
    ask: Callable[..., Request], environ: dict[str, str]
) -> None:
    spec = prepare(
        ask(rounds=7, strategy="FedAvg", seed=9, assignments=["FL_SEED=9"]), environ
    ).spec
    assert (spec.rounds, spec.strategy, spec.seed) == (7, "FedAvg", 9)


def test_settings_of_the_app_from_all_sources_are_joined(
    ask: Callable[..., Request], environ: dict[str, str], tmp_path: Path
) -> None:
    """One variable carries them: setting one key must not drop those that the file set."""
    file = tmp_path / "context.sh"
    file.write_text("FL_RUN_CONFIG='local-epochs=3 shuffle=false'\n")
    spec = prepare(ask(context_file=file, assignments=["local-epochs=2", "tag=red"]), environ).spec
    assert spec.context["FL_RUN_CONFIG"] == 'local-epochs=2 shuffle=false tag="red"'


@pytest.mark.parametrize(
    ("changed", "wrong", "right"),
    [
        ({"strategy": "FedAvgg"}, "FedAvgg", "FedAvg"),
        ({"use_case": "image-clasification"}, "image-clasification", "image-classification"),
        ({"assignments": ["FL_NUM_ROUND=3"]}, "FL_NUM_ROUND", "FL_NUM_ROUNDS"),
        ({"assignments": ["FL_NUM_ROUNDS=0"]}, "'0'", "positive integer"),
        ({"rounds": -1}, "'-1'", "positive integer"),
        ({"rounds": 2**31}, "2147483648", "2147483647"),
        ({"seed": -1}, "'-1'", "FL_SEED="),
        ({"assignments": ["FL_TLS_ENABLED=maybe"]}, "maybe", "YES"),
        ({"assignments": ["FL_NUM_ROUNDS"]}, "FL_NUM_ROUNDS", "NAME=VALUE"),
        ({"assignments": ["FL_FLEET_API_ADDRESS=0.0.0.0:99999"]}, "99999", "65535"),
    ],
)
def test_a_bad_value_is_refused_with_what_would_be_right(
    refuse: Callable[..., OnefedError], changed: dict[str, Any], wrong: str, right: str
) -> None:
    error = refuse(**changed)
    assert error.exit_code is ExitCode.CONFIG
    assert wrong in error.message
    assert right in error.message


def test_a_bad_value_in_the_environment_is_refused(refuse: Callable[..., OnefedError]) -> None:
    error = refuse({"FL_NUM_ROUNDS": "many"})
    assert isinstance(error, ContextError)
    assert "environment" in error.message


def test_an_option_and_a_set_that_differ_are_refused_together(
    refuse: Callable[..., OnefedError],
) -> None:
    error = refuse(rounds=3, seed=1, assignments=["FL_NUM_ROUNDS=4", "FL_SEED=2"])
    assert error.exit_code is ExitCode.CONFIG
    assert "FL_NUM_ROUNDS is given twice: 3 by its option, 4 by --set." in error.message
    assert "FL_SEED is given twice: 1 by its option, 2 by --set." in error.message


def test_every_mistake_in_a_context_file_is_named_by_its_line(
    refuse: Callable[..., OnefedError], tmp_path: Path
) -> None:
    file = tmp_path / "context.sh"
    file.write_text("FL_NUM_ROUNDS='x'\n\nFL_STRATEGY='FedBest'\nFL_SEED='unclosed\n")
    error = refuse(context_file=file)
    assert error.exit_code is ExitCode.CONFIG
    for line in ("line 1", "line 3", "line 4"):
        assert line in error.message
