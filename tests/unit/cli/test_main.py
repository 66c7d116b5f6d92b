"""Arguments, errors, exit codes and streams of the program."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from onefed.cli import main
from onefed.errors import ExitCode

Run = Callable[..., Any]


def commands(path: str, command: click.Command) -> Iterator[str]:
    """Full names of all commands and groups."""
    yield path
    if isinstance(command, click.Group):
        for name, child in command.commands.items():
            yield from commands(f"{path} {name}".strip(), child)


@pytest.mark.parametrize("path", list(commands("", main.command())))
def test_every_command_explains_itself(onefed: Run, path: str) -> None:
    shown = onefed(*path.split(), "--help")
    assert (shown.code, shown.err) == (0, "")
    assert f"Usage: onefed {path}".strip() in shown.out
    assert "--help" in shown.out


@pytest.mark.parametrize(
    ("path", "facts"),
    [
        ("up", ["[default: (5)]", "[default: (FedAvg)]", "[default: (fed-1, fed-2, ...)]"]),
        ("run", ["A Flower app directory."]),
        ("logs", ["superlink, supernode or supernode/N", "one line per"]),
        ("status", ["Name of the federation.", "the one that runs"]),
    ],
)
def test_help_tells_defaults_and_arguments(onefed: Run, path: str, facts: list[str]) -> None:
    shown = onefed(path, "--help").out
    for fact in facts:
        assert fact in shown


def test_without_a_command_there_is_help(onefed: Run) -> None:
    shown = onefed()
    assert shown.code == ExitCode.USAGE
    assert "Usage: onefed" in shown.out


@pytest.mark.parametrize(
    ("arguments", "said", "where"),
    [
        (["statsu"], "Did you mean 'status'?", "onefed --help"),
        (["up", "--node", "3"], "--nodes", "onefed up --help"),
        (["up", "--nodes", "three"], "'three'", "onefed up --help"),
        (["up", "--log-format", "xml"], "'xml'", "onefed up --help"),
        (["resume"], "NAME", "onefed resume --help"),
        (["resume", "demo", "--rounds", "0"], "0", "onefed resume --help"),
        (["resume", "demo", "--rounds", str(2**31)], "2147483648", "onefed resume --help"),
        (["model", "export", "demo"], "--output", "onefed model export --help"),
        (["status", "A/B"], "'A/B'", "lower-case"),
    ],
)
def test_a_usage_error_is_one_message_with_the_next_step(
    onefed: Run, home: Path, arguments: list[str], said: str, where: str
) -> None:
    shown = onefed(*arguments)
    assert (shown.code, shown.out) == (ExitCode.USAGE, "")
    message, next_step = shown.err.splitlines()
    assert message.startswith("error: ")
    assert said in message
    assert message.count("Did you mean") <= 1
    assert next_step.startswith("next:  ")
    assert where in next_step
    assert not home.exists()


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["up", "--nodes", "0"], ExitCode.CONFIG),
        (["up", "--strategy", "FedBest"], ExitCode.CONFIG),
        (["up", "--set", "FL_SEEED=1"], ExitCode.CONFIG),
        (["up", "--context", "/nowhere/context.sh"], ExitCode.STORAGE),
        (["up", "--data", "/nowhere"], ExitCode.DATA),
        (["up", "--resume-from", "/nowhere"], ExitCode.NOT_FOUND),
        (["up", "--chaos", "--rounds", "5", "--kills", "5"], ExitCode.CONFIG),
        (["up", "--chaos", "--use-case", "none"], ExitCode.CONFIG),
        (["up", "--chaos", "--detach"], ExitCode.USAGE),
        (["up", "--chaos", "--resume-from", "/nowhere"], ExitCode.USAGE),
        (["up", "--dir", "/proc/version"], ExitCode.IN_USE),
        (["up", "--summary", "/nowhere/summary.json"], ExitCode.STORAGE),
        (["run", "/nowhere"], ExitCode.APP),
        (["resume", "nothing"], ExitCode.NOT_FOUND),
        (["status"], ExitCode.NOT_FOUND),
        (["logs", "--name", "nothing"], ExitCode.NOT_FOUND),
        (["down", "nothing"], ExitCode.NOT_FOUND),
        (["down", "--purge"], ExitCode.NOT_FOUND),
        (["model", "export", "nothing", "-o", "model.npz"], ExitCode.NOT_FOUND),
    ],
)
def test_a_request_that_cannot_be_met_has_its_code_and_leaves_nothing(
    onefed: Run, home: Path, arguments: list[str], code: ExitCode
) -> None:
    shown = onefed(*arguments)
    assert (shown.code, shown.out) == (code, "")
    assert shown.err.startswith("error: ")
    assert "\nnext:  " in shown.err
    assert "Traceback" not in shown.err
    assert not home.exists()


def test_json_lines_keep_standard_output_for_json(onefed: Run) -> None:
    shown = onefed("up", "--nodes", "0", "--log-format", "json")
    assert (shown.code, shown.out) == (ExitCode.CONFIG, "")
    assert "0 nodes" in shown.err


def test_an_error_moves_no_cursor(onefed: Run, tmp_path: Path) -> None:
    """What an app prints while it is imported may hold anything."""
    folder = tmp_path / "app"
    folder.mkdir()
    (folder / "pyproject.toml").write_text("\x07")
    shown = onefed("run", str(folder) + "\x1b[2J")
    assert "\x1b" not in shown.err
    shown = onefed("run", folder)
    assert "\x07" not in shown.err


# --- streams and environment, in a process of its own ---------------------------------------------


def closed(stream: str) -> tuple[str, ...]:
    """A shell that closes a stream before it starts what follows."""
    return ("sh", "-c", f'exec "$@" {stream}', "sh")


@pytest.mark.parametrize("stream", [">&-", "<&- >&- 2>&-", ">/dev/full"])
def test_closed_streams_are_no_reason_for_a_traceback(
    program: Run, home: Path, stream: str
) -> None:
    shown = program("list", through=closed(stream))
    assert "Traceback" not in shown.err
    assert "Exception" not in shown.err
    if stream == ">/dev/full":
        assert shown.code == ExitCode.STORAGE
        assert "No space left on device" in shown.err
    else:
        assert shown.code == 0


@pytest.mark.parametrize("command", [["list"], ["list", "--json"], ["status", "demo"], ["logs"]])
def test_a_reader_that_has_gone_ends_it_in_silence(
    program: Run, finished: Run, command: list[str]
) -> None:
    finished("demo")
    gone = (
        "import os, sys; read, write = os.pipe(); os.close(read); os.dup2(write, 1); "
        "os.execv(sys.argv[1], sys.argv[1:])"
    )
    shown = program(*command, through=(sys.executable, "-c", gone))
    assert (shown.code, shown.err) == (0, "")


def test_a_terminal_of_one_column_is_no_reason_to_fail(program: Run, finished: Run) -> None:
    finished("demo")
    shown = program("status", "demo", through=("env", "COLUMNS=1"))
    assert (shown.code, shown.err) == (0, "")
    assert "finished" in shown.out


def test_without_home_federations_lie_where_the_user_lives(program: Run) -> None:
    """As under systemd and cron, which set no HOME."""
    shown = program("doctor", "--json", through=("env", "-u", "HOME", "-u", "ONEFED_HOME"))
    assert shown.err == ""
    [place] = [check for check in json.loads(shown.out) if check["name"] == "state folder"]
    assert place["finding"].endswith("/.local/state/onefed")
    assert place["finding"].startswith("/")


def test_a_path_that_is_not_utf_8_can_be_printed(onefed: Run, make: Run, tmp_path: Path) -> None:
    make("demo", folder=tmp_path / "a\udcffb")
    shown = onefed("list")
    assert shown.code == 0
    assert "a\\udcffb" in shown.out


def test_everything_that_cannot_be_read_is_told_at_once(onefed: Run, home: Path) -> None:
    shown = onefed("up", "--nodes", "three", "--rounds", "x", "--log-format", "xml", "--seed", "1")
    assert (shown.code, shown.out) == (ExitCode.USAGE, "")
    *problems, hint = shown.err.splitlines()
    assert len(problems) == 3
    assert problems[0].startswith("error: ")
    for option, value in (("--nodes", "'three'"), ("--rounds", "'x'"), ("--log-format", "'xml'")):
        [problem] = [each for each in problems if option in each]
        assert value in problem
    assert hint == "next:  See: onefed up --help"
    assert not home.exists()


def test_a_missing_argument_is_told_beside_a_value_that_cannot_be_read(onefed: Run) -> None:
    shown = onefed("run", "--nodes", "three")
    assert "'three'" in shown.err
    assert "APP" in shown.err
