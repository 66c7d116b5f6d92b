"""What can be wrong with a request for a peer group is said before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from onefed.cli import peer_group
from onefed.cli.main import app
from onefed.errors import ExitCode, OnefedError

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ONEFED_HOME", str(tmp_path))
    return tmp_path


def run(*arguments: str) -> OnefedError:
    result = CliRunner().invoke(app, ["peer", *arguments])
    assert isinstance(result.exception, OnefedError), result.output
    return result.exception


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--failure-round", "2"), "belong together"),
        (("--failure-nodes", "node-0"), "belong together"),
        (("--failure-round", "0", "--failure-nodes", "node-0"), "from 1"),
        (("--failure-round", "3", "--failure-nodes", "node-0"), "from 1"),
        (
            (
                *("--failure-round", "2", "--failure-nodes", "node-0"),
                *("--recovery-round", "2"),
            ),
            "below --recovery-round",
        ),
        (
            (
                *("--failure-round", "1", "--failure-nodes", "node-0"),
                *("--recovery-round", "9"),
            ),
            "at most 3",
        ),
        (("--failure-round", "1", "--failure-nodes", "node-7"), "there is no node node-7"),
        (("--failure-round", "1", "--failure-nodes", "node-0 node-1"), "no majority"),
    ],
)
def test_faults_that_make_no_sense_are_refused(
    options: tuple[str, ...], reason: str, home: Path
) -> None:
    error = run("up", "--rounds", "3", *options)

    assert reason in error.message
    assert error.exit_code is ExitCode.CONFIG
    assert list(home.iterdir()) == []


def test_a_rule_that_needs_more_nodes_is_refused(home: Path) -> None:
    error = run("up", "--strategy", "Bulyan", "--nodes", "6", "--set", "FL_NUM_MALICIOUS=1")

    assert "needs at least 7 clients" in error.message
    assert list(home.iterdir()) == []


def test_a_setting_that_nobody_reads_is_refused(home: Path) -> None:
    assert "FL_TLS_ENABLED" in run("up", "--set", "FL_TLS_ENABLED=NO").message
    assert "no setting epochs" in run("up", "--set", "epochs=3").message
    assert list(home.iterdir()) == []


def test_an_app_with_a_server_of_its_own_is_refused(home: Path) -> None:
    error = run("up", "--app", str(EXAMPLES / "sklearn-logreg"))

    assert error.exit_code is ExitCode.APP
    assert "initial-arrays" in (error.hint or "")
    assert list(home.iterdir()) == []


def test_there_has_to_be_a_group(home: Path) -> None:
    for command in (("status",), ("leave", "node-0"), ("join",)):
        assert run(*command).exit_code is ExitCode.NOT_FOUND


@pytest.mark.parametrize(
    ("nodes", "said"),
    [
        (1, "none may fail"),
        (2, "none may fail"),
        (3, "any one of them"),
        (4, "any one of them"),
        (5, "any 2 of them"),
        (8, "any 3 of them"),
    ],
)
def test_a_group_says_what_it_withstands(nodes: int, said: str) -> None:
    assert said in peer_group.promise(nodes)


@pytest.mark.parametrize("given", ["FL_GRPC_KEEPALIVE_TIME=soon", "FL_GRPC_KEEPALIVE_TIMEOUT=60"])
def test_settings_of_connections_that_make_no_sense_are_refused(given: str, home: Path) -> None:
    error = run("up", "--set", given)

    assert given.partition("=")[0] in error.message
    assert error.exit_code is ExitCode.CONFIG
