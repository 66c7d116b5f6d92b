"""checkpoint list, show, verify, diff and prune."""

from __future__ import annotations

import json
import os
import pty
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onefed.appliance.paths import Paths
from onefed.arrays import BFLOAT16, Arrays, digest
from onefed.checkpoint import Exporter, RecoveryStore, RoundRecord, Snapshot
from onefed.errors import ExitCode
from onefed.local.state import SUPERLINK, StateDir

Run = Callable[..., Any]

ONEFED = Path(sys.executable).with_name("onefed")

NASTY = "[red]w[/]\x1b[2J"
"""A name that is mark-up and moves the cursor."""


def model(number: int) -> Arrays:
    """Each round 1 further; one array that stays, and one without elements."""
    return {
        "layer/weight": np.full((2, 3), number, np.float32),
        NASTY: np.array([0, np.nan, -np.inf], np.float64),
        "half": np.full(2, 0x3F80, np.uint16).view(BFLOAT16),
        "empty": np.zeros((0, 4), bool),
    }


def snapshot(number: int, **changed: Any) -> Snapshot:
    history = tuple(
        RoundRecord(
            round_number=each,
            loss=1 / each,
            accuracy=None if each == 2 else 1 - 1 / (each + 1),
            contributors=("0", "1"),
            failures=0,
            seconds=2.5,
            model_sha256=digest(model(each)),
        )
        for each in range(1, number + 1)
    )
    fields: dict[str, Any] = {
        "run": "run [b]1",
        "round_number": number,
        "rounds_total": 10,
        "seed": 7,
        "rule": "FedAdam",
        "rule_state": {"m": np.full(6, number, np.float64)},
        "arrays": model(number),
        "history": history,
        "app_sha256": "a" * 64,
        "config_sha256": "c" * 64,
        "versions": {"onefed": "0.1.0"},
    }
    return Snapshot(**{**fields, **changed})


def recovery(folder: Path, *numbers: int) -> Path:
    for number in numbers:
        RecoveryStore(folder).save(snapshot(number))
    return folder


def export(folder: Path, *numbers: int) -> Path:
    exporter = Exporter(folder, run="run [b]1", interval=1)
    for number in numbers:
        exporter.save(snapshot(number), now=datetime(2026, 1, 1, 12, number, tzinfo=UTC))
    return folder


def flip(path: Path, place: int = -200) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def archive_of(folder: Path, number: int) -> Path:
    return next(
        path
        for path in folder.glob("*.npz")
        if re.fullmatch(rf"(checkpoint_round_|round_0*){number}(-[0-9a-f]+)?", path.stem)
    )


# --- Finding --------------------------------------------------------------------------------------


def test_a_federation_is_found_by_its_name_and_by_its_state_folder(
    onefed: Run, finished: Run
) -> None:
    directory: StateDir = finished("demo")
    for place in ("demo", directory.folder, Paths(directory.root(SUPERLINK)).recovery):
        shown = onefed("checkpoint", "verify", place)
        assert (shown.code, shown.err) == (0, "")
        assert "recovery round 3, the newest, is whole" in shown.out


def test_a_federation_before_its_first_round_has_none(onefed: Run, make: Run) -> None:
    make("demo")
    shown = onefed("checkpoint", "list", "demo")
    assert shown.code == ExitCode.NOT_FOUND
    assert "first round" in shown.err


@pytest.mark.parametrize("command", ["list", "show", "verify", "diff", "prune"])
@pytest.mark.parametrize("place", ["nowhere", "./nowhere", "", "a file", "empty", "\x1b[2J"])
def test_a_folder_without_checkpoints_is_an_error_with_a_next_step(
    onefed: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, place: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "a file").touch()
    more = {"diff": ["1", "2"], "prune": ["--keep-last", "1"]}.get(command, [])
    shown = onefed("checkpoint", command, place, *more)
    expected = ExitCode.STORAGE if place == "a file" else ExitCode.NOT_FOUND
    assert (shown.code, shown.out) == (expected, "")
    assert "next:" in shown.err
    assert "\x1b" not in shown.err


