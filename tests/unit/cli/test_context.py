"""context reference, explain, check, inputs, and completion of --set."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from onefed.context import VARIABLES, Role
from onefed.errors import ExitCode

Run = Callable[..., Any]
PROGRAM = Path(__file__).parents[3] / ".venv/bin/onefed"
DOCS = Path(__file__).parents[3] / "docs"

FIVE_MISTAKES = """\
FL_NUM_ROUNDS='ten'
FL_STRATEGY='fedavg'
FL_FLEET_API_ADDRESS='0.0.0.0'
FL_TLS_ENABLED='true'
FL_SSL_KEYFILE='hunter2'
"""


def test_the_reference_is_the_committed_page(onefed: Run) -> None:
    assert onefed("context", "reference").out == (DOCS / "context.md").read_text()


def test_check_names_all_mistakes_at_once_and_shows_no_secret(onefed: Run, tmp_path: Path) -> None:
    file = tmp_path / "context.sh"
    file.write_text(FIVE_MISTAKES)
    shown = onefed("context", "check", str(file))
    assert shown.code == ExitCode.CONFIG
    errors = [line for line in shown.out.splitlines() if line.startswith("ERROR: ")]
    assert [line.split()[2].rstrip(":") for line in errors] == [
        line.partition("=")[0] for line in FIVE_MISTAKES.splitlines()
    ]
    assert shown.out.endswith("5 configuration errors: no boot.\n")
    assert "hunter2" not in shown.out


def test_check_of_one_machine_says_what_it_does_not_read(onefed: Run, tmp_path: Path) -> None:
    file = tmp_path / "context.sh"
    file.write_text("FL_NUM_ROUNDS='5'\n")
    assert onefed("context", "check", str(file)).out == "Every variable is valid.\n"
    shown = onefed("context", "check", str(file), "--role", "supernode")
    assert shown.out.startswith("INFO: FL_NUM_ROUNDS is ignored")
    assert shown.code == 0


def test_check_as_json_is_one_document(onefed: Run, tmp_path: Path) -> None:
    file = tmp_path / "context.sh"
    file.write_text("FL_NUM_ROUNDS=0\nFL_RUONDS=1\n")
    shown = onefed("context", "check", str(file), "--json")
    found = {each["name"]: each["severity"] for each in json.loads(shown.out)}
    assert found == {"FL_NUM_ROUNDS": "ERROR", "FL_RUONDS": "WARNING"}
    assert shown.code == ExitCode.CONFIG


def test_check_of_a_groups_file_is_that_of_its_peers(onefed: Run, tmp_path: Path) -> None:
    file = tmp_path / "one_env"
    file.write_text("FL_PEER_FOUNDERS='4'\nFL_PEER_PORT='80'\nFL_NUM_ROUNDS='3'\n")
    shown = onefed("context", "check", str(file))
    assert shown.code == ExitCode.CONFIG
    assert "Invalid FL_PEER_PORT: '80'" in shown.out
    assert "does not read it" not in shown.out
    assert shown.out.count("ERROR") == 1


def test_check_of_a_file_for_everybody_finds_the_mistakes_of_all(
    onefed: Run, tmp_path: Path
) -> None:
    file = tmp_path / "one_env"
    file.write_text("FL_PEER_PORT='80'\nFL_FLEET_API_ADDRESS='x'\nFL_MAX_RETRIES='y'\n")
    shown = onefed("context", "check", str(file))
    names = ("FL_PEER_PORT", "FL_FLEET_API_ADDRESS", "FL_MAX_RETRIES")
    assert all(f"Invalid {name}" in shown.out for name in names)


def test_inputs_offer_what_the_image_carries(onefed: Run) -> None:
    shown = onefed("context", "inputs", "--role", "supernode", "--framework", "sklearn")
    assert "|sklearn|sklearn" in shown.out
    refused = onefed("context", "inputs", "--framework", "jax")
    assert refused.code == ExitCode.USAGE


def test_check_of_a_file_that_is_not_there_says_so(onefed: Run, tmp_path: Path) -> None:
    assert onefed("context", "check", str(tmp_path / "none")).code != 0


@pytest.mark.parametrize("role", Role)
def test_explain_has_every_variable_with_its_source(
    onefed: Run, tmp_path: Path, role: Role
) -> None:
    file = tmp_path / "context.sh"
    file.write_text("FL_LOG_LEVEL='DEBUG'\n")
    shown = onefed(
        *("context", "explain", "--role", role.value, "--json", "--context", str(file)),
        *("--set", "FL_LOG_FORMAT=json"),
    )
    rows = {row["name"]: row for row in json.loads(shown.out)["variables"]}
    assert set(rows) == {row.name for row in VARIABLES.values() if role in row.appliances}
    assert (rows["FL_LOG_LEVEL"]["shown"], rows["FL_LOG_LEVEL"]["source"]) == (
        "DEBUG",
        "context file",
    )
    assert rows["FL_LOG_FORMAT"]["source"] == "command line"
    assert rows["FLOWER_VERSION"]["source"] == "default"
    assert rows["FLOWER_VERSION"]["changed"]


def test_explain_says_in_one_place_why_defaults_differ(onefed: Run) -> None:
    shown = onefed("context", "explain")
    reasons = shown.out.partition("Changed defaults")[2]
    for row in VARIABLES.values():
        if row.changed and Role.SUPERLINK in row.appliances:
            assert f"  {row.name}: {row.changed}" in reasons


def test_inputs_of_a_service_and_of_a_machine(onefed: Run) -> None:
    service = json.loads(onefed("context", "inputs", "--profile", "single-site").out)
    assert service["user_inputs"]["FL_TLS_ENABLED"].endswith("||YES")
    assert [role["name"] for role in service["roles"]] == ["superlink", "supernode"]
    assert onefed("context", "inputs", "--role", "supernode").out.startswith("CONTEXT = [\n")


def test_a_shell_is_offered_the_variables_after_set() -> None:
    environ = {
        "_ONEFED_COMPLETE": "bash_complete",
        "COMP_WORDS": "onefed up --set FL_NUM_R",
        "COMP_CWORD": "3",
    }
    done = subprocess.run([PROGRAM], env=environ, capture_output=True, text=True, check=True)
    assert done.stdout == "plain,FL_NUM_ROUNDS=\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_shell_has_a_script(onefed: Run, shell: str) -> None:
    assert f"_ONEFED_COMPLETE={shell}_complete" in onefed("completion", shell).out
