"""From a request to a state directory: everything that can be wrong is said before anything is
made."""

from __future__ import annotations

import dataclasses
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onefed.context import ContextError
from onefed.errors import ExitCode, InUseError, OnefedError, StorageError
from onefed.local import deploy, state
from onefed.local.deploy import Request
from onefed.local.state import StateDir

# flwr 1.41.0 asks its own pin of pathspec for a pattern style by its former name.
pytestmark = pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")

PYPROJECT = """\
[project]
name = "small"
version = "1.0"

[tool.flwr.app]
publisher = "somebody"

[tool.flwr.app.components]
serverapp = "small:app"
clientapp = "small:app"

[tool.flwr.app.config]
local-epochs = 1
learning-rate = 0.1
shuffle = true
tag = ""
"""
"""An app that imports nothing, so that checking it takes no time."""

MANAGED = '\n[tool.onefed]\ninitial-arrays = "small:initial"\n'

MODULE = "def app(): ...\ndef initial(run_config): ...\n"

HOLDER = """
import sys
from pathlib import Path
from onefed.local import state
with state.hold(state.StateDir(Path(sys.argv[1]))):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """The state home; nothing is there yet."""
    return tmp_path / "home"


@pytest.fixture
def environ(home: Path) -> dict[str, str]:
    return {"ONEFED_HOME": str(home)}


@pytest.fixture
def app(tmp_path: Path) -> Path:
    """A managed app of the user's own."""
    return write_app(tmp_path / "small", PYPROJECT + MANAGED)


@pytest.fixture
def ask(app: Path) -> Callable[..., Request]:
    """A request that can be met, but for what a test changes."""

    def build(**changed: Any) -> Request:
        request = Request(
            nodes=2,
            rounds=None,
            strategy=None,
            use_case=None,
            app=app,
            assignments=(),
            context_file=None,
            seed=None,
            data=None,
            name=None,
            folder=None,
            replace=False,
        )
        return dataclasses.replace(request, **changed)

    return build


@pytest.fixture
def refuse(
    ask: Callable[..., Request], environ: dict[str, str], home: Path
) -> Callable[..., OnefedError]:
    """What ``prepare`` raises for a request; nothing may have been written."""

    def attempt(more: Mapping[str, str] | None = None, **changed: Any) -> OnefedError:
        with pytest.raises(OnefedError) as caught:
            deploy.prepare(ask(**changed), {**environ, **(more or {})})
        assert not home.exists()
        assert caught.value.hint
        return caught.value

    return attempt


@pytest.fixture
def create(ask: Callable[..., Request], environ: dict[str, str]) -> Callable[..., StateDir]:
    def both(**changed: Any) -> StateDir:
        request = ask(**changed)
        return deploy.create(deploy.prepare(request, environ), request, environ)

    return both


