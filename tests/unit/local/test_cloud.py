"""The cloud of a federation, as far as it goes without Flower: disks of machines, and every way
in which a federation can end before its first round."""

from __future__ import annotations

import dataclasses
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from onefed import context
from onefed.errors import ExitCode
from onefed.local import cloud, deploy, ownership, state, summary
from onefed.local.cloud import DataGoneError
from onefed.local.spec import Spec
from onefed.local.state import StateDir
from onefed.telemetry import events
from onefed.telemetry.log import Follower

LIMIT_S = 60.0
"""Longer than any of these takes; whatever takes longer has hung."""

SPEC = Spec(
    name="demo",
    nodes=2,
    app="nothing",
    managed=True,
    rounds=3,
    strategy="FedAvg",
    seed=0,
    context={"FL_NUM_ROUNDS": "3", "FL_STRATEGY": "FedAvg"},
)

HOLDER = """
import sys
from pathlib import Path
from onefed.local import ownership, state
with ownership.hold(state.StateDir(Path(sys.argv[1]))):
    print("held", flush=True)
    sys.stdin.read()
"""

PARENT = """
import sys
from pathlib import Path
from onefed.local import deploy, state
started = deploy.start(state.StateDir(Path(sys.argv[1])), {}, attached=True)
print(started.pid, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., StateDir]]:
    """A federation that was asked for; nothing of it outlives the test."""
    made = []

    def build(**changed: Any) -> StateDir:
        directory = state.claim(tmp_path / "home", "demo", None)
        directory.bundle.write_bytes(b"no app")
        directory.write_spec(dataclasses.replace(SPEC, **changed))
        made.append(directory)
        return directory

    yield build
    for directory in made:
        ownership.end_processes(directory)


def ends_with(directory: StateDir, **options: Any) -> int:
    """The exit code of a cloud that is started in that folder."""
    started = deploy.start(directory, {}, attached=True, **options)
    return started.wait(LIMIT_S)


def wait_for(directory: StateDir, wanted: Callable[[events.Event], bool]) -> None:
    """Return once an event has happened."""
    follower = Follower(directory.events)
    limit = time.monotonic() + LIMIT_S
    while not any(wanted(record.event) for record in follower.poll()):
        assert time.monotonic() < limit, "it did not happen"
        time.sleep(0.02)


# --- disks of machines ----------------------------------------------------------------------------


@settings(deadline=None)
@given(
    st.dictionaries(
        st.from_regex(r"[A-Z][A-Z0-9_]{0,20}", fullmatch=True),
        st.text(st.characters(exclude_characters="\x00", exclude_categories=("Cs",))),
    )
)
@example({"A": "'", "B": "''", "C": "\\'", "D": "a'\nb'c\n", "E": '$(rm -rf /) "`x`" ${HOME}'})
@example({"A": "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n", "B": "\r\n\t#\n"})
@example({"A": "x\nB='y'\n", "B": 'x\nexport A="y"\n'})
def test_every_value_reaches_the_machine_as_it_was_given(variables: dict[str, str]) -> None:
    read = context.parse_context_file(cloud.context_document(variables))
    assert {name: given.text for name, given in read.assignments.items()} == variables
    assert read.findings == ()


def test_what_is_not_utf_8_is_refused_by_the_machine_by_its_name() -> None:
    read = context.parse_context_file(cloud.context_document({"FL_LOG_LEVEL": "\udcff"}))
    [finding] = read.findings
    assert finding.severity.stops
    assert "FL_LOG_LEVEL" in finding.message


def test_a_machine_gets_the_variables_of_its_role() -> None:
    given = {"FL_NUM_ROUNDS": "3", "FL_NODE_CONFIG": "a=1", "FL_LOG_LEVEL": "INFO", "FL_NEW": "1"}
    assert set(cloud.variables_of("superlink", given)) == {
        "FL_NUM_ROUNDS",
        "FL_LOG_LEVEL",
        "FL_NEW",
    }
    assert set(cloud.variables_of("supernode", given)) == {
        "FL_NODE_CONFIG",
        "FL_LOG_LEVEL",
        "FL_NEW",
    }


@given(st.sampled_from(sorted(context.VARIABLES)))
def test_every_variable_is_read_by_some_role(name: str) -> None:
    given_to = [role for role in context.Role if cloud.variables_of(role.value, {name: "x"})]
    assert set(given_to) == set(context.VARIABLES[name].appliances)


def test_a_node_sees_its_training_data(tmp_path: Path) -> None:
    (tmp_path / "data/1").mkdir(parents=True)
    (tmp_path / "data/1/site.npz").write_text("x")
    link = tmp_path / "root/opt/flower/data"
    for _ in range(2):  # at every start
        cloud.link_data("supernode/1", link, tmp_path / "data/1")
        assert (link / "site.npz").read_text() == "x"


def test_training_data_that_is_gone_stops_the_node(tmp_path: Path) -> None:
    """Its app would train on the built-in examples instead, and nobody would notice."""
    (tmp_path / "data/1").mkdir(parents=True)
    link = tmp_path / "root/opt/flower/data"
    cloud.link_data("supernode/1", link, tmp_path / "data/1")
    (tmp_path / "data/1").rmdir()
    with pytest.raises(DataGoneError) as refused:
        cloud.link_data("supernode/1", link, tmp_path / "data/1")
    assert "supernode/1" in refused.value.message
    assert str(tmp_path / "data/1") in refused.value.message


# --- endings --------------------------------------------------------------------------------------


def test_a_port_that_was_taken_meanwhile_ends_it(make: Callable[..., StateDir]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        directory = make(context={**SPEC.context, "FL_FLEET_API_ADDRESS": f"127.0.0.1:{port}"})
        assert ends_with(directory) == ExitCode.IN_USE
    told = summary.read(directory.summary)
    assert (told["status"], told["exit_code"]) == ("failed", ExitCode.IN_USE)
    assert (told["rounds_done"], told["rounds_total"]) == (0, 3)
    assert f"Port {port}" in str(told["error"])
    assert "FL_FLEET_API_ADDRESS" in str(told["error"])
    assert ownership.owner(directory) is None
    assert ownership.processes(directory) == []


def test_a_variable_that_is_wrong_or_unknown_ends_it(make: Callable[..., StateDir]) -> None:
    directory = make(context={"FL_NUM_ROUNDS": "many", "FL_OF_TOMORROW": "1"})
    copy = directory.folder.parent / "copy.json"
    assert ends_with(directory, summary=copy) == ExitCode.CONFIG
    told = summary.read(directory.summary)
    assert told["exit_code"] == ExitCode.CONFIG
    assert "FL_NUM_ROUNDS" in str(told["error"])
    assert summary.read(copy) == told
    assert ownership.processes(directory) == []


def test_an_app_that_is_gone_ends_it(make: Callable[..., StateDir]) -> None:
    directory = make()
    directory.bundle.unlink()
    assert ends_with(directory) == ExitCode.FAILED
    assert str(directory.bundle) in str(summary.read(directory.summary)["error"])


def test_a_damaged_spec_ends_it(make: Callable[..., StateDir]) -> None:
    directory = make()
    directory.spec_file.write_text("{")
    assert ends_with(directory) == ExitCode.STORAGE
    assert str(directory.spec_file) in directory.log.read_text()
    assert "Traceback" not in directory.log.read_text()


def test_of_two_clouds_the_second_one_leaves_the_first_alone(make: Callable[..., StateDir]) -> None:
    directory = make()
    carried = f"{ownership.STATE_VARIABLE}={directory.folder}"
    first = subprocess.Popen(
        ["env", carried, sys.executable, "-c", HOLDER, directory.folder],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert first.stdout is not None
    assert first.stdout.readline() == b"held\n"
    assert ends_with(directory) == ExitCode.IN_USE
    assert first.poll() is None
    assert not directory.summary.exists()
    first.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_while_it_boots_is_a_stop_at_once(
    make: Callable[..., StateDir], number: signal.Signals
) -> None:
    """No round is in flight, so there is nothing to wait for."""
    directory = make()
    started = deploy.start(directory, {}, attached=False)
    wait_for(directory, lambda event: isinstance(event, events.FederationStart))
    started.send_signal(number)
    assert started.wait(LIMIT_S) == ExitCode.INTERRUPTED
    told = summary.read(directory.summary)
    assert (told["status"], told["exit_code"]) == ("stopped", ExitCode.INTERRUPTED)
    assert "onefed resume demo" in str(told["error"])
    assert ownership.processes(directory) == []


def test_an_attached_federation_ends_with_who_started_it(make: Callable[..., StateDir]) -> None:
    directory = make()
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, directory.folder],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert parent.stdout is not None
    started = psutil.Process(int(parent.stdout.readline()))
    wait_for(directory, lambda event: isinstance(event, events.FederationStart))
    parent.kill()
    parent.communicate()
    started.wait(LIMIT_S)
    assert summary.read(directory.summary)["status"] == "stopped"
    assert ownership.processes(directory) == []


def test_what_a_killed_cloud_left_is_ended_by_the_next(make: Callable[..., StateDir]) -> None:
    directory = make(context={"FL_NUM_ROUNDS": "many"})
    carried = f"{ownership.STATE_VARIABLE}={directory.folder}"
    left = subprocess.Popen(["env", carried, "sleep", "600"])
    assert ends_with(directory) == ExitCode.CONFIG
    assert left.wait(LIMIT_S) == -signal.SIGTERM


def test_the_folder_that_the_user_works_in_shadows_no_module(
    make: Callable[..., StateDir], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Users work in folders with files like random.py; a cloud must not run them."""
    (tmp_path / "asyncio.py").write_text("raise SystemExit(77)")
    monkeypatch.chdir(tmp_path)
    directory = make(context={"FL_NUM_ROUNDS": "many"})
    assert ends_with(directory) == ExitCode.CONFIG


