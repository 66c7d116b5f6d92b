"""nodes, runs and submit: what is asked of a supervisor, what is printed, and the errors."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from onefed.appliance import stages
from onefed.appliance.paths import Paths
from onefed.cli import nodes
from onefed.errors import ExitCode, NotFoundError
from onefed.flower import mailbox
from onefed.local.state import SUPERLINK, StateDir
from onefed.telemetry import events
from onefed.telemetry.log import EventLog
from onefed.tls import enrolment, node_keys

Run = Callable[..., Any]

FINGERPRINT = "0123456789abcdef" * 4
APP = Path(__file__).parents[3] / "examples/sklearn-logreg-managed"

ROW = {
    "client": "0",
    "fingerprint": FINGERPRINT,
    "source": "service",
    "state": "online",
    "seen_at": "2026-01-01T12:00:00+00:00",
}
RUN_ROW = {
    "run_id": "77",
    "submitted_at": "2026-01-01T12:00:00+00:00",
    "status": "completed",
    "details": "",
}


class Supervisor:
    """Answers every request with what it was told to answer, and remembers it."""

    def __init__(self, directory: StateDir) -> None:
        self.directory = directory
        self.asked: list[dict[str, Any]] = []
        self.files: list[bytes] = []
        """What was submitted."""
        self.answers: dict[str, Mapping[str, Any] | Exception] = {
            "nodes": {"nodes": [ROW]},
            "revoke": {"client": "0", "fingerprint": FINGERPRINT},
            "replace": {"client": "0", "fingerprint": FINGERPRINT},
            "token": {"expires_at": "2026-01-02T12:00:00+00:00"},
            "runs": {"run": "r" * 32, "status": "completed", "runs": [RUN_ROW]},
            "stop": {"run": "r" * 32},
            "submit": {"run": "s" * 32},
        }
        self.then: Callable[[], None] = lambda: None
        """What happens after the next answer."""
        self._requests = Paths(directory.root(SUPERLINK)).requests
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()

    def _look(self) -> None:
        while not self._closed.wait(0.01):
            handlers = dict.fromkeys(self.answers, self._answer)
            if mailbox.serve(self._requests, handlers):
                self.then()

    def _answer(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        self.asked.append(dict(request))
        if request["kind"] == "submit":
            self.files.append((self._requests / request["file"]).read_bytes())
        answer = self.answers[request["kind"]]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def tells(self, *told: events.Event) -> None:
        """Events of the federation, once the next request was answered."""

        def tell() -> None:
            log = EventLog(self.directory.events, "superlink", lambda: datetime.now(UTC))
            for event in told:
                log.emit(event)
            log.close()

        self.then = tell

    def close(self) -> None:
        self._closed.set()
        self._thread.join()


@pytest.fixture
def supervisor(make: Run, hold: Run) -> Iterator[Supervisor]:
    """Of the federation ``demo``, which runs."""
    directory = make("demo")
    hold(directory)
    found = Supervisor(directory)
    yield found
    found.close()


# --- errors that need no supervisor ---------------------------------------------------------------

COMMANDS = [
    ["nodes", "list", "--name", "demo"],
    ["nodes", "revoke", "0", "--name", "demo"],
    ["nodes", "replace", "0", "--name", "demo"],
    ["nodes", "token", "--name", "demo"],
    ["runs", "demo"],
    ["runs", "list", "demo"],
    ["runs", "follow", "demo"],
    ["runs", "stop", "demo"],
    ["submit", str(APP), "demo"],
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_federation_that_does_not_run_or_does_not_exist_is_named(
    onefed: Run, make: Run, command: list[str]
) -> None:
    shown = onefed(*command)
    assert (shown.code, shown.out) == (ExitCode.NOT_FOUND, "")
    make("demo")
    shown = onefed(*command)
    assert (shown.code, shown.out) == (ExitCode.NOT_FOUND, "")
    assert "'demo' is not running" in shown.err
    assert "onefed resume demo" in shown.err


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        (["nodes", "revoke"], ExitCode.USAGE, "NODE"),
        (["nodes", "token", "--hours", "0"], ExitCode.USAGE, "--hours"),
        (["nodes", "token", "--partition", "-1"], ExitCode.USAGE, "--partition"),
        (["nodes", "replace", "0", "--key", "/nowhere/key.pub"], ExitCode.USAGE, "/nowhere"),
        (["submit"], ExitCode.USAGE, "APP"),
        (["submit", "/nowhere"], ExitCode.APP, "/nowhere"),
        (["submit", str(APP), "--set", "FL_SEED=1"], ExitCode.FAILED, "no FL_ variables"),
        (["submit", str(APP), "--set", "nonsense"], ExitCode.CONFIG, "nonsense"),
        (["submit", str(APP), "--rounds", "0"], ExitCode.USAGE, "--rounds"),
        (["runs", "follow", "demo", "twice"], ExitCode.USAGE, "twice"),
    ],
)
def test_what_cannot_be_asked_is_not_asked(
    onefed: Run, supervisor: Supervisor, command: list[str], code: ExitCode, said: str
) -> None:
    shown = onefed(*command)
    assert (shown.code, shown.out) == (code, "")
    assert said in shown.err
    assert "\nnext:  " in shown.err
    assert supervisor.asked == []


# --- nodes ----------------------------------------------------------------------------------------


def test_nodes_are_listed_for_people_and_for_programs(onefed: Run, supervisor: Supervisor) -> None:
    _, row = onefed("nodes", "list").out.splitlines()
    assert row.split() == ["0", FINGERPRINT[:16], "service", "online", "2026-01-01T12:00:00"]
    assert json.loads(onefed("nodes", "list", "--name", "demo", "--json").out) == [ROW]


def test_a_node_is_revoked_and_replaced_by_name(
    onefed: Run, supervisor: Supervisor, tmp_path: Path
) -> None:
    assert f"Node 0 ({FINGERPRINT[:16]}) is revoked" in onefed("nodes", "revoke", "0").out
    key = node_keys.ensure(tmp_path / "new").public_key
    (tmp_path / "new.pub").write_bytes(key)
    shown = onefed("nodes", "replace", "0", "--key", tmp_path / "new.pub")
    assert f"Node 0 has the key {FINGERPRINT[:16]}" in shown.out
    onefed("nodes", "replace", "0")
    assert supervisor.asked == [
        {"kind": "revoke", "node": "0"},
        {"kind": "replace", "node": "0", "public_key": key.decode()},
        {"kind": "replace", "node": "0", "public_key": ""},
    ]


def test_a_token_is_printed_and_only_its_digest_is_handed_on(
    onefed: Run, supervisor: Supervisor
) -> None:
    token = onefed("nodes", "token", "--hours", "2", "--partition", "7").out.strip()
    assert enrolment.is_token(token)
    [asked] = supervisor.asked
    assert asked == {
        "kind": "token",
        "sha256": enrolment.digest(token),
        "lifetime_s": 7200,
        "client": "7",
    }


def test_a_refusal_comes_with_its_words_and_its_code(onefed: Run, supervisor: Supervisor) -> None:
    supervisor.answers["revoke"] = NotFoundError("No node is called '9'.", hint="Look again.")
    shown = onefed("nodes", "revoke", "9")
    assert (shown.code, shown.out) == (ExitCode.NOT_FOUND, "")
    assert shown.err.splitlines() == ["error: No node is called '9'.", "next:  Look again."]


# --- on a coordinator's own machine ---------------------------------------------------------------


def test_there_the_supervisor_of_the_machine_is_asked_unless_a_name_is_given(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    machine = Paths(tmp_path / "machine")
    for folder in (machine.config, machine.state):
        folder.mkdir(parents=True)
    named = Paths(supervisor.directory.root(SUPERLINK)).requests
    assert nodes.mailbox_of(None, machine) == named, "its boot has told no supervisor yet"
    machine.supervisor.write_text("{}")
    assert nodes.mailbox_of(None, machine) == machine.requests
    assert nodes.events_of(None, machine) == stages.events(machine)
    assert nodes.mailbox_of("demo", machine) == named
    assert nodes.events_of("demo", machine) == supervisor.directory.events


# --- runs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command", [["runs"], ["runs", "demo"], ["runs", "list"], ["runs", "list", "demo"]]
)
def test_runs_are_listed_with_and_without_the_word(
    onefed: Run, supervisor: Supervisor, command: list[str]
) -> None:
    _, row = onefed(*command).out.splitlines()
    assert row.split() == ["77", "2026-01-01T12:00:00", "completed"]
    assert json.loads(onefed(*command, "--json").out) == supervisor.answers["runs"]


def test_before_the_first_submission_there_is_a_sentence(
    onefed: Run, supervisor: Supervisor
) -> None:
    supervisor.answers["runs"] = {"run": "r", "status": "waiting", "runs": []}
    assert "Nothing was submitted yet (waiting)." in onefed("runs", "demo").out


def test_a_word_that_is_neither_a_command_nor_a_federation_is_told(onefed: Run, make: Run) -> None:
    make("demo")
    shown = onefed("runs", "nosuch")
    assert shown.code == ExitCode.NOT_FOUND
    assert "'nosuch'" in shown.err


def test_a_run_is_stopped(onefed: Run, supervisor: Supervisor) -> None:
    assert "Run rrrrrrrr stops once the round in flight is saved." in onefed("runs", "stop").out


@pytest.mark.parametrize(
    ("told", "code", "said"),
    [
        (events.RunStatus("completed"), ExitCode.OK, ""),
        (events.RunStatus("failed", "it raised"), ExitCode.FAILED, "The run failed: it raised"),
        (events.RunStatus("stopped", ""), ExitCode.INTERRUPTED, "The run stopped"),
        (
            events.FederationEnd("stopped", 1, 3, None, None, None, None, 0, 0, 1.0),
            ExitCode.FAILED,
            "The federation ended before the run.",
        ),
    ],
)
def test_the_end_of_a_run_that_is_followed_is_the_exit_code(
    onefed: Run, supervisor: Supervisor, told: events.Event, code: ExitCode, said: str
) -> None:
    supervisor.answers["runs"] = {"run": "r", "status": "running", "runs": []}
    supervisor.tells(events.RunStatus("running"), told)
    shown = onefed("runs", "follow", "demo")
    assert shown.code == code
    assert said in shown.err
    assert "run is running" in shown.out


def test_there_is_nothing_to_follow_after_the_end(onefed: Run, supervisor: Supervisor) -> None:
    assert onefed("runs", "follow").out == "No run is under way.\n"


# --- submit ---------------------------------------------------------------------------------------


def test_an_app_is_handed_over_with_its_settings_and_nothing_is_left(
    onefed: Run, supervisor: Supervisor
) -> None:
    supervisor.tells(events.RunStatus("completed"))
    shown = onefed("submit", APP, "demo", "-r", "7", "--set", "learning-rate=0.5", "--follow")
    assert shown.code == 0
    assert "is submitted as run ssssssss." in shown.out
    assert "run is completed" in shown.out
    [asked] = supervisor.asked
    assert asked["run_config"] == {"learning-rate": 0.5, "num-server-rounds": 7}
    assert supervisor.files[0].startswith(b"PK")
    requests = Paths(supervisor.directory.root(SUPERLINK)).requests
    assert list(requests.iterdir()) == []


def test_an_app_that_is_refused_leaves_nothing(onefed: Run, supervisor: Supervisor) -> None:
    supervisor.answers["submit"] = NotFoundError("There is a run.", hint="Stop it.")
    shown = onefed("submit", APP)
    assert (shown.code, shown.out) == (ExitCode.NOT_FOUND, "")
    assert list(Paths(supervisor.directory.root(SUPERLINK)).requests.iterdir()) == []