def test_kind_picks_one_of_two_in_a_folder(onefed: Run, tmp_path: Path) -> None:
    export(recovery(tmp_path, 1, 2), 1)
    both = json.loads(onefed("checkpoint", "list", tmp_path, "--json").out)
    assert [each["kind"] for each in both] == ["recovery", "export"]
    [only] = json.loads(onefed("checkpoint", "list", tmp_path, "--kind", "export", "-j").out)
    assert only["kind"] == "export"
    recovery(tmp_path / "one", 1)
    shown = onefed("checkpoint", "show", tmp_path / "one", "--kind", "export")
    assert shown.code == ExitCode.NOT_FOUND
    assert "recovery" in shown.err


# --- list -----------------------------------------------------------------------------------------


def test_every_round_is_one_line_and_the_latest_is_marked(onefed: Run, tmp_path: Path) -> None:
    folder = export(tmp_path / "[b]exports", 1, 2, 3)
    title, header, *rows = onefed("checkpoint", "list", folder).out.splitlines()
    assert title == f"export  {folder}"
    assert header.split() == ["round", "saved", "(UTC)", "size", "loss", "accuracy"]
    cells = [row.split() for row in rows]
    assert [each[:3] for each in cells] == [
        ["3", "2026-01-01", "12:03:00"],
        ["2", "2026-01-01", "12:02:00"],
        ["1", "2026-01-01", "12:01:00"],
    ]
    assert cells[0][-3:] == ["0.3333", "0.7500", "latest"]
    assert cells[1][-1] == "0.5000"  # the accuracy of round 2 is not known


def test_what_is_wrong_at_first_sight_is_in_its_line(onefed: Run, tmp_path: Path) -> None:
    folder = recovery(tmp_path, 1, 2, 3)
    (folder / "round_000003.json").write_text("{")
    archive_of(folder, 2).unlink()
    [_, _, third, second, first] = onefed("checkpoint", "list", folder).out.splitlines()
    assert "latest, round_000003.json: it is not" in third
    assert "it is missing" in second
    assert first.split()[-1] == "0.5000"
    [series] = json.loads(onefed("checkpoint", "list", folder, "--json").out)
    assert [bool(each["problem"]) for each in series["rounds"]] == [True, True, False]
    assert [each["latest"] for each in series["rounds"]] == [True, False, False]
    assert series["rounds"][2]["loss"] == 1.0
    assert len(series["rounds"][2]["paths"]) == 2


# --- show -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("made", [recovery, export])
def test_the_newest_is_shown_with_all_that_it_holds(
    onefed: Run, tmp_path: Path, made: Callable[..., Path]
) -> None:
    folder = made(tmp_path, 1, 2, 3)
    shown = onefed("checkpoint", "show", folder)
    assert (shown.code, shown.err) == (0, "")
    for fact in (
        *("3 of 10, the latest", "run [b]1", "FedAdam", "onefed 0.1.0", "a" * 64, "c" * 64),
        *("layer/weight", "2 x 3", "float32", "bfloat16", "0 x 4", digest(model(3))),
        *("state of the rule", "0.5000 → 0.7500", "1.0000 → 0.3333"),
    ):
        assert fact in shown.out, fact
    assert "[red]w[/]\\x1b[2J" in shown.out
    assert "\x1b" not in shown.out


def test_an_older_round_is_shown_to_programs(onefed: Run, tmp_path: Path) -> None:
    folder = export(tmp_path, 1, 2, 3)
    found = json.loads(onefed("checkpoint", "show", folder, "--round", 2, "--json").out)
    assert (found["round"], found["run"], found["seed"]) == (2, "run [b]1", 7)
    assert found["saved_at"] == "2026-01-01T12:02:00+00:00"
    assert found["model_sha256"] == digest(model(2))
    assert len(found["history"]) == 2
    weight, nasty, half, empty = found["arrays"]
    assert weight["norm"] == pytest.approx(2 * 6**0.5)
    assert (nasty["key"], nasty["norm"]) == (NASTY, "nan")
    assert (half["dtype"], half["norm"]) == ("bfloat16", pytest.approx(2**0.5))
    assert (empty["shape"], empty["norm"]) == ([0, 4], 0)
    assert [each["key"] for each in found["rule_state"]] == ["m"]
    assert found["problems"] == []