def test_a_disk_that_fills_ends_it_while_it_can_still_say_so(
    make: Callable[..., StateDir], tmp_path: Path
) -> None:
    """On a small disk, mounted in a mount name space that goes with the shell."""
    directory = make()
    small, outcome = tmp_path / "disk", tmp_path / "summary.json"
    small.mkdir()
    script = (
        'mount -t tmpfs -o size=20m tmpfs "$1" || exit 99; cp -r "$2" "$1/demo"; '
        '"$3" -P -m onefed.local.host "$1/demo" "$4"'
    )
    done = subprocess.run(
        [
            *("unshare", "--map-root-user", "--mount"),
            *("env", f"{ownership.STATE_VARIABLE}={small / 'demo'}"),
            *("sh", "-c", script, "sh", small, directory.folder, sys.executable, outcome),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode in (1, 99) and not outcome.exists():
        if os.getenv("CI") == "true":  # noqa: TID251
            pytest.fail(f"CI has to be able to mount a small disk: {done.stderr}")
        pytest.skip(f"no small disk can be mounted here: {done.stderr.strip()}")
    assert done.returncode == ExitCode.STORAGE, done.stderr
    told = summary.read(outcome)
    assert (told["status"], told["exit_code"]) == ("failed", ExitCode.STORAGE)
    assert "is full" in str(told["error"])
    assert "onefed resume demo" in str(told["error"])
    assert ownership.processes(StateDir(small / "demo")) == []
