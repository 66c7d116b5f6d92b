"""Requests as files: asked, done, answered, and nothing is left."""

from __future__ import annotations

import json
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from onefed.errors import ExitCode, NotFoundError
from onefed.flower import mailbox


class Desk:
    """A supervisor that looks whenever the one who asks sleeps."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.now_s = 0.0
        self.seen: list[Mapping[str, Any]] = []
        self.absent = False

    def clock(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds
        if not self.absent:
            mailbox.serve(self.folder, {"greet": self._greet, "fail": self._fail})

    def ask(self, kind: str, **what: Any) -> Mapping[str, Any]:
        return mailbox.ask(self.folder, kind, what, clock=self.clock, sleep=self.sleep)

    def _greet(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        self.seen.append(request)
        return {"greeting": f"hello {request['name']}"}

    def _fail(self, _request: Mapping[str, Any]) -> Mapping[str, Any]:
        raise NotFoundError("There is no such thing.", hint="Look elsewhere.")


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path / "requests")


def test_an_answer_comes_back_and_nothing_is_left(desk: Desk) -> None:
    assert desk.ask("greet", name="you") == {"greeting": "hello you"}
    assert [dict(each) for each in desk.seen] == [{"kind": "greet", "name": "you"}]
    assert list(desk.folder.iterdir()) == []
    assert stat.S_IMODE(desk.folder.stat().st_mode) == 0o700


def test_a_refusal_keeps_its_words_its_hint_and_its_exit_code(desk: Desk) -> None:
    with pytest.raises(mailbox.RequestError) as caught:
        desk.ask("fail")
    error = caught.value
    assert (error.message, error.hint) == ("There is no such thing.", "Look elsewhere.")
    assert error.exit_code is ExitCode.NOT_FOUND


def test_what_nobody_answers_is_taken_back(desk: Desk) -> None:
    """A supervisor that comes up later does not do what nobody waits for."""
    desk.absent = True
    with pytest.raises(mailbox.UnansweredError):
        desk.ask("greet", name="you")
    assert list(desk.folder.iterdir()) == []
    assert desk.seen == []


def test_files_that_are_no_requests_are_left_alone(desk: Desk) -> None:
    desk.folder.mkdir()
    stray = desk.folder / "notes.txt"
    stray.write_text("x")
    (desk.folder / f"{'a' * 32}.request.json").write_text(json.dumps(["greet"]))
    assert mailbox.serve(desk.folder, {}) == 1
    answer = json.loads((desk.folder / f"{'a' * 32}.answer.json").read_text())
    assert "does not know this request" in answer["error"]
    assert stray.exists()