def test_a_round_that_is_not_there_is_refused_with_those_that_are(
    onefed: Run, tmp_path: Path
) -> None:
    folder = recovery(tmp_path, 1, 2)
    for command in (["show"], ["verify"]):
        shown = onefed("checkpoint", *command, folder, "--round", 9)
        assert (shown.code, shown.out) == (ExitCode.NOT_FOUND, "")
        assert "rounds there: 2, 1" in shown.err


def test_of_a_damaged_round_is_shown_what_can_be_read(onefed: Run, tmp_path: Path) -> None:
    folder = export(tmp_path, 1)
    (folder / "checkpoint_round_1.npz").write_bytes(b"PK")
    shown = onefed("checkpoint", "show", folder)
    assert shown.code == ExitCode.STORAGE
    assert "FedAdam" in shown.out
    assert "state of the rule" in shown.out
    assert "checkpoint_round_1.npz" in shown.err
    found = json.loads(onefed("checkpoint", "show", folder, "--json").out)
    assert found["arrays"] is None
    assert len(found["problems"]) == 1


def test_of_many_arrays_the_first_are_shown_and_the_rest_counted(
    onefed: Run, tmp_path: Path
) -> None:
    many = {f"array {index}": np.array(index) for index in range(60)}
    RecoveryStore(tmp_path).save(snapshot(1, arrays=many))
    shown = onefed("checkpoint", "show", tmp_path).out
    assert "array 39" in shown
    assert "array 40" not in shown
    assert "and 20 more" in shown


# --- verify ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("made", [recovery, export])
def test_a_folder_is_whole_where_its_newest_round_is(
    onefed: Run, tmp_path: Path, made: Callable[..., Path]
) -> None:
    folder = made(tmp_path, 1, 2, 3)
    flip(archive_of(folder, 1))
    shown = onefed("checkpoint", "verify", folder)
    assert (shown.code, shown.err) == (0, "")
    assert len(shown.out.splitlines()) == 1
    assert "round 3, the newest, is whole" in shown.out

    shown = onefed("checkpoint", "verify", folder, "--all")
    assert shown.code == ExitCode.STORAGE
    assert "round 1 is not whole" in shown.out
    assert "round 1" in shown.err
    assert onefed("checkpoint", "verify", folder, "--round", 1).code == ExitCode.STORAGE
    assert onefed("checkpoint", "verify", folder, "--round", 2).code == 0


@pytest.mark.parametrize("made", [recovery, export])
def test_a_damaged_newest_round_is_named_with_the_next_that_is_whole(
    onefed: Run, tmp_path: Path, made: Callable[..., Path]
) -> None:
    folder = made(tmp_path, 1, 2, 3)
    flip(archive_of(folder, 3))
    flip(archive_of(folder, 2))
    shown = onefed("checkpoint", "verify", folder)
    assert shown.code == ExitCode.STORAGE
    assert "round 3, the newest, is not whole" in shown.out
    assert archive_of(folder, 3).name in shown.out
    assert "round 1 is whole" in shown.out
    assert "Go on from round 1" in shown.err
    found = json.loads(onefed("checkpoint", "verify", folder, "--json").out)
    assert found["whole"] is False
    [series] = found["series"]
    assert (series["newest"], series["older_whole"]) == (3, 1)
    assert series["rounds"][0]["problems"]


def test_a_round_that_only_the_link_names_is_missed(onefed: Run, tmp_path: Path) -> None:
    folder = export(tmp_path, 1, 2)
    for path in folder.glob("checkpoint_round_2*"):
        path.unlink()
    shown = onefed("checkpoint", "verify", folder)
    assert shown.code == ExitCode.STORAGE
    assert "round 2, the newest, is not whole" in shown.out


