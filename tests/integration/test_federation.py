"""Whole federations of real Flower processes, from the command line to the last process gone."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import psutil
import pytest

from onefed.errors import ExitCode

pytestmark = [pytest.mark.flower, pytest.mark.timeout(300)]

LIMIT_S = 120.0
"""A program that has nothing left to do has ended by then."""

SECRETS = ("server.key", "ca.key", "node.key", "superexec.secret", "token.txt")
"""File names of everything that only its owner may read."""


def event_is(name: str) -> Callable[[dict[str, Any]], bool]:
    """Whether a line is an event of that name."""
    return lambda line: line["event"] == name


def test_federations_side_by_side_train_to_what_their_seed_says(home) -> None:
    """Two with one seed end in the same bits, a third with another seed does not.

    They run at the same time, so the test also shows that they do not disturb each other.
    """
    size = ("--nodes", "2", "--rounds", "2")
    first = home.start("up", "--name", "first", "--seed", "7", *size)
    second = home.start("up", "--name", "second", "--seed", "7", *size)
    other = home.start("up", "--name", "other", "--seed", "8", "--nodes", "1", "--rounds", "2")
    summaries = [each.finish() for each in (first, second, other)]

    assert [each["status"] for each in summaries] == ["finished"] * 3
    assert [each["rounds_done"] for each in summaries] == [2] * 3
    assert all(each["accuracy"] > 0.85 for each in summaries)
    digests = [each["model_sha256"] for each in summaries]
    assert digests[0] == digests[1]
    assert digests[0] != digests[2]
    for name in ("first", "second", "other"):
        assert home.processes(name) == []

    exported = home.folder / "model.npz"
    home.run("model", "export", "first", "-o", str(exported))
    with np.load(exported, allow_pickle=False) as model:
        assert json.loads(str(model["__metadata__"]))["model_sha256"] == digests[0]
        assert set(model.files) > {"hidden.weight", "output.bias"}
    checkpoint = summaries[0]["checkpoint"]
    with np.load(checkpoint, allow_pickle=False) as arrays:
        assert arrays.files == [f"arr_{index}" for index in range(4)]


def test_what_is_on_the_wire_and_on_disk_is_protected(home) -> None:
    """TLS and node keys are on, OneGate wants its token, and secrets are nobody else's."""
    running = home.start("up", "--name", "safe", "--nodes", "1", "--rounds", "1")
    running.wait_for(event_is("training_start"))
    vms = home.folder / "safe/vms"

    context = (vms / "superlink/run/one-context/one_env").read_text()
    endpoint = next(
        line.partition("=")[2].strip("'")
        for line in context.splitlines()
        if line.startswith("ONEGATE_ENDPOINT=")
    )
    with httpx.Client(trust_env=False) as client:
        wrong = {"X-ONEGATE-TOKEN": "wrong", "X-ONEGATE-VMID": "0"}
        refused = client.get(f"{endpoint}/vm", headers=wrong)
        assert (refused.status_code, refused.text) == (401, "Not authorized")

        right = {
            **wrong,
            "X-ONEGATE-TOKEN": (vms / "superlink/run/one-context/token.txt").read_text(),
        }
        published = client.get(f"{endpoint}/vm", headers=right).json()["VM"]["USER_TEMPLATE"]
    assert (published["FL_READY"], published["FL_TLS"]) == ("YES", "YES")

    supernode = next(line for line in home.processes("safe") if "flower-supernode" in line)
    assert "--root-certificates" in supernode
    assert "--auth-supernode-private-key" in supernode
    superlink = next(line for line in home.processes("safe") if "flower-superlink" in line)
    assert "--enable-supernode-auth" in superlink
    assert "--host 127.0.0.1" in superlink

    assert running.finish()["status"] == "finished"
    secrets = [path for path in vms.rglob("*") if path.name in SECRETS]
    assert {path.name for path in secrets} == set(SECRETS)
    for path in secrets:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
        content = path.read_text().strip()
        for log in [*home.folder.rglob("*.log"), home.folder / "safe/events.jsonl"]:
            assert content not in log.read_text(errors="replace"), (path, log)


def test_a_killed_federation_leaves_nothing_and_goes_on_to_the_same_bits(home) -> None:
    """kill -9 of the cloud takes every process along, and resume ends in the undisturbed model."""
    size = ("--nodes", "1", "--rounds", "3", "--seed", "3")
    undisturbed = home.start("up", "--name", "calm", *size)
    killed = home.start("up", "--name", "rough", *size)
    killed.wait_for_round(1)
    psutil.Process(int((home.folder / "rough/cloud.lock").read_text())).kill()
    assert killed.process.wait(LIMIT_S) == ExitCode.FAILED
    assert home.processes("rough") == []

    resumed = home.start("resume", "rough")
    assert resumed.wait_for(event_is("run_resumed"))["data"]["round"] >= 2
    rough, calm = resumed.finish(), undisturbed.finish()
    assert (rough["status"], rough["rounds_done"]) == ("finished", 3)
    assert rough["model_sha256"] == calm["model_sha256"]


def test_a_detached_federation_is_looked_at_stopped_and_resumed_from_elsewhere(home) -> None:
    home.run("up", "--name", "far", "--nodes", "1", "--rounds", "50", "--detach")
    status = json.loads(home.run("status", "--json"))
    assert (status["name"], status["running"], status["status"]) == ("far", True, "training")
    assert [each["name"] for each in status["machines"]] == ["superlink", "supernode/0"]
    assert "flower-superlink" not in home.run("logs")
    assert "superlink superlink | " in home.run("logs", "superlink")
    assert "supernode/0 supernode | " in home.run("logs", "supernode/0")
    home.run("up", "--name", "far", code=ExitCode.IN_USE)
    home.run("resume", "far", code=ExitCode.IN_USE)

    assert "far is down after round" in home.run("down")
    assert home.processes("far") == []
    summary = json.loads((home.folder / "far/summary.json").read_text())
    assert (summary["status"], summary["exit_code"]) == ("stopped", ExitCode.INTERRUPTED)
    done = summary["rounds_done"]
    assert done >= 1, "the round in flight is saved first"
    last = home.start("resume", "far", "--rounds", str(done)).finish()
    assert (last["status"], last["rounds_done"]) == ("finished", done), "nothing is left to train"

    assert "far is not running" in home.run("down", "far")
    home.run("down", "far", "--purge")
    assert json.loads(home.run("list", "--json")) == []


def test_own_apps_run_managed_and_as_they_are(home, request) -> None:
    """The same client app under our ServerApp and under its own, on one machine at one time."""
    examples = request.config.rootpath / "examples"
    size = ("--nodes", "2", "--rounds", "1")  # stock FedAvg waits for two nodes without end
    managed = home.start("run", str(examples / "sklearn-logreg-managed"), "--name", "ours", *size)
    own = home.start("run", str(examples / "sklearn-logreg"), "--name", "theirs", *size)

    theirs = own.finish()
    assert (theirs["status"], theirs["rounds_done"]) == ("finished", 1)
    assert theirs["accuracy"] > 0.8
    assert theirs["model_sha256"] is None
    ours = managed.finish()
    assert (ours["status"], ours["rounds_done"]) == ("finished", 1)
    assert ours["accuracy"] > 0.8
    assert ours["model_sha256"] is not None
