"""What a node keeps for itself, on other nodes' disks."""

from __future__ import annotations

from onefed.peer.interface import Action, Notice, Pack, Received, Started, Tick, Train
from onefed.peer.machine import Machine
from onefed.peer.messages import Ballot, Blob, Data, Entry, Member, Welcome
from onefed.peer.settings import Saved, Settings

ROSTER = tuple(Member(name, "") for name in ("n0", "n1", "n2"))
LOOKS_S = 5.0


def entry(round_number: int) -> Entry:
    return Entry(round_number, f"root-{round_number}", 12, Ballot(0, 0), ROSTER, (), ())


def test_a_node_looks_for_what_it_was_for_a_while_however_fast_the_others_go_on() -> None:
    """It gives nothing of its own away meanwhile, which was repeated by the same timer."""
    settings = Settings(
        member=Member("r1-n9", ""),
        experiment="test",
        rounds_total=999,
        stash_rounds=1,
        restores=("n9",),
        restore_s=LOOKS_S,
    )
    machine = Machine(settings, Saved(entry(0), models=("root-0",)), jitter=lambda: 0.5)
    actions: list[Action] = machine.step(0.0, Started())
    for number in range(1, 25):
        now_s = number / 4
        actions += machine.step(now_s, Tick())
        actions += machine.step(now_s, Received("n1", Welcome(entry(number))))
        actions += machine.step(now_s, Received("n1", Data(Blob(f"root-{number}"))))

    assert "not_restored" in [each.kind for each in actions if isinstance(each, Notice)]
    first = next(each for each in actions if isinstance(each, Pack | Train))
    assert isinstance(first, Train)
    assert any(isinstance(each, Pack) for each in actions)
