"""State directories made for a request, and discarded: nothing half-made stays."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from onefed.errors import ExitCode, InUseError, OnefedError, StorageError
from onefed.local import deploy, state
from onefed.local.request import Request, prepare
from onefed.local.state import StateDir

# flwr 1.41.0 asks its own pin of pathspec for a pattern style by its former name.
pytestmark = pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")


@pytest.fixture
def create(ask: Callable[..., Request], environ: dict[str, str]) -> Callable[..., StateDir]:
    def both(**changed: Any) -> StateDir:
        request = ask(**changed)
        return deploy.create(prepare(request, environ), request, environ)

    return both


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
    prepared = prepare(request, environ)
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
        prepare(ask(name="demo", rounds=0), environ)
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
    prepared = prepare(request, environ)
    made = create(name="demo")
    held(made)
    before = sorted(made.folder.rglob("*"))
    with pytest.raises(InUseError, match="running"):
        prepare(request, environ)
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
    prepared = prepare(ask(name="demo"), environ)
    with pytest.raises(StorageError):
        deploy.create(prepared, request, environ)
    assert state.all_of(home) == []
    assert not (home / "demo").is_symlink()


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