@pytest.fixture
def held() -> Iterator[Callable[[StateDir], None]]:
    """Has a process hold a federation, as the cloud of one that runs."""
    holders = []

    def hold(directory: StateDir) -> None:
        holder = subprocess.Popen(
            [sys.executable, "-c", HOLDER, directory.folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        holders.append(holder)
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"

    yield hold
    for holder in holders:
        holder.communicate()


def write_app(folder: Path, pyproject: str, module: str = MODULE) -> Path:
    folder.mkdir(parents=True)
    (folder / "pyproject.toml").write_text(pyproject)
    (folder / "small.py").write_text(module)
    return folder


# --- what holds when nothing is said --------------------------------------------------------------


def test_a_laptop_wants_all_nodes_and_a_checkpoint(
    ask: Callable[..., Request], environ: dict[str, str], home: Path
) -> None:
    prepared = deploy.prepare(ask(nodes=4), environ)
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


def test_the_built_in_app_is_the_default(
    ask: Callable[..., Request], environ: dict[str, str]
) -> None:
    prepared = deploy.prepare(ask(app=None), environ)
    assert prepared.spec.managed
    assert "image-classification" in prepared.spec.app


def test_set_comes_before_the_file_and_the_file_before_the_environment(
    ask: Callable[..., Request], environ: dict[str, str], tmp_path: Path
) -> None:
    file = tmp_path / "context.sh"
    file.write_text("FL_SEED='2'\nFL_NUM_ROUNDS='2'\nFL_LOG_LEVEL='DEBUG'\n")
    spec = deploy.prepare(
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
    spec = deploy.prepare(
        ask(rounds=7, strategy="FedAvg", seed=9, assignments=["FL_SEED=9"]), environ
    ).spec
    assert (spec.rounds, spec.strategy, spec.seed) == (7, "FedAvg", 9)


def test_settings_of_the_app_from_all_sources_are_joined(
    ask: Callable[..., Request], environ: dict[str, str], tmp_path: Path
) -> None:
    """One variable carries them: setting one key must not drop those that the file set."""
    file = tmp_path / "context.sh"
    file.write_text("FL_RUN_CONFIG='local-epochs=3 shuffle=false'\n")
    spec = deploy.prepare(
        ask(context_file=file, assignments=["local-epochs=2", "tag=red"]), environ
    ).spec
    assert spec.context["FL_RUN_CONFIG"] == 'local-epochs=2 shuffle=false tag="red"'


@pytest.mark.parametrize(
    ("assignment", "rounds"), [("", 0), ("FL_NUM_ROUNDS=4", 4), ("FL_SEED=4", 0)]
)
def test_an_app_with_its_own_server_app_decides_about_rounds(
    ask: Callable[..., Request],
    environ: dict[str, str],
    tmp_path: Path,
    assignment: str,
    rounds: int,
) -> None:
    own = write_app(tmp_path / "own", PYPROJECT)
    prepared = deploy.prepare(ask(app=own, assignments=[assignment] if assignment else []), environ)
    assert not prepared.spec.managed
    assert prepared.spec.rounds == rounds
    assert prepared.spec.strategy == "the app's own"
    how_to, *ignored = prepared.notices
    assert "initial-arrays" in how_to
    assert [notice.partition(" ")[0] for notice in ignored] == (
        [assignment.partition("=")[0]] if assignment else []
    )


# --- bad input ------------------------------------------------------------------------------------


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
    assert deploy.prepare(ask(assignments=[assignment]), environ)


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


def test_every_mistake_in_a_context_file_is_named_by_its_line(
    refuse: Callable[..., OnefedError], tmp_path: Path
) -> None:
    file = tmp_path / "context.sh"
    file.write_text("FL_NUM_ROUNDS='x'\n\nFL_STRATEGY='FedBest'\nFL_SEED='unclosed\n")
    error = refuse(context_file=file)
    assert error.exit_code is ExitCode.CONFIG
    for line in ("line 1", "line 3", "line 4"):
        assert line in error.message


def test_a_use_case_of_none_trains_nothing(refuse: Callable[..., OnefedError]) -> None:
    error = refuse(app=None, use_case="none")
    assert error.exit_code is ExitCode.CONFIG
    assert "FL_USE_CASE is none" in error.message


@pytest.mark.parametrize(
    ("pyproject", "module", "said"),
    [
        (None, MODULE, "holds no pyproject.toml"),
        ("[project]\nname = 'x'\n", MODULE, "has no [tool.flwr.app]"),
        ("not toml at all [", MODULE, "cannot be read"),
        (PYPROJECT, "import nowhere_to_be_found\n", "nowhere_to_be_found"),
        (PYPROJECT, "1 / 0\n", "ZeroDivisionError"),
        (PYPROJECT, "", "app"),
    ],
)
def test_what_is_no_usable_app_is_refused(
    refuse: Callable[..., OnefedError],
    tmp_path: Path,
    pyproject: str | None,
    module: str,
    said: str,
) -> None:
    folder = write_app(tmp_path / "broken", pyproject or "", module)
    if pyproject is None:
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
    assert deploy.prepare(ask(folder=tmp_path / folder, name="demo"), environ)


def test_everything_that_is_wrong_is_said_at_once_with_the_code_of_the_first(
    refuse: Callable[..., OnefedError], tmp_path: Path
) -> None:
    error = refuse(
        name="No Name",
        nodes=0,
        rounds=0,
        strategy="FedBest",
        assignments=["FL_SEEED=1", "FL_LOG_LEVEL=LOUD"],
        app=write_app(tmp_path / "broken", "[project]\n"),
    )
    for what in ("No Name", "0 nodes", "FL_NUM_ROUNDS", "FedBest", "FL_SEEED", "LOUD", "broken"):
        assert what in error.message
    assert error.exit_code is ExitCode.USAGE

    resolved = refuse(
        nodes=1,
        assignments=["FL_MIN_FIT_CLIENTS=2", "local-epoch=1"],
        app=write_app(tmp_path / "failing", PYPROJECT + MANAGED, "1 / 0"),
        data=tmp_path / "nowhere",
    )
    for what in ("FL_MIN_FIT_CLIENTS is 2", "local-epoch", "ZeroDivisionError", "nowhere"):
        assert what in resolved.message
    assert resolved.exit_code is ExitCode.CONFIG


# --- full disks -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [("size=1m", "MB are wanted"), ("size=200m,nr_inodes=4", "No space left on device")],
    ids=["little room", "no room for files"],
)
def test_a_full_disk_is_refused_and_nothing_half_made_stays(
    app: Path, tmp_path: Path, request: pytest.FixtureRequest, options: str, said: str
) -> None:
    """A disk of its own, in a mount name space of its own: it goes with the shell."""
    small = tmp_path / "disk"
    small.mkdir()
    script = (
        'mount -t tmpfs -o "$1" tmpfs "$2" || exit 99; '
        '"$3" -m onefed.cli.main run "$4" --dir "$2/demo"; code=$?; '
        'echo "left:" $(ls -A "$2"); exit $code'
    )
    done = subprocess.run(
        [
            *("unshare", "--map-root-user", "--mount"),
            *("env", f"ONEFED_HOME={tmp_path / 'home'}"),
            *("sh", "-c", script, "sh", options, small, sys.executable, app),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode in (1, 99) and "error:" not in done.stderr:
        if os.getenv("CI") == "true":  # noqa: TID251
            pytest.fail(f"CI has to be able to mount a small disk: {done.stderr}")
        pytest.skip(f"no small disk can be mounted here: {done.stderr.strip()}")
    assert done.returncode == ExitCode.STORAGE, done.stderr
    assert str(small) in done.stderr
    assert said in done.stderr
    assert "next:" in done.stderr
    assert done.stdout.split() == ["left:"]
    assert not any((tmp_path / "home").glob("*"))


# --- making it ------------------------------------------------------------------------------------


def test_a_federation_is_made_as_it_was_asked_for(
    create: Callable[..., StateDir], home: Path
) -> None:
    made = create(name="demo", rounds=3)
    assert made.folder == home / "demo"
    spec = made.read_spec()
    assert (spec.name, spec.rounds, spec.nodes) == ("demo", 3, 2)
    assert made.bundle.read_bytes().startswith(b"PK")


def test_without_a_name_each_gets_the_next_number(
    create: Callable[..., StateDir], home: Path
) -> None:
    assert [create().read_spec().name for _ in range(2)] == ["fed-1", "fed-2"]


def test_without_names_two_at_the_same_time_get_two(
    ask: Callable[..., Request], environ: dict[str, str]
) -> None:
    request = ask()
    prepared = deploy.prepare(request, environ)
    made: list[StateDir] = []
    barrier = threading.Barrier(4)

    def race() -> None:
        barrier.wait()
        made.append(deploy.create(prepared, request, environ))

    racers = [threading.Thread(target=race) for _ in range(4)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()
    assert len({each.folder for each in made}) == 4
    assert {each.read_spec().name for each in made} == {each.folder.name for each in made}


def test_a_folder_gives_the_name(
    create: Callable[..., StateDir], home: Path, tmp_path: Path
) -> None:
    made = create(folder=tmp_path / "far")
    assert made.folder == tmp_path / "far"
    assert state.find(home, "far") == made


def test_a_taken_name_is_found_with_everything_else(
    create: Callable[..., StateDir], ask: Callable[..., Request], environ: dict[str, str]
) -> None:
    create(name="demo")
    with pytest.raises(OnefedError) as refused:
        deploy.prepare(ask(name="demo", rounds=0), environ)
    assert refused.value.exit_code is ExitCode.IN_USE
    assert "'demo'" in refused.value.message
    assert "FL_NUM_ROUNDS" in refused.value.message


def test_what_was_trained_is_replaced_only_when_asked(
    create: Callable[..., StateDir], home: Path
) -> None:
    made = create(name="demo", seed=1)
    (made.folder / "trained").write_text("for days")
    with pytest.raises(InUseError):
        create(name="demo", seed=2)
    assert (made.folder / "trained").exists()

    again = create(name="demo", seed=2, replace=True)
    assert again == made
    assert not (again.folder / "trained").exists()
    assert again.read_spec().seed == 2
    assert [entry.name for entry in home.iterdir()] == ["demo"]


def test_a_replaced_federation_elsewhere_stays_where_it_was(
    create: Callable[..., StateDir], home: Path, tmp_path: Path
) -> None:
    create(folder=tmp_path / "far")
    create(folder=tmp_path / "far", name="other", replace=True)
    assert [each.folder for each in state.all_of(home)] == [tmp_path / "far"]
    assert [entry.name for entry in home.iterdir()] == ["other"]


def test_replacing_is_no_way_into_a_foreign_folder(
    refuse: Callable[..., OnefedError], tmp_path: Path
) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.jpg").write_text("mine")
    error = refuse(folder=tmp_path / "photos", replace=True)
    assert error.exit_code is ExitCode.IN_USE
    assert (tmp_path / "photos/a.jpg").exists()


def test_a_running_federation_is_never_touched(
    create: Callable[..., StateDir],
    ask: Callable[..., Request],
    environ: dict[str, str],
    home: Path,
    held: Callable[[StateDir], None],
) -> None:
    request = ask(name="demo", replace=True)
    prepared = deploy.prepare(request, environ)
    made = create(name="demo")
    held(made)
    before = sorted(made.folder.rglob("*"))
    with pytest.raises(InUseError, match="running"):
        deploy.prepare(request, environ)
    with pytest.raises(InUseError):  # it was started after the request was found good
        deploy.create(prepared, request, environ)
    with pytest.raises(InUseError):
        deploy.remove(made, home)
    assert sorted(made.folder.rglob("*")) == before


def test_the_users_data_survives_its_federation(
    create: Callable[..., StateDir], home: Path, tmp_path: Path
) -> None:
    (tmp_path / "data/0").mkdir(parents=True)
    (tmp_path / "data/0/mine.npz").write_text("precious")
    made = create(name="demo", folder=tmp_path / "far")
    (made.folder / "vms").mkdir()
    (made.folder / "vms/data").symlink_to(tmp_path / "data/0")
    deploy.remove(made, home)
    assert (tmp_path / "data/0/mine.npz").read_text() == "precious"
    assert not (tmp_path / "far").exists()
    assert list(home.iterdir()) == []


def test_a_damaged_federation_can_be_discarded(create: Callable[..., StateDir], home: Path) -> None:
    made = create(name="demo")
    made.spec_file.write_text("{")
    deploy.remove(state.find(home, "demo"), home)
    assert list(home.iterdir()) == []


def test_what_cannot_be_written_leaves_nothing_behind(
    ask: Callable[..., Request], environ: dict[str, str], home: Path, tmp_path: Path
) -> None:
    """The disk of the home is writable, that of the place is not: nothing takes the name."""
    request = ask(name="demo", folder=Path("/proc/self/onefed"))
    prepared = deploy.prepare(ask(name="demo"), environ)
    with pytest.raises(StorageError):
        deploy.create(prepared, request, environ)
    assert state.all_of(home) == []
    assert not (home / "demo").is_symlink()
