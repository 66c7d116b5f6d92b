"""A node's account of what its app was given to do."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from onefed.flower.adapter_fleet import Instruction
from onefed.flower.node import calls

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def instruction(number: int) -> Instruction:
    return Instruction(
        run_id=2**63 + 1,
        message_id=f"{number:064x}",
        message_type="train",
        round_name=str(number),
        repeats=False,
        object_ids=(),
        expires_at_s=0.0,
        message=b"",
    )


def test_a_call_is_a_line(tmp_path: Path) -> None:
    calls.Calls(tmp_path, lambda: NOW).note(instruction(7))
    assert json.loads((tmp_path / calls.FILE).read_text()) == {
        "at": "2026-01-02T03:04:05.000000+00:00",
        "run": str(2**63 + 1),
        "round": "7",
        "type": "train",
        "message": "0" * 12,
    }


def test_the_account_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "BYTES_MAX", 300)
    account = calls.Calls(tmp_path, lambda: NOW)
    for number in range(20):
        account.note(instruction(number))
    kept = [
        json.loads(line)["round"]
        for name in (calls.OLDER, calls.FILE)
        for line in (tmp_path / name).read_text().splitlines()
    ]
    assert kept == [str(number) for number in range(20 - len(kept), 20)]
    assert 2 <= len(kept) <= 6


def test_a_disk_that_refuses_stops_nobody(tmp_path: Path) -> None:
    calls.Calls(tmp_path / "gone", lambda: NOW).note(instruction(1))
