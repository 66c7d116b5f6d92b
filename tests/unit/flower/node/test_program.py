"""Our node in front of a real SuperLink: what the app gets, what its misdeeds cost, how it ends."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from onefed.flower import packing
from onefed.telemetry import lines, voice

pytestmark = [pytest.mark.flower, pytest.mark.timeout(120)]

APP_NOT_LOADED, APP_RAISED, APP_CRASHED, NODE_UNAVAILABLE = 1, 2, 8, 5


def failed(world: Any, node: Any, kind: str) -> tuple[int, str]:
    """Code and reason of the error that a message is answered with."""
    reply = world.answer(world.ask(node.node_id, kind))
    assert reply.has_error()
    return reply.error.code, reply.error.reason


def test_an_app_is_imported_once_and_every_message_has_a_process_of_its_own(
    world_with: Callable[..., Any], apps: Any
) -> None:
    world = world_with(apps.CLIENT)
    node = world.start()

    first, second = (world.facts(node.node_id, group=group) for group in ("1", "2"))
    assert first["pid"] != second["pid"]
    assert first["parent"] == second["parent"] != node.process.pid
    assert node.log.read_text().count("imported by") == 1

    assert [first["count"], second["count"]] == [1, 2], "the state of the app is kept"
    assert (first["partition"], first["epochs"]) == (1, 1)
    assert first["node_id"] == str(node.node_id)
    assert first["group"] == "1"
    assert first["drawn"] != second["drawn"], "random numbers are as in fresh processes"
    assert first["also"] != second["also"]

    # What goes wrong in an app costs that message only, and is told at once.
    assert failed(world, node, "train.raising") == (APP_RAISED, "<class 'ValueError'>:<'no luck'>")
    assert failed(world, node, "train.exiting")[0] == APP_CRASHED
    assert "exit code 4" in failed(world, node, "train.leaving")[1]
    assert "SIGKILL" in failed(world, node, "train.killed")[1]
    code, reason = failed(world, node, "evaluate")
    assert (code, "No evaluate function" in reason) == (APP_RAISED, True)

    chatty = world.answer(world.ask(node.node_id, "train.chatty"))
    assert chatty.content["facts"]["done"] is True
    assert "line 99999\n" in node.log.read_text()
    assert node.log.read_text().count("\nline ") == 100_000

    # What an app left in its state before it raised stays, as with Flower's SuperNode.
    third = world.facts(node.node_id)
    assert third["count"] == 103
    assert node.log.read_text().count("imported by") == 1

    os.kill(third["parent"], signal.SIGKILL)
    assert world.facts(node.node_id)["count"] == 104, "another warm process is made"

    node.process.send_signal(signal.SIGTERM)
    assert node.process.wait() == 0
    assert world.status(node.node_id) == "offline"
    world.until(lambda: not world.processes())


def test_the_same_question_of_our_round_loop_gets_the_same_answer_and_trains_nothing(
    world_with: Callable[[str], Any], apps: Any
) -> None:
    """It asks again where an answer may be lost; where it was not, the round is over by now."""
    world = world_with(apps.CLIENT)
    node = world.start()

    def facts(group: str) -> dict[str, Any]:
        content = world.answer(world.ask(node.node_id, group=group)).content
        return dict(content["facts"])

    once, again, later = (facts(f"{number}{packing.OFFER}") for number in (1, 1, 2))
    assert again == once
    assert (once["count"], later["count"]) == (1, 2)
    [calls] = (world.folder / "node").rglob("calls.jsonl")
    assert [json.loads(line)["round"] for line in calls.read_text().splitlines()] == ["1", "2"]
    # A ServerApp of another kind may mean it.
    assert [facts("3")["count"] for _ in range(2)] == [3, 4]


def test_its_log_is_json_where_that_is_wanted(world_with: Callable[[str], Any], apps: Any) -> None:
    world = world_with(apps.CLIENT)
    node = world.start(**{voice.VARIABLE: "json"})
    world.facts(node.node_id)
    node.process.send_signal(signal.SIGTERM)
    assert node.process.wait() == 0
    texts = node.log.read_text().splitlines()
    said = [record for text in texts if (record := lines.parse(text)) is not None]
    assert {record.role for record in said} == {"supernode"}
    assert any("Joined" in record.message for record in said)
    assert [text for text in texts if lines.parse(text) is None and "imported by" not in text] == []


@pytest.mark.parametrize(("client", "code"), [("BROKEN", APP_RAISED), ("EXITING", APP_CRASHED)])
def test_an_app_that_cannot_be_imported_is_an_error_reply_and_the_node_stays(
    world_with: Callable[..., Any], apps: Any, client: str, code: int
) -> None:
    world = world_with(getattr(apps, client))
    node = world.start()
    for _ in range(2):
        assert failed(world, node, "train")[0] == code
    told = (world.folder / "events.jsonl").read_text().splitlines()
    assert len(told) == 1, "it is said once"
    assert "handled in a fresh process" in json.loads(told[0])["data"]["message"]


def test_an_app_with_threads_is_handled_in_fresh_processes_unless_forced(
    world_with: Callable[..., Any], apps: Any
) -> None:
    world = world_with(apps.THREADED)
    careful, forced = world.start(), world.start("--app-start", "fork", name="forced")

    counts = [world.facts(careful.node_id)["count"] for _ in range(2)]
    assert counts == [1, 2], "the state is kept all the same"
    assert careful.log.read_text().count("imported by") == 3
    assert "1 threads run in it" in careful.log.read_text()
    assert world.facts(forced.node_id)["count"] == 1
    assert forced.log.read_text().count("imported by") == 1


def test_a_killed_node_is_back_at_once_with_its_id_and_leaves_nothing_behind(
    world_with: Callable[..., Any], apps: Any
) -> None:
    world = world_with(apps.CLIENT)
    node = world.start()
    world.ask(node.node_id, "train.working")
    world.until(lambda: "works as" in node.log.read_text())
    node.process.kill()
    node.process.wait()
    world.until(lambda: not world.processes())
    assert world.status(node.node_id) == "online", "the SuperLink does not know yet"

    again = world.start()
    assert again.node_id == node.node_id
    assert world.facts(again.node_id)["count"] == 1
    present = world.folder / "node" / "plain" / "present.json"
    assert present.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("drain_s", ["0", "30"])
def test_a_node_that_is_stopped_answers_for_its_app_and_leaves(
    world_with: Callable[..., Any], apps: Any, drain_s: str
) -> None:
    world = world_with(apps.CLIENT)
    node = world.start("--drain-s", drain_s)
    message_id = world.ask(node.node_id, "train.working")
    world.until(lambda: "works as" in node.log.read_text())
    child = int(node.log.read_text().partition("works as ")[2].split()[0])
    node.process.send_signal(signal.SIGTERM)
    if drain_s == "30":
        os.kill(child, signal.SIGKILL)  # it ends meanwhile, in whatever way
    # It stays until the reply has been fetched: a SuperLink gives out none of a node that left.
    error = world.answer(message_id).error
    if drain_s == "30":
        assert error.code == APP_CRASHED
    else:
        assert (error.code, error.reason) == (NODE_UNAVAILABLE, "The node was stopped.")
    assert node.process.wait() == 0
    assert world.status(node.node_id) == "offline"
    assert not (world.folder / "node" / "plain" / "present.json").exists()


def test_a_message_of_a_run_that_has_ended_is_dropped(
    world_with: Callable[..., Any], apps: Any, tmp_path: Path
) -> None:
    """The node is free for the next run, however long the app would have worked."""
    world = world_with(apps.CLIENT)
    node = world.start()
    world.ask(node.node_id, "train.working")
    world.until(lambda: "works as" in node.log.read_text())
    world.server.end_runs()
    world.until(lambda: "the message is dropped" in node.log.read_text())
    assert node.process.poll() is None
