"""What a node knows after it has read its journal, whatever a power cut made of the end."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onefed.peer import journal
from onefed.peer.interface import (
    AcceptedRecord,
    CommittedRecord,
    EvictionRecord,
    IncarnationRecord,
    Record,
    VoteRecord,
)
from onefed.peer.messages import Ballot, Contribution, Entry, Eviction, Member

START = Entry(0, "start", 9, Ballot(0, 0), (Member("a", "host"), Member("b", "")), (), ())
FIRST = Entry(
    1, "first", 9, Ballot(2, 1), START.roster, (Contribution("a", 3, "d", 9),), ("a", "a")
)
RECORDS: list[Record] = [
    IncarnationRecord(3),
    VoteRecord(2, "b"),
    AcceptedRecord(FIRST),
    CommittedRecord(FIRST),
    VoteRecord(4, None),
]


def written(records: list[Record], *, synced: int) -> tuple[bytes, int]:
    """A journal, and how many of its bytes are known to be on disk: ``synced`` records."""
    content = journal.header("a", "x", START)
    known = len(content)
    for index, record in enumerate(records):
        content += journal.encode(record, known)
        if index < synced:
            known = len(content)
    return content, known


def test_all_records_are_found_again() -> None:
    content, _ = written(RECORDS, synced=5)
    replayed = journal.replay(content, "a", "x")

    assert replayed.good_bytes == len(content)
    saved = replayed.saved
    assert (saved.term, saved.voted_for, saved.incarnation) == (4, None, 3)
    assert (saved.accepted, saved.commit) == (FIRST, FIRST)


@given(cut=st.integers(0, 10_000), synced=st.integers(0, 5), flip=st.integers(0, 10_000))
def test_a_torn_tail_is_cut_and_nothing_that_was_synced_is_lost(
    cut: int, synced: int, flip: int
) -> None:
    content, known = written(RECORDS[:synced], synced=synced)
    tail = b"".join(journal.encode(record, known) for record in RECORDS[synced:])
    torn = bytearray(content + tail[: cut % (len(tail) + 1)])
    if len(torn) > known:
        torn[known + flip % (len(torn) - known)] ^= 0xFF
    replayed = journal.replay(bytes(torn), "a", "x")

    assert known <= replayed.good_bytes <= len(torn)
    assert replayed.saved == journal.replay(bytes(torn[: replayed.good_bytes]), "a", "x").saved
    if synced >= 3:
        assert replayed.saved.accepted == FIRST


@given(place=st.integers(0, 10_000))
def test_damage_of_what_was_on_disk_makes_a_node_refuse(place: int) -> None:
    content, _ = written(RECORDS, synced=5)
    last = len(journal.encode(RECORDS[-1], 0))
    damaged = bytearray(content)
    damaged[place % (len(content) - last)] ^= 0x10

    with pytest.raises(journal.JournalError, match="The journal"):
        journal.replay(bytes(damaged), "a", "x")


@given(st.lists(st.sampled_from(RECORDS), max_size=12), st.integers(1, 20))
def test_a_compacted_journal_says_what_the_long_one_said(records: list[Record], cut: int) -> None:
    content, _ = written(records, synced=len(records))
    saved = journal.replay(content, "a", "x").saved
    short = journal.compacted("a", "x", saved)

    assert journal.replay(short, "a", "x") == journal.Replayed(saved, len(short))
    longer = short + journal.encode(VoteRecord(9, "b"), len(short))
    assert journal.replay(longer, "a", "x").saved == journal.after(saved, VoteRecord(9, "b"))
    torn = journal.replay(longer[:-cut], "a", "x")
    assert torn == journal.Replayed(saved, len(short))


@pytest.mark.parametrize(("node", "experiment"), [("b", "x"), ("a", "y")])
def test_the_journal_of_another_is_refused(node: str, experiment: str) -> None:
    content, _ = written(RECORDS, synced=5)

    with pytest.raises(journal.JournalError, match="is of the node 'a' in 'x'"):
        journal.replay(content, node, experiment)


def test_an_empty_journal_is_refused() -> None:
    with pytest.raises(journal.JournalError):
        journal.replay(b"", "a", "x")


def test_an_operators_decision_is_known_until_a_commit_takes_the_gone_off() -> None:
    said, _ = written([EvictionRecord(("b", "c"))], synced=1)
    decided = dataclasses.replace(
        FIRST, roster=START.roster[:1], evictions=(Eviction(0, "start", ("b",)),)
    )
    done, _ = written([EvictionRecord(("b",)), CommittedRecord(decided)], synced=2)

    assert journal.replay(said, "a", "x").saved.evicted == ("b", "c")
    assert journal.replay(done, "a", "x").saved.evicted == ()
    assert journal.replay(done, "a", "x").saved.commit == decided


def test_a_page_of_zeros_is_a_torn_tail_at_the_end_and_damage_before_it() -> None:
    content, known = written(RECORDS[:3], synced=3)
    tail = journal.encode(RECORDS[3], known)
    replayed = journal.replay(content + bytes(4096), "a", "x")
    assert (replayed.good_bytes, replayed.saved.accepted) == (len(content), FIRST)

    with pytest.raises(journal.JournalError, match="was on disk"):
        journal.replay(content[:-8] + bytes(4096) + tail, "a", "x")


def test_a_record_that_stands_there_twice_says_the_same() -> None:
    once, known = written(RECORDS, synced=5)
    twice = once + journal.encode(RECORDS[-1], known)

    assert journal.replay(twice, "a", "x").saved == journal.replay(once, "a", "x").saved


def test_a_journal_of_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "FORMAT_VERSION", journal.FORMAT_VERSION + 1)
    content, _ = written(RECORDS, synced=5)
    monkeypatch.undo()

    with pytest.raises(journal.JournalError, match="format version 2") as raised:
        journal.replay(content, "a", "x")
    assert "reads version 1" in (raised.value.hint or "")
