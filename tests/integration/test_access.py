"""Who may connect and what runs: every command, on one federation of real Flower processes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from onefed.errors import ExitCode

pytestmark = [pytest.mark.flower, pytest.mark.timeout(300)]

LIMIT_S = 120.0
"""For a state that is under way; a wait for it is no measurement."""


def wait_for(look: Callable[[], Any], wanted: Callable[[Any], bool]) -> Any:
    """Look again until what is seen is wanted. Every look is a program, so none is hurried."""
    ends_at = time.monotonic() + LIMIT_S
    while not wanted(seen := look()):
        assert time.monotonic() < ends_at, seen
    return seen


def test_nodes_and_runs_are_managed_from_the_command_line(home, request, nginx) -> None:
    """A federation that waits for an app, with a gateway, is asked for everything in turn."""
    app = str(request.config.rootpath / "examples/sklearn-logreg-managed")
    home.run(
        *("up", "--name", "door", "--nodes", "2", "--use-case", "none", "--detach"),
        *("--set", "FL_GATEWAY=always", "--set", "FL_MIN_AVAILABLE_CLIENTS=1"),
        *("--set", "FL_MIN_FIT_CLIENTS=1", "--set", "FL_MIN_EVALUATE_CLIENTS=1"),
    )

    def status() -> dict[str, Any]:
        found: dict[str, Any] = json.loads(home.run("status", "--json"))
        return found

    def nodes() -> dict[str, str]:
        rows = json.loads(home.run("nodes", "list", "--json"))
        return {row["client"]: row["state"] for row in rows if row["state"] != "replaced"}

    # Before anything is submitted.
    wait_for(nodes, lambda seen: seen == {"0": "online", "1": "online"})
    waits = wait_for(status, lambda seen: seen["status"] == "waiting")
    assert waits["details"] == "run is waiting: no app was submitted yet"
    assert "no app was submitted yet" in home.run("status")
    assert "Nothing was submitted yet" in home.run("runs", "door")
    home.run("runs", "stop", code=ExitCode.NOT_FOUND)
    home.run("nodes", "revoke", "nobody", code=ExitCode.NOT_FOUND)
    home.run("submit", app, "--set", "no-such-key=1", code=ExitCode.USAGE)
    assert home.run("nodes", "token", "--partition", "7").startswith("onefed-")

    # A run that is followed to its end, and one that is stopped.
    done = home.run("submit", app, "door", "--rounds", "1", "--follow")
    assert "run is completed" in done
    [row] = json.loads(home.run("runs", "door", "--json"))["runs"]
    assert row["status"] == "completed"
    assert home.run("runs", "follow") == "No run is under way.\n"
    home.run("submit", app, "--rounds", "5000")
    home.run("submit", app, code=ExitCode.IN_USE)
    home.run("runs", "stop", "door")
    wait_for(
        lambda: json.loads(home.run("runs", "--json"))["status"], lambda seen: seen == "stopped"
    )

    # A node that is revoked stays away; the other one trains without it.
    home.run("nodes", "revoke", "1")
    wait_for(nodes, lambda seen: seen == {"0": "online", "1": "revoked"})
    home.run("nodes", "replace", "1", code=ExitCode.NOT_FOUND)
    trained = home.run("submit", app, "--rounds", "1", "--follow")
    assert "client 0 answered train" in trained
    assert "client 1 answered" not in trained

    home.run("down", "door")
    assert home.processes("door") == []