def test_round_and_all_exclude_each_other(onefed: Run, tmp_path: Path) -> None:
    shown = onefed("checkpoint", "verify", recovery(tmp_path, 1), "--round", 1, "--all")
    assert shown.code == ExitCode.USAGE


@pytest.mark.parametrize("made", [recovery, export])
def test_whatever_the_files_hold_there_is_a_verdict_and_no_traceback(
    onefed: Run, tmp_path: Path, made: Callable[..., Path]
) -> None:
    """Bytes flipped, cut, added and replaced, in any file."""
    whole = made(tmp_path / "whole", 1, 2)
    for seed in range(16):
        chance = random.Random(seed)
        folder = tmp_path / str(seed)
        shutil.copytree(whole, folder, symlinks=True)
        path = chance.choice(sorted(folder.iterdir()))
        data = bytearray(path.read_bytes())
        match chance.randrange(4):
            case 0:
                data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
            case 1:
                del data[chance.randrange(len(data)) :]
            case 2:
                start = chance.randrange(len(data))
                data[start:start] = chance.randbytes(chance.randrange(1, 100))
            case 3:
                data = bytearray(b"[" * 10_000)
        path.unlink()
        path.write_bytes(data)
        codes = {
            command: onefed("checkpoint", command, folder).code for command in ("list", "show")
        }
        assert set(codes.values()) <= {0, ExitCode.STORAGE}, (seed, path)
        told = onefed("checkpoint", "verify", folder, "--all", "--json")
        assert told.code in (0, ExitCode.STORAGE), (seed, path)
        assert json.loads(told.out)["whole"] is (told.code == 0)


def test_planted_pipes_links_and_folders_end_in_a_verdict(onefed: Run, tmp_path: Path) -> None:
    for kind in ("pipe", "folder", "link"):
        folder = recovery(tmp_path / kind, 1)
        for name in ("round_000002.json", "round_000003-0123456789abcdef.npz"):
            match kind:
                case "pipe":
                    os.mkfifo(folder / name)
                case "folder":
                    (folder / name).mkdir()
                case "link":
                    (folder / name).symlink_to("/dev/zero")
        shown = onefed("checkpoint", "verify", folder)
        assert shown.code == ExitCode.STORAGE
        assert "round 1 is whole" in shown.out
        assert onefed("checkpoint", "list", folder).code == 0


# --- diff -----------------------------------------------------------------------------------------


def test_equal_models_are_equal_in_whatever_kind_of_folder(onefed: Run, tmp_path: Path) -> None:
    ours, theirs = recovery(tmp_path / "a", 1, 2), export(tmp_path / "b", 2)
    shown = onefed("checkpoint", "diff", ours, 2, "--other", theirs)
    assert (shown.code, shown.err) == (0, "")
    assert digest(model(2)) in shown.out
    assert json.loads(onefed("checkpoint", "diff", ours, 2, 2, "--json").out)["equal"] is True


def test_models_that_differ_are_compared_array_by_array(onefed: Run, tmp_path: Path) -> None:
    folder = recovery(tmp_path, 1, 2, 3)
    shown = onefed("checkpoint", "diff", folder, 1, 3)
    assert (shown.code, shown.err) == (ExitCode.FAILED, "")
    header, weight, nasty, *_ = shown.out.splitlines()[2:]
    assert header.split() == ["array", "largest", "relative", "L2", "equal"]
    assert weight.split() == ["layer/weight", "2", "2", "0.0%"]
    assert nasty.split() == ["[red]w[/]\\x1b[2J", "0", "0", "100.0%"]

    found = json.loads(onefed("checkpoint", "diff", folder, 1, 3, "--json").out)
    assert (found["equal"], found["only_in_a"], found["only_in_b"]) == (False, [], [])
    assert (found["a"]["round"], found["b"]["round"]) == (1, 3)
    assert found["arrays"][0] == {
        "key": "layer/weight",
        "dtype_a": "float32",
        "dtype_b": "float32",
        "shape_a": [2, 3],
        "shape_b": [2, 3],
        "max_abs": 2.0,
        "relative_l2": 2.0,
        "equal_share": 0.0,
    }


