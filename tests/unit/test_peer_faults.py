"""The campaign of faults on real processes: its table, its page, and the nonsense that it sends."""

from __future__ import annotations

import itertools
import json
import random
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))  # campaigns lie beside src

from campaigns import peer_faults
from campaigns.peers import cells, hostile, table

from onefed.node import codec
from onefed.node.grpc_transport import TALK
from onefed.node.packing import Unpacker
from onefed.node.points import FOLLOWERS_ONLY, LEADERS_ONLY, POINTS
from onefed.node.transport import decode_chunk, header_unpacker
from onefed.peer.messages import Ack

ACK = codec.encode(Ack(1, 1, 1, 1, None, None, 1, ()))


def good_line(cell: str) -> dict[str, object]:
    return {"cell": cell, "equal": True, "outcome": "went on", "gap_s": 0.5, "load": 1.0}


def test_each_role_is_killed_at_each_stage_and_names_are_unique() -> None:
    names = [cell.what for cell in cells.matrix()]
    assert len(set(names)) == len(names)
    for point in POINTS:
        assert (f"kill -9 of the leader: {point}" in names) == (point not in FOLLOWERS_ONLY)
        assert (f"kill -9 of the follower: {point}" in names) == (point not in LEADERS_ONLY)
        assert (f"kill -9 of a joining node: {point}" in names) == (point not in LEADERS_ONLY)
    assert {cell.world for cell in cells.matrix()} == set(cells.WORLDS)


@pytest.mark.parametrize(
    "how", [{"equal": False}, {"outcome": "a committed round did not come"}, {"wrong": True}]
)
def test_a_cell_that_went_wrong_is_bad_and_the_page_says_so(how: dict[str, object]) -> None:
    line = {**good_line("a cell"), "commit": "abc", **how}
    assert not table.is_good(line)
    assert "**bad**" in table.page([line], cells=["a cell"])


def test_the_newest_result_of_a_cell_counts() -> None:
    lines = [
        {**good_line("a cell"), "commit": "old", "equal": False},
        {**good_line("a cell"), "commit": "new"},
        {
            "soak": 3,
            "seconds": 120.0,
            "faults": {"kill_all": 2},
            "rounds": 900,
            "equal": True,
            "outcome": "went on",
            "gap_median_s": 0.5,
            "gap_max_s": 3.0,
            "memory_before": 2**20,
            "memory_after": 2**20,
            "commit": "new",
        },
    ]
    page = table.page(lines, cells=["a cell"])
    assert "**bad**" not in page
    assert "2: 2 kill all" in page


def test_a_cell_that_was_run_for_the_same_sources_is_not_run_again(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    found = peer_faults.Results(path)
    found.commit = "abc"
    found.add(good_line("a cell"))
    found.add({**good_line("another"), "wrong": True})

    again = peer_faults.Results(path)
    again.commit = "abc"
    assert again.has("a cell")
    assert not again.has("another")
    again.commit = "other"
    assert not again.has("a cell")
    assert json.loads(path.read_text().splitlines()[0])["gap_s"] == 0.5


def is_refused(stream: str, frame: bytes) -> bool:
    """Whether a node ends the stream on which that comes."""
    try:
        if stream == TALK:
            codec.decode(frame)
            return False
        if stream == hostile.RAW:
            codec.decode(Unpacker().unpack(frame))
            return False
        chunk = decode_chunk(header_unpacker(), frame)
        return chunk.total_bytes > 2**30  # larger than any item of the group
    except codec.CodecError:
        return True


@pytest.mark.parametrize("kind", ["garbage", "oversized", "truncated"])
def test_nothing_of_the_nonsense_is_a_message(kind: str) -> None:
    """Otherwise the cell would show nothing."""
    frames = hostile.KINDS[kind](random.Random(1), [ACK])
    assert all(is_refused(*frame) for frame in itertools.islice(frames, 60))


def test_what_was_said_is_said_again_in_its_order_first() -> None:
    frames = hostile.KINDS["replayed"](random.Random(1), [b"1", b"2"])
    assert [frame for _, frame in itertools.islice(frames, 2)] == [b"1", b"2"]
