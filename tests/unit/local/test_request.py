"""Everything that can be wrong with a request is said, before anything is made."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from onefed.errors import ExitCode, OnefedError
from onefed.local.request import Request, prepare

# flwr 1.41.0 asks its own pin of pathspec for a pattern style by its former name.
pytestmark = pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")


# --- what can be met ------------------------------------------------------------------------------


def test_the_built_in_app_is_the_default(
    ask: Callable[..., Request], environ: dict[str, str]
) -> None:
    prepared = prepare(ask(app=None), environ)
    assert prepared.spec.managed
    assert "image-classification" in prepared.spec.app


@pytest.mark.parametrize(
    ("assignment", "rounds"), [("", 0), ("FL_NUM_ROUNDS=4", 4), ("FL_SEED=4", 0)]
)
def test_an_app_with_its_own_server_app_decides_about_rounds(
    ask: Callable[..., Request],
    environ: dict[str, str],
    tmp_path: Path,
    write_app: Callable[..., Path],
    assignment: str,
    rounds: int,
) -> None:
    own = write_app(tmp_path / "own")
    prepared = prepare(ask(app=own, assignments=[assignment] if assignment else []), environ)
    assert not prepared.spec.managed
    assert prepared.spec.rounds == rounds
    assert prepared.spec.strategy == "the app's own"
    how_to, *ignored = prepared.notices
    assert "initial-arrays" in how_to
    assert [notice.partition(" ")[0] for notice in ignored] == (
        [assignment.partition("=")[0]] if assignment else []
    )


# --- what cannot ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("local-epoch=2", "no setting local-epoch: did you mean local-epochs?"),
        ("FL_RUN_CONFIG=local-epoch=2", "no setting local-epoch"),
        ("local-epochs=many", "local-epochs cannot be 'many': its default is local-epochs=1"),
        ("shuffle=1", "shuffle cannot be 1"),
        ("tag=1", "tag cannot be 1"),
        ("learning-rate=true", "learning-rate cannot be True"),
    ],
)
def test_a_setting_that_the_app_does_not_have_is_refused(
    refuse: Callable[..., OnefedError], assignment: str, said: str
) -> None:
    error = refuse(assignments=[assignment])
    assert error.exit_code is ExitCode.CONFIG
    assert said in error.message
    assert "learning-rate, local-epochs, shuffle, tag" in (error.hint or "")


@pytest.mark.parametrize(
    "assignment", ["learning-rate=1", "local-epochs=0.5", 'tag="1"', "tag=x", "shuffle=false"]
)
def test_numbers_are_numbers_to_an_app(
    ask: Callable[..., Request], environ: dict[str, str], assignment: str
) -> None:
    assert prepare(ask(assignments=[assignment]), environ)


@pytest.mark.parametrize("nodes", [0, -1, 65, 10**9])
def test_an_impossible_number_of_nodes_is_refused(
    refuse: Callable[..., OnefedError], tmp_path: Path, nodes: int
) -> None:
    """Whatever else is asked for: their data folders are not counted one by one."""
    error = refuse(nodes=nodes, data=tmp_path)
    assert error.exit_code is ExitCode.CONFIG
    assert f"{nodes} nodes" in error.message
    assert "1 to 64" in (error.hint or "")


def test_fewer_nodes_than_wanted_clients_are_refused(refuse: Callable[..., OnefedError]) -> None:
    error = refuse(assignments=["FL_MIN_AVAILABLE_CLIENTS=3", "FL_MIN_FIT_CLIENTS=3"])
    assert error.exit_code is ExitCode.CONFIG
    assert "FL_MIN_AVAILABLE_CLIENTS is 3 and FL_MIN_FIT_CLIENTS is 3" in error.message
    assert "--nodes is 2" in error.message
    assert "at least 3 nodes" in (error.hint or "")


@pytest.mark.parametrize("kind", ["missing", "folder"])
def test_a_context_file_that_cannot_be_read_is_refused(
    refuse: Callable[..., OnefedError], tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "nowhere.sh" if kind == "missing" else tmp_path
    error = refuse(context_file=path)
    assert error.exit_code is ExitCode.STORAGE
    assert str(path) in error.message
    assert "--context" in (error.hint or "")


def test_settings_of_an_app_need_one(refuse: Callable[..., OnefedError]) -> None:
    error = refuse(app=None, use_case="none", assignments=["local-epochs=2"])
    assert error.exit_code is ExitCode.CONFIG
    assert "no app yet" in error.message
    assert "local-epochs" in error.message


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ({"pyproject": ""}, "holds no pyproject.toml"),
        ({"pyproject": "[project]\nname = 'x'\n"}, "has no [tool.flwr.app]"),
        ({"pyproject": "not toml at all ["}, "cannot be read"),
        ({"module": "import nowhere_to_be_found\n"}, "nowhere_to_be_found"),
        ({"module": "1 / 0\n"}, "ZeroDivisionError"),
        ({"module": ""}, "app"),
    ],
)
def test_what_is_no_usable_app_is_refused(
    refuse: Callable[..., OnefedError],
    tmp_path: Path,
    write_app: Callable[..., Path],
    written: dict[str, str],
    said: str,
) -> None:
    folder = write_app(tmp_path / "broken", **written)
    if written.get("pyproject") == "":
        (folder / "pyproject.toml").unlink()
    error = refuse(app=folder)
    assert error.exit_code is ExitCode.APP
    assert str(folder) in error.message
    assert said in error.message


def test_an_app_folder_that_is_not_there_is_refused(
    refuse: Callable[..., OnefedError], tmp_path: Path
) -> None:
    error = refuse(app=tmp_path / "nowhere")
    assert error.exit_code is ExitCode.APP
    assert "is not a directory" in error.message


@pytest.mark.parametrize(
    ("folders", "said"), [(None, "is not a folder"), (["0"], "no folder for node 1")]
)
def test_a_data_folder_has_a_folder_for_each_node(
    refuse: Callable[..., OnefedError], tmp_path: Path, folders: list[str] | None, said: str
) -> None:
    data = tmp_path / "data"
    for name in folders or []:
        (data / name).mkdir(parents=True)
    error = refuse(data=data)
    assert error.exit_code is ExitCode.DATA
    assert str(data) in error.message
    assert said in error.message


def test_every_bad_training_file_is_named(
    refuse: Callable[..., OnefedError], tmp_path: Path
) -> None:
    """The built-in app reads every file before the start rather than in round 1."""
    data = tmp_path / "data"
    (data / "0").mkdir(parents=True)
    (data / "1/7").mkdir(parents=True)
    (data / "0/garbage.npz").write_bytes(b"not a zip file")
    np.savez(data / "0/shape.npz", x=np.zeros((2, 3)), y=np.zeros(2, int))
    (data / "0/gone.npz").symlink_to(data / "nowhere.npz")
    (data / "1/notes.txt").write_text("hello")
    os.mkfifo(data / "1/7/pipe.npy")
    error = refuse(app=None, data=data)
    assert error.exit_code is ExitCode.DATA
    for name in ("garbage.npz", "shape.npz", "gone.npz", "notes.txt", "pipe.npy"):
        assert name in error.message


def test_a_port_that_somebody_listens_on_is_refused(refuse: Callable[..., OnefedError]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        error = refuse(assignments=[f"FL_FLEET_API_ADDRESS=0.0.0.0:{port}"])
    assert error.exit_code is ExitCode.IN_USE
    assert str(port) in error.message
    assert "FL_FLEET_API_ADDRESS" in (error.hint or "")


@pytest.mark.parametrize("folder", ["a\nb", "a\x1b[2Jb", "a\udcffb"])
def test_a_folder_whose_name_cannot_be_printed_is_refused(
    refuse: Callable[..., OnefedError], tmp_path: Path, folder: str
) -> None:
    """It would go through configuration files, addresses and logs of several programs."""
    error = refuse(folder=tmp_path / folder, name="demo")
    assert error.exit_code is ExitCode.CONFIG
    assert "--dir" in error.message
    assert error.message.isprintable()


@pytest.mark.parametrize("folder", ["-rf", "My Data", "Ä"])
def test_a_folder_that_gives_no_name_asks_for_one(
    refuse: Callable[..., OnefedError],
    ask: Callable[..., Request],
    environ: dict[str, str],
    tmp_path: Path,
    folder: str,
) -> None:
    assert "--name" in (refuse(folder=tmp_path / folder).hint or "")
    assert prepare(ask(folder=tmp_path / folder, name="demo"), environ)


def test_everything_that_is_wrong_is_said_at_once_with_the_code_of_the_first(
    refuse: Callable[..., OnefedError], tmp_path: Path, write_app: Callable[..., Path]
) -> None:
    error = refuse(
        name="No Name",
        nodes=0,
        rounds=0,
        strategy="FedBest",
        assignments=["FL_SEEED=1", "FL_LOG_LEVEL=LOUD"],
        app=write_app(tmp_path / "broken", pyproject="[project]\n"),
    )
    for what in ("No Name", "0 nodes", "FL_NUM_ROUNDS", "FedBest", "FL_SEEED", "LOUD", "broken"):
        assert what in error.message
    assert error.exit_code is ExitCode.USAGE

    resolved = refuse(
        nodes=1,
        assignments=["FL_MIN_FIT_CLIENTS=2", "local-epoch=1"],
        app=write_app(tmp_path / "failing", module="1 / 0", managed=True),
        data=tmp_path / "nowhere",
    )
    for what in ("FL_MIN_FIT_CLIENTS is 2", "local-epoch", "ZeroDivisionError", "nowhere"):
        assert what in resolved.message
    assert resolved.exit_code is ExitCode.CONFIG


def test_checkpoints_of_another_run_are_never_in_the_way_of_a_new_one(
    refuse: Callable[..., OnefedError], tmp_path: Path
) -> None:
    (tmp_path / "checkpoint_round_5.npz").touch()
    error = refuse(assignments=[f"FL_CHECKPOINT_PATH={tmp_path}"])
    assert error.exit_code is ExitCode.IN_USE
    assert str(tmp_path) in error.message
    assert "FL_CHECKPOINT_PATH" in (error.hint or "")
