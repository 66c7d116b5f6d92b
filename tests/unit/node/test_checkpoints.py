"""Checkpoints of a node: the files of the contract, those on other disks, and coming back."""

from __future__ import annotations

import asyncio
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.node.conftest import (
    LIMIT_S,
    PACE,
    Group,
    ToyApp,
    by_the_rule,
    first_model,
    memory_group,
    trained,
)

from onefed import aggregate, arrays
from onefed.checkpoint.files import DamagedError
from onefed.node import NodeError
from onefed.node.checkpoints import About, Checkpoint, Folder, Kind, file, parcel, rejoin
from onefed.node.checkpoints import save_checkpoint as save
from onefed.node.codec import CodecError
from onefed.node.contact import family, predecessors, successor
from onefed.node.world import ContributionsError
from onefed.telemetry import events

FOUR = ("node-0", "node-1", "node-2", "node-3")
ABOUT = About(
    Kind.LOCAL, "x", "node-1", 3, "2026-11-25T12:00:00+00:00", ("a", "b"), ("a",), "f" * 64
)


def checkpoint(private: bytes | None = b"kept") -> Checkpoint:
    return Checkpoint(ABOUT, trained("node-1", first_model(), 3), private)


# Files


@pytest.mark.parametrize("private", [None, b"", b"kept", bytes(1000)])
def test_a_checkpoint_is_read_as_it_was_written(private: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "round_3_local.pkl"
    file.write(path, checkpoint(private))
    found = file.read(path)

    assert found.about == ABOUT
    assert arrays.digest(found.model) == arrays.digest(checkpoint().model)
    assert found.private == private
    assert found.digest == checkpoint(private).digest
    with zipfile.ZipFile(path) as members:  # not a pickle: numpy's own arrays in a zip file
        assert members.namelist()[0] == "arr_0.npy"


def test_every_change_of_a_byte_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "round_3_local.pkl"
    file.write(path, checkpoint())
    content = path.read_bytes()
    header_bytes = len(content) - content.index(b"PK")
    for place in [*range(0, len(content) - header_bytes, 37), content.index(b"\x93NUMPY") + 150]:
        damaged = bytearray(content)
        damaged[place] ^= 0x11
        path.write_bytes(damaged)
        with pytest.raises(DamagedError):
            file.read(path)
    for length in (0, 10, 60, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(DamagedError):
            file.read(path)


@pytest.mark.parametrize(
    ("address", "folder"),
    [
        ("node-0", "node-0"),
        ("127.0.0.1:9000", "127.0.0.1%3A9000"),
        ("unix:///tmp/x", "unix%3A%2F%2F%2Ftmp%2Fx"),
        ("..", "%2E%2E"),
    ],
)
def test_an_address_becomes_a_folder(address: str, folder: str, tmp_path: Path) -> None:
    path = file.place(tmp_path, "my run", address, 4, Kind.ROUND_FINISHED)

    assert path == tmp_path / "my%20run" / folder / "round_4_round_finished.pkl"


def test_what_cannot_be_read_is_told_and_the_next_one_is_taken(tmp_path: Path) -> None:
    """Scenario A7."""
    told: list[str] = []
    folder = Folder(tmp_path, "x", "node-1", warn=told.append)
    kinds = (Kind.LOCAL, Kind.AGGREGATED, Kind.ROUND_FINISHED)
    for number in (2, 3):
        for kind in kinds:
            about = About(kind, "x", "node-1", number, "now")
            folder.save(Checkpoint(about, first_model()))
    taken = []
    for number in (3, 2):
        for kind in kinds:
            found = folder.newest()
            assert found is not None
            taken.append((found.about.round_number, found.about.kind))
            path = file.place(tmp_path, "x", "node-1", number, kind)
            path.write_bytes(b"garbage")

    assert taken == [(number, kind) for number in (3, 2) for kind in kinds]
    assert folder.newest() is None
    assert any("round_3_local.pkl" in text for text in told)
    assert folder.newest(up_to=1) is None


def test_a_checkpoint_under_a_name_that_is_not_its_own_is_not_used(tmp_path: Path) -> None:
    folder = Folder(tmp_path, "x", "node-1")
    path = folder.save(Checkpoint(About(Kind.LOCAL, "x", "node-1", 3, "now"), first_model()))
    shutil.copy(path, path.with_name("round_7_local.pkl"))

    found = folder.newest()
    assert found is not None
    assert found.about.round_number == 3


def test_no_more_rounds_are_kept_than_wanted(tmp_path: Path) -> None:
    folder = Folder(tmp_path, "x", "node-1", kept_rounds=2)
    for number in range(1, 6):
        folder.save(Checkpoint(About(Kind.LOCAL, "x", "node-1", number, "now"), first_model()))

    assert folder.rounds("node-1") == [5, 4]


def test_what_others_are_to_keep_stays_until_they_are_to_keep_a_newer_one(tmp_path: Path) -> None:
    folder = Folder(tmp_path, "x", "node-1", kept_rounds=1)
    for number in range(1, 6):
        if number in (2, 5):
            folder.promised = number
        folder.save(Checkpoint(About(Kind.LOCAL, "x", "node-1", number, "now"), first_model()))
        assert folder.rounds("node-1") == {3: [3, 2], 4: [4, 2]}.get(number, [number])


# Parcels


@given(st.binary(max_size=300), st.booleans())
def test_base_and_difference_give_the_very_bits(private: bytes, whole: bool) -> None:
    """Scenario A9."""
    base = None if whole else trained("node-2", first_model(), 2)
    packed = parcel.pack(checkpoint(private), base)
    found = parcel.unpack(packed, first_model(), base)

    assert found.digest == checkpoint(private).digest
    assert found.about == ABOUT


@given(st.binary(max_size=200), st.integers(0, 10_000))
def test_bytes_that_are_no_parcel_are_refused(garbage: bytes, place: int) -> None:
    content = bytearray(parcel.pack(checkpoint(), None))
    content[place % len(content)] ^= 0x21
    for bad in (garbage, bytes(content)):
        try:
            found = parcel.unpack(bad, first_model(), None)
        except CodecError:
            continue
        # What is not covered by a digest of the arrays is by that of the parcel.
        assert found.digest != checkpoint().digest or found.model.keys() == first_model().keys()


def test_a_parcel_of_another_model_is_refused() -> None:
    other = {"w": np.zeros(3, np.float32)}
    packed = parcel.pack(checkpoint(), None)
    with pytest.raises(CodecError, match="another model"):
        parcel.unpack(packed, other, None)


def test_a_member_that_lost_its_disk_has_a_name_of_its_own() -> None:
    assert successor("node-0", {"node-0"}) == "r1-node-0"
    assert successor("r1-node-0", {"node-0", "r1-node-0"}) == "r2-node-0"
    assert predecessors("r2-node-0") == ("node-0", "r1-node-0")
    assert predecessors("node-0") == ()
    assert family("r2-node-0") == family("node-0") == "node-0"


# Nodes


def kept(group: Group, name: str) -> Path:
    return group.folder / name / "checkpoints" / "test"


def test_a_node_writes_the_files_of_the_contract_and_others_keep_its_own(tmp_path: Path) -> None:
    """Scenario A8, and where: on the disks of two other nodes, the same bits."""

    async def scenario() -> None:
        async with memory_group(tmp_path, rounds=6) as group:
            for name in FOUR:
                group.make(name).settings.general.REMOTE_CHECKPOINT_INTERVAL = 2
            await group.start(*FOUR, again=False)
            await group.until(group.all_at(6))

            def remotes(owner: str, number: int) -> list[Path]:
                name = f"round_{number}_remote.pkl"
                return [kept(group, n) / owner / name for n in FOUR if n != owner]

            await group.until(
                lambda: all(
                    sum(path.exists() for path in remotes(owner, number)) == 2
                    for owner in FOUR
                    for number in (2, 4, 6)
                )
            )
            for owner in FOUR:
                own = Folder(tmp_path / owner / "checkpoints", "test", owner)
                for number in range(1, 7):
                    for kind in (Kind.LOCAL, Kind.AGGREGATED, Kind.ROUND_FINISHED):
                        own.read(owner, number, kind)
                for number in (2, 4, 6):
                    local = own.read(owner, number, Kind.LOCAL)
                    for path in remotes(owner, number):
                        if path.exists():
                            assert file.read(path).digest == local.digest
                assert own.rounds(owner, Kind.REMOTE) == []
            finished = Folder(tmp_path / "node-0" / "checkpoints", "test", "node-0").read(
                "node-0", 6, Kind.ROUND_FINISHED
            )
            assert arrays.digest(finished.model) in group.models()
            assert finished.about.contributors == FOUR
            assert finished.about.state["rounds_total"] == 6
            assert set(finished.about.state["neighbours"]) == set(FOUR[1:])

    asyncio.run(scenario())


def test_a_node_whose_disk_is_wiped_gets_back_what_it_kept_for_itself(tmp_path: Path) -> None:
    """Scenario A5."""

    async def scenario() -> None:
        async with memory_group(tmp_path, rounds=16) as group:
            for name in FOUR:
                group.make(name).settings.general.REMOTE_CHECKPOINT_INTERVAL = 1
            await group.start(*FOUR, again=False)
            await group.until(group.all_at(4))
            failed = group.nodes["node-0"].state
            await group.kill("node-0")
            shutil.rmtree(tmp_path / "node-0")
            group.nodes["node-1"].leave("node-0")
            await group.until(lambda: "node-0" not in group.nodes["node-1"].state.voters)

            for app in group.apps.values():
                app.free.clear()  # the others wait for it, or the run would be over
            back = group.make("r1-node-0")
            await back.start()
            for node in group.nodes.values():
                node.connect(back.member)
                back.connect(node.member)
            assert await rejoin(failed, back.learner, back.communication_protocol)
            kept_rounds = {
                number
                for name in FOUR[1:]
                for number in Folder(tmp_path / name / "checkpoints", "test", name).rounds("node-0")
            }
            for name in group.apps:
                group.apps[name].free.set()
            await group.until(group.all_at(16))

            private = group.apps["r1-node-0"].privates[0]
            assert private is not None
            assert int(private.split()[1]) in sorted(kept_rounds)[-2:]  # two of three have answered
            assert "r1-node-0" in group.contributors()[-1]
            expected = by_the_rule(aggregate.rule("FedAvg"), group.contributors())
            assert group.models() == {arrays.digest(expected)}

    asyncio.run(scenario())


def test_a_node_that_lost_only_its_checkpoints_gets_back_what_others_keep(tmp_path: Path) -> None:
    """Scenario A5 to the letter. Its journal and its key are there: it keeps its name and vote."""

    async def scenario() -> None:
        async with memory_group(tmp_path, rounds=16) as group:
            group.pace = replace(PACE, straggler_floor_s=1e3, straggler_cap_s=1e3)
            for name in FOUR:
                group.make(name).settings.general.REMOTE_CHECKPOINT_INTERVAL = 1
            await group.start(*FOUR, again=False)
            await group.until(group.all_at(4))
            failed = group.nodes["node-0"].state
            await group.kill("node-0")
            for app in group.apps.values():
                app.free.clear()  # the others wait for it, or the run would be over
            lost = tmp_path / "node-0" / "checkpoints"
            own = Folder(lost, "test", "node-0")
            were = {number: own.read("node-0", number, Kind.LOCAL) for number in range(1, 5)}
            shutil.rmtree(lost)
            before = len(group.apps["node-0"].privates)

            back = group.make("node-0")
            await back.start()
            for node in group.nodes.values():
                node.connect(back.member)
                back.connect(node.member)
            assert await rejoin(failed, back.learner, back.communication_protocol)
            [number, *_] = own.rounds("node-0", Kind.REMOTE)
            restored = own.read("node-0", number, Kind.REMOTE)
            assert restored.digest == were[number].digest
            assert arrays.digest(back.learner.parameters) == arrays.digest(were[number].model)
            for name in group.apps:
                group.apps[name].free.set()
            await group.until(group.all_at(16))

            assert "node-0" in group.contributors()[-1]
            private = group.apps["node-0"].privates[before]
            assert private is not None
            assert int(private.split()[1]) >= 4, "its own, which is newer, was not lost"
            assert len(group.models()) == 1

    asyncio.run(scenario())


def test_a_node_of_which_nobody_keeps_anything_begins_afresh(tmp_path: Path) -> None:
    """Scenario A6."""

    async def scenario() -> None:
        async with memory_group(tmp_path, rounds=6) as group:
            group.pace = replace(PACE, straggler_floor_s=1e3, straggler_cap_s=1e3)
            for name in FOUR[:3]:
                group.make(name).settings.general.REMOTE_CHECKPOINT_INTERVAL = 0
            await group.start(*FOUR[:3], again=False)
            await group.until(group.all_at(1))
            failed = group.nodes["node-0"].state
            for app in group.apps.values():
                app.free.clear()  # the others wait for it, or the run would be over
            back = group.make("r1-node-3")
            await back.start()
            for node in group.nodes.values():
                node.connect(back.member)
                back.connect(node.member)
            gone = replace(failed, name="node-3")
            assert not await rejoin(gone, back.learner, back.communication_protocol)
            for name in group.apps:
                group.apps[name].free.set()
            await group.until(group.all_at(6))

            assert group.apps["r1-node-3"].privates[0] is None
            assert len(group.models()) == 1

    asyncio.run(scenario())


def test_whoever_waits_for_a_restore_is_told_when_the_node_fails(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with memory_group(tmp_path, rounds=16) as group:
            group.pace = replace(PACE, straggler_floor_s=0.2, straggler_cap_s=0.2)
            await group.start(*FOUR[:3])
            await group.until(group.all_at(1))
            gone = replace(group.nodes["node-0"].state, name="node-3")
            back = group.make("r1-node-3")
            await back.start()
            for node in group.nodes.values():
                node.connect(back.member)
                back.connect(node.member)
            for app in group.apps.values():
                app.free.clear()  # nobody contributes: the whole group fails before it is restored
            with pytest.raises(ContributionsError):
                await rejoin(gone, back.learner, back.communication_protocol)

    asyncio.run(scenario())


def test_a_node_on_its_own_disk_rejoins_with_its_own_checkpoint(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with memory_group(tmp_path, rounds=8) as group:
            await group.start(*FOUR)
            await group.until(group.all_at(2))
            failed = group.nodes["node-0"].state
            await group.kill("node-0")
            back = group.make("node-0")
            await back.start()
            for node in group.nodes.values():
                node.connect(back.member)
                back.connect(node.member)
            assert await rejoin(failed, back.learner, back.communication_protocol)
            await group.until(group.all_at(8))
            assert len(group.models()) == 1

            empty = replace(failed, rounds_total=0)
            with pytest.raises(NodeError, match="how many rounds"):
                await rejoin(empty, back.learner, back.communication_protocol, "another")

    asyncio.run(scenario())


def test_a_checkpoint_can_be_saved_at_any_time_with_an_evaluation(tmp_path: Path) -> None:
    class Judging(ToyApp):
        def evaluate(self, model: arrays.Arrays) -> dict[str, float]:
            return {"loss": float(np.abs(model["w"]).sum())}

    async def scenario() -> None:
        async with memory_group(tmp_path, rounds=2) as group:
            group.apps["node-0"] = Judging("node-0")
            await group.start(*FOUR)
            await group.until(group.all_at(2))
            node = group.nodes["node-0"]
            path = await save(
                state=node.state, learner=node.learner, round=2, include_evaluation=True
            )
            found = file.read(path)

            assert path.name == "round_2_local.pkl"
            assert found.about.metrics["loss"] > 0
            assert arrays.digest(found.model) == node.state.model_sha256
            told = [e for e in group.told["node-0"] if isinstance(e, events.PeerNotice)]
            assert any(str(path) in event.detail for event in told)

    asyncio.run(scenario())


def test_settings_of_a_node_count_when_they_are_changed(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with memory_group(tmp_path, rounds=6) as group:
            await group.start(*FOUR)
            group.apps["node-3"].free.clear()
            for node in group.nodes.values():
                node.settings.training.AGGREGATION_TIMEOUT = 0.3
            async with asyncio.timeout(LIMIT_S):
                await group.until(group.all_at(6))
            group.apps["node-3"].free.set()

            assert "node-3" not in group.contributors()[-1]
            assert len({id(node.settings) for node in group.nodes.values()}) == len(FOUR)

    asyncio.run(scenario())
