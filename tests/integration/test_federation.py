"""Whole federations of real Flower processes, from the command line to the last process gone."""

from __future__ import annotations

import json
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
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


@pytest.mark.main_job
def test_two_federations_train_side_by_side_each_by_itself(home) -> None:
    """Neither disturbs the other, and Flower's own nodes give the same bits as ours."""
    size = ("--nodes", "2", "--rounds", "2", "--seed", "7")
    first = home.start("up", "--name", "first", *size)
    second = home.start("up", "--name", "second", *size, "--set", "FL_ISOLATION=subprocess")
    first.wait_for(event_is("training_start"))
    look_from_outside(home, "first")
    summaries = [each.finish() for each in (first, second)]

    assert [each["status"] for each in summaries] == ["finished"] * 2
    assert [each["rounds_done"] for each in summaries] == [2] * 2
    assert all(each["accuracy"] > 0.85 for each in summaries)
    digests = [each["model_sha256"] for each in summaries]
    assert digests[0] == digests[1]
    for name in ("first", "second"):
        assert home.processes(name) == []
        look_at_the_secrets(home, name)

    exported = home.folder / "model.npz"
    home.run("model", "export", "first", "-o", str(exported))
    with np.load(exported, allow_pickle=False) as model:
        assert json.loads(str(model["__metadata__"]))["model_sha256"] == digests[0]
        assert set(model.files) > {"hidden.weight", "output.bias"}
    with np.load(summaries[0]["checkpoint"], allow_pickle=False) as arrays:
        assert arrays.files == [f"arr_{index}" for index in range(4)]


def look_from_outside(home, name: str) -> None:
    """OneGate wants its token; TLS and node keys are on; the SuperLink stays on loopback."""
    superlink = home.folder / name / "vms/superlink"
    context = (superlink / "run/one-context/one_env").read_text()
    endpoint = next(
        line.partition("=")[2].strip("'")
        for line in context.splitlines()
        if line.startswith("ONEGATE_ENDPOINT=")
    )
    token = (superlink / "run/one-context/token.txt").read_text()
    with httpx.Client(trust_env=False) as client:
        wrong = {"X-ONEGATE-TOKEN": "wrong", "X-ONEGATE-VMID": "0"}
        refused = client.get(f"{endpoint}/vm", headers=wrong)
        assert (refused.status_code, refused.text) == (401, "Not authorized")
        right = client.get(f"{endpoint}/vm", headers={**wrong, "X-ONEGATE-TOKEN": token})
    published = right.json()["VM"]["USER_TEMPLATE"]
    assert (published["FL_READY"], published["FL_TLS"]) == ("YES", "YES")

    commands = home.processes(name)
    node = next(line for line in commands if "onefed.flower.node" in line)
    assert "--root-certificates" in node
    assert "--identity" in node
    link = next(line for line in commands if "flower-superlink" in line)
    assert "--enable-supernode-auth" in link
    assert "--host 127.0.0.1" in link


def look_at_the_secrets(home, name: str) -> None:
    """Only their owner may read them, and no log holds one."""
    folder = home.folder / name
    secrets = [path for path in (folder / "vms").rglob("*") if path.name in SECRETS]
    assert {path.name for path in secrets} == set(SECRETS)
    logs = [*folder.rglob("*.log"), folder / "events.jsonl"]
    for path in secrets:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
        content = path.read_text().strip()
        for log in logs:
            assert content not in log.read_text(errors="replace"), (path, log)


def test_a_killed_federation_leaves_nothing_and_goes_on_to_the_same_bits(home) -> None:
    """kill -9 of the cloud takes every process along; the same seed ends in the same model.

    FedAdam remembers two moments of each parameter: they come back as well.
    """
    size = ("--nodes", "2", "--rounds", "2", "--seed", "3", "--strategy", "FedAdam")
    undisturbed = home.start("up", "--name", "calm", *size)
    killed = home.start("up", "--name", "rough", *size)
    killed.wait_for_round(1)
    psutil.Process(int((home.folder / "rough/cloud.lock").read_text())).kill()
    assert killed.process.wait(LIMIT_S) == ExitCode.FAILED
    assert home.processes("rough") == []

    resumed = home.start("resume", "rough")
    assert resumed.wait_for(event_is("run_resumed"))["data"]["round"] == 2
    rough, calm = resumed.finish(), undisturbed.finish()
    assert (rough["status"], rough["rounds_done"]) == ("finished", 2)
    assert rough["model_sha256"] == calm["model_sha256"]


def test_a_detached_federation_is_looked_at_stopped_and_resumed_from_elsewhere(home) -> None:
    home.run("up", "--name", "far", "--nodes", "1", "--rounds", "5000", "--detach")
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
    fewer = str(max(1, done - 1))
    last = home.start("resume", "far", "--rounds", fewer).finish()
    assert (last["status"], last["rounds_done"]) == ("finished", done), "nothing is left to train"

    assert "far is not running" in home.run("down", "far")
    home.run("down", "far", "--purge")
    assert json.loads(home.run("list", "--json")) == []


def test_a_run_goes_on_elsewhere_and_further_to_the_same_bits(
    home, elsewhere, tmp_path: Path
) -> None:
    """A copied recovery store under another home and name; and more rounds where it began."""
    size = ("--nodes", "2", "--seed", "5", "--strategy", "FedAdam", "--rounds")
    undisturbed = home.start("up", "--name", "calm", *size, "3")
    assert home.start("up", "--name", "begun", *size, "2").finish()["rounds_done"] == 2
    copied = tmp_path / "copied"
    shutil.copytree(home.folder / "begun/vms/superlink/opt/flower/state/recovery", copied)

    here = home.start("resume", "begun", "--rounds", "3")
    there = elsewhere.start(
        "up", "--name", "moved", "--nodes", "2", "--rounds", "3", "--resume-from", str(copied)
    )
    assert there.wait_for(event_is("run_resumed"))["data"]["round"] == 3
    summaries = [each.finish() for each in (undisturbed, here, there)]
    assert [(each["status"], each["rounds_done"]) for each in summaries] == [("finished", 3)] * 3
    assert len({each["model_sha256"] for each in summaries}) == 1


def test_own_apps_run_managed_and_as_they_are(home, request) -> None:
    """The same client app under our ServerApp and under its own, on one machine at one time."""
    examples = request.config.rootpath / "examples"
    ours_app, their_app = examples / "sklearn-logreg-managed", examples / "sklearn-logreg"
    size = ("--rounds", "1", "--nodes")
    managed = home.start("run", str(ours_app), "--name", "ours", *size, "1")
    # Stock FedAvg waits for two nodes without end.
    own = home.start("run", str(their_app), "--name", "theirs", *size, "2")

    theirs = own.finish()
    assert (theirs["status"], theirs["rounds_done"]) == ("finished", 1)
    assert theirs["accuracy"] > 0.8
    assert theirs["model_sha256"] is None
    ours = managed.finish()
    assert (ours["status"], ours["rounds_done"]) == ("finished", 1)
    assert ours["accuracy"] > 0.8
    assert ours["model_sha256"] is not None