def test_differences_are_what_they_are_over_many_parts(onefed: Run, tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    one = {"w": generator.normal(size=(600, 700)).astype(np.float32)}
    two = {"w": one["w"].copy()}
    two["w"][::2] += generator.normal(size=(300, 700)).astype(np.float32)
    for number, arrays in ((1, one), (2, two)):
        RecoveryStore(tmp_path).save(snapshot(number, arrays=arrays))
    [found] = json.loads(onefed("checkpoint", "diff", tmp_path, 1, 2, "--json").out)["arrays"]
    a, b = one["w"].astype(np.float64), two["w"].astype(np.float64)
    assert found["max_abs"] == np.abs(a - b).max()
    assert found["relative_l2"] == pytest.approx(np.linalg.norm(a - b) / np.linalg.norm(a))
    assert found["equal_share"] == np.mean(one["w"] == two["w"])


def test_arrays_of_one_side_and_of_other_shapes_are_named(onefed: Run, tmp_path: Path) -> None:
    for name, arrays in (
        ("a", {"w": np.zeros(2, np.float32), "x": np.zeros(2), "mine": np.zeros(1)}),
        ("b", {"w": np.zeros(2, np.float64), "x": np.zeros(3), NASTY: np.zeros(1)}),
    ):
        RecoveryStore(tmp_path / name).save(snapshot(1, arrays=arrays))
    shown = onefed("checkpoint", "diff", tmp_path / "a", 1, "--other", tmp_path / "b")
    assert shown.code == ExitCode.FAILED
    assert "only in a: mine" in shown.out
    assert "only in b: [red]w[/]\\x1b[2J" in shown.out
    assert "float32 (2,) and float64 (2,)" in shown.out
    assert "float64 (2,) and float64 (3,)" in shown.out


def test_zeros_of_other_sign_and_infinite_distances_are_told(onefed: Run, tmp_path: Path) -> None:
    for number, values in ((1, [0.0, 0.0, np.inf]), (2, [-0.0, np.inf, np.inf])):
        arrays = {"zero": np.array(values[:1]), "far": np.array(values[1:])}
        RecoveryStore(tmp_path).save(snapshot(number, arrays=arrays))
    shown = onefed("checkpoint", "diff", tmp_path, 1, 2, "--json")
    zero, far = json.loads(shown.out)["arrays"]
    assert shown.code == ExitCode.FAILED
    assert (zero["max_abs"], zero["relative_l2"], zero["equal_share"]) == (0, 0, 0)
    assert (far["max_abs"], far["equal_share"]) == ("inf", 0.5)


def test_one_round_of_one_folder_is_nothing_to_compare(onefed: Run, tmp_path: Path) -> None:
    assert onefed("checkpoint", "diff", recovery(tmp_path, 1), 1).code == ExitCode.USAGE


def test_a_damaged_side_is_an_error_and_no_difference(onefed: Run, tmp_path: Path) -> None:
    folder = recovery(tmp_path, 1, 2)
    flip(archive_of(folder, 2))
    assert onefed("checkpoint", "diff", folder, 1, 2).code == ExitCode.STORAGE


# --- prune ----------------------------------------------------------------------------------------


def rounds_in(onefed: Run, folder: Path) -> list[int]:
    [series] = json.loads(onefed("checkpoint", "list", folder, "--json").out)
    return [each["round"] for each in series["rounds"]]


def test_rounds_that_are_not_kept_go_and_a_dry_run_shows_which(onefed: Run, tmp_path: Path) -> None:
    folder = export(tmp_path, *range(1, 8))
    before = sorted(folder.iterdir())
    prune = ("checkpoint", "prune", folder, "--keep-last", 2, "--keep-every", 3)
    shown = onefed(*prune, "--dry-run")
    assert (shown.code, shown.err) == (0, "")
    assert "checkpoint_round_5.npz" in shown.out
    assert "Nothing was removed" in shown.out
    assert sorted(folder.iterdir()) == before

    shown = onefed(*prune, "--yes")
    assert shown.code == 0
    assert "rounds that stay: 7, 6, 3" in shown.out
    assert rounds_in(onefed, folder) == [7, 6, 3]
    assert onefed("checkpoint", "verify", folder, "--all").code == 0
    assert "nothing to remove" in onefed(*prune, "--yes").out


def test_programs_are_told_what_went(onefed: Run, tmp_path: Path) -> None:
    folder = export(tmp_path, 1, 2, 3)
    prune = ("checkpoint", "prune", folder, "--keep-last", 1, "--json")
    shown = onefed(*prune)
    assert (shown.code, shown.out) == (ExitCode.USAGE, "")
    planned = json.loads(onefed(*prune, "--dry-run").out)
    assert (planned["dry_run"], planned["kept"]) == (True, None)
    done = json.loads(onefed(*prune, "--yes").out)
    assert done["files"] == planned["files"]
    assert done["kept"] == [3]
    assert not any(Path(each["path"]).exists() for each in done["files"])


def test_without_a_terminal_nothing_goes_unasked(onefed: Run, tmp_path: Path) -> None:
    folder = recovery(tmp_path, 1, 2, 3)
    shown = onefed("checkpoint", "prune", folder, "--keep-last", 1)
    assert shown.code == ExitCode.USAGE
    assert "--yes" in shown.err
    assert rounds_in(onefed, folder) == [3, 2, 1]


@pytest.mark.parametrize(("answer", "left"), [("y", [3]), ("n", [3, 2, 1])])
def test_on_a_terminal_the_answer_decides(
    onefed: Run, tmp_path: Path, answer: str, left: list[int]
) -> None:
    folder = recovery(tmp_path, 1, 2, 3)
    ours, theirs = pty.openpty()
    command = [ONEFED, "checkpoint", "prune", folder, "--keep-last", "1"]
    done = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    os.write(ours, f"{answer}\n".encode())
    shown = b""
    while True:
        try:
            shown += os.read(ours, 4096)
        except OSError:  # the program has ended
            break
    os.close(ours)
    assert done.wait() == 0
    assert b"Remove 4 files" in shown
    assert rounds_in(onefed, folder) == left


def test_nothing_goes_without_a_word_on_what_stays(onefed: Run, tmp_path: Path) -> None:
    folder = recovery(tmp_path, 1, 2)
    assert onefed("checkpoint", "prune", folder, "--yes").code == ExitCode.USAGE
    export(folder, 1)
    shown = onefed("checkpoint", "prune", folder, "--keep-last", 1, "--yes")
    assert shown.code == ExitCode.USAGE
    assert "--kind" in shown.err


def test_older_rounds_stay_while_the_newest_is_damaged(onefed: Run, tmp_path: Path) -> None:
    folder = export(tmp_path, 1, 2, 3)
    flip(archive_of(folder, 3))
    shown = onefed("checkpoint", "prune", folder, "--keep-last", 1, "--yes")
    assert shown.code == ExitCode.STORAGE
    assert "round 3 is not whole" in shown.err
    assert rounds_in(onefed, folder) == [3, 2, 1]


def test_the_checkpoints_of_a_run_under_way_are_its_own(
    onefed: Run, finished: Run, hold: Run
) -> None:
    directory: StateDir = finished("demo")
    hold(directory)
    place = Paths(directory.root(SUPERLINK)).recovery
    for each in ("demo", place):
        shown = onefed("checkpoint", "prune", each, "--keep-last", 1, "--yes")
        assert shown.code == ExitCode.IN_USE
        assert onefed("checkpoint", "prune", each, "--keep-last", 1, "--dry-run").code == 0
    assert rounds_in(onefed, place) == [3, 2, 1]
