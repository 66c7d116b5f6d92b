"""Both ways of a round into its rule: the same bits, and how much is in memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from onefed import aggregate
from onefed.aggregate import Update
from onefed.arrays import Arrays, digest
from onefed.errors import StorageError
from onefed.flower import intake

MODEL: Arrays = {"w": np.linspace(-1, 1, 50, dtype=np.float32), "n": np.arange(3)}
CLIENTS = [str(number) for number in range(9)]
MEAN_RULES = [
    name for name, kind in aggregate.RULES.items() if issubclass(kind, aggregate.MeanRule)
]


def update(client: str) -> Update:
    generator = np.random.default_rng(int(client))
    walked = {
        "w": (MODEL["w"] + generator.normal(size=50)).astype(np.float32),
        "n": MODEL["n"] + int(client),
    }
    return Update(client, 10 + int(client), walked)


def step(way: intake.Intake, rule: aggregate.Rule, order: list[str], lost: set[str]) -> str:
    for client in order:
        if client in lost:
            way.lose(client)
        else:
            assert way.take(update(client)) is None
    state, model = way.step(rule.init(MODEL), MODEL, 3)
    way.close()
    return digest({**{f"state {key}": value for key, value in state.items()}, **model})


@pytest.mark.parametrize("name", aggregate.RULES)
@pytest.mark.parametrize("held_bytes_max", [intake.HELD_BYTES_MAX, 300, 0])
def test_every_rule_makes_the_bits_of_its_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, held_bytes_max: int
) -> None:
    """In any order, with some lost, and wherever those wait that come early."""
    monkeypatch.setattr(intake, "HELD_BYTES_MAX", held_bytes_max)
    rule, lost = aggregate.rule(name), {"0", "4", "8"}
    updates = [update(client) for client in CLIENTS if client not in lost]
    state, model = rule.step(rule.init(MODEL), MODEL, updates, 3)
    expected = digest({**{f"state {key}": value for key, value in state.items()}, **model})

    for seed in range(5):
        order = list(np.random.default_rng(seed).permutation(CLIENTS))
        way = intake.of(rule, MODEL, CLIENTS, tmp_path / "spool")

        assert step(way, rule, order, lost) == expected


def test_the_mean_family_streams_and_the_others_hold_the_round(tmp_path: Path) -> None:
    for name in aggregate.RULES:
        way = intake.of(aggregate.rule(name), MODEL, CLIENTS, tmp_path)

        assert isinstance(way, intake._Stream) == (name in MEAN_RULES)
    assert "FedAvg" in MEAN_RULES
    assert "Krum" not in MEAN_RULES


def test_no_folder_is_made_while_memory_has_room(tmp_path: Path) -> None:
    rule = aggregate.rule("FedAvg")
    way = intake.of(rule, MODEL, CLIENTS, tmp_path / "spool")

    step(way, rule, CLIENTS[::-1], set())

    assert not (tmp_path / "spool").exists()


def test_what_a_killed_process_had_waiting_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "HELD_BYTES_MAX", 0)
    folder = tmp_path / "spool"
    intake.clear(folder)
    assert not folder.exists()
    way = intake.of(aggregate.rule("FedAvg"), MODEL, CLIENTS, folder)
    assert way.take(update("3")) is None
    assert len(list(folder.iterdir())) == 1

    intake.clear(folder)

    assert list(folder.iterdir()) == []


def test_an_update_that_was_kept_and_is_gone_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was counted: going on without it would be another model than the record says."""
    monkeypatch.setattr(intake, "HELD_BYTES_MAX", 0)
    way = intake.of(aggregate.rule("FedAvg"), MODEL, ["0", "1"], tmp_path)
    assert way.take(update("1")) is None
    for path in tmp_path.iterdir():
        path.unlink()

    with pytest.raises(StorageError):
        way.take(update("0"))


def test_an_update_that_cannot_be_kept_is_that_clients_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "HELD_BYTES_MAX", 0)
    (tmp_path / "spool").write_text("a file where a folder should be")
    rule = aggregate.rule("FedAvg")
    way = intake.of(rule, MODEL, ["0", "1"], tmp_path / "spool")

    assert "spool" in (way.take(update("1")) or "")
    assert way.take(update("0")) is None

    _, model = way.step({}, MODEL, 1)
    assert digest(model) == digest(rule.step({}, MODEL, [update("0")], 1)[1])
    way.close()
