"""A group's view, folded from the logs of its members."""

from __future__ import annotations

from datetime import UTC, datetime

from onefed.telemetry import events, lines
from onefed.telemetry.group import GroupView, MemberView
from onefed.telemetry.lines import Record

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)


def said(by: str, event: events.Event) -> Record:
    read = lines.parse(lines.event_line(event, timestamp=NOW, role=by, source="x.py:1"))
    assert read is not None
    return read


def agreed(by: str, number: int, *contributors: str, model: str = "ab" * 32) -> Record:
    return said(by, events.PeerRound(number, model, ",".join(contributors), 1, 0.5))


def group(*records: Record) -> GroupView:
    view = GroupView({name: MemberView(name) for name in ("node-0", "node-1", "node-2")})
    view.read(records)
    return view


def test_a_round_counts_once_whoever_tells_of_it() -> None:
    view = group(
        agreed("node-0", 1, "node-0", "node-1", "node-2"),
        agreed("node-1", 1, "node-0", "node-1", "node-2"),
        agreed("node-1", 2, "node-1", "node-2", model="cd" * 32),
    )

    assert [(each.round, each.responded) for each in view.history] == [(1, 3), (2, 2)]
    assert view.rounds_done == 2
    assert {name: each.round_number for name, each in view.members.items()} == {
        "node-0": 1,
        "node-1": 2,
        "node-2": 0,
    }
    assert view.members["node-1"].model_sha256 == "cd" * 32
    assert [each.contributed for each in view.members.values()] == [1, 2, 2]
    assert view.left_seconds(6) == 4 * 0.5


def test_a_member_that_comes_back_and_tells_old_rounds_again_goes_not_back() -> None:
    view = group(agreed("node-0", 2, "node-0"), agreed("node-0", 1, "node-0", model="00" * 32))

    assert view.members["node-0"].round_number == 2
    assert view.members["node-0"].model_sha256 == "ab" * 32


def test_two_models_of_one_round_are_seen_whenever_they_are_told() -> None:
    view = group(agreed("node-0", 1, "node-0"), agreed("node-0", 2, "node-0"))
    view.read([agreed("node-1", 2, "node-0")])
    assert view.split is None

    view.read([agreed("node-1", 1, "node-0", model="00" * 32)])
    assert view.split == 1


def test_the_first_score_of_a_model_is_kept() -> None:
    view = group(
        said("node-0", events.EvaluationResult(1, 9.0, 0.1, 5)),  # of a round nobody tells of
        agreed("node-0", 1, "node-0"),
        said("node-0", events.EvaluationResult(1, 0.25, 0.75, 5)),
        said("node-1", events.EvaluationResult(1, 0.5, 0.5, 5)),
    )

    assert (view.rounds[1].view.loss, view.rounds[1].view.accuracy) == (0.25, 0.75)


def test_people_are_told_who_leads_and_what_is_wrong_and_nothing_else() -> None:
    view = group(
        said("node-0", events.PeerNotice("leader", "node-0 leads term 1")),
        said("node-0", events.PeerNotice("proposal", "Plan (1, 1)")),
        said("node-1", events.PeerNotice("no_quorum", "1 of 3 voters answer")),
        said("node-2", events.Notice("INFO", "nothing of note")),
        said("node-2", events.Notice("WARNING", "The disk is slow.")),
    )

    assert [each.partition(":")[0] for each in view.notices] == ["node-0", "node-1", "node-2"]


def test_what_an_app_could_not_train_is_its_members_trouble_until_it_goes_on() -> None:
    failed = events.ClientFailure(1, "node-1", "training", "1", "The app failed.")
    view = group(said("node-1", failed), said("node-1", failed))
    assert (view.failures, view.members["node-1"].reason) == (2, "The app failed.")

    view.read([agreed("node-1", 1, "node-0")])
    assert (view.failures, view.members["node-1"].reason) == (2, None)

    view.begin()  # another start
    assert (view.failures, view.rounds_done, list(view.notices)) == (0, 1, [])
